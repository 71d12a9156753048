//! Connects, connections and what API servers say.

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
    /// A server, a load balancer or a virtual address; also when nothing is known.
    #[default]
    Direct,
    /// The cluster's Service address of the API server: packet filters or eBPF on this host send it on.
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
    /// Where it was found, for people: `--apiserver`, `/etc/kubernetes/kubelet.conf`, …
    #[serde(default)]
    pub source: String,
    /// The name that clients use for it, when they do not use its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Set when this is the address of a proxy by which the kubelet reaches the API server: its URL, without user
    /// information and with control characters escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
}

/// Who a client of the API server is; also the closed label set of the connect metrics.
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
    /// This agent, asking for itself. Never counted as a client.
    Probe,
    /// A process that an unprivileged user or an ordinary pod can have started. Its connects are shown and never judged.
    Untrusted,
    /// Anything else.
    #[default]
    Other,
}

impl ClientRole {
    /// The label value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube_proxy",
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

/// See [`super::Observation::Connect`]. The fields are the kernel's; [`crate::Outcome`] says what they mean.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// Who called connect(2).
    pub client: Actor,
    /// What the caller is.
    #[serde(default)]
    pub role: ClientRole,
    /// The caller is in the host's network namespace (the one of the agent or of the kubelet).
    pub host_netns: bool,
    /// Address asked for.
    pub to: SocketAddr,
    /// The address on the socket, when it is another one: a Service implementation in eBPF put it there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<SocketAddr>,
    /// Nanoseconds from connect(2) to this end.
    pub took_ns: u64,
    /// How it ended.
    #[serde(flatten)]
    pub end: ConnectEnd,
}

/// See [`super::Observation::Connection`]. Bytes are of the application: SYN and FIN do not count.
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not a state")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Who called connect(2).
    pub client: Actor,
    /// What the caller is.
    #[serde(default)]
    pub role: ClientRole,
    /// As [`Connect::host_netns`].
    pub host_netns: bool,
    /// Address asked for.
    pub to: SocketAddr,
    /// Nanoseconds since the handshake.
    pub age_ns: u64,
    /// Bytes that came back.
    pub received: u64,
    /// Bytes of the client that the other side acknowledged.
    pub acked: u64,
    /// It has ended; else this is a look at one that lives.
    #[serde(default)]
    pub ended: bool,
    /// The other side ended it, by FIN or by reset.
    #[serde(default)]
    pub by_peer: bool,
    /// A reset arrived.
    #[serde(default)]
    pub rst: bool,
    /// `sk->sk_err` at the end: positive errno or 0.
    #[serde(default)]
    pub sk_err: u32,
    /// Nanoseconds for which something was sent again without any acknowledgement; 0 when nothing is.
    #[serde(default)]
    pub unacked_ns: u64,
    /// Nanoseconds for which nothing, or nothing in time, came back on a connection that worked for what the client sent of
    /// its own accord. A reason to ask, and no proof: not everything that a client sends is answered.
    #[serde(default)]
    pub unanswered_ns: u64,
    /// Bytes of the client that were acknowledged in that time: so many are a request.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unanswered_bytes: u64,
}

/// So many bytes of a client are a request: frames that only keep an HTTP/2 connection going (PING, `WINDOW_UPDATE`,
/// `RST_STREAM`) take at most 17 bytes (RFC 9113), 46 with TLS around them.
pub const REQUEST_BYTES: u64 = 128;
/// The shortest that a server says: a TLS alert (RFC 8446 section 6), a record of seven bytes. Less is an answer that broke
/// off.
pub const SHORTEST_ANSWER: u64 = 7;

/// See [`super::Observation::SocketConnect`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketConnect {
    /// Who called connect(2).
    pub client: Actor,
    /// What the caller is.
    pub class: ProcessClass,
    /// Path of the socket; control characters are escaped, an abstract name starts with `@`.
    pub path: String,
    /// Positive errno; 0 when it is connected.
    pub errno: u32,
}

/// See [`super::Observation::Answer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Who was asked.
    pub to: SocketAddr,
    /// Why TLS, or HTTP behind it, did not come about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFailure>,
    /// The certificate that it showed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
    /// HTTP status of `/readyz`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The checks that `/readyz` names as failing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failing: Vec<String>,
    /// HTTP status of `/livez/etcd`; `None` where `/readyz` includes etcd, or was not answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<u16>,
    /// Set when the kubelet's kubeconfig names this address and none of its CAs issued the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untrusted: Option<Untrusted>,
    /// The answer to a request with the kubelet's own credential; `None` when none was sent, or none was answered in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubelet: Option<CredentialAnswer>,
}

impl Answer {
    /// Returns whether a server that answers with this HTTP status cannot serve its clients now. A 401, 403 or 404 is the
    /// answer of one that does not tell everybody how it is.
    pub fn is_refusal(status: u16) -> bool {
        matches!(status, REQUEST_TIMEOUT | TOO_MANY_REQUESTS | 500..)
    }

