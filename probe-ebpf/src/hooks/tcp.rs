//! TCP sockets: how connects end, which listeners come and go.

use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_skc_to_tcp_sock, bpf_task_pt_regs,
};
use aya_ebpf::helpers::{bpf_probe_read_kernel, bpf_probe_read_user};
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use probe_common::{Code, ConnectEnd, ConnectionEnd, Hook, Listen, Skip, Task};

use super::run;
use crate::connects;
use crate::emit::{current_pid_level, current_tgid, now, record, record_of_current, write_current};
use crate::filter::{AF_INET, AF_INET6, Address, address_watched, pair, port_watched, process_watched};
use crate::layout::{
    HAVE_PROBE_READ, HAVE_TASK_PT_REGS, NET_INUM, NR_CONNECT, REGS_ARG2, REGS_SYSCALL, SK_BUFF_CB,
    SK_BUFF_HEAD, SK_BUFF_NETWORK_HEADER, SOCK_DADDR, SOCK_DPORT, SOCK_ERR, SOCK_ERR_SOFT,
    SOCK_ERROR_QUEUE_PREV, SOCK_ERROR_QUEUE_QLEN, SOCK_EXTERR_EE, SOCK_FAMILY, SOCK_NET, SOCK_NUM,
    SOCK_PROTOCOL, SOCK_RCV_SADDR, SOCK_V6_DADDR, SOCK_V6_RCV_SADDR, TCP_BYTES_ACKED, TCP_BYTES_RECEIVED,
    TCP_BYTES_SENT, TCP_SEGS_IN, get,
};
use crate::maps::Pending;
use crate::origin;
use crate::read::{current, field, pointer};

// include/net/tcp_states.h
const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_SENT: i32 = 2;
const TCP_CLOSE: i32 = 7;
const TCP_LISTEN: i32 = 10;
/// include/uapi/asm-generic/errno.h
const ECONNREFUSED: u32 = 111;
/// include/uapi/linux/in.h. The full 16 bits count: IPPROTO_MPTCP is 262, and 262 & 0xff is 6.
const IPPROTO_TCP: u16 = 6;

/// proto(v5.10): include/trace/events/sock.h: (const struct sock *sk, const int oldstate, const int newstate)
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    run!(Hook::InetSockSetState, try_set_state(&ctx))
}

#[inline(always)]
fn try_set_state(ctx: &BtfTracePointContext) -> Result<(), Skip> {
    let sk: *const u8 = ctx.arg(0);
    let old: i32 = ctx.arg(1);
    let new: i32 = ctx.arg(2);
    if old == TCP_SYN_SENT {
        return connect_ended(sk, new);
    }
    if old == TCP_ESTABLISHED {
        return connection_ended(sk, new);
    }
    // Only between LISTEN and CLOSE: an accepted socket starts as a copy of its listener and shows
    // LISTEN -> SYN_RECV, an MPTCP socket LISTEN -> LISTEN beside its real TCP socket.
    let listens = matches!((old, new), (TCP_CLOSE, TCP_LISTEN) | (TCP_LISTEN, TCP_CLOSE));
    if new == TCP_SYN_SENT || listens {
        // SAFETY: `sk` is the program's own typed argument.
        let protocol: u16 = unsafe { field(sk, &SOCK_PROTOCOL) };
        if protocol == IPPROTO_TCP {
            return if new == TCP_SYN_SENT {
                connect_started(sk)
            } else {
                listen_changed(sk, new == TCP_LISTEN)
            };
        }
    }
    Ok(())
}

#[inline(always)]
fn remote(sk: *const u8) -> (Address, u16) {
    // SAFETY: `sk` is the program's own typed argument.
    unsafe {
        let port = u16::from_be(field(sk, &SOCK_DPORT));
        let family: u16 = field(sk, &SOCK_FAMILY);
        let address =
            if family == AF_INET6 { v6(sk, &SOCK_V6_DADDR) } else { Address::v4(field(sk, &SOCK_DADDR)) };
        (address, port)
    }
}

#[inline(always)]
fn local(sk: *const u8) -> Address {
    // SAFETY: as above.
    unsafe {
        let family: u16 = field(sk, &SOCK_FAMILY);
        if family == AF_INET6 { v6(sk, &SOCK_V6_RCV_SADDR) } else { Address::v4(field(sk, &SOCK_RCV_SADDR)) }
    }
}

/// # Safety
/// As [`field`]. The four words of an address are 4-byte aligned only.
#[inline(always)]
unsafe fn v6(sk: *const u8, offset: &'static u32) -> Address {
    // SAFETY: by the caller; an in6_addr is sixteen bytes.
    unsafe {
        let word = |index: usize| core::ptr::read_volatile(sk.add(get(offset) + index * 4).cast::<u32>());
        Address::v6([pair(word(0), word(1)), pair(word(2), word(3))])
    }
}

