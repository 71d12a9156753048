//! Connects, connections and responses of API servers.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{Actor, CredentialAnswer, ProcessClass, Untrusted, is_zero};

/// How an API address is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetKind {
    /// A server, a load balancer or a virtual address; also when not known.
    #[default]
    Direct,
    /// The Service address of the API server, which packet filters or eBPF programs on this host translate.
    Service,
}

/// See [`super::Observation::ApiTarget`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiTarget {
    /// Address and port.
    pub addr: SocketAddr,
    /// How it is served.
    #[serde(default, rename = "served_as")]
    pub kind: TargetKind,
    /// Where the address comes from, for display: `--apiserver`, `/etc/kubernetes/kubelet.conf`, …
    #[serde(default)]
    pub source: String,
    /// The name that clients use, if they do not use the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Set if this is the address of a proxy through which the kubelet reaches the API server: its URL, without user
    /// information and with control characters escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
}

/// The role of a client of the API server; also the closed label set of the connect metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientRole {
    /// The kubelet.
    Kubelet,
    /// kube-proxy or a replacement.
    KubeProxy,
    /// The long-running agent of a CNI.
    CniAgent,
    /// A CNI plugin, run by a runtime.
    CniPlugin,
    /// kube-apiserver, kube-controller-manager, kube-scheduler, etcd.
    ControlPlane,
    /// containerd, CRI-O.
    Runtime,
    /// This agent, for its own requests. Never counted as a client.
    Probe,
    /// A process that an unprivileged user or an ordinary pod can have started. Its connects are shown, but are not
    /// evidence.
    Untrusted,
    /// Anything else.
    #[default]
    Other,
}

impl ClientRole {
    /// Returns the label value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::CniAgent => "cni_agent",
            Self::CniPlugin => "cni_plugin",
            Self::ControlPlane => "control_plane",
            Self::Runtime => "runtime",
            Self::Probe => "probe",
            Self::Untrusted => "untrusted",
            Self::Other => "other",
        }
    }
}

/// See [`super::Observation::Connect`]. The fields are the kernel's; [`crate::Outcome`] interprets them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// The process that called connect(2).
    pub client: Actor,
    /// The role of that process.
    #[serde(default)]
    pub role: ClientRole,
    /// Whether the caller is in the host's network namespace (that of the agent or of the kubelet).
    pub host_netns: bool,
    /// The address passed to connect(2).
    pub to: SocketAddr,
    /// The address of the socket, if it differs: a Service implementation in eBPF replaced it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<SocketAddr>,
    /// Nanoseconds from connect(2) to its end.
    pub took_ns: u64,
    /// The state of the socket at the end.
    #[serde(flatten)]
    pub end: ConnectEnd,
}

/// See [`super::Observation::Connection`]. Byte counts are payload: SYN and FIN do not count.
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not a state")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The process that called connect(2).
    pub client: Actor,
    /// The role of that process.
    #[serde(default)]
    pub role: ClientRole,
    /// As [`Connect::host_netns`].
    pub host_netns: bool,
    /// The address passed to connect(2).
    pub to: SocketAddr,
    /// Nanoseconds since the handshake.
    pub age_ns: u64,
    /// Bytes received from the server.
    pub received: u64,
    /// Bytes of the client that the server acknowledged.
    pub acked: u64,
    /// Whether it is closed; false for a sample of an open connection.
    #[serde(default)]
    pub ended: bool,
    /// Whether the server closed it, by FIN or by reset.
    #[serde(default)]
    pub by_peer: bool,
    /// Whether a reset was received.
    #[serde(default)]
    pub rst: bool,
    /// `sk->sk_err` at the end: positive errno or 0.
    #[serde(default)]
    pub sk_err: u32,
    /// Nanoseconds of retransmission without an acknowledgement; 0 when nothing is retransmitted.
    #[serde(default)]
    pub unacked_ns: u64,
    /// Nanoseconds without a response in time to data that the client sent on a working connection. This is a reason to
    /// query the server, but not proof: not everything that a client sends requires a response.
    #[serde(default)]
    pub unanswered_ns: u64,
    /// Bytes of the client that were acknowledged in that time; a request has at least [`REQUEST_BYTES`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unanswered_bytes: u64,
}

/// Minimum number of bytes of a client that count as a request. Frames that only maintain an HTTP/2 connection (PING,
/// `WINDOW_UPDATE`, `RST_STREAM`) have at most 17 bytes (RFC 9113), 46 with TLS.
pub const REQUEST_BYTES: u64 = 128;
/// The shortest response of a server, in bytes: a TLS alert (RFC 8446 section 6) is a record of seven bytes. Less is an
/// incomplete response.
pub const SHORTEST_ANSWER: u64 = 7;

