//! Connects: the kernel's numbers, unjudged, with names.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use probe_common::{ConnectEnd, ConnectError, ConnectionEnd, UnixConnect, text};
use probe_engine::{Connect, ConnectEnd as End, Connection, Icmp, Observation};

use super::clients::Client;
use super::{DropReasons, VALUE_MAX, address};
use crate::text::clean;

/// include/net/tcp_states.h
const TCP_ESTABLISHED: u8 = 1;
const TCP_CLOSE_WAIT: u8 = 8;
/// `SO_EE_ORIGIN_ICMP6`, include/uapi/linux/errqueue.h; 2 is ICMP.
const ORIGIN_ICMP6: u8 = 3;
const ORIGIN_ICMP: u8 = 2;

/// A connect that left `SYN_SENT`.
pub(super) fn ended(
    record: &ConnectEnd,
    client: Client,
    host_netns: bool,
    drops: &DropReasons,
) -> Observation {
    let has = |flag| record.flags & flag != 0;
    let is_icmp = matches!(record.icmp_origin, ORIGIN_ICMP | ORIGIN_ICMP6);
    let icmp = (has(ConnectEnd::ICMP) && is_icmp).then(|| Icmp {
        v6: record.icmp_origin == ORIGIN_ICMP6,
        icmp_type: record.icmp_type,
        code: record.icmp_code,
        from: has(ConnectEnd::ICMP_FROM).then(|| IpAddr::V4(Ipv4Addr::from(record.icmp_from))),
    });
    let (to, via) = asked(
        SocketAddr::new(address(record.family, record.daddr), record.dport),
        has(ConnectEnd::ASKED),
        (record.asked_family, record.asked, record.asked_port),
    );
    Observation::Connect(Connect {
        client: client.actor,
        role: client.role,
        host_netns,
        to,
        via,
        took_ns: record.header.at_ns.saturating_sub(record.started_ns),
        end: End {
            established: record.state == TCP_ESTABLISHED,
            sk_err: record.sk_err,
            sk_err_soft: record.sk_err_soft,
            rst: has(ConnectEnd::RST),
            by_caller: has(ConnectEnd::BY_CALLER),
            retransmits: record.retransmits,
            icmp,
            dropped: dropped(record, drops),
            ..End::default()
        },
    })
}

/// Three seconds bring two retransmissions (RFC 6298: after one second, then after two).
const UNSENT_NS: u64 = 2_500_000_000;
const ETIMEDOUT: u32 = 110;

fn dropped(record: &ConnectEnd, drops: &DropReasons) -> Option<String> {
    if record.dropped != 0 {
        return Some(drops.names.get(&record.dropped).cloned().unwrap_or_else(|| "unknown".to_owned()));
    }
    let silent = matches!(record.sk_err, 0 | ETIMEDOUT)
        && record.state != TCP_ESTABLISHED
        && record.icmp_origin == 0
        && record.retransmits == 0
        && record.header.at_ns.saturating_sub(record.started_ns) >= UNSENT_NS;
    (drops.by_silence && silent).then(|| "unknown".to_owned())
}

/// What connect(2) was called with, and what stands on the socket when that is another address.
fn asked(
    on_socket: SocketAddr,
    known: bool,
    (family, bytes, port): (u16, [u8; 16], u16),
) -> (SocketAddr, Option<SocketAddr>) {
    let asked = SocketAddr::new(address(family, bytes), port);
    // The unspecified address is a way to write loopback, which is what stands on the socket then.
    if !known || asked == on_socket || asked.ip().is_unspecified() {
        (on_socket, None)
    } else {
        (asked, Some(on_socket))
    }
}

/// A connection that left `ESTABLISHED`.
pub(super) fn connection_ended(record: &ConnectionEnd, client: Client, host_netns: bool) -> Observation {
    let has = |flag| record.flags & flag != 0;
    let (to, _) = asked(
        SocketAddr::new(address(record.family, record.daddr), record.dport),
        has(ConnectEnd::ASKED),
        (record.asked_family, record.asked, record.asked_port),
    );
    let by_peer = record.state == TCP_CLOSE_WAIT || has(ConnectEnd::RST);
    Observation::Connection(Connection {
        client: client.actor,
        role: client.role,
        host_netns,
        to,
        age_ns: record.header.at_ns.saturating_sub(record.established_ns),
        // The kernel counts SYN and FIN.
        received: record.bytes_received.saturating_sub(u64::from(record.state == TCP_CLOSE_WAIT)),
        acked: record.bytes_acked.saturating_sub(1),
        ended: true,
        by_peer,
        rst: has(ConnectEnd::RST),
        sk_err: record.sk_err,
        unacked_ns: 0,
        unanswered_ns: 0,
        unanswered_bytes: 0,
    })
}

/// The path of a Unix socket as people write it.
pub(super) fn socket_path(record: &UnixConnect) -> String {
    match record.path.as_slice() {
        [0, name @ ..] => format!("@{}", clean(text(name), VALUE_MAX)),
        path => clean(text(path), VALUE_MAX),
    }
}

/// A connect(2) that failed before a packet left.
pub(super) fn failed(record: &ConnectError, client: Client, host_netns: bool) -> Observation {
    Observation::Connect(Connect {
        client: client.actor,
        role: client.role,
        host_netns,
        to: SocketAddr::new(address(record.family, record.daddr), record.dport),
        via: None,
        took_ns: 0,
        end: End { early_errno: record.errno, ..End::default() },
    })
}

/// How many ends are remembered: more threads than this rarely wait in connect(2) at once.
const REMEMBERED: usize = 64;

/// A blocking connect shows twice: as the end of its socket and as the error of its system call. The
/// second is dropped.
#[derive(Default)]
pub(super) struct EarlyErrors {
    ends: VecDeque<(u32, [u8; 16], u16, u64)>,
}

impl EarlyErrors {
    pub(super) fn ended(&mut self, record: &ConnectEnd) {
        if record.state == TCP_ESTABLISHED {
            return;
        }
        if self.ends.len() == REMEMBERED {
            self.ends.pop_front();
        }
        self.ends.push_back((record.task.tid, record.daddr, record.dport, record.header.at_ns));
    }

    /// False when the same thread's connect to the same address has just ended: the thread wakes up within
    /// a second of that even on a loaded node, and a socket's end is reported once only.
    pub(super) fn is_new(&mut self, record: &ConnectError) -> bool {
        const SECOND: u64 = 1_000_000_000;
        let same = |end: &(u32, [u8; 16], u16, u64)| {
            (end.0, end.1, end.2) == (record.task.tid, record.daddr, record.dport)
                && record.header.at_ns.saturating_sub(end.3) < SECOND
        };
        match self.ends.iter().position(same) {
            Some(index) => {
                self.ends.remove(index);
                // The socket's end shows nothing of this one: it looks like that of a client that changed its mind.
                record.errno == libc::EADDRNOTAVAIL.unsigned_abs()
            }
            None => true,
        }
    }
}
