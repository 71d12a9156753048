//! Derives one outcome from what the kernel shows of a connect.
//!
//! The mapping was measured and is the same on Linux 5.10 to 7.2 (`docs/design.md`, "How a connect ends").

use core::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::errno::{
    EACCES, EADDRNOTAVAIL, ECONNREFUSED, EHOSTUNREACH, EINVAL, ENETUNREACH, EPERM, ETIMEDOUT,
};
use crate::observation::{ClientRole, Connect, Connection, Icmp, SHORTEST_ANSWER};

/// The outcome of a connect; the label set of the connect metrics, except [`Outcome::Cancelled`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The handshake completed.
    Ok,
    /// Reset by this host: nothing listens on the port of one of its own addresses.
    RefusedLocal,
    /// Reset by another host.
    RefusedRemote,
    /// Refused by an ICMP port-unreachable message, without a reset.
    RefusedIcmp,
    /// Forbidden by an ICMP message (administratively prohibited, host prohibited).
    FilteredIcmp,
    /// No host answers neighbour discovery (ARP, NDP) for the address or its next hop.
    UnreachableNeighbour,
    /// There is no route.
    NoRoute,
    /// connect(2) was denied before a packet left.
    Denied,
    /// No reply until the kernel gave up (ETIMEDOUT).
    Timeout,
    /// No reply until the client gave up.
    GaveUp,
    /// Established, then closed or reset by the server before it sent data.
    Reset,
    /// Established, but the server sent no data.
    Stalled,
    /// The client closed the socket before an outcome was possible, or failed before it reached the network.
    Cancelled,
    /// Every local port towards this address is in use (EADDRNOTAVAIL), a fault of this host.
    NoPort,
}

/// A socket that its client closes earlier than this, without a retransmission (the first is due after 1 s, RFC 6298),
/// is not evidence: Go and others cancel the slower of two parallel connects.
const EARLIEST_EVIDENCE_NS: u64 = 1_000_000_000;

/// How long a server may send nothing after the client sent data: clients in Go abandon the TLS handshake after 10 s
/// (`TLSHandshakeTimeout` of the default transport).
const SILENCE_NS: u64 = 9_500_000_000;

