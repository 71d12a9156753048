//! What the engine is told: raw facts with a time, never judgements.
//!
//! This is also the format of recordings, so it only grows: new variants, and new fields with a default.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// A time on `CLOCK_BOOTTIME`, in nanoseconds. The engine knows no other clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mono(pub u64);

impl Mono {
    /// Nanoseconds that passed since `earlier`; 0 when that lies ahead.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This time, `ns` nanoseconds later.
    #[must_use]
    pub const fn plus(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Observation {
    /// What this host is; repeated whenever it changes.
    Host(Host),
    /// An address at which this node expects the API server; repeated when its kind changes.
    ApiTarget(ApiTarget),
    /// The address is not expected any more.
    ApiTargetGone {
        /// As it was named.
        addr: SocketAddr,
    },
    /// A TCP connect ended, or connect(2) failed.
    Connect(Connect),
    /// What an API server said when it was asked for itself.
    Answer(Answer),
    /// What is known of a connection to an API address after its handshake.
    Connection(Connection),
    /// A process that matters called connect(2) for a Unix socket.
    SocketConnect(SocketConnect),
    /// A TCP listener on this host came or went, or was found at start.
    Listener(Listener),
    /// The kernel's answer to a route look-up in the host's namespace.
    Route(Route),
    /// The whole state of the CNI configuration, after each change.
    CniConfig(CniConfig),
    /// Somebody opened or changed a file in the configuration directory.
    ConfAccess(ConfAccess),
    /// A CNI plugin was started by a runtime (delegates are not reported here).
    CniStart(CniStart),
    /// A CNI plugin started by a runtime ended; carries its delegates.
    CniEnd(CniEnd),
    /// A network namespace came or went.
    Netns(Netns),
    /// A name in the directory where runtimes bind namespaces came, went, or was left over.
    NetnsName(NetnsName),
    /// A sandbox got as far as it will: what was done for it, in order.
    Sandbox(Sandbox),
    /// The whole state of Open vSwitch, after each change.
    Ovs(Ovs),
    /// A port of its datapath in the kernel came or went.
    OvsPort(OvsPort),
    /// Packets for which its datapath had to ask user space.
    OvsUpcalls(OvsUpcalls),
    /// A network link came, changed or went; also in namespaces that the host's one has an id for.
    Link(Link),
    /// The kernel refused a change of a link, an address, a route or a rule.
    NetlinkError(NetlinkError),
    /// A route or a rule of the host's namespace went.
    RouteGone(RouteGone),
    /// How full something is that fills up; when that changes.
    Limit(Limit),
    /// A process that matters did not get what it asked the kernel for.
    LimitHit(LimitHit),
    /// How long a credential on disk is valid.
    Credential(Credential),
    /// The wall clock was set.
    ClockStep {
        /// Milliseconds forward; negative for back.
        by_ms: i64,
    },
    /// A module that the kernel asked for did not come.
    ModuleMissing(ModuleMissing),
    /// A plugin could not be executed, or a running one not be replaced.
    PluginFile(PluginFile),
    /// This host drops packets that come in.
    PacketsDropped(PacketsDropped),
    /// A setting of the kernel that pod networks depend on, at start and when it changes.
    Sysctl {
        /// `net.ipv4.ip_forward`, …
        name: String,
        /// As the kernel prints it.
        value: String,
    },
    /// A process that matters started, was found at start, or ended.
    Process(Process),
    /// Events were lost; `scope` must be read again before it can be trusted.
    Lost(Lost),
    /// Everything in `scope` was read again; what was reported since the loss is complete.
    Reread {
        /// What was read.
        scope: Scope,
    },
    /// A signal is not available on this host.
    Gap(Gap),
    /// It is available again.
    GapClosed {
        /// As it was named in [`Gap::signal`].
        signal: String,
    },
    /// The state at start was read completely; from here on there are only changes.
    SnapshotDone,
    /// The agent is being removed.
    Stopping,
}

/// What this host is for. Found from processes, manifests and files, or set by `--role`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Not known yet.
    #[default]
    Unknown,
    /// Runs a kubelet and no API server.
    Worker,
    /// Runs a kubelet and an API server (static pod manifest, process, or set).
    ControlPlane,
    /// Runs etcd and no kubelet.
    Etcd,
    /// Neither kubelet nor etcd.
    None,
}

/// A container runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runtime {
    /// Not known; judged like containerd.
    #[default]
    Unknown,
    /// containerd: stops at the first bad configuration file.
    Containerd,
    /// CRI-O: skips bad configuration files.
    CriO,
}