/// See [`super::Observation::SocketConnect`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketConnect {
    /// The process that called connect(2).
    pub client: Actor,
    /// The class of that process.
    pub class: ProcessClass,
    /// Path of the socket; control characters are escaped, an abstract name starts with `@`.
    pub path: String,
    /// Positive errno; 0 on success.
    pub errno: u32,
}

/// See [`super::Observation::Answer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The address of the request.
    pub to: SocketAddr,
    /// Why the TLS handshake, or HTTP after it, failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFailure>,
    /// The certificate that the server presented.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
    /// HTTP status of `/readyz`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The checks that `/readyz` reports as failing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failing: Vec<String>,
    /// HTTP status of `/livez/etcd`; `None` where `/readyz` includes etcd or returned no response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<u16>,
    /// Set if the kubelet's kubeconfig names this address and none of its CAs issued the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untrusted: Option<Untrusted>,
    /// The response to a request with the kubelet's own credential; `None` if none was sent, or without a response in
    /// time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubelet: Option<CredentialAnswer>,
}

impl Answer {
    /// Returns whether a server that returns this HTTP status cannot serve its clients now. 401, 403 and 404 come from
    /// servers that do not expose their health to every client.
    pub fn is_refusal(status: u16) -> bool {
        matches!(status, REQUEST_TIMEOUT | TOO_MANY_REQUESTS | 500..)
    }

    /// Returns whether the server responded and reported no failure.
    pub fn is_well(&self) -> bool {
        let refuses = |status: Option<u16>| status.is_some_and(Self::is_refusal);
        self.tls.is_none() && !refuses(self.status) && !refuses(self.etcd)
    }

    /// Returns whether nothing in the response is a reason to repeat the request soon.
    pub fn is_settled(&self) -> bool {
        let accepts = self.kubelet.as_ref().is_none_or(CredentialAnswer::accepts);
        // A kubelet that is served opens a new connection before a mismatch can affect it.
        let trusts = self.untrusted.as_ref().is_none_or(|untrusted| untrusted.kubelet_served);
        self.status.is_some() && self.is_well() && trusts && accepts
    }
}

// RFC 9110 sections 15.5.2, 15.5.4 and 15.5.9, RFC 6585 section 4.
pub(super) const UNAUTHORIZED: u16 = 401;
pub(super) const FORBIDDEN: u16 = 403;
const REQUEST_TIMEOUT: u16 = 408;
const TOO_MANY_REQUESTS: u16 = 429;

/// Returns an HTTP status with its name: `429 Too Many Requests`.
pub fn http_status(status: u16) -> String {
    let name = match status {
        UNAUTHORIZED => " Unauthorized",
        FORBIDDEN => " Forbidden",
        REQUEST_TIMEOUT => " Request Timeout",
        TOO_MANY_REQUESTS => " Too Many Requests",
        500 => " Internal Server Error",
        502 => " Bad Gateway",
        503 => " Service Unavailable",
        504 => " Gateway Timeout",
        _ => "",
    };
    format!("{status}{name}")
}

/// Why a TLS handshake, or the request after it, failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "tls", rename_all = "snake_case")]
pub enum TlsFailure {
    /// The server closed the connection without sending data.
    Closed,
    /// No data was received in time.
    Silent,
    /// The server sent an alert.
    Alert {
        /// Its name, RFC 8446 section 6.
        alert: String,
    },
    /// The proxy refused to connect to the server (CONNECT, RFC 9110 section 9.3.6).
    Proxy {
        /// Its status line without the version, on one line and without user information: `403 Forbidden`.
        status: String,
    },
    /// Anything else.
    Other {
        /// One line.
        why: String,
    },
}

impl TlsFailure {
    /// Returns what the server does, as a phrase that follows its address.
    pub fn words(&self) -> String {
        match self {
            Self::Closed => String::from("accepts the connection and closes it before a response"),
            Self::Silent => String::from(SENDS_NOTHING),
            Self::Alert { alert } => format!("aborts the TLS handshake (alert {alert})"),
            Self::Proxy { status } => format!("is refused: the proxy returns {status} for CONNECT"),
            Self::Other { why } => format!("fails the TLS handshake: {why}"),
        }
    }
}

/// The server acknowledges data of the client, but sends none; follows its address.
pub(crate) const SENDS_NOTHING: &str =
    "accepts the connection and acknowledges the client's data, but sends nothing";