#[inline(always)]
fn netns_of(sk: *const u8) -> u32 {
    // SAFETY: `sk` is the program's own typed argument, and the pointer is checked.
    unsafe { pointer(sk, &SOCK_NET).map_or(0, |net| net.field(&NET_INUM)) }
}

/// Runs in the context of the process that called connect(2); the end may run in any.
#[inline(always)]
fn connect_started(sk: *const u8) -> Result<(), Skip> {
    let (address, port) = remote(sk);
    let (asked, asked_port) = asked();
    // SAFETY: no precondition.
    let id = unsafe { bpf_get_current_pid_tgid() };
    let tgid = (id >> 32) as u32;
    if !address_watched(address, port) && !address_watched(asked, asked_port) && !process_watched(tgid) {
        // Of an earlier socket at this address, if the kernel skipped the program that would have seen its end.
        if connects::find(sk as u64).is_some() {
            connects::remove(sk as u64);
        }
        return Ok(());
    }
    // SAFETY: no precondition.
    let uid = unsafe { bpf_get_current_uid_gid() } as u32;
    let comm = aya_ebpf::helpers::bpf_get_current_comm().unwrap_or_default();
    let task = Task {
        tgid,
        tid: id as u32,
        ppid: 0,
        netns: netns_of(sk),
        uid,
        pid_level: current_pid_level(),
        comm,
    };
    let pending = Pending {
        started_ns: now(),
        established_ns: 0,
        task,
        asked: asked.words,
        asked_port,
        asked_family: asked.family,
        retransmits: 0,
        rst: 0,
        dport: port.to_be(),
        sport: 0,
        dropped: 0,
    };
    let is_unlimited = origin::is_unlimited();
    if !is_unlimited {
        origin::spend()?;
    }
    connects::insert(sk as u64, &pending, is_unlimited)
}