/// See [`Observation::Host`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// What this host is for.
    pub role: Role,
    /// True when a person set the role, false when it was found.
    #[serde(default)]
    pub role_set: bool,
    /// Which runtime reads the CNI configuration.
    #[serde(default)]
    pub runtime: Runtime,
    /// Addresses of this host's own links, loopback included.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

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

/// See [`Observation::ApiTarget`].
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
            Self::Other => "other",
        }
    }
}

/// Who acted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Process id in the initial pid namespace; 0 when unknown.
    pub pid: u32,
    /// Name of the executable, or the kernel's name of the process; control characters are escaped.
    pub name: String,
}

/// See [`Observation::Connect`]. The fields are the kernel's; [`crate::Outcome`] says what they mean.
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

/// See [`Observation::Connection`]. Bytes are of the application: SYN and FIN do not count.
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
}

/// See [`Observation::SocketConnect`].
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

/// See [`Observation::Answer`].
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
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

/// See [`Observation::Listener`].
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

/// See [`Observation::Route`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Address that was looked up.
    pub to: IpAddr,
    /// Positive errno of the look-up; 0 when there is a route.
    pub errno: u32,
}

/// See [`Observation::CniConfig`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniConfig {
    /// The directory that the runtime reads.
    pub dir: String,
    /// Why the directory could not be read; it is then treated as empty when it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir_error: Option<String>,
    /// The directory is not there.
    #[serde(default)]
    pub dir_missing: bool,
    /// Every `.conf`, `.conflist`, `.json`, in the order in which runtimes read them.
    pub files: Vec<ConfFile>,
    /// The directories in which plugins are looked for.
    #[serde(default)]
    pub bin_dirs: Vec<String>,
    /// Plugins named by any readable file, and `loopback`, that are not in any of `bin_dirs`.
    #[serde(default)]
    pub missing_plugins: Vec<String>,
    /// Files that meta-plugins wait for before they do anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<WaitsFor>,
}

/// What a meta-plugin waits for: `readinessindicatorfile`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitsFor {
    /// The plugin's type.
    pub plugin: String,
    /// Path; control characters are escaped.
    pub file: String,
    /// It is there.
    pub present: bool,
}

/// See [`Observation::ConfAccess`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfAccess {
    /// Who.
    pub process: Actor,
    /// What the process is, when it is one that matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ProcessClass>,
    /// File name without directory; empty for the directory itself.
    pub file: String,
    /// What was done.
    pub access: Access,
}

/// What was done to a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Opened.
    Opened,
    /// Closed after it was open for writing.
    Written,
    /// Created.
    Created,
    /// Removed.
    Removed,
    /// It had this name until it was renamed.
    RenamedFrom,
    /// It has this name since it was renamed.
    RenamedTo,
    /// The directory itself was removed or moved: who watches it sees nothing any more.
    DirectoryReplaced,
}

/// One configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfFile {
    /// File name without directory; control characters are escaped.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// What is in it.
    #[serde(flatten)]
    pub content: ConfContent,
}

/// What a configuration file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "content", rename_all = "snake_case")]
pub enum ConfContent {
    /// A network configuration.
    Network {
        /// `name`
        network: String,
        /// The `type` of each plugin in order, then of each `ipam` section.
        plugins: Vec<String>,
    },
    /// It was read and is no network configuration.
    Invalid {
        /// One line: what is wrong and where.
        why: String,
    },
    /// It could not be read (no permission, no regular file, dangling link, too large).
    Unreadable {
        /// One line.
        why: String,
    },
}

/// A pod as `CNI_ARGS` names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pod {
    /// `K8S_POD_NAMESPACE`
    pub namespace: String,
    /// `K8S_POD_NAME`
    pub name: String,
}