/// The kubelet keeps its connections for hours. It closes all of them when a heartbeat gets no response within its
/// timeout, 10 s for the node's lease (`closeAllConns`, pkg/kubelet).
const KEPT_NS: u64 = 30_000_000_000;

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 14] = [
        Self::Ok,
        Self::RefusedLocal,
        Self::RefusedRemote,
        Self::RefusedIcmp,
        Self::FilteredIcmp,
        Self::UnreachableNeighbour,
        Self::NoRoute,
        Self::Denied,
        Self::Timeout,
        Self::GaveUp,
        Self::Reset,
        Self::Stalled,
        Self::Cancelled,
        Self::NoPort,
    ];

    /// Returns the label value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::RefusedLocal => "refused_local",
            Self::RefusedRemote => "refused_remote",
            Self::RefusedIcmp => "refused_icmp",
            Self::FilteredIcmp => "filtered_icmp",
            Self::UnreachableNeighbour => "unreachable_neighbour",
            Self::NoRoute => "no_route",
            Self::Denied => "denied",
            Self::Timeout => "timeout",
            Self::GaveUp => "gave_up",
            Self::Reset => "reset",
            Self::Stalled => "stalled",
            Self::Cancelled => "cancelled",
            Self::NoPort => "no_port",
        }
    }

    /// Returns the outcome as a phrase that follows the client and the address on a timeline.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Ok => "connected",
            Self::RefusedLocal => "connection refused: no listener on this host",
            Self::RefusedRemote => "connection refused by the remote host",
            Self::RefusedIcmp => "rejected (ICMP port unreachable, no TCP reset)",
            Self::FilteredIcmp => "rejected (ICMP administratively prohibited)",
            Self::UnreachableNeighbour => "unreachable: no host answers ARP or NDP",
            Self::NoRoute => "no route to the address",
            Self::Denied => "denied by this host before a packet was sent",
            Self::Timeout => "timed out, no reply",
            Self::GaveUp => "no reply until the client gave up",
            Self::Reset => "closed by the server before a response",
            Self::Stalled => "no data after the handshake",
            Self::Cancelled => "cancelled by the client",
            Self::NoPort => "not attempted: no local port available",
        }
    }

    /// Returns the outcome of one connect. `own` are the host's own addresses.
    pub fn of(connect: &Connect, own: &[IpAddr]) -> Self {
        let end = &connect.end;
        if end.established {
            return Self::Ok;
        }
        if end.early_errno != 0 {
            return Self::early(end.early_errno);
        }
        if end.rst {
            return if is_own(connect.to.ip(), own) { Self::RefusedLocal } else { Self::RefusedRemote };
        }
        // The error queue comes first: a message that arrives while connect(2) still holds the socket leaves no other
        // trace, and the socket is closed without an error (Go's non-blocking dial).
        if let Some(icmp) = end.icmp
            && let Some(outcome) = Self::from_icmp(icmp)
        {
            return outcome;
        }
        // The client may have given up before the kernel did.
        let no_neighbour = end.dropped.as_deref().is_some_and(|reason| reason.starts_with("NEIGH_"));
        if end.neighbour_failed || no_neighbour && end.sk_err == 0 {
            return Self::UnreachableNeighbour;
        }
        match end.sk_err {
            // Without a reset the cause is an ICMP message (ICMPv6 leaves no queue entry).
            ECONNREFUSED => Self::RefusedIcmp,
            EACCES => Self::FilteredIcmp,
            // An ICMP message sets the soft error; failed neighbour discovery does not.
            EHOSTUNREACH if end.sk_err_soft != 0 => Self::FilteredIcmp,
            EHOSTUNREACH => Self::UnreachableNeighbour,
            ENETUNREACH => Self::NoRoute,
            ETIMEDOUT => Self::Timeout,
            0 if end.retransmits == 0 && connect.took_ns < EARLIEST_EVIDENCE_NS => Self::Cancelled,
            0 => Self::GaveUp,
            _ => Self::Cancelled,
        }
    }

    /// Returns the outcome of a connection after its handshake; `None` while it is not decided.
    pub fn of_connection(connection: &Connection) -> Option<Self> {
        if connection.unacked_ns >= SILENCE_NS {
            return Some(Self::Stalled);
        }
        if connection.received >= SHORTEST_ANSWER {
            return Some(Self::Ok);
        }
        // A load balancer without a backend closes a connection at once, often before the client has sent data. Later,
        // a connection that is closed without data from either side was idle.
        let counts = connection.acked > 0 || connection.age_ns < EARLIEST_EVIDENCE_NS;
        match (connection.ended, connection.by_peer) {
            (true, true) if connection.rst || counts => Some(Self::Reset),
            // The client gave up waiting, or still waits.
            (_, false) if connection.acked > 0 && connection.age_ns >= SILENCE_NS => Some(Self::Stalled),
            _ => None,
        }
    }

    /// Returns whether the client closed the connection because it got no response: nothing was received, or it is a
    /// connection of the kubelet, which keeps its connections. This proves nothing, but is a reason to query the
    /// server.
    pub(crate) fn was_given_up(connection: &Connection) -> bool {
        let unserved = connection.received < SHORTEST_ANSWER
            || connection.role == ClientRole::Kubelet && connection.age_ns < KEPT_NS;
        connection.ended && !connection.by_peer && connection.acked > 0 && unserved
    }

    const fn early(errno: u32) -> Self {
        match errno {
            EPERM | EACCES => Self::Denied,
            ENETUNREACH | EHOSTUNREACH | EINVAL => Self::NoRoute,
            EADDRNOTAVAIL => Self::NoPort,
            // ENOMEM and others are faults of the client and not evidence about the API server.
            _ => Self::Cancelled,
        }
    }

    /// Returns the outcome of an ICMP error: RFC 792 and RFC 1812 for type 3, RFC 4443 for ICMPv6 type 1.
    const fn from_icmp(icmp: Icmp) -> Option<Self> {
        Some(match (icmp.v6, icmp.icmp_type, icmp.code) {
            (false, 3, 3) | (true, 1, 4) => Self::RefusedIcmp,
            (false, 3, 2 | 9 | 10 | 13) | (true, 1, 1 | 5 | 6) => Self::FilteredIcmp,
            (false, 3, 1) | (true, 1, 3) => Self::UnreachableNeighbour,
            (false, 3, 0) | (true, 1, 0) => Self::NoRoute,
            _ => return None,
        })
    }

    /// Returns whether the outcome is evidence of a fault: false for success and for outcomes that prove nothing.
    pub const fn is_failure(self) -> bool {
        !matches!(self, Self::Ok | Self::Cancelled | Self::NoPort)
    }
}

/// Returns whether `ip` is a loopback or unspecified address, or one of the host's `own`.
pub(crate) fn is_own(ip: IpAddr, own: &[IpAddr]) -> bool {
    ip.is_loopback() || ip.is_unspecified() || own.contains(&ip)
}

#[cfg(test)]
mod tests {
    use core::net::SocketAddr;

    use super::*;
    use crate::observation::{Actor, ConnectEnd};

    fn judge(to: &str, took_ms: u64, end: ConnectEnd) -> Outcome {
        let to: SocketAddr = to.parse().expect("an address");
        let connect = Connect {
            client: Actor::default(),
            role: ClientRole::Kubelet,
            host_netns: true,
            to,
            via: None,
            took_ns: took_ms * 1_000_000,
            end,
        };
        Outcome::of(&connect, &["10.0.0.9".parse().expect("an address")])
    }

    fn icmp(icmp_type: u8, code: u8) -> Icmp {
        Icmp { v6: false, icmp_type, code, from: None }
    }

