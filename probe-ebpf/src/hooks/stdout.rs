//! The standard output of CNI plugins: the result or the error object.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::macros::{fentry, tracepoint};
use aya_ebpf::programs::{FEntryContext, TracePointContext};
use probe_common::{Hook, Skip, Stdout};

use super::run;
use crate::current;
use crate::layout::{
    HAVE_PROBE_READ, ITER_COUNT, ITER_IOV, ITER_IS_IOVEC, ITER_IS_UBUF, ITER_KIND, ITER_KIND_MASK, ITER_UBUF,
    KIOCB_FILE, get,
};
use crate::maps::{CNI_RUNNING, PROCESSES};
use crate::read::{KernelPtr, field, file_of_current_task, pointer};
use crate::report::report;

// Offsets of the arguments in the record of every sys_enter_* tracepoint: eight bytes each, from 16 on.
const ARG_FD: usize = 16;
const ARG_BUF: usize = 24;
const ARG_COUNT: usize = 32;
/// `STDOUT_FILENO`, unistd.h.
const STDOUT: usize = 1;
/// Maximum number of buffers of one writev(2) that are copied: C libraries flush with two.
const MAX_BUFFERS: usize = 2;

/// fentry/`pipe_write` (`anon_pipe_write` from 6.15 on), fs/pipe.c: (struct kiocb *iocb, struct iov_iter
/// *from). Runtimes read a plugin's output through a pipe, so the program runs for writes to pipes only; both
/// write(2) and writev(2) call this function.
#[fentry(function = "pipe_write")]
pub(crate) fn pipe_write(ctx: FEntryContext) -> i32 {
    run!(Hook::Write, try_pipe_write(&ctx))
}

#[inline(always)]
fn try_pipe_write(ctx: &FEntryContext) -> Result<(), Skip> {
    if !is_cni_process() || get(&HAVE_PROBE_READ) == 0 {
        return Ok(());
    }
    let iocb: *const u8 = ctx.arg(0);
    let from: *const u8 = ctx.arg(1);
    // SAFETY: typed arguments; each pointer behind them is checked for null.
    unsafe {
        let target = pointer(iocb, &KIOCB_FILE).map(KernelPtr::address);
        if target.is_none() || target != file_of_current_task(STDOUT).map(KernelPtr::address) {
            return Ok(());
        }
        let kind = usize::from(field::<u8>(from, &ITER_KIND)) & get(&ITER_KIND_MASK);
        if get(&ITER_UBUF) != 0 && kind == get(&ITER_IS_UBUF) {
            return written(field(from, &ITER_UBUF), field(from, &ITER_COUNT));
        }
        if kind != get(&ITER_IS_IOVEC) {
            return Ok(());
        }
        let Some(iov) = pointer(from, &ITER_IOV) else { return Ok(()) };
        let mut left: u64 = field(from, &ITER_COUNT);
        for index in 0..MAX_BUFFERS {
            // struct iovec, include/uapi/linux/uio.h: address, then length.
            let buffer = (iov.address() as *const [u64; 2]).wrapping_add(index);
            let [base, len] = bpf_probe_read_kernel(buffer).map_err(|_| Skip::Unreadable)?;
            if len > 0 {
                written(base, len)?;
            }
            if len >= left {
                break;
            }
            left -= len;
        }
    }
    Ok(())
}

/// tracepoint/syscalls/sys_enter_write: the fallback if fentry does not load.
#[tracepoint(category = "syscalls", name = "sys_enter_write")]
pub(crate) fn sys_enter_write(ctx: TracePointContext) -> u32 {
    run!(Hook::Write, try_write(&ctx))
}

#[inline(always)]
fn argument(ctx: &TracePointContext, offset: usize) -> u64 {
    // SAFETY: the record of sys_enter_write contains three arguments.
    unsafe { core::ptr::read_volatile(ctx.as_ptr().add(offset).cast()) }
}

#[inline(always)]
fn try_write(ctx: &TracePointContext) -> Result<(), Skip> {
    if argument(ctx, ARG_FD) != STDOUT as u64 || !is_cni_process() || get(&HAVE_PROBE_READ) == 0 {
        return Ok(());
    }
    written(argument(ctx, ARG_BUF), argument(ctx, ARG_COUNT))
}

#[inline(always)]
fn is_cni_process() -> bool {
    if CNI_RUNNING.get(0).is_none_or(|running| *running == 0) {
        return false;
    }
    // SAFETY: a live map value.
    PROCESSES.get_ptr(current::tgid()).is_some_and(|state| unsafe { (*state).cni } != 0)
}

#[inline(always)]
fn written(buffer: u64, asked: u64) -> Result<(), Skip> {
    let len;
    report!(Stdout {
        task: current::task(),
        asked,
        _pad: 0,
        data(to): len = to.user_bytes(buffer, asked)?,
        len,
    })
}
