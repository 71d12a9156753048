//! Limits that a process hits, and modules that the kernel requests.

use aya_ebpf::macros::{fexit, raw_tracepoint, tracepoint};
use aya_ebpf::programs::{FExitContext, RawTracePointContext, TracePointContext};
use probe_common::{Hook, LimitHit, ModuleRequest, Skip};

use super::{run, sys_exit_ret};
use crate::current;
use crate::filter::process_watched;
use crate::layout::{HAVE_PROBE_READ, get};
use crate::report::report_charged;

/// fexit/`do_inotify_init`, fs/notify/inotify/inotify_user.c (v5.10): (int flags) -> int
#[fexit(function = "do_inotify_init")]
pub(crate) fn do_inotify_init(ctx: FExitContext) -> i32 {
    run!(Hook::InotifyInit, hit(LimitHit::INOTIFY, ctx.arg(1)))
}

/// tracepoint/syscalls/sys_exit_inotify_init1: the fallback if fexit does not load.
#[tracepoint(category = "syscalls", name = "sys_exit_inotify_init1")]
pub(crate) fn sys_exit_inotify_init1(ctx: TracePointContext) -> u32 {
    run!(Hook::InotifyInit, hit(LimitHit::INOTIFY, sys_exit_ret(&ctx) as i32))
}

/// fexit/`kernel_clone`, kernel/fork.c (v5.10): (struct kernel_clone_args *args) -> pid_t
#[fexit(function = "kernel_clone")]
pub(crate) fn kernel_clone(ctx: FExitContext) -> i32 {
    run!(Hook::Clone, hit(LimitHit::PROCESSES, ctx.arg(1)))
}

#[inline(always)]
fn hit(what: u32, ret: i32) -> Result<(), Skip> {
    if ret >= 0 || !process_watched(current::tgid()) {
        return Ok(());
    }
    report_charged!(LimitHit { task: current::task(), errno: ret.unsigned_abs(), what })
}

/// proto(v5.10): include/trace/events/module.h: (char *name, bool wait, unsigned long ip)
#[raw_tracepoint(tracepoint = "module_request")]
pub(crate) fn module_request(ctx: RawTracePointContext) -> i32 {
    run!(Hook::ModuleRequest, requested(ctx.arg(0)))
}

#[inline(always)]
fn requested(name: u64) -> Result<(), Skip> {
    if get(&HAVE_PROBE_READ) == 0 {
        return Ok(());
    }
    report_charged!(ModuleRequest {
        task: current::task(),
        name(to): to.kernel_text(name),
    })
}
