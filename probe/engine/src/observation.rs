//! The input of the engine: raw facts with a time, without judgement.
//!
//! This is also the format of recordings, so changes only add to it: new variants, and new fields with a default.

mod api;
mod cni;
mod datapath;
mod node;
mod runtime;
mod sandbox;
mod trust;

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::net::SocketAddr;

use serde::{Deserialize, Serialize};

pub use api::*;
pub use cni::*;
pub use datapath::*;
pub use node::*;
pub use runtime::*;
pub use sandbox::*;
pub use trust::*;

use crate::verdict::Condition;

/// A time on `CLOCK_BOOTTIME`, in nanoseconds. The engine uses no other clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootTime(pub u64);

impl BootTime {
    /// Returns the nanoseconds since `earlier`; 0 when `earlier` is later than this time.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the time `ns` nanoseconds earlier, at least 0.
    #[must_use]
    pub const fn minus(self, ns: u64) -> Self {
        Self(self.0.saturating_sub(ns))
    }

    /// Returns the time `ns` nanoseconds later.
    #[must_use]
    pub const fn plus(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Observation {
    /// The host; again when it changes.
    Host(Host),
    /// An address at which this node expects the API server; again when its kind changes.
    ApiTarget(ApiTarget),
    /// The API server is no longer expected at the address.
    ApiTargetGone {
        /// The address, as in [`ApiTarget::addr`].
        addr: SocketAddr,
    },
    /// A TCP connect ended, or connect(2) failed.
    Connect(Connect),
    /// The response of an API server to the agent's own requests.
    Answer(Answer),
    /// The state of a connection to an API address after its handshake.
    Connection(Connection),
    /// A watched process called connect(2) for a Unix socket.
    SocketConnect(SocketConnect),
    /// The result of calling the container runtime over CRI: when it changes, after events that can affect it, and
    /// repeatedly while the runtime is not ready.
    Cri(Cri),
    /// A TCP listener on this host was opened or closed, or was found at start.
    Listener(Listener),
    /// The result of resolving the name of an API server, or of the proxy in front of it: each failure, and the first
    /// success after one.
    NameLookup(NameLookup),
    /// The result of a route lookup in the host's network namespace.
    Route(Route),
    /// The complete state of the CNI configuration, after each change.
    CniConfig(CniConfig),
    /// A process opened or changed a file in the configuration directory.
    ConfAccess(ConfAccess),
    /// A runtime started a CNI plugin (delegates are not reported here).
    CniStart(CniStart),
    /// A CNI plugin started by a runtime exited; includes its delegates.
    CniEnd(CniEnd),
    /// A network namespace was created or destroyed.
    Netns(Netns),
    /// A name in the directory where runtimes bind namespaces was bound or removed, or a leftover file was found.
    NetnsName(NetnsName),
    /// The steps of a sandbox, in order, after its last one.
    Sandbox(Sandbox),
    /// The complete state of Open vSwitch, after each change.
    Ovs(Ovs),
    /// A port of the Open vSwitch datapath in the kernel was added or removed.
    OvsPort(OvsPort),
    /// Packets for which the datapath made an upcall to user space.
    OvsUpcalls(OvsUpcalls),
    /// A network link was created, changed or removed; also in namespaces that have an ID in the host's namespace.
    Link(Link),
    /// The kernel refused a change of a link, an address, a route or a rule.
    NetlinkError(NetlinkError),
    /// A route or a rule of the host's namespace was removed or restored.
    RouteGone(RouteGone),
    /// The usage of a limited resource, when it changes.
    Limit(Limit),
    /// A system call of a watched process failed because of a limit.
    LimitHit(LimitHit),
    /// The validity of a credential on disk.
    Credential(Credential),
    /// The wall clock was set.
    ClockStep {
        /// Milliseconds; negative for a step backwards.
        by_ms: i64,
    },
    /// The cgroup drivers of the runtime and the kubelet.
    CgroupDrivers(CgroupDrivers),
    /// The number of addresses that a network has allocated, when it diverges from the number of sandboxes or converges
    /// again.
    Leases(Leases),
    /// A module that the kernel requested was not loaded, or was loaded later.
    ModuleMissing(ModuleMissing),
    /// A plugin could not be executed, or a running plugin could not be replaced.
    PluginFile(PluginFile),
    /// This host drops received packets.
    PacketsDropped(PacketsDropped),
    /// A kernel setting that pod networks depend on, at start and when it changes.
    Sysctl {
        /// `net.ipv4.ip_forward`, …
        name: String,
        /// As the kernel prints it.
        value: String,
    },
    /// A watched process started, was found at start, or exited.
    Process(Process),
    /// A watched process makes no progress, or makes progress again; repeated while it is stuck.
    Stuck(Stuck),
    /// Events were lost; the state of `scope` is not reliable until it has been read again.
    Lost(Lost),
    /// Events of processes that are not components of the node were not recorded: they exceeded their budget.
    Throttled(Throttled),
    /// The state of `scope` was read again; the reports since the loss are complete.
    Reread {
        /// The scope that was read.
        scope: Scope,
    },
    /// A signal is not available on this host.
    Gap(Gap),
    /// A signal is available again.
    GapClosed {
        /// The signal, as in [`Gap::signal`].
        signal: String,
    },
    /// All DaemonSets whose pods an admission webhook keeps from being created, as the API server reports them, when
    /// that changes.
    Admission(Admission),
    /// The pod CIDRs of the Node object, when they change.
    PodCidrs(PodCidrs),
    /// The last conditions of an earlier agent on this boot; before all other observations.
    Remembered(Remembered),
    /// How the conditions are written to the Node object, when that changes.
    Writes(Writes),
    /// The state at start was read completely; only changes follow.
    SnapshotDone,
    /// The agent is being removed.
    Stopping,
}

/// A part of the state that can be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// TCP connects and listeners.
    Sockets,
    /// The CNI configuration, the output of plugins, and requests that the kernel refused them.
    Cni,
    /// Starts and exits of processes and CNI runs.
    Processes,
    /// Links and network namespaces.
    Links,
}

impl Scope {
    /// Returns the subject of the events of this scope, in the plural.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Sockets => "connects and listeners",
            Self::Cni => "CNI runs",
            Self::Processes => "processes and CNI runs",
            Self::Links => "links",
        }
    }
}

