//! What the kernel's numbers mean: one connect, one outcome.
//!
//! The table was measured and is the same on Linux 5.10 to 7.2 (`docs/design.md`, "How a connect ends").

use core::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::errno::{
    EACCES, EADDRNOTAVAIL, ECONNREFUSED, EHOSTUNREACH, EINVAL, ENETUNREACH, EPERM, ETIMEDOUT,
};
use crate::observation::{ClientRole, Connect, Connection, Icmp, SHORTEST_ANSWER};

/// How a connect ended; the label set of the connect metrics, but for [`Outcome::Cancelled`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The handshake completed.
    Ok,
    /// Reset by this host: nothing listens on its own port.
    RefusedLocal,
    /// Reset by another host.
    RefusedRemote,
    /// Refused by an ICMP port-unreachable message, without a reset.
    RefusedIcmp,
    /// Forbidden by an ICMP message (administratively prohibited, host prohibited).
    FilteredIcmp,
    /// The next hop, or the address itself, does not answer neighbour discovery.
    UnreachableNeighbour,
    /// There is no route.
    NoRoute,
    /// connect(2) was denied before a packet left.
    Denied,
    /// Nobody answered until the kernel gave up.
    Timeout,
    /// Nobody answered until the client gave up.
    GaveUp,
    /// Established, then reset before a byte came back.
    Reset,
    /// Established, then silent.
    Stalled,
    /// The client closed the socket before anything could be known, or never got as far as the network.
    Cancelled,
    /// Every local port towards this address is in use: this host's own trouble.
    NoPort,
}

/// A client that closes its socket earlier than this, before any retransmission (the first is due after
/// 1 s, RFC 6298), learned nothing: Go and others cancel the slower of two connects in parallel.
const NOTHING_KNOWN_NS: u64 = 1_000_000_000;

/// How long a server may be silent after the client spoke: Go's clients give up their TLS handshake after
/// 10 s (`TLSHandshakeTimeout` of their default transport).
const SILENCE_NS: u64 = 9_500_000_000;

