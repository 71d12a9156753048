//! TCP sockets: the end of connects and connections, and listeners.

use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use probe_common::{Hook, Skip};

use super::run;
use crate::connects;
use crate::layout::SOCK_PROTOCOL;
use crate::read::field;

mod connect;
mod connection;
mod icmp;
mod listen;
mod socket;

// include/net/tcp_states.h
const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_SENT: i32 = 2;
const TCP_CLOSE: i32 = 7;
const TCP_LISTEN: i32 = 10;
/// include/uapi/linux/in.h. All 16 bits must be compared: IPPROTO_MPTCP is 262, and 262 & 0xff is 6.
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
        return connect::ended(sk, new);
    }
    if old == TCP_ESTABLISHED {
        return connection::ended(sk, new);
    }
    // Only transitions between LISTEN and CLOSE count. An accepted socket starts as a copy of its listener
    // and shows LISTEN -> SYN_RECV, and an MPTCP socket shows LISTEN -> LISTEN beside its real TCP socket.
    let listens = matches!((old, new), (TCP_CLOSE, TCP_LISTEN) | (TCP_LISTEN, TCP_CLOSE));
    if new == TCP_SYN_SENT || listens {
        // SAFETY: `sk` is the program's own typed argument.
        let protocol: u16 = unsafe { field(sk, &SOCK_PROTOCOL) };
        if protocol == IPPROTO_TCP {
            return if new == TCP_SYN_SENT {
                connect::started(sk)
            } else {
                listen::changed(sk, new == TCP_LISTEN)
            };
        }
    }
    Ok(())
}

/// proto(v5.10): include/trace/events/tcp.h: (struct sock *sk). Only the address of the socket is needed, so
/// the program is untyped: newer kernels search their type information at every load of a typed one.
#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub(crate) fn tcp_receive_reset(ctx: RawTracePointContext) -> i32 {
    if let Some(pending) = connects::find(ctx.arg::<u64>(0)) {
        // SAFETY: a live map value; only this socket's softirq writes the field.
        unsafe { (*pending).rst = 1 };
    }
    0
}

/// proto(v5.10): include/trace/events/tcp.h: (const struct sock *sk, const struct sk_buff *skb). Untyped as
/// above.
#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub(crate) fn tcp_retransmit_skb(ctx: RawTracePointContext) -> i32 {
    if let Some(pending) = connects::find(ctx.arg::<u64>(0)) {
        // SAFETY: a live map value; only this socket's timer writes the field.
        unsafe { (*pending).retransmits += 1 };
    }
    0
}
