//! Network namespaces: created by unshare(2) or clone(2), destroyed by the kernel when the last user is gone.

use aya_ebpf::helpers::generated::bpf_task_pt_regs;
use aya_ebpf::macros::{btf_tracepoint, fexit, tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, FExitContext, TracePointContext};
use probe_common::{Hook, Netns, Skip};

use super::{run, sys_exit_ret};
use crate::current;
use crate::layout::{
    DEV_QUEUE_DEV, HAVE_NET_COUNT, HAVE_TASK_PT_REGS, NET_COUNT, NET_DEVICE_NAME, NET_DEVICE_NET, NET_INUM,
    NSPROXY_NET, QDISC_DEV_QUEUE, REGS_ARG1, TASK_NSPROXY, get,
};
use crate::read::{current_task, field, pointer};
use crate::report::report_charged;

/// include/uapi/linux/sched.h
const CLONE_NEWNET: u64 = 0x4000_0000;
/// `lo\0`, as the first bytes of a device name.
const LOOPBACK: [u8; 3] = *b"lo\0";

/// fexit/`ksys_unshare`, kernel/fork.c (v5.10): (unsigned long unshare_flags) -> int
#[fexit(function = "ksys_unshare")]
pub(crate) fn ksys_unshare(ctx: FExitContext) -> i32 {
    run!(Hook::Unshare, unshared(ctx.arg(0), i64::from(ctx.arg::<i32>(1))))
}

/// tracepoint/syscalls/sys_exit_unshare: the fallback if fexit does not load. The flags are read from the
/// registers of the system call.
#[tracepoint(category = "syscalls", name = "sys_exit_unshare")]
pub(crate) fn sys_exit_unshare(ctx: TracePointContext) -> u32 {
    run!(Hook::Unshare, try_unshare(&ctx))
}

#[inline(always)]
fn try_unshare(ctx: &TracePointContext) -> Result<(), Skip> {
    let ret = sys_exit_ret(ctx);
    if get(&HAVE_TASK_PT_REGS) == 0 {
        return Ok(());
    }
    // SAFETY: a typed pointer to the registers that the system call was entered with.
    let flags: u64 = unsafe { field(bpf_task_pt_regs(current_task() as _) as *const u8, &REGS_ARG1) };
    unshared(flags, ret)
}

#[inline(always)]
fn unshared(flags: u64, ret: i64) -> Result<(), Skip> {
    if ret != 0 || flags & CLONE_NEWNET == 0 {
        return Ok(());
    }
    changed(current::netns(), true)
}

/// proto(v5.10): include/trace/events/task.h: (struct task_struct *task, unsigned long clone_flags)
#[btf_tracepoint(function = "task_newtask")]
pub(crate) fn task_newtask(ctx: BtfTracePointContext) -> i32 {
    run!(Hook::TaskNewtask, try_newtask(&ctx))
}

#[inline(always)]
fn try_newtask(ctx: &BtfTracePointContext) -> Result<(), Skip> {
    let flags: u64 = ctx.arg(1);
    if flags & CLONE_NEWNET == 0 {
        return Ok(());
    }
    let child: *const u8 = ctx.arg(0);
    // SAFETY: `child` is the typed argument; each pointer behind it is checked for null.
    let inum = unsafe {
        let Some(nsproxy) = pointer(child, &TASK_NSPROXY) else { return Ok(()) };
        let Some(net) = nsproxy.pointer(&NSPROXY_NET) else { return Ok(()) };
        net.field(&NET_INUM)
    };
    changed(inum, true)
}

/// proto(v5.10): include/trace/events/qdisc.h: (struct Qdisc *q)
#[btf_tracepoint(function = "qdisc_destroy")]
pub(crate) fn qdisc_destroy(ctx: BtfTracePointContext) -> i32 {
    run!(Hook::QdiscDestroy, try_qdisc_destroy(&ctx))
}

#[inline(always)]
fn try_qdisc_destroy(ctx: &BtfTracePointContext) -> Result<(), Skip> {
    let qdisc: *const u8 = ctx.arg(0);
    // SAFETY: `qdisc` is the typed argument; each pointer behind it is checked for null.
    let inum = unsafe {
        let Some(queue) = pointer(qdisc, &QDISC_DEV_QUEUE) else { return Ok(()) };
        let Some(dev) = queue.pointer(&DEV_QUEUE_DEV) else { return Ok(()) };
        let name = get(&NET_DEVICE_NAME);
        for (index, byte) in LOOPBACK.iter().enumerate() {
            if dev.at::<u8>(name + index) != *byte {
                return Ok(());
            }
        }
        let Some(net) = dev.pointer(&NET_DEVICE_NET) else { return Ok(()) };
        if get(&HAVE_NET_COUNT) != 0 && net.field::<u32>(&NET_COUNT) != 0 {
            return Ok(());
        }
        net.field(&NET_INUM)
    };
    changed(inum, false)
}

#[inline(always)]
fn changed(inum: u32, up: bool) -> Result<(), Skip> {
    report_charged!(Netns { task: current::task(), inum, up: u8::from(up), _pad: [0; 3] })
}
