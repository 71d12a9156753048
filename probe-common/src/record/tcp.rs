//! Records about TCP sockets.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Header, Task};

/// A TCP connect left `SYN_SENT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ConnectEnd {
    /// Time of the transition.
    pub header: Header,
    /// The caller of connect(2), stored when the socket entered `SYN_SENT`: the end of a connect runs in any
    /// context.
    pub task: Task,
    /// When the socket entered `SYN_SENT`; clock as in [`Header`].
    pub started_ns: u64,
    /// Local address; IPv4 in the first four bytes, the rest zero; IPv6 may be IPv4-mapped.
    pub saddr: [u8; 16],
    /// Address on the socket; layout as `saddr`.
    pub daddr: [u8; 16],
    /// Address that connect(2) was called with, layout as `saddr`; valid with flag `ASKED`. An eBPF program
    /// of a Service implementation may have rewritten it before it reached the socket.
    pub asked: [u8; 16],
    /// Local port, host byte order; 0 if the kernel had already released it.
    pub sport: u16,
    /// Remote port, host byte order.
    pub dport: u16,
    /// `AF_INET` = 2 or `AF_INET6` = 10.
    pub family: u16,
    /// `enum tcp_state`, include/net/tcp_states.h: the state entered (1 established, 7 closed).
    pub state: u8,
    /// Bits [`ConnectEnd::RST`], [`ConnectEnd::BY_CALLER`], [`ConnectEnd::ICMP`], [`ConnectEnd::ICMP_FROM`],
    /// [`ConnectEnd::ASKED`].
    pub flags: u8,
    /// `sk->sk_err` at the transition: positive errno or 0.
    pub sk_err: u32,
    /// `sk->sk_err_soft` at the transition: positive errno or 0.
    pub sk_err_soft: u32,
    /// SYN retransmissions that the kernel reported for this socket.
    pub retransmits: u32,
    /// `ee_origin` of the newest entry in the socket's error queue; valid with flag `ICMP`.
    pub icmp_origin: u8,
    /// `ee_type` of that entry.
    pub icmp_type: u8,
    /// `ee_code` of that entry.
    pub icmp_code: u8,
    /// Always zero.
    pub _pad: u8,
    /// IPv4 source of that ICMP message, network byte order; valid with flag `ICMP_FROM`.
    pub icmp_from: [u8; 4],
    /// Port that connect(2) was called with, host byte order; valid with flag `ASKED`.
    pub asked_port: u16,
    /// Family that connect(2) was called with, values as in `family`; valid with flag `ASKED`.
    pub asked_family: u16,
    /// `enum skb_drop_reason`, include/net/dropreason-core.h, of the newest packet of this socket that the
    /// host dropped; 0 if it dropped none. The numbers differ between kernels.
    pub dropped: u32,
    /// Always zero.
    pub _pad2: u32,
}

impl ConnectEnd {
    /// A TCP reset was received on this socket before the transition.
    pub const RST: u8 = 1;
    /// The transition ran in the context of the process that called connect(2): that process closed the
    /// socket.
    pub const BY_CALLER: u8 = 2;
    /// The `icmp_*` fields were read.
    pub const ICMP: u8 = 4;
    /// `icmp_from` was read.
    pub const ICMP_FROM: u8 = 8;
    /// `asked`, `asked_port` and `asked_family` were read.
    pub const ASKED: u8 = 16;
}

/// An established connection to a watched address left `ESTABLISHED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ConnectionEnd {
    /// Time of the transition.
    pub header: Header,
    /// The caller of connect(2).
    pub task: Task,
    /// When the connection was established; clock as in [`Header`].
    pub established_ns: u64,
    /// Address on the socket; layout as in [`ConnectEnd`].
    pub daddr: [u8; 16],
    /// Remote port, host byte order.
    pub dport: u16,
    /// `AF_INET` = 2 or `AF_INET6` = 10.
    pub family: u16,
    /// `enum tcp_state`: the state entered (4 `FIN_WAIT1`: closed by this host first, 7 `CLOSE`, 8
    /// `CLOSE_WAIT`: closed by the peer first).
    pub state: u8,
    /// Bits [`ConnectEnd::RST`], [`ConnectEnd::BY_CALLER`] and [`ConnectEnd::ASKED`].
    pub flags: u8,
    /// Local port, host byte order.
    pub sport: u16,
    /// `sk->sk_err` at the transition: positive errno or 0.
    pub sk_err: u32,
    /// Retransmitted segments since the connection was established.
    pub retransmits: u32,
    /// `tp->bytes_received`; the FIN of the peer counts as one byte.
    pub bytes_received: u64,
    /// `tp->bytes_acked`; the SYN counts as one byte.
    pub bytes_acked: u64,
    /// `tp->bytes_sent`, including retransmissions.
    pub bytes_sent: u64,
    /// As [`ConnectEnd::asked`]; valid with flag [`ConnectEnd::ASKED`].
    pub asked: [u8; 16],
    /// As [`ConnectEnd::asked_port`].
    pub asked_port: u16,
    /// As [`ConnectEnd::asked_family`].
    pub asked_family: u16,
    /// Always zero.
    pub _pad: [u8; 4],
}

/// connect(2) returned an error that no transition of the socket shows: no packet was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ConnectError {
    /// Time of the return to user space.
    pub header: Header,
    /// The caller.
    pub task: Task,
    /// Address that connect(2) was called with; layout as in [`ConnectEnd`].
    pub daddr: [u8; 16],
    /// Port that connect(2) was called with, host byte order.
    pub dport: u16,
    /// `AF_INET` = 2 or `AF_INET6` = 10.
    pub family: u16,
    /// Positive errno.
    pub errno: u32,
}

/// A TCP socket started or stopped listening.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Listen {
    /// Time of the transition.
    pub header: Header,
    /// The process that called listen(2), closed the socket, or exited with the socket open.
    pub task: Task,
    /// Local address; IPv4 in the first four bytes; all zero for the wildcard.
    pub addr: [u8; 16],
    /// Local port, host byte order.
    pub port: u16,
    /// `AF_INET` = 2 or `AF_INET6` = 10.
    pub family: u16,
    /// 1: started listening; 0: stopped.
    pub up: u8,
    /// Always zero.
    pub _pad: [u8; 3],
}
