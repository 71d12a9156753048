//! connect(2) calls that fail before a packet leaves: no socket state shows them.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::helpers::generated::bpf_task_pt_regs;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use probe_common::{Code, ConnectError, Hook, Skip};

use super::run;
use crate::emit::{current_netns, current_tgid, record, write_current};
use crate::filter::{AF_INET, AF_INET6, Address, address_watched, process_watched};
use crate::layout::{HAVE_TASK_PT_REGS, REGS_ARG2, get};
use crate::read::{current, field};

/// Where `ret` stands in every `sys_exit_*` record.
const SYS_EXIT_RET: usize = 16;

// include/uapi/asm-generic/errno.h: a connect under way, or one whose socket went through SYN_SENT.
const EINTR: i64 = 4;
const ERESTARTSYS: i64 = 512;
const EISCONN: i64 = 106;
const ETIMEDOUT: i64 = 110;
const ECONNREFUSED: i64 = 111;
const EALREADY: i64 = 114;
const EINPROGRESS: i64 = 115;
/// connect(2) of another family: AF_UNIX sockets that are not there.
const ENOENT: i64 = 2;

/// tracepoint/syscalls/sys_exit_connect; the address is taken from the registers of the system call.
#[tracepoint(category = "syscalls", name = "sys_exit_connect")]
pub(crate) fn sys_exit_connect(ctx: TracePointContext) -> u32 {
    run!(Hook::SysExitConnect, try_exit_connect(&ctx))
}

#[inline(always)]
fn try_exit_connect(ctx: &TracePointContext) -> Result<(), Skip> {
    // SAFETY: the record of every sys_exit tracepoint is at least 24 bytes.
    let ret: i64 = unsafe { core::ptr::read_volatile(ctx.as_ptr().add(SYS_EXIT_RET).cast()) };
    if ret >= 0 {
        return Ok(());
    }
    if let EINTR | ERESTARTSYS | EISCONN | ETIMEDOUT | ECONNREFUSED | EALREADY | EINPROGRESS | ENOENT = -ret {
        return Ok(());
    }
    if get(&HAVE_TASK_PT_REGS) == 0 {
        return Ok(());
    }
    // SAFETY: a typed pointer to the registers that the system call was entered with.
    let address = unsafe { field::<u64>(bpf_task_pt_regs(current() as _) as *const u8, &REGS_ARG2) };
    report(address as *const u8, -ret)
}

#[inline(always)]
fn report(sockaddr: *const u8, errno: i64) -> Result<(), Skip> {
    // SAFETY: the helper checks the address. struct sockaddr_in and sockaddr_in6 both start with the
    // family and the port.
    let (family, port) = unsafe {
        let [family, port]: [u16; 2] = bpf_probe_read_user(sockaddr.cast()).map_err(|_| Skip::Unreadable)?;
        (family, u16::from_be(port))
    };
    // SAFETY: as above; an IPv4 address follows the port, an IPv6 address the flow information after it.
    let address = unsafe {
        match family {
            AF_INET => bpf_probe_read_user(sockaddr.add(4).cast()).map(Address::v4),
            AF_INET6 => bpf_probe_read_user(sockaddr.add(8).cast()).map(Address::v6),
            _ => return Ok(()),
        }
    }
    .map_err(|_| Skip::Unreadable)?;
    if !address_watched(address, port) && !process_watched(current_tgid()) {
        return Ok(());
    }
    let netns = current_netns();
    let mut entry = record::<ConnectError>(Code::ConnectError)?;
    let r = entry.as_mut_ptr();
    // SAFETY: `r` is the reserved record.
    unsafe {
        write_current(&raw mut (*r).task, netns);
        (&raw mut (*r).daddr).cast::<[u64; 2]>().write(address.words);
        (&raw mut (*r).dport).write(port);
        (&raw mut (*r).family).write(address.family);
        (&raw mut (*r).errno).write(errno as u32);
    }
    entry.submit(0);
    Ok(())
}
