//! What the engine is told: raw facts with a time, never judgements.
//!
//! This is also the format of recordings, so it only grows: new variants, and new fields with a default.

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

/// A time on `CLOCK_BOOTTIME`, in nanoseconds. The engine knows no other clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mono(pub u64);

impl Mono {
    /// Nanoseconds that passed since `earlier`; 0 when that lies ahead.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This time, `ns` nanoseconds earlier.
    #[must_use]
    pub const fn minus(self, ns: u64) -> Self {
        Self(self.0.saturating_sub(ns))
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
    /// The result of calling the container runtime over CRI: when it changes, after events that it can depend on, and
    /// repeatedly while the runtime is not ready.
    Cri(Cri),
    /// A TCP listener on this host came or went, or was found at start.
    Listener(Listener),
    /// The result of resolving the name of an API server, or of the proxy before it: each failure, and the first success after one.
    NameLookup(NameLookup),
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
    /// Who makes the cgroups of containers.
    CgroupDrivers(CgroupDrivers),
    /// How many addresses a network has given out; when that moves away from the number of sandboxes, or back.
    Leases(Leases),
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
    /// A process that matters runs and makes no progress, or does again; repeated while it lasts.
    Stuck(Stuck),
    /// Events were lost; `scope` must be read again before it can be trusted.
    Lost(Lost),
    /// Events of processes that are not the node's own were not recorded: they exceeded their budget.
    Throttled(Throttled),
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
    /// Pods of DaemonSets that an admission webhook keeps from being created, as the API server tells it; all of
    /// them, when that changes.
    Admission(Admission),
    /// The ranges that the Node object gives to the pods of this node, when that changes.
    PodCidrs(PodCidrs),
    /// What an earlier agent on this boot said last; before everything else.
    Remembered(Remembered),
    /// How the conditions reach the Node object; when that changes.
    Writes(Writes),
    /// The state at start was read completely; from here on there are only changes.
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
    /// The CNI configuration, and what plugins say and are refused.
    Cni,
    /// Processes and CNI runs: their starts and ends.
    Processes,
    /// Links and namespaces.
    Links,
}

impl Scope {
    /// Returns what the events of this scope are about, in the plural.
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
    /// How many, at least.
    pub count: u64,
}

/// See [`Observation::Lost`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// The hook, or another source of events, that lost them.
    pub hook: String,
    /// What can no longer be trusted.
    pub scope: Scope,
    /// How many, at least.
    pub count: u64,
    /// Runs of the hook that the kernel left out, of which nobody knows whether they had an event to tell.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub left_out: bool,
}

impl Lost {
    /// Returns losses of a source that reports events of every kind, one for each scope; the first has the count.
    pub fn of_any_event(source: &str, count: u64) -> [Self; 3] {
        [(Scope::Sockets, count), (Scope::Processes, 0), (Scope::Cni, 0)].map(|(scope, count)| Self {
            hook: source.to_string(),
            scope,
            count,
            left_out: false,
        })
    }

    /// How many of what, as people read it.
    pub fn words(&self) -> String {
        let what = if self.left_out { "runs left out by the kernel" } else { "events lost" };
        format!("{} {what}", self.count)
    }
}

/// See [`Observation::Remembered`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// At most one of each type. A condition that comes to the same status has had it since then.
    pub conditions: Vec<Condition>,
}

/// See [`Observation::Writes`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writes {
    /// The account and the address in use; empty when there is none.
    pub by: String,
    /// Why they are not written, on one line.
    #[serde(default)]
    pub problem: Option<String>,
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

impl Gap {
    /// Signal of events that keep being lost.
    pub const EVENTS_LOST: &'static str = "events.lost";
    /// Signal of a CNI configuration, or of a plugin, that the agent cannot read for a reason of its own.
    pub const CNI_CONFIG_DENIED: &'static str = "cni.config.denied";
    /// Signal of processes of the host that the agent cannot read. What runs there is then known only as far as it starts or
    /// exits while the agent watches.
    pub const PROCESS_TABLE: &'static str = "process.table";
}

/// What need not be written: the reader puts it back.
fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}
