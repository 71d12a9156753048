//! Label sets. Every value is from a closed table.

use std::collections::BTreeSet;

use probe_engine::{Observation, ProcessClass, cnis};
use prometheus_client::encoding::EncodeLabelSet;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ConditionLabels {
    pub(super) r#type: &'static str,
    pub(super) status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct VerdictLabels {
    pub(super) reason: &'static str,
    pub(super) side: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ConnectLabels {
    pub(super) client: &'static str,
    pub(super) outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ClientLabels {
    pub(super) client: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CniLabels {
    pub(super) command: &'static str,
    pub(super) plugin: &'static str,
    pub(super) outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CniTimeLabels {
    pub(super) command: &'static str,
    pub(super) plugin: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HookLabels {
    pub(super) hook: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KindLabels {
    pub(super) kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabels {
    pub(super) outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SinkLabels {
    pub(super) sink: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ErrnoLabels {
    pub(super) errno: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StateLabels {
    pub(super) state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ExitLabels {
    pub(super) process: &'static str,
    pub(super) cause: &'static str,
}

/// Operations of the CNI specification (SPEC.md, "CNI operations"); every other is `other`.
pub(super) const COMMANDS: [&str; 6] = ["ADD", "DEL", "CHECK", "VERSION", "STATUS", "GC"];
/// Operations that have their own histogram of durations. The others do no work on the datapath and share one, because each
/// histogram takes eight series for every plugin.
pub(super) const TIMED_COMMANDS: [&str; 2] = ["ADD", "DEL"];
/// Link types that container networks use; every other is `other`.
pub(super) const LINK_KINDS: [&str; 9] =
    ["veth", "bridge", "vxlan", "geneve", "ipip", "wireguard", "openvswitch", "netkit", "dummy"];
/// The errors known to [`probe_engine::errno_name`] that concern links, addresses, routes and rules. Every other is `other`,
/// among them those of execve(2), open(2) and connect(2), such as `ENOEXEC`, `EMFILE` and `ETIMEDOUT`.
pub(super) const NETLINK_ERRNOS: [&str; 18] = [
    "EPERM",
    "ENOENT",
    "ESRCH",
    "ENOMEM",
    "EACCES",
    "EBUSY",
    "EEXIST",
    "ENODEV",
    "EINVAL",
    "ENOSPC",
    "ERANGE",
    "ELOOP",
    "EOPNOTSUPP",
    "EAFNOSUPPORT",
    "EADDRINUSE",
    "EADDRNOTAVAIL",
    "ENETUNREACH",
    "EHOSTUNREACH",
];
/// Results of a write to the Node object, as the writer reports them.
#[cfg(test)]
pub(super) const WRITE_OUTCOMES: [&str; 8] =
    ["ok", "no_node", "unauthorized", "forbidden", "throttled", "refused", "server_error", "unreachable"];
/// Sinks that count what they had to drop.
pub(super) const SINKS: [&str; 2] = ["journal", "node"];

/// Returns `value` if it is one of `known`, otherwise `other`.
pub(super) fn closed(known: &[&'static str], value: &str) -> &'static str {
    known.iter().find(|name| **name == value).copied().unwrap_or("other")
}

/// Names of the plugins that this node runs.
#[derive(Debug, Default)]
pub(super) struct Plugins(BTreeSet<&'static str>);

impl Plugins {
    /// The number of plugins with series of their own. A runtime starts `loopback`, the plugin of the network and those that
    /// are chained to it (`bandwidth`, `portmap`, `tuning`); delegates are not counted. Each plugin has up to 38 series.
    const MOST: usize = 6;

    /// Returns the label value of a plugin: its name if it is a known plugin and one of the first [`Self::MOST`] on this
    /// node, otherwise `other`.
    pub(super) fn label(&mut self, name: &str) -> &'static str {
        let Some(known) = cnis::plugins().find(|known| *known == name) else { return "other" };
        if self.0.len() < Self::MOST {
            self.0.insert(known);
        }
        if self.0.contains(known) { known } else { "other" }
    }
}

/// Defines a label value for each variant of an enum, and the list of all values.
macro_rules! label_values {
    ($(#[$doc:meta])* $function:ident($argument:ty), $list:ident: $($pattern:pat => $value:literal,)*) => {
        $(#[$doc])*
        pub(super) const fn $function(of: $argument) -> &'static str {
            match of { $($pattern => $value,)* }
        }

        /// Every value.
        #[cfg(test)]
        pub(super) const $list: &[&str] = &[$($value),*];
    };
}

label_values! {
    /// Returns the kind of an observation.
    kind(&Observation), KINDS:
    Observation::Host(_) => "host",
    Observation::ApiTarget(_) => "api_target",
    Observation::ApiTargetGone { .. } => "api_target_gone",
    Observation::Connect(_) => "connect",
    Observation::Answer(_) => "answer",
    Observation::Connection(_) => "connection",
    Observation::SocketConnect(_) => "socket_connect",
    Observation::Cri(_) => "cri",
    Observation::Listener(_) => "listener",
    Observation::NameLookup(_) => "name_lookup",
    Observation::Route(_) => "route",
    Observation::CniConfig(_) => "cni_config",
    Observation::ConfAccess(_) => "conf_access",
    Observation::CniStart(_) => "cni_start",
    Observation::CniEnd(_) => "cni_end",
    Observation::Netns(_) => "netns",
    Observation::NetnsName(_) => "netns_name",
    Observation::Sandbox(_) => "sandbox",
    Observation::Ovs(_) => "ovs",
    Observation::OvsPort(_) => "ovs_port",
    Observation::OvsUpcalls(_) => "ovs_upcalls",
    Observation::Link(_) => "link",
    Observation::NetlinkError(_) => "netlink_error",
    Observation::RouteGone(_) => "route_gone",
    Observation::Limit(_) => "limit",
    Observation::LimitHit(_) => "limit_hit",
    Observation::Credential(_) => "credential",
    Observation::ClockStep { .. } => "clock_step",
    Observation::ModuleMissing(_) => "module_missing",
    Observation::PluginFile(_) => "plugin_file",
    Observation::Leases(_) => "leases",
    Observation::CgroupDrivers(_) => "cgroup_drivers",
    Observation::PacketsDropped(_) => "packets_dropped",
    Observation::Sysctl { .. } => "sysctl",
    Observation::Process(_) => "process",
    Observation::Stuck(_) => "stuck",
    Observation::Lost(_) => "lost",
    Observation::Throttled(_) => "throttled",
    Observation::Reread { .. } => "reread",
    Observation::Gap(_) => "gap",
    Observation::GapClosed { .. } => "gap_closed",
    Observation::Admission(_) => "admission",
    Observation::PodCidrs(_) => "pod_cidrs",
    Observation::Remembered(_) => "remembered",
    Observation::Writes(_) => "writes",
    Observation::SnapshotDone => "snapshot_done",
    Observation::Stopping => "stopping",
}

label_values! {
    /// Returns the name of a class of processes.
    class(ProcessClass), CLASSES:
    ProcessClass::Kubelet => "kubelet",
    ProcessClass::ApiServer => "kube-apiserver",
    ProcessClass::Etcd => "etcd",
    ProcessClass::ControlPlane => "control_plane",
    ProcessClass::KubeProxy => "kube-proxy",
    ProcessClass::Runtime => "runtime",
    ProcessClass::CniAgent => "cni_agent",
    ProcessClass::Ovs => "ovs",
    ProcessClass::Proxy => "proxy",
}