/// See [`Observation::CniStart`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniStart {
    /// The plugin's process.
    pub pid: u32,
    /// `CNI_COMMAND`: ADD, DEL, CHECK, VERSION, STATUS, GC.
    pub command: String,
    /// Name of the executable, which is the plugin's type.
    pub plugin: String,
    /// `CNI_CONTAINERID`
    #[serde(default)]
    pub container_id: String,
    /// `CNI_NETNS`
    #[serde(default)]
    pub netns: String,
    /// `CNI_IFNAME`
    #[serde(default)]
    pub ifname: String,
    /// From `CNI_ARGS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// Who started it.
    #[serde(default)]
    pub parent: Actor,
    /// What `netns` was when it started.
    #[serde(default, skip_serializing_if = "NetnsSeen::is_unknown")]
    pub netns_seen: NetnsSeen,
}

/// See [`Observation::CniEnd`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniEnd {
    /// What was started.
    #[serde(flatten)]
    pub start: CniStart,
    /// Nanoseconds from exec to the end.
    pub took_ns: u64,
    /// How it ended.
    pub exit: ExitStatus,
    /// The error object on its standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<CniError>,
    /// Plugins that it started itself, in order of their start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delegates: Vec<Delegate>,
    /// What the kernel refused it or a delegate, newest last; it may have been of no consequence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<NetlinkError>,
    /// Unix sockets that it or a delegate connected to, in order of the first try.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<AgentSocket>,
}

/// A plugin started by a plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegate {
    /// Name of the executable.
    pub plugin: String,
    /// Nanoseconds from exec to the end.
    pub took_ns: u64,
    /// How it ended.
    pub exit: ExitStatus,
    /// The error object on its standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<CniError>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Exit code; 0 when a signal ended it.
    pub code: u8,
    /// Signal number; 0 when it exited by itself.
    #[serde(default)]
    pub signal: u8,
}

impl ExitStatus {
    /// From the form that wait(2) gives.
    #[expect(clippy::cast_possible_truncation, reason = "eight bits each, wait(2)")]
    pub const fn from_wait(status: u32) -> Self {
        Self { code: (status >> 8) as u8, signal: (status & 0x7f) as u8 }
    }

    /// Exit code 0 and no signal.
    pub const fn success(self) -> bool {
        self.code == 0 && self.signal == 0
    }
}

/// A CNI error object, SPEC.md "Error". Texts are cut and control characters escaped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniError {
    /// `code`
    pub code: u64,
    /// `msg`
    pub msg: String,
    /// `details`
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// See [`Observation::Netns`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netns {
    /// Inode number.
    pub inum: u32,
    /// Created or ended.
    pub up: bool,
    /// Who created it.
    #[serde(default)]
    pub process: Actor,
}

/// See [`Observation::NetnsName`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsName {
    /// Where; control characters are escaped.
    pub path: String,
    /// Inode number of the namespace; 0 for a file that is bound to none.
    pub inum: u32,
    /// What became of it.
    pub state: NameState,
}

/// What became of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameState {
    /// A namespace is bound to it.
    Bound,
    /// It is gone.
    Unbound,
    /// A file is there and no namespace is bound to it.
    Stale,
}

/// What the path that a runtime hands to its plugins is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum NetnsSeen {
    /// It was not looked at, or none was given.
    #[default]
    Unknown,
    /// A network namespace.
    Namespace {
        /// Its inode number.
        inum: u32,
    },
    /// Nothing is there.
    Missing,
    /// Something is there that is no namespace.
    NoNamespace,
    /// A namespace on the host, and something else for the process that hands it on: its mounts are not
    /// shared.
    Hidden,
}

impl NetnsSeen {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
    const fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown)
    }
}

/// See [`Observation::Sandbox`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Inode number of its namespace; 0 when it is not known.
    pub netns: u32,
    /// `CNI_CONTAINERID`
    #[serde(default)]
    pub container_id: String,
    /// From `CNI_ARGS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// An ADD was seen; without one, a DEL cleans up what somebody else left.
    pub added: bool,
    /// Everything that was done succeeded.
    pub ok: bool,
    /// Nanoseconds from the first step to the last.
    pub took_ns: u64,
    /// In the order of their time; of many only the first and the newest.
    pub steps: Vec<Step>,
}