/// The kubelet keeps its connections for hours, and closes all of them when a heartbeat was not answered within its
/// time-out, ten seconds for the node's lease (`closeAllConns`, pkg/kubelet).
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

    /// The label value.
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

    /// In plain words, for a timeline.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Ok => "connected",
            Self::RefusedLocal => "refused: nothing listens here",
            Self::RefusedRemote => "refused by the other host",
            Self::RefusedIcmp => "refused by ICMP, no reset",
            Self::FilteredIcmp => "forbidden by ICMP",
            Self::UnreachableNeighbour => "nobody holds the address",
            Self::NoRoute => "no route",
            Self::Denied => "denied before a packet left",
            Self::Timeout => "no answer",
            Self::GaveUp => "no answer, the client gave up",
            Self::Reset => "reset before an answer",
            Self::Stalled => "silent after the handshake",
            Self::Cancelled => "closed by the client at once",
            Self::NoPort => "not begun: no local port is left",
        }
    }

    /// Judges one connect. `own` are the host's own addresses.
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
        // The error queue first: when the message arrives while connect(2) still holds the socket, it is
        // the only trace, and the socket ends with no error at all (Go's non-blocking dial).
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
            // Without a reset it can only have been an ICMP message (ICMPv6 leaves no queue entry).
            ECONNREFUSED => Self::RefusedIcmp,
            EACCES => Self::FilteredIcmp,
            // The soft error is set by an ICMP message, and not by a neighbour that stays silent.
            EHOSTUNREACH if end.sk_err_soft != 0 => Self::FilteredIcmp,
            EHOSTUNREACH => Self::UnreachableNeighbour,
            ENETUNREACH => Self::NoRoute,
            ETIMEDOUT => Self::Timeout,
            0 if end.retransmits == 0 && connect.took_ns < NOTHING_KNOWN_NS => Self::Cancelled,
            0 => Self::GaveUp,
            _ => Self::Cancelled,
        }
    }

    /// Judges what followed the handshake; `None` when it shows nothing yet.
    pub fn of_connection(connection: &Connection) -> Option<Self> {
        if connection.unacked_ns >= SILENCE_NS {
            return Some(Self::Stalled);
        }
        if connection.received >= SHORTEST_ANSWER {
            return Some(Self::Ok);
        }
        // A load balancer without a backend ends a connection at once, often before the client has spoken;
        // later, an end without a word from either side is an idle connection's.
        let spoke = connection.acked > 0 || connection.age_ns < NOTHING_KNOWN_NS;
        match (connection.ended, connection.by_peer) {
            (true, true) if connection.rst || spoke => Some(Self::Reset),
            // The client gave up waiting, or waits still.
            (_, false) if connection.acked > 0 && connection.age_ns >= SILENCE_NS => Some(Self::Stalled),
            _ => None,
        }
    }

    /// The client ended it as one does that was let down: no byte had come, or it is the kubelet's, which keeps its
    /// own. No proof of anything, and a reason to ask.
    pub(crate) fn was_given_up(connection: &Connection) -> bool {
        let let_down = connection.received < SHORTEST_ANSWER
            || connection.role == ClientRole::Kubelet && connection.age_ns < KEPT_NS;
        connection.ended && !connection.by_peer && connection.acked > 0 && let_down
    }

    const fn early(errno: u32) -> Self {
        match errno {
            EPERM | EACCES => Self::Denied,
            ENETUNREACH | EHOSTUNREACH | EINVAL => Self::NoRoute,
            EADDRNOTAVAIL => Self::NoPort,
            // ENOMEM, …: this client's own trouble, which says nothing of the API.
            _ => Self::Cancelled,
        }
    }

    /// RFC 792 and RFC 1812 for type 3, RFC 4443 for type 1.
    const fn from_icmp(icmp: Icmp) -> Option<Self> {
        Some(match (icmp.v6, icmp.icmp_type, icmp.code) {
            (false, 3, 3) | (true, 1, 4) => Self::RefusedIcmp,
            (false, 3, 2 | 9 | 10 | 13) | (true, 1, 1 | 5 | 6) => Self::FilteredIcmp,
            (false, 3, 1) | (true, 1, 3) => Self::UnreachableNeighbour,
            (false, 3, 0) | (true, 1, 0) => Self::NoRoute,
            _ => return None,
        })
    }

    /// A fault that retrying proves or disproves; false for success and for what proves nothing.
    pub const fn is_failure(self) -> bool {
        !matches!(self, Self::Ok | Self::Cancelled | Self::NoPort)
    }
}

/// Loopback, or one of the host's own addresses.
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

    /// One row of the measured table each: what the kernel shows, what it means.
    #[test]
    fn the_measured_table() {
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
            // REJECT for IPv6: no queue entry.
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
            // A packet filter that drops on this host: no retransmission was ever reported up to 6.12.
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
    fn go_non_blocking_connect_against_a_same_node_reject_is_refused_by_icmp() {
        // connect(2) = EINPROGRESS, SO_ERROR = ECONNREFUSED, close: the socket ends without any error.
        let end = ConnectEnd { by_caller: true, icmp: Some(icmp(3, 3)), ..ConnectEnd::default() };
        assert_eq!(judge("10.96.0.1:443", 0, end), Outcome::RefusedIcmp);
    }

    #[test]
    fn a_kubelet_that_closes_its_connection_soon_was_let_down() {
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
        assert!(Outcome::was_given_up(&kubelet), "its request waits behind a handshake that was answered");
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
    fn labels_are_a_set_in_snake_case() {
        let mut labels: alloc::vec::Vec<_> = Outcome::ALL.iter().map(|outcome| outcome.as_str()).collect();
        assert!(labels.iter().all(|label| label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Outcome::ALL.len());
    }
}