    /// Each row of the measured table: what the kernel shows, and its outcome.
    #[test]
    fn every_measured_end_has_its_outcome() {
        let zero = ConnectEnd::default();
        let rst = ConnectEnd { sk_err: 111, rst: true, ..zero.clone() };
        assert_eq!(judge("10.0.0.1:6443", 0, rst.clone()), Outcome::RefusedRemote);
        assert_eq!(judge("10.0.0.9:6443", 0, rst.clone()), Outcome::RefusedLocal);
        assert_eq!(judge("127.0.0.1:6443", 0, rst.clone()), Outcome::RefusedLocal);
        assert_eq!(judge("[::1]:6443", 0, rst), Outcome::RefusedLocal);
        let cases = [
            (ConnectEnd { established: true, ..zero.clone() }, 1, Outcome::Ok),
            (
                ConnectEnd { sk_err: 111, sk_err_soft: 111, icmp: Some(icmp(3, 3)), ..zero.clone() },
                1000,
                Outcome::RefusedIcmp,
            ),
            // REJECT for IPv6 leaves no queue entry.
            (ConnectEnd { sk_err: 111, sk_err_soft: 111, ..zero.clone() }, 1000, Outcome::RefusedIcmp),
            (
                ConnectEnd { sk_err: 113, icmp: Some(icmp(3, 13)), ..zero.clone() },
                1000,
                Outcome::FilteredIcmp,
            ),
            (ConnectEnd { sk_err: 13, sk_err_soft: 13, ..zero.clone() }, 1000, Outcome::FilteredIcmp),
            (
                ConnectEnd { sk_err: 113, icmp: Some(icmp(3, 1)), ..zero.clone() },
                3070,
                Outcome::UnreachableNeighbour,
            ),
            (ConnectEnd { sk_err: 113, ..zero.clone() }, 3070, Outcome::UnreachableNeighbour),
            (ConnectEnd { sk_err: 101, icmp: Some(icmp(3, 0)), ..zero.clone() }, 1, Outcome::NoRoute),
            (ConnectEnd { sk_err: 110, retransmits: 2, ..zero.clone() }, 7000, Outcome::Timeout),
            // A packet filter on this host drops the SYN: kernels up to 6.12 report no retransmission.
            (ConnectEnd { sk_err: 110, ..zero.clone() }, 7000, Outcome::Timeout),
            (ConnectEnd { by_caller: true, retransmits: 3, ..zero.clone() }, 10_000, Outcome::GaveUp),
            (ConnectEnd { by_caller: true, ..zero.clone() }, 4000, Outcome::GaveUp),
            (ConnectEnd { by_caller: true, ..zero.clone() }, 300, Outcome::Cancelled),
            (
                ConnectEnd { by_caller: true, dropped: Some("NEIGH_FAILED".into()), ..zero.clone() },
                4000,
                Outcome::UnreachableNeighbour,
            ),
            (ConnectEnd { early_errno: 1, ..zero.clone() }, 0, Outcome::Denied),
            (ConnectEnd { early_errno: 101, ..zero.clone() }, 0, Outcome::NoRoute),
            (ConnectEnd { early_errno: 99, ..zero.clone() }, 0, Outcome::NoPort),
        ];
        for (end, took_ms, want) in cases {
            assert_eq!(judge("10.0.0.1:6443", took_ms, end.clone()), want, "{end:?}");
        }
    }

    #[test]
    fn non_blocking_connect_of_go_to_local_reject_is_refused_by_icmp() {
        // connect(2) = EINPROGRESS, SO_ERROR = ECONNREFUSED, close: the socket is closed without an error.
        let end = ConnectEnd { by_caller: true, icmp: Some(icmp(3, 3)), ..ConnectEnd::default() };
        assert_eq!(judge("10.96.0.1:443", 0, end), Outcome::RefusedIcmp);
    }

    #[test]
    fn young_kubelet_connection_closed_by_the_client_counts_as_given_up() {
        let kubelet = Connection {
            client: Actor::default(),
            role: ClientRole::Kubelet,
            host_netns: true,
            to: "10.0.0.1:6443".parse().expect("an address"),
            age_ns: 10_000_000_000,
            received: 1053,
            acked: 1151,
            ended: true,
            by_peer: false,
            rst: false,
            sk_err: 0,
            unacked_ns: 0,
            unanswered_ns: 0,
            unanswered_bytes: 0,
        };
        assert!(Outcome::was_given_up(&kubelet), "its request got no response, although the handshake did");
        let others = [
            Connection { age_ns: 7_200_000_000_000, ..kubelet.clone() },
            Connection { by_peer: true, ..kubelet.clone() },
            Connection { ended: false, ..kubelet.clone() },
            Connection { role: ClientRole::CniPlugin, ..kubelet.clone() },
            Connection { received: 0, acked: 0, ..kubelet.clone() },
        ];
        for other in others {
            assert!(!Outcome::was_given_up(&other), "{other:?}");
        }
        let silent = Connection { role: ClientRole::CniPlugin, received: 0, ..kubelet };
        assert!(Outcome::was_given_up(&silent));
    }

    #[test]
    fn labels_are_unique_and_in_snake_case() {
        let mut labels: alloc::vec::Vec<_> = Outcome::ALL.iter().map(|outcome| outcome.as_str()).collect();
        assert!(labels.iter().all(|label| label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Outcome::ALL.len());
    }
}
