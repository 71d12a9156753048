//! Label sets, and the closed tables that their values come from.

use probe_engine::{Observation, cnis};
use prometheus_client::encoding::EncodeLabelSet;

/// Label sets are closed: every value is a name from our own tables.
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

/// SPEC.md, "CNI operations".
pub(super) const COMMANDS: [&str; 6] = ["ADD", "DEL", "CHECK", "VERSION", "STATUS", "GC"];
/// Kinds that container networks use; every other link is `other`.
pub(super) const LINK_KINDS: [&str; 9] =
    ["veth", "bridge", "vxlan", "geneve", "ipip", "wireguard", "openvswitch", "netkit", "dummy"];

pub(super) fn closed(known: &[&'static str], value: &str) -> &'static str {
    known.iter().find(|name| **name == value).copied().unwrap_or("other")
}

/// Returns a plugin by its name, if that is known; every other plugin is `other`.
pub(super) fn plugin(name: &str) -> &'static str {
    cnis::plugins().find(|known| *known == name).unwrap_or("other")
}

pub(super) const fn kind(observation: &Observation) -> &'static str {
    match observation {
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
}

pub(super) const fn class(class: probe_engine::ProcessClass) -> &'static str {
    use probe_engine::ProcessClass as Class;
    match class {
        Class::Kubelet => "kubelet",
        Class::ApiServer => "kube-apiserver",
        Class::Etcd => "etcd",
        Class::ControlPlane => "control_plane",
        Class::KubeProxy => "kube-proxy",
        Class::Runtime => "runtime",
        Class::CniAgent => "cni_agent",
        Class::Ovs => "ovs",
        Class::Proxy => "proxy",
    }
}
