//! The programs, by subject.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::programs::TracePointContext;

mod connect;
mod drops;
mod exec;
mod exit;
mod files;
mod limits;
mod netns;
mod rtnetlink;
mod stdout;
mod tcp;

/// Runs the body of a hook and counts the reason if it could not report an event.
macro_rules! run {
    ($hook:expr, $body:expr) => {{
        if let Err(skip) = $body {
            crate::skip::count($hook, skip);
        }
        0
    }};
}
use run;

/// Offset of `ret` in the record of every `sys_exit_*` tracepoint, bytes.
const SYS_EXIT_RET: usize = 16;

/// Returns the return value of a system call, in a `sys_exit_*` tracepoint.
#[inline(always)]
fn sys_exit_ret(ctx: &TracePointContext) -> i64 {
    // SAFETY: the record of every sys_exit tracepoint is at least 24 bytes.
    unsafe { core::ptr::read_volatile(ctx.as_ptr().add(SYS_EXIT_RET).cast()) }
}