/// The address that connect(2) was called with: an eBPF program of a Service implementation may have put
/// another one on the socket. The family is 0 where it is not known: before 5.15, for io_uring, and where user
/// memory cannot be read. (No `Option`: half of it would be memory that nobody has written, which verifiers
/// before 6.12 do not let a program copy.)
#[inline(always)]
fn asked() -> (Address, u16) {
    let nothing = (Address { words: [0; 2], family: 0 }, 0);
    if get(&HAVE_TASK_PT_REGS) == 0 || get(&HAVE_PROBE_READ) == 0 {
        return nothing;
    }
    // SAFETY: a typed pointer to the registers that the system call was entered with; the helper checks the
    // address that they hold. A whole struct sockaddr_in6 is read only where one was given.
    unsafe {
        let regs = bpf_task_pt_regs(current() as _) as *const u8;
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
fn connect_ended(sk: *const u8, state: i32) -> Result<(), Skip> {
    let Some(pending) = connects::find(sk as u64) else { return Ok(()) };
    // SAFETY: a live map value; only this socket's own transitions write it.
    let (port, sport) = unsafe { ((*pending).asked_port, (*pending).sport) };
    // SAFETY: the typed argument, and a live map value.
    if sport != 0 || !unsafe { is_of(sk, pending) } {
        connects::remove(sk as u64);
        return Ok(());
    }
    let done = report_end(sk, state, pending);
    // SAFETY: the typed argument.
    let dport = u16::from_be(unsafe { field(sk, &SOCK_DPORT) });
    if state == TCP_ESTABLISHED && (port_watched(dport) || port_watched(port)) {
        // Followed to its end: whether a byte came back is known only then.
        // SAFETY: as above.
        unsafe {
            (*pending).established_ns = now();
            (*pending).retransmits = 0;
            (*pending).rst = 0;
            (*pending).sport = field(sk, &SOCK_NUM);
        }
        return done;
    }
    // It was there a moment ago and nobody else ends this socket.
    connects::remove(sk as u64);
    done
}

#[inline(always)]
fn connection_ended(sk: *const u8, state: i32) -> Result<(), Skip> {
    let Some(pending) = connects::find(sk as u64) else { return Ok(()) };
    // SAFETY: the typed argument, and a live map value. A socket that is closed at once has given its port back.
    let is_same = unsafe {
        let sport: u16 = field(sk, &SOCK_NUM);
        is_of(sk, pending) && (*pending).sport != 0 && (sport == 0 || sport == (*pending).sport)
    };
    let done = if is_same { report_connection_end(sk, state, pending) } else { Ok(()) };
    connects::remove(sk as u64);
    done
}

/// Returns whether this is known of the socket itself, and not of an earlier one at its address: the kernel may have skipped the
/// program that would have seen the end of that one.
///
/// # Safety
/// `sk` is the typed argument, `pending` a live map value.
#[inline(always)]
unsafe fn is_of(sk: *const u8, pending: *const Pending) -> bool {
    // SAFETY: by the caller.
    unsafe { (*pending).dport == field::<u16>(sk, &SOCK_DPORT) }
}

#[inline(always)]
fn report_connection_end(sk: *const u8, state: i32, pending: *const Pending) -> Result<(), Skip> {
    let (address, port) = remote(sk);
    // SAFETY: the helper takes any socket and answers with a typed pointer or null.
    let tcp = unsafe { bpf_skc_to_tcp_sock(sk as *mut _) } as *const u8;
    if tcp.is_null() {
        return Ok(());
    }
    let mut entry = record::<ConnectionEnd>(Code::ConnectionEnd)?;
    let r = entry.as_mut_ptr();
    // SAFETY: `r` is the reserved record; `pending` is a live map value; the pointers are typed.
    unsafe {
        (&raw mut (*r).task).cast::<[u64; 5]>().write((&raw const (*pending).task).cast::<[u64; 5]>().read());
        (&raw mut (*r).established_ns).write((*pending).established_ns);
        (&raw mut (*r).daddr).cast::<[u64; 2]>().write(address.words);
        (&raw mut (*r).dport).write(port);
        (&raw mut (*r).family).write(address.family);
        (&raw mut (*r).state).write(state as u8);
        (&raw mut (*r).flags).write(flags(pending));
        (&raw mut (*r).sport).write(field(sk, &SOCK_NUM));
        (&raw mut (*r).sk_err).write(field(sk, &SOCK_ERR));
        (&raw mut (*r).retransmits).write(u32::from((*pending).retransmits));
        (&raw mut (*r).bytes_received).write(field(tcp, &TCP_BYTES_RECEIVED));
        (&raw mut (*r).bytes_acked).write(field(tcp, &TCP_BYTES_ACKED));
        (&raw mut (*r).bytes_sent).write(field(tcp, &TCP_BYTES_SENT));
        (&raw mut (*r).asked).cast::<[u64; 2]>().write((*pending).asked);
        (&raw mut (*r).asked_port).write((*pending).asked_port);
        (&raw mut (*r).asked_family).write((*pending).asked_family);
        (&raw mut (*r)._pad).cast::<u32>().write(0);
    }
    entry.submit(0);
    Ok(())
}

/// # Safety
/// `pending` is a live map value.
#[inline(always)]
unsafe fn flags(pending: *const Pending) -> u8 {
    // SAFETY: by the caller.
    unsafe {
        let rst = if (*pending).rst != 0 { ConnectEnd::RST } else { 0 };
        let by_caller = if current_tgid() == (*pending).task.tgid { ConnectEnd::BY_CALLER } else { 0 };
        let asked = if (*pending).asked_family != 0 { ConnectEnd::ASKED } else { 0 };
        rst | by_caller | asked
    }
}

#[inline(always)]
fn report_end(sk: *const u8, state: i32, pending: *const Pending) -> Result<(), Skip> {
    let (address, port) = remote(sk);
    let own = local(sk);
    let mut entry = record::<ConnectEnd>(Code::ConnectEnd)?;
    let r = entry.as_mut_ptr();
    // SAFETY: `r` is the reserved record; `pending` is a live map value; `sk` is the typed argument.
    unsafe {
        let mut flags = flags(pending);
        (&raw mut (*r).task).cast::<[u64; 5]>().write((&raw const (*pending).task).cast::<[u64; 5]>().read());
        (&raw mut (*r).started_ns).write((*pending).started_ns);
        (&raw mut (*r).saddr).cast::<[u64; 2]>().write(own.words);
        (&raw mut (*r).daddr).cast::<[u64; 2]>().write(address.words);
        (&raw mut (*r).sport).write(field(sk, &SOCK_NUM));
        (&raw mut (*r).dport).write(port);
        (&raw mut (*r).family).write(address.family);
        (&raw mut (*r).state).write(state as u8);
        (&raw mut (*r).sk_err).write(field(sk, &SOCK_ERR));
        (&raw mut (*r).sk_err_soft).write(field(sk, &SOCK_ERR_SOFT));
        (&raw mut (*r).retransmits).write(u32::from((*pending).retransmits));
        (&raw mut (*r).icmp_origin).cast::<u32>().write(0);
        (&raw mut (*r).icmp_from).cast::<u32>().write(0);
        (&raw mut (*r).asked).cast::<[u64; 2]>().write((*pending).asked);
        (&raw mut (*r).asked_port).write((*pending).asked_port);
        (&raw mut (*r).asked_family).write((*pending).asked_family);
        (&raw mut (*r).dropped).write((*pending).dropped);
        (&raw mut (*r)._pad2).write(0);
        if state == TCP_CLOSE {
            flags |= write_icmp(sk, r);
            if was_reset(sk) {
                flags |= ConnectEnd::RST;
            }
        }
        (&raw mut (*r).flags).write(flags);
    }
    entry.submit(0);
    Ok(())
}

/// Returns whether a segment refused the connect, and not an ICMP message. The kernel may have skipped [`tcp_receive_reset`] for
/// it.
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

/// Copies the newest entry of the socket's error queue: for a non-blocking connect that was answered while
/// connect(2) still held the socket it is the only trace of the ICMP message. Returns the flags to set.
///
/// # Safety
/// `sk` is the typed argument, `r` the reserved record.
#[inline(always)]
unsafe fn write_icmp(sk: *const u8, r: *mut ConnectEnd) -> u8 {
    // SAFETY: by the caller; the queue is not empty, so its tail is an sk_buff.
    unsafe {
        let queued: u32 = field(sk, &SOCK_ERROR_QUEUE_QLEN);
        if queued == 0 {
            return 0;
        }
        let Some(skb) = pointer(sk, &SOCK_ERROR_QUEUE_PREV) else { return 0 };
        // struct sock_extended_err, include/uapi/linux/errqueue.h: errno u32, origin, type, code.
        let at = get(&SK_BUFF_CB) + get(&SOCK_EXTERR_EE);
        let byte = |offset: usize| skb.at::<u8>(at + offset);
        let origin = byte(4);
        (&raw mut (*r).icmp_origin).write(origin);
        (&raw mut (*r).icmp_type).write(byte(5));
        (&raw mut (*r).icmp_code).write(byte(6));
        // SO_EE_ORIGIN_ICMP = 2. The queued buffer still has the ICMP message's own IP header; its source
        // stands 12 bytes into it (RFC 791).
        if origin != 2 || get(&HAVE_PROBE_READ) == 0 {
            return ConnectEnd::ICMP;
        }
        let head: u64 = skb.field(&SK_BUFF_HEAD);
        let network: u16 = skb.field(&SK_BUFF_NETWORK_HEADER);
        let source = (head + u64::from(network) + 12) as *const [u8; 4];
        match bpf_probe_read_kernel(source) {
            Ok(source) => {
                (&raw mut (*r).icmp_from).write(source);
                ConnectEnd::ICMP | ConnectEnd::ICMP_FROM
            }
            Err(_) => ConnectEnd::ICMP,
        }
    }
}

#[inline(always)]
fn listen_changed(sk: *const u8, up: bool) -> Result<(), Skip> {
    // SAFETY: `sk` is the typed argument.
    let port: u16 = unsafe { field(sk, &SOCK_NUM) };
    if !port_watched(port) && !process_watched(current_tgid()) {
        return Ok(());
    }
    let own = local(sk);
    let netns = netns_of(sk);
    let mut entry = record_of_current::<Listen>(Code::Listen)?;
    let r = entry.as_mut_ptr();
    // SAFETY: `r` is the reserved record.
    unsafe {
        write_current(&raw mut (*r).task, netns);
        (&raw mut (*r).addr).cast::<[u64; 2]>().write(own.words);
        (&raw mut (*r).port).write(port);
        (&raw mut (*r).family).write(own.family);
        (&raw mut (*r).up).cast::<u32>().write(u32::from(up).to_le());
    }
    entry.submit(0);
    Ok(())
}

/// proto(v5.10): include/trace/events/tcp.h: (struct sock *sk). Only its address counts, so this needs no types,
/// for which newer kernels search long at every load.
#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub(crate) fn tcp_receive_reset(ctx: RawTracePointContext) -> i32 {
    if let Some(pending) = connects::find(ctx.arg::<u64>(0)) {
        // SAFETY: a live map value; only this socket's softirq writes it.
        unsafe { (*pending).rst = 1 };
    }
    0
}

/// proto(v5.10): include/trace/events/tcp.h: (const struct sock *sk, const struct sk_buff *skb). As above.
#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub(crate) fn tcp_retransmit_skb(ctx: RawTracePointContext) -> i32 {
    if let Some(pending) = connects::find(ctx.arg::<u64>(0)) {
        // SAFETY: a live map value; only this socket's timer writes it.
        unsafe { (*pending).retransmits += 1 };
    }
    0
}