/// A certificate, with times relative to when it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Distinguished name; control characters are escaped.
    pub subject: String,
    /// Seconds until it becomes valid; negative when it already is.
    pub valid_in_s: i64,
    /// Seconds until it expires; negative when it has expired.
    pub expires_in_s: i64,
    /// Whether it is valid for the name or address that clients use.
    pub fits: bool,
    /// Names and addresses for which it is valid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// A plugin's connect to the Unix socket of its agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSocket {
    /// Path of the socket; control characters are escaped.
    pub path: String,
    /// Positive errno of the newest attempt; 0 on success.
    pub errno: u32,
    /// Number of attempts.
    pub tries: u32,
}

/// The state of the socket when the connect ended, as the kernel shows it.
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not a state")]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectEnd {
    /// Whether the handshake completed.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub established: bool,
    /// errno that connect(2) returned before a packet was sent; otherwise 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub early_errno: u32,
    /// `sk->sk_err`: positive errno or 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub sk_err: u32,
    /// `sk->sk_err_soft`: positive errno or 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub sk_err_soft: u32,
    /// Whether a TCP reset was received.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub rst: bool,
    /// Whether the process closed the socket.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub by_caller: bool,
    /// SYN retransmissions.
    #[serde(skip_serializing_if = "is_zero")]
    pub retransmits: u32,
    /// The newest ICMP message in the error queue of the socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
    /// Why this host dropped the newest packet of the connect, as the kernel's drop reason (`NETFILTER_DROP`,
    /// `NEIGH_FAILED`, …); `unknown` where the kernel shows only that it was dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<String>,
    /// Whether the neighbour entry of the next hop was `FAILED` or `INCOMPLETE` at the end.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub neighbour_failed: bool,
}

/// An ICMP or ICMPv6 error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Icmp {
    /// Whether this is ICMPv6.
    #[serde(default)]
    pub v6: bool,
    /// ICMP type: 3 is destination unreachable (ICMPv6: 1).
    pub icmp_type: u8,
    /// ICMP code, RFC 792 / RFC 4443.
    pub code: u8,
    /// The sender, if the kernel kept it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpAddr>,
}

/// See [`super::Observation::Listener`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Address and port; the unspecified address for a wildcard.
    pub local: SocketAddr,
    /// Whether it was opened or found; false when it was closed.
    pub up: bool,
    /// The process that opened it, or that closed it or exited.
    #[serde(default)]
    pub process: Actor,
    /// Whether it is in the host's network namespace.
    pub host_netns: bool,
}

/// See [`super::Observation::NameLookup`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameLookup {
    /// The name, as written in a kubeconfig of the kubelet; control characters are escaped.
    pub name: String,
    /// The DNS server (address and port) or the file that was queried first.
    pub resolver: String,
    /// Why it did not resolve; `None` when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<NameFailure>,
    /// Set if it is the name of a proxy, as [`ApiTarget::proxy`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
}

/// Why a name did not resolve. With search domains, the result of the first full name that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "failure", rename_all = "snake_case")]
pub enum NameFailure {
    /// NXDOMAIN: the name does not exist.
    NoSuchName,
    /// The name exists and has no A or AAAA record.
    NoAddress,
    /// SERVFAIL: the resolver failed to look it up.
    ServerFailure,
    /// REFUSED: the resolver does not serve this host, or this name.
    Refused,
    /// No response before the deadline.
    Silent,
    /// Anything else.
    Other {
        /// One line.
        why: String,
    },
}

impl NameFailure {
    /// Returns what the resolver did, as a phrase that follows its address.
    pub fn words(&self) -> String {
        match self {
            Self::NoSuchName => String::from("returned NXDOMAIN"),
            Self::NoAddress => String::from("returned no address records"),
            Self::ServerFailure => String::from("returned SERVFAIL"),
            Self::Refused => String::from("returned REFUSED"),
            Self::Silent => String::from("did not respond"),
            Self::Other { why } => format!("cannot be queried: {why}"),
        }
    }
}

/// See [`super::Observation::Route`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The destination.
    pub to: IpAddr,
    /// Positive errno of the lookup; 0 when there is a route.
    pub errno: u32,
}

/// See [`super::Observation::PodCidrs`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodCidrs {
    /// `spec.podCIDRs` of the Node object, empty if it has none; `None` when no longer known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidrs: Option<Vec<String>>,
}

/// See [`super::Observation::Admission`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// Empty when no pods are blocked.
    pub blocked: Vec<Blocked>,
}

/// A DaemonSet whose pods are not created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// `kube-system/calico-node`
    pub daemonset: String,
    /// Name of the webhook.
    pub webhook: String,
    /// The error message of the API server, on one line.
    pub why: String,
    /// The address that the API server could not reach, if the message names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<SocketAddr>,
    /// For how many seconds, when it was read.
    pub since_s: u64,
}