/// One step of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Nanoseconds since the first step.
    pub after_ns: u64,
    /// Kind.
    pub step: StepKind,
    /// The plugin and its delegates, the link and its kind, the path, the process; control characters are
    /// escaped.
    #[serde(default)]
    pub what: String,
    /// It succeeded.
    pub ok: bool,
    /// Nanoseconds that it took; 0 for what takes no time.
    #[serde(default)]
    pub took_ns: u64,
}

/// What was done for a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// Its namespace was made.
    Created,
    /// The namespace got its name.
    Named,
    /// A plugin added it to a network.
    Add,
    /// A link came into it, or was made there.
    Link,
    /// A plugin looked after it.
    Check,
    /// A plugin removed it from a network.
    Del,
    /// The name went.
    Unnamed,
    /// The namespace ended.
    Ended,
}

impl StepKind {
    /// In plain words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Created => "made",
            Self::Named => "named",
            Self::Add => "ADD",
            Self::Link => "link",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Unnamed => "unnamed",
            Self::Ended => "ended",
        }
    }
}

/// See [`Observation::Ovs`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ovs {
    /// The kernel's module has registered its families.
    pub module: bool,
    /// Datapaths in the kernel; there is none where OVS runs in user space.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub datapaths: Vec<String>,
    /// What its database says; `None` where there is no socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<OvsDatabase>,
}

/// The `Open_vSwitch` database of ovsdb-server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OvsDatabase {
    /// Why it could not be read, on one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Somebody asked for changes (`next_cfg`) that ovs-vswitchd has not made (`cur_cfg`).
    #[serde(default)]
    pub behind: bool,
    /// Names of its bridges.
    #[serde(default)]
    pub bridges: Vec<String>,
    /// Interfaces that could not be made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<OvsInterface>,
}

/// An interface with an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OvsInterface {
    /// Name; control characters are escaped.
    pub name: String,
    /// `geneve`, `vxlan`, `internal`, …; empty for a link of the system.
    #[serde(default)]
    pub port_kind: String,
    /// The words of ovs-vswitchd; control characters are escaped.
    pub error: String,
}

/// See [`Observation::OvsPort`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OvsPort {
    /// Name; control characters are escaped.
    pub name: String,
    /// `netdev`, `internal`, `vxlan`, `geneve`, …
    #[serde(default)]
    pub port_kind: String,
    /// Came or went.
    pub up: bool,
}

/// See [`Observation::OvsUpcalls`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OvsUpcalls {
    /// Name of the datapath.
    pub datapath: String,
    /// Packets without a flow since this was told last.
    pub missed: u64,
    /// Of the questions about them, those that nobody took.
    pub lost: u64,
}

/// See [`Observation::Link`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// `ifindex`
    pub index: u32,
    /// Name; control characters are escaped.
    pub name: String,
    /// `IFLA_INFO_KIND` (veth, bridge, vxlan, …); empty for a physical link.
    #[serde(default)]
    pub link_kind: String,
    /// Present or gone.
    pub present: bool,
    /// `IFF_UP`
    #[serde(default)]
    pub up: bool,
    /// Inode number of its namespace, when that is not the host's; 0 when nobody has given it a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<u32>,
    /// The namespace of its other end, in the same words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_netns: Option<u32>,
    /// It is gone because it was moved into this namespace; in the same words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_to: Option<u32>,
}

/// See [`Observation::NetlinkError`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetlinkError {
    /// Who asked.
    pub process: Actor,
    /// What the process is, when it is one that matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ProcessClass>,
    /// A CNI plugin, or something that it started, asked.
    #[serde(default)]
    pub cni: bool,
    /// `newlink`, `setlink`, `newaddr`, `newroute`, …; empty when it is not known.
    #[serde(default)]
    pub request: String,
    /// The link or the destination that it was about; control characters are escaped.
    #[serde(default)]
    pub object: String,
    /// Positive errno; 0 when it is not known.
    #[serde(default)]
    pub errno: u32,
    /// The kernel's own explanation; empty when it gave none.
    #[serde(default)]
    pub text: String,
}