/// See [`Observation::Throttled`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttled {
    /// The hook that did not record them.
    pub hook: String,
    /// Number of events; a lower bound.
    pub count: u64,
}

/// See [`Observation::Lost`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// The hook, or another source, whose events were lost.
    pub hook: String,
    /// The part of the state that is no longer reliable.
    pub scope: Scope,
    /// Number of events or skipped runs; a lower bound.
    pub count: u64,
    /// Whether `count` is a number of runs of the hook that the kernel skipped; it is not known whether each would have
    /// reported an event.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub left_out: bool,
}

impl Lost {
    /// Returns the loss of `count` events of a source that reports all kinds of events: one loss for each scope, the
    /// first with the count.
    pub fn of_any_event(source: &str, count: u64) -> [Self; 3] {
        [(Scope::Sockets, count), (Scope::Processes, 0), (Scope::Cni, 0)].map(|(scope, count)| Self {
            hook: source.to_string(),
            scope,
            count,
            left_out: false,
        })
    }

    /// Returns the number of lost events or skipped runs as a phrase.
    pub fn words(&self) -> String {
        let what = if self.left_out { "runs skipped by the kernel" } else { "events lost" };
        format!("{} {what}", self.count)
    }
}

/// See [`Observation::Remembered`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// At most one of each type. A condition that reaches the same status again keeps the remembered time of change.
    pub conditions: Vec<Condition>,
}

/// See [`Observation::Writes`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writes {
    /// The account and the address in use; empty without a usable account.
    pub by: String,
    /// Why the conditions cannot be written, on one line.
    #[serde(default)]
    pub problem: Option<String>,
}

/// See [`Observation::Gap`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Gap {
    /// `tcp.connect`, `cni.exec`, `cni.stdout`, `process.exit`, `netns`, `link`, `cni.config`, …
    pub signal: String,
    /// One line: why, and the fallback.
    pub why: String,
    /// Whether the signal has no fallback: a verdict that needs it is `ProbeDegraded`.
    #[serde(default)]
    pub blind: bool,
}

impl Gap {
    /// Signal of events that are repeatedly lost.
    pub const EVENTS_LOST: &'static str = "events.lost";
    /// Signal of a CNI configuration or plugin that the agent cannot read because of its own permissions or limits.
    pub const CNI_CONFIG_DENIED: &'static str = "cni.config.denied";
    /// Signal of host processes that the agent cannot read. Then only processes that start or exit while the agent runs
    /// are known.
    pub const PROCESS_TABLE: &'static str = "process.table";
}

/// Returns whether a number has its default value, which recordings omit.
fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}