    /// Returns whether the server answered, and with nothing that says that it cannot serve.
    pub fn is_well(&self) -> bool {
        let refuses = |status: Option<u16>| status.is_some_and(Self::is_refusal);
        self.tls.is_none() && !refuses(self.status) && !refuses(self.etcd)
    }

    /// Returns whether nothing in the answer is a reason to ask again soon.
    pub fn is_settled(&self) -> bool {
        let accepts = self.kubelet.as_ref().is_none_or(CredentialAnswer::accepts);
        // A kubelet that is served opens a new connection before a mismatch can matter.
        let trusts = self.untrusted.as_ref().is_none_or(|untrusted| untrusted.kubelet_served);
        self.status.is_some() && self.is_well() && trusts && accepts
    }
}

// RFC 9110 sections 15.5.2, 15.5.4 and 15.5.9, RFC 6585 section 4.
pub(super) const UNAUTHORIZED: u16 = 401;
pub(super) const FORBIDDEN: u16 = 403;
const REQUEST_TIMEOUT: u16 = 408;
const TOO_MANY_REQUESTS: u16 = 429;

/// An HTTP status with its name: `429 Too Many Requests`.
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

/// How a TLS handshake, or the question after it, failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "tls", rename_all = "snake_case")]
pub enum TlsFailure {
    /// The other side ended the connection without a word.
    Closed,
    /// Nothing came in time.
    Silent,
    /// It sent an alert.
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

/// A certificate, with its times relative to when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Distinguished name; control characters are escaped.
    pub subject: String,
    /// Seconds until it is valid; negative when it is.
    pub valid_in_s: i64,
    /// Seconds until it expires; negative when it has.
    pub expires_in_s: i64,
    /// It is for the name or address that clients use.
    pub fits: bool,
    /// Names and addresses that it is for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// A plugin's connect to the Unix socket of its agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSocket {
    /// Path of the socket; control characters are escaped.
    pub path: String,
    /// Positive errno of the newest try; 0 when it is connected.
    pub errno: u32,
    /// How often it was tried.
    pub tries: u32,
}

/// What the kernel showed when the connect ended.
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not a state")]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectEnd {
    /// The handshake completed.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub established: bool,
    /// connect(2) itself returned this errno and no packet left; 0 when it did not.
    #[serde(skip_serializing_if = "is_zero")]
    pub early_errno: u32,
    /// `sk->sk_err`: positive errno or 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub sk_err: u32,
    /// `sk->sk_err_soft`: positive errno or 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub sk_err_soft: u32,
    /// A TCP reset arrived.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub rst: bool,
    /// The process closed the socket itself.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub by_caller: bool,
    /// SYN retransmissions.
    #[serde(skip_serializing_if = "is_zero")]
    pub retransmits: u32,
    /// Newest ICMP message in the socket's error queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
    /// Why this host dropped the newest of the packets that the connect sent, by the kernel's name
    /// (`NETFILTER_DROP`, `NEIGH_FAILED`, …); `unknown` where it only shows that it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<String>,
    /// A neighbour entry for the next hop was seen `FAILED` or `INCOMPLETE` when it ended.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub neighbour_failed: bool,
}

/// An ICMP or ICMPv6 error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Icmp {
    /// True for ICMPv6.
    #[serde(default)]
    pub v6: bool,
    /// ICMP type: 3 is destination unreachable (ICMPv6: 1).
    pub icmp_type: u8,
    /// ICMP code, RFC 792 / RFC 4443.
    pub code: u8,
    /// Who sent it, when the kernel kept that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpAddr>,
}

/// See [`super::Observation::Listener`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Address and port; the unspecified address for a wildcard.
    pub local: SocketAddr,
    /// Came (or was found) or went.
    pub up: bool,
    /// Who opened it, or who closed it or died with it.
    #[serde(default)]
    pub process: Actor,
    /// In the host's network namespace.
    pub host_netns: bool,
}

/// See [`super::Observation::NameLookup`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameLookup {
    /// The name, as a kubeconfig of the kubelet has it; control characters are escaped.
    pub name: String,
    /// The DNS server (address and port) or the file that was asked first.
    pub resolver: String,
    /// Why it did not resolve; `None` when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<NameFailure>,
    /// Set when it is the name of a proxy, as [`ApiTarget::proxy`].
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
    /// Returns what the resolver did, as the words after its address.
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
    /// Address that was looked up.
    pub to: IpAddr,
    /// Positive errno of the look-up; 0 when there is a route.
    pub errno: u32,
}

/// See [`super::Observation::PodCidrs`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodCidrs {
    /// `spec.podCIDRs` of the Node object, empty when it has none; `None` when that is not known any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidrs: Option<Vec<String>>,
}

/// See [`super::Observation::Admission`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// Empty when nothing is kept any more.
    pub blocked: Vec<Blocked>,
}

/// A DaemonSet whose pods are not created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// `kube-system/calico-node`
    pub daemonset: String,
    /// Name of the webhook.
    pub webhook: String,
    /// What the API server says of it, on one line.
    pub why: String,
    /// The address that it did not reach, where it names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<SocketAddr>,
    /// For how long, in seconds, when it was read.
    pub since_s: u64,
}