/// See [`Observation::RouteGone`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteGone {
    /// Who asked for it.
    pub process: Actor,
    /// A policy rule and not a route.
    #[serde(default)]
    pub rule: bool,
    /// Destination as people write it: `10.244.0.0/16`, `default`; of a rule, the source.
    pub object: String,
}

/// See [`Observation::Limit`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// `conntrack`, `processes`, `inotify`, `files`, `disk`, `inodes`.
    pub what: String,
    /// The process of `files`, the path of `disk` and `inodes`; else empty.
    #[serde(default)]
    pub subject: String,
    /// How much is used; bytes for `disk`.
    pub used: u64,
    /// How much there is.
    pub max: u64,
}

/// See [`Observation::LimitHit`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitHit {
    /// Who asked.
    pub process: Actor,
    /// What the process is, when it is one that matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ProcessClass>,
    /// `inotify`, `processes`.
    pub what: String,
    /// Positive errno.
    pub errno: u32,
}

/// See [`Observation::Credential`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Path on the host; control characters are escaped.
    pub file: String,
    /// Whose it is: `kubelet`, or a CNI.
    pub owner: String,
    /// Seconds until it is valid; negative when it is.
    pub valid_in_s: i64,
    /// Seconds until it expires; negative when it has.
    pub expires_in_s: i64,
}

/// See [`Observation::ModuleMissing`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleMissing {
    /// The module, or the alias under which the kernel asked for it; control characters are escaped.
    pub name: String,
    /// Whose doing needs it.
    pub process: Actor,
}

/// See [`Observation::PluginFile`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginFile {
    /// Who tried.
    pub process: Actor,
    /// Name of the plugin; control characters are escaped.
    pub plugin: String,
    /// It was to be opened for writing, not to be executed.
    #[serde(default)]
    pub write: bool,
    /// Positive errno: ETXTBSY, EACCES, EPERM.
    pub errno: u32,
}

/// See [`Observation::PacketsDropped`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketsDropped {
    /// The kernel's name of the reason: `IP_RPFILTER`.
    pub reason: String,
    /// The link on which they came; empty when it is not known.
    #[serde(default)]
    pub device: String,
    /// How many since this was told last.
    pub count: u64,
}

/// What a watched process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessClass {
    /// kubelet (also inside k3s and RKE2).
    Kubelet,
    /// kube-apiserver
    ApiServer,
    /// etcd
    Etcd,
    /// kube-controller-manager, kube-scheduler
    ControlPlane,
    /// kube-proxy
    KubeProxy,
    /// containerd, crio, dockerd
    Runtime,
    /// calico-node, cilium-agent, flanneld, …
    CniAgent,
    /// ovs-vswitchd, ovsdb-server, ovn-controller
    Ovs,
    /// nginx, haproxy, kube-vip: what Kubernetes installers put before the API
    Proxy,
}

/// See [`Observation::Process`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The process.
    pub process: Actor,
    /// What it is.
    pub class: ProcessClass,
    /// What happened.
    #[serde(flatten)]
    pub event: ProcessEvent,
}

/// What happened to a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ProcessEvent {
    /// Executed just now.
    Started,
    /// Was there when the agent looked.
    Found,
    /// Its last thread ended.
    Exited {
        /// How.
        exit: ExitStatus,
        /// Who sent the deadly signal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sender: Option<Actor>,
        /// The out-of-memory killer chose it.
        #[serde(default)]
        oom: bool,
    },
}

/// A part of the state that can be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// TCP connects and listeners.
    Sockets,
    /// CNI runs.
    Cni,
    /// Processes.
    Processes,
    /// Links and namespaces.
    Links,
}

/// See [`Observation::Lost`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// The hook that lost them.
    pub hook: String,
    /// What can no longer be trusted.
    pub scope: Scope,
    /// How many, at least.
    pub count: u64,
}

/// See [`Observation::Gap`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Gap {
    /// `tcp.connect`, `cni.exec`, `cni.stdout`, `process.exit`, `netns`, `link`, `cni.config`, …
    pub signal: String,
    /// One line: why, and what stands in.
    pub why: String,
    /// Nothing else shows what this signal shows: a verdict that needs it is `ProbeDegraded`.
    #[serde(default)]
    pub blind: bool,
}
