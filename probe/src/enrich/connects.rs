//! Converts records of connects to observations: adds names and draws no conclusions.

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

/// Converts a connect that left `SYN_SENT`.
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
    let (to, via) = requested(
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

/// Duration of a connect after which a missing retransmission means that the SYN was not sent, nanoseconds: the first
/// retransmission is after one second, the second after three (RFC 6298).
const UNSENT_NS: u64 = 2_500_000_000;
const ETIMEDOUT: u32 = 110;

/// Returns why this host dropped the packets of a connect; `None` if it did not, as far as is known.
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

/// Returns the address that was passed to connect(2), and the address of the socket if it is another one.
fn requested(
    on_socket: SocketAddr,
    known: bool,
    (family, bytes, port): (u16, [u8; 16], u16),
) -> (SocketAddr, Option<SocketAddr>) {
    let requested = SocketAddr::new(address(family, bytes), port);
    // For the unspecified address the socket has the loopback address, which is equivalent.
    if !known || requested == on_socket || requested.ip().is_unspecified() {
        (on_socket, None)
    } else {
        (requested, Some(on_socket))
    }
}

/// Converts a connection that left `ESTABLISHED`.
pub(super) fn connection_ended(record: &ConnectionEnd, client: Client, host_netns: bool) -> Observation {
    let has = |flag| record.flags & flag != 0;
    let (to, _) = requested(
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
        // The kernel counts SYN and FIN as one byte each.
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

/// Returns the path of a Unix socket; abstract names are written with `@`.
pub(super) fn socket_path(record: &UnixConnect) -> String {
    match record.path.as_slice() {
        [0, name @ ..] => format!("@{}", clean(text(name), VALUE_MAX)),
        path => clean(text(path), VALUE_MAX),
    }
}

/// Converts a connect(2) that failed before a packet was sent.
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

/// How many failed connects are remembered: rarely do more threads wait in connect(2) at the same time.
const REMEMBERED: usize = 64;

/// Filters duplicates: a blocking connect that fails is reported for its socket and again as the error of its system call.
#[derive(Default)]
pub(super) struct EarlyErrors {
    ends: VecDeque<(u32, [u8; 16], u16, u64)>,
}

impl EarlyErrors {
    /// Remembers a failed connect.
    pub(super) fn ended(&mut self, record: &ConnectEnd) {
        if record.state == TCP_ESTABLISHED {
            return;
        }
        if self.ends.len() == REMEMBERED {
            self.ends.pop_front();
        }
        self.ends.push_back((record.task.tid, record.daddr, record.dport, record.header.at_ns));
    }

    /// Returns false if a connect of the same thread to the same address has just failed, and was thus reported: the thread wakes
    /// up within a second of it even on a busy node.
    pub(super) fn is_new(&mut self, record: &ConnectError) -> bool {
        const SECOND: u64 = 1_000_000_000;
        let same = |end: &(u32, [u8; 16], u16, u64)| {
            (end.0, end.1, end.2) == (record.task.tid, record.daddr, record.dport)
                && record.header.at_ns.saturating_sub(end.3) < SECOND
        };
        match self.ends.iter().position(same) {
            Some(index) => {
                self.ends.remove(index);
                // The report for the socket does not show this error: it looks as if the client had cancelled the connect.
                record.errno == libc::EADDRNOTAVAIL.unsigned_abs()
            }
            None => true,
        }
    }
}
