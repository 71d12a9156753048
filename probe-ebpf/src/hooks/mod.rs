//! One file per family.

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

/// Runs the body of a hook and counts the reason when it could not report.
macro_rules! run {
    ($hook:expr, $body:expr) => {{
        if let Err(skip) = $body {
            crate::skip::count($hook, skip);
        }
        0
    }};
}
use run;

/// Where `ret` stands in every `sys_exit_*` record.
const SYS_EXIT_RET: usize = 16;

/// What a system call returned, in a `sys_exit_*` tracepoint of its own.
#[inline(always)]
fn sys_exit_ret(ctx: &TracePointContext) -> i64 {
    // SAFETY: the record of every sys_exit tracepoint is at least 24 bytes.
    unsafe { core::ptr::read_volatile(ctx.as_ptr().add(SYS_EXIT_RET).cast()) }
}
