//! What CNI plugins write to their standard output: the result or the error object.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use probe_common::{Code, Hook, STDOUT_LEN, Skip, Stdout};

use super::run;
use crate::emit::{current_netns, current_tgid, record, write_current};
use crate::maps::{CNI_RUNNING, PROCESSES};

// Where the arguments stand in every sys_enter_* record: eight bytes each, from 16 on.
const ARG_FD: usize = 16;
const ARG_BUF: usize = 24;
const ARG_COUNT: usize = 32;

/// tracepoint/syscalls/sys_enter_write
#[tracepoint(category = "syscalls", name = "sys_enter_write")]
pub(crate) fn sys_enter_write(ctx: TracePointContext) -> u32 {
    run!(Hook::SysEnterWrite, try_write(&ctx))
}

#[inline(always)]
fn argument(ctx: &TracePointContext, offset: usize) -> u64 {
    // SAFETY: the record of sys_enter_write holds three arguments.
    unsafe { core::ptr::read_volatile(ctx.as_ptr().add(offset).cast()) }
}

#[inline(always)]
fn try_write(ctx: &TracePointContext) -> Result<(), Skip> {
    if CNI_RUNNING.get(0).is_none_or(|running| *running == 0) || argument(ctx, ARG_FD) != 1 {
        return Ok(());
    }
    match PROCESSES.get_ptr(current_tgid()) {
        // SAFETY: a live map value.
        Some(state) if unsafe { (*state).cni } != 0 => {}
        _ => return Ok(()),
    }
    let asked = argument(ctx, ARG_COUNT);
    let len = if asked > STDOUT_LEN as u64 { STDOUT_LEN as u64 } else { asked };
    let netns = current_netns();
    let mut entry = record::<Stdout>(Code::Stdout)?;
    let r = entry.as_mut_ptr();
    // SAFETY: `r` is the reserved record; `len` is at most the size of `data`; the helper checks the
    // source and zeroes what it could not read.
    let read = unsafe {
        write_current(&raw mut (*r).task, netns);
        (&raw mut (*r).asked).write(asked);
        (&raw mut (*r)._pad).write(0);
        bpf_probe_read_user((&raw mut (*r).data).cast(), len as u32, argument(ctx, ARG_BUF) as *const _)
    };
    if read != 0 {
        entry.discard(0);
        return Err(Skip::Unreadable);
    }
    // SAFETY: as above.
    unsafe { (&raw mut (*r).len).write(len as u32) };
    entry.submit(0);
    Ok(())
}
