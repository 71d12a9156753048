//! Connects, from `SYN_SENT` to their end.

use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_skc_to_tcp_sock, bpf_task_pt_regs,
};
use probe_common::{ConnectEnd, Skip, Task};

use super::socket::{flags, is_of, local, netns, remote};
use super::{TCP_CLOSE, TCP_ESTABLISHED, icmp};
use crate::connects;
use crate::current::{self, now};
use crate::filter::{AF_INET, AF_INET6, Address, address_watched, pair, port_watched, process_watched};
use crate::layout::{
    HAVE_PROBE_READ, HAVE_TASK_PT_REGS, NR_CONNECT, REGS_ARG2, REGS_SYSCALL, SOCK_ERR, SOCK_ERR_SOFT,
    SOCK_NUM, TCP_SEGS_IN, get,
};
use crate::maps::Pending;
use crate::origin;
use crate::read::{current_task, field};
use crate::report::report;

/// include/uapi/asm-generic/errno.h
const ECONNREFUSED: u32 = 111;

/// Runs in the context of the process that called connect(2); the end of the connect may run in any context.
#[inline(always)]
pub(super) fn started(sk: *const u8) -> Result<(), Skip> {
    let (address, port) = remote(sk);
    let (asked, asked_port) = asked();
    // SAFETY: no precondition.
    let id = unsafe { bpf_get_current_pid_tgid() };
    let tgid = (id >> 32) as u32;
    if !address_watched(address, port) && !address_watched(asked, asked_port) && !process_watched(tgid) {
        // An entry of an earlier socket at this address, if the kernel skipped the program run that would
        // have seen its end.
        if connects::find(sk as u64).is_some() {
            connects::remove(sk as u64);
        }
        return Ok(());
    }
    // SAFETY: no precondition.
    let uid = unsafe { bpf_get_current_uid_gid() } as u32;
    let comm = current::comm();
    let task =
        Task { tgid, tid: id as u32, ppid: 0, netns: netns(sk), uid, pid_level: current::pid_level(), comm };
    let pending = Pending {
        started_ns: now(),
        established_ns: 0,
        task,
        asked: asked.bytes(),
        asked_port,
        asked_family: asked.family,
        retransmits: 0,
        rst: 0,
        dport: port,
        sport: 0,
        dropped: 0,
    };
    let is_unlimited = origin::is_unlimited();
    if !is_unlimited {
        origin::spend()?;
    }
    connects::insert(sk as u64, &pending, is_unlimited)
}

/// Returns the address and port that connect(2) was called with: an eBPF program of a Service implementation
/// may have rewritten the address of the socket. The family is 0 if they are not known: before Linux 5.15,
/// for io_uring, and where user memory cannot be read. (Not an `Option`: a part of it would be uninitialised
/// memory, which verifiers before 6.12 do not let a program copy.)
#[inline(always)]
fn asked() -> (Address, u16) {
    let nothing = (Address { words: [0; 2], family: 0 }, 0);
    if get(&HAVE_TASK_PT_REGS) == 0 || get(&HAVE_PROBE_READ) == 0 {
        return nothing;
    }
    // SAFETY: a typed pointer to the registers that the system call was entered with; the helper checks the
    // address in them. A whole struct sockaddr_in6 is read only if the family says that it is one.
    unsafe {
        let regs = bpf_task_pt_regs(current_task() as _) as *const u8;
        // Four bytes on arm64, the lower four of eight on x86-64.
        if field::<u32>(regs, &REGS_SYSCALL) as usize != get(&NR_CONNECT) {
            return nothing;
        }
        let sockaddr = field::<u64>(regs, &REGS_ARG2) as *const u8;
        let head: [u32; 2] = bpf_probe_read_user(sockaddr.cast()).unwrap_or_default();
        let port = u16::from_be((head[0] >> 16) as u16);
        match head[0] as u16 {
            AF_INET => (Address::v4(head[1]), port),
            AF_INET6 => {
                let words: [u32; 4] = bpf_probe_read_user(sockaddr.add(8).cast()).unwrap_or_default();
                (Address::v6([pair(words[0], words[1]), pair(words[2], words[3])]), port)
            }
            _ => nothing,
        }
    }
}

#[inline(always)]
pub(super) fn ended(sk: *const u8, state: i32) -> Result<(), Skip> {
    let Some(pending) = connects::find(sk as u64) else { return Ok(()) };
    let (address, port) = remote(sk);
    // SAFETY: a live map value; only this socket's own transitions write the fields read here.
    let known = unsafe { &*pending };
    if !is_of(known, sk, port, false) {
        connects::remove(sk as u64);
        return Ok(());
    }
    let done = report_end(sk, state, known, address, port);
    if state == TCP_ESTABLISHED && (port_watched(port) || port_watched(known.asked_port)) {
        // The entry stays until the connection ends: only then it is known whether a byte was received.
        // SAFETY: a live map value, and the typed argument.
        unsafe {
            (*pending).established_ns = now();
            (*pending).retransmits = 0;
            (*pending).rst = 0;
            (*pending).sport = field(sk, &SOCK_NUM);
        }
        return done;
    }
    connects::remove(sk as u64);
    done
}

#[inline(always)]
fn report_end(sk: *const u8, state: i32, pending: &Pending, address: Address, port: u16) -> Result<(), Skip> {
    let mut flags = flags(pending);
    let mut message = icmp::Message::default();
    if state == TCP_CLOSE {
        // SAFETY: `sk` is the typed argument.
        message = unsafe { icmp::newest(sk) };
        flags |= message.flags;
        // SAFETY: as above.
        if unsafe { was_reset(sk) } {
            flags |= ConnectEnd::RST;
        }
    }
    // SAFETY: `sk` is the typed argument.
    let (sport, sk_err, sk_err_soft) =
        unsafe { (field(sk, &SOCK_NUM), field(sk, &SOCK_ERR), field(sk, &SOCK_ERR_SOFT)) };
    report!(ConnectEnd {
        task: pending.task,
        started_ns: pending.started_ns,
        saddr: local(sk).bytes(),
        daddr: address.bytes(),
        asked: pending.asked,
        sport,
        dport: port,
        family: address.family,
        state: state as u8,
        flags,
        sk_err,
        sk_err_soft,
        retransmits: u32::from(pending.retransmits),
        icmp_origin: message.origin,
        icmp_type: message.kind,
        icmp_code: message.code,
        _pad: 0,
        icmp_from: message.from,
        asked_port: pending.asked_port,
        asked_family: pending.asked_family,
        dropped: pending.dropped,
        _pad2: 0,
    })
}

/// Returns whether a segment refused the connect, and not an ICMP message. The kernel may have skipped the
/// run of [`tcp_receive_reset`](super::tcp_receive_reset) for that segment.
///
/// # Safety
/// `sk` is the typed argument.
#[inline(always)]
unsafe fn was_reset(sk: *const u8) -> bool {
    // SAFETY: by the caller; the helper takes any socket and returns a typed pointer or null.
    unsafe {
        let tcp = bpf_skc_to_tcp_sock(sk as *mut _) as *const u8;
        let error: u32 = field(sk, &SOCK_ERR);
        error == ECONNREFUSED && !tcp.is_null() && field::<u32>(tcp, &TCP_SEGS_IN) != 0
    }
}
