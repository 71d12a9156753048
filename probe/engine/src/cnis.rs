//! Facts about each CNI, one row per CNI; no other module has such facts.
//!
//! They only make verdicts more specific: a CNI without a row is judged by the messages and actions of its plugins.
//! Names are from the projects' own sources.

/// One CNI, or one meta-plugin.
#[derive(Clone, Copy, Debug)]
pub struct Cni {
    /// Its usual name.
    pub name: &'static str,
    /// The `type` of its own plugins in a configuration, without the reference plugins that it uses.
    pub plugins: &'static [&'static str],
    /// `ipam` types that its plugin implements itself, without a binary of that name.
    pub built_in: &'static [&'static str],
    /// Names of its configuration files, where the plugins do not identify it.
    pub files: &'static [&'static str],
    /// Name of its agent in its project; empty for a CNI without an agent.
    pub agent: &'static str,
    /// Executables of that agent.
    pub executables: &'static [&'static str],
    /// Name prefixes of the DaemonSets that run its agent.
    pub daemonsets: &'static [&'static str],
    /// Suffix of the path of the agent's socket; empty where plugins do not connect to one.
    pub socket: &'static str,
    /// Kubeconfig of its plugins in the configuration directory; empty if they have none.
    pub kubeconfig: &'static str,
    /// The file that the agent writes when it is ready and that the plugins read; empty if there is none.
    pub writes: &'static str,
    /// The Open vSwitch bridge that it requires; empty for any bridge, `None` without Open vSwitch.
    pub bridge: Option<&'static str>,
    /// The directory of its Open vSwitch sockets on the host; empty for the default.
    pub ovs_run_dir: &'static str,
    /// Whether it is a meta-plugin, which delegates to other plugins.
    pub meta: bool,
    /// Whether it allocates pod addresses from the pod CIDR of the Node object.
    pub needs_pod_cidr: bool,
    /// Name prefixes of its links.
    pub links: &'static [&'static str],
    /// Messages of its plugins and agent that identify a reason.
    pub messages: Messages,
    /// Limit for a run of its plugins, in seconds: 1.5 times the longest time for which they wait; 0 if they do not
    /// wait.
    pub plugin_limit_s: u64,
}

/// Substrings of error messages, in lower case.
#[derive(Clone, Copy, Debug)]
pub struct Messages {
    /// No address is available.
    pub exhausted: &'static [&'static str],
    /// The agent is overloaded.
    pub overloaded: &'static [&'static str],
    /// The node has no pod CIDR.
    pub no_range: &'static [&'static str],
    /// ovn-controller has not bound the port.
    pub unbound: &'static [&'static str],
    /// A link exists with other parameters.
    pub conflict: &'static [&'static str],
}

const NO_MESSAGES: Messages =
    Messages { exhausted: &[], overloaded: &[], no_range: &[], unbound: &[], conflict: &[] };

/// Messages of several CNIs, or of a CNI without a row.
const COMMON: Messages = Messages {
    exhausted: &["no ips available", "no more ips available", "no available ip", "no available address"],
    no_range: &["podcidr is not", "no podcidr", "no pod cidr"],
    ..NO_MESSAGES
};

/// A CNI without known facts: the defaults of a row.
const UNKNOWN: Cni = Cni {
    name: "",
    plugins: &[],
    built_in: &[],
    files: &[],
    agent: "",
    executables: &[],
    daemonsets: &[],
    socket: "",
    kubeconfig: "",
    writes: "",
    bridge: None,
    ovs_run_dir: "",
    meta: false,
    needs_pod_cidr: false,
    links: &[],
    messages: NO_MESSAGES,
    plugin_limit_s: 0,
};

/// All rows, in alphabetical order.
pub const CNIS: &[Cni] = &[
    Cni {
        name: "Antrea",
        plugins: &["antrea"],
        agent: "antrea-agent",
        executables: &["antrea-agent"],
        daemonsets: &["antrea-agent"],
        socket: "/antrea/cni.sock",
        bridge: Some("br-int"),
        ovs_run_dir: "/run/antrea/openvswitch",
        needs_pod_cidr: true,
        links: &["antrea", "genev_sys"],
        ..UNKNOWN
    },
    Cni {
        name: "AWS VPC CNI",
        plugins: &["aws-cni", "egress-cni"],
        agent: "aws-node",
        executables: &["aws-k8s-agent"],
        daemonsets: &["aws-node"],
        socket: "/ipamd.sock",
        links: &["eni"],
        messages: Messages { exhausted: &["failed to assign an ip address to container"], ..NO_MESSAGES },
        ..UNKNOWN
    },
    Cni {
        name: "Azure CNI",
        plugins: &["azure-vnet", "azure-vnet-ipam"],
        built_in: &["azure-cns"],
        agent: "azure-cns",
        executables: &["azure-cns"],
        daemonsets: &["azure-cns"],
        links: &["azv"],
        messages: Messages {
            exhausted: &["waiting on azure cns to allocate", "no more free ip"],
            ..NO_MESSAGES
        },
        ..UNKNOWN
    },
    // calico-ipam waits 90 s for its lock, /var/run/calico/ipam.lock.
    Cni {
        name: "Calico",
        plugins: &["calico", "calico-ipam"],
        agent: "calico-node",
        executables: &["calico-node"],
        daemonsets: &["calico-node", "canal"],
        kubeconfig: "calico-kubeconfig",
        writes: "/var/lib/calico/nodename",
        links: &["cali", "tunl0", "vxlan", "wireguard.cali"],
        plugin_limit_s: 135,
        messages: Messages { exhausted: &["assigned 0 out of"], ..NO_MESSAGES },
        ..UNKNOWN
    },
    // cilium-cni waits 30 s for its agent.
    Cni {
        name: "Cilium",
        plugins: &["cilium-cni"],
        agent: "cilium-agent",
        executables: &["cilium-agent"],
        daemonsets: &["cilium"],
        socket: "/cilium.sock",
        links: &["cilium_", "lxc"],
        plugin_limit_s: 45,
        messages: Messages {
            exhausted: &["range is full"],
            overloaded: &["putendpointidtoomanyrequests", "cilium api client timeout exceeded"],
            ..NO_MESSAGES
        },
        ..UNKNOWN
    },
    // k3s contains flannel.
    Cni {
        name: "flannel",
        plugins: &["flannel"],
        agent: "flanneld",
        executables: &["flanneld", "k3s", "k3s-server", "k3s-agent"],
        daemonsets: &["kube-flannel", "canal"],
        writes: "/run/flannel/subnet.env",
        needs_pod_cidr: true,
        links: &["cni", "flannel"],
        messages: Messages { no_range: &["pod cidr not assigned"], ..NO_MESSAGES },
        ..UNKNOWN
    },
    // Uses reference plugins. netd manages routing policies, and its init container writes the file once the node has a
    // pod CIDR. With Dataplane V2, cilium-cni is chained after them.
    Cni {
        name: "GKE",
        files: &["10-gke-ptp.conflist"],
        agent: "netd",
        executables: &["netd"],
        daemonsets: &["netd"],
        needs_pod_cidr: true,
        ..UNKNOWN
    },
    // kube-ovn waits up to 200 s for the gateway.
    Cni {
        name: "Kube-OVN",
        plugins: &["kube-ovn"],
        agent: "kube-ovn-cni",
        executables: &["kube-ovn-daemon", "kube-ovn"],
        daemonsets: &["kube-ovn", "ovs-ovn"],
        socket: "/kube-ovn-daemon.sock",
        bridge: Some("br-int"),
        links: &["genev_sys", "ovn"],
        plugin_limit_s: 300,
        messages: Messages { exhausted: &["noavailableaddress"], ..NO_MESSAGES },
        ..UNKNOWN
    },
    Cni {
        name: "kube-router",
        files: &["10-kuberouter.conf", "10-kuberouter.conflist"],
        agent: "kube-router",
        executables: &["kube-router"],
        daemonsets: &["kube-router"],
        needs_pod_cidr: true,
        links: &["kube-bridge"],
        ..UNKNOWN
    },
    // multus-shim waits 60 s for its daemon and 45 s for the default network.
    Cni {
        name: "Multus",
        plugins: &["multus-shim"],
        agent: "multus-daemon",
        executables: &["multus-daemon"],
        daemonsets: &["kube-multus"],
        socket: "/multus.sock",
        kubeconfig: "multus.d/multus.kubeconfig",
        meta: true,
        plugin_limit_s: 150,
        ..UNKNOWN
    },
    Cni { name: "Multus (thin)", plugins: &["multus"], meta: true, plugin_limit_s: 150, ..UNKNOWN },
    Cni {
        name: "OVN-Kubernetes",
        plugins: &["ovn-k8s-cni-overlay"],
        agent: "ovnkube-node",
        executables: &["ovnkube"],
        daemonsets: &["ovnkube"],
        socket: "/ovn-cni-server.sock",
        bridge: Some("br-int"),
        links: &["genev_sys", "ovn"],
        messages: Messages {
            unbound: &["ovn-installed", "waiting for ovs port binding", "waiting for port binding"],
            ..NO_MESSAGES
        },
        ..UNKNOWN
    },
    Cni { name: "ovs-cni", plugins: &["ovs"], bridge: Some(""), ..UNKNOWN },
    Cni {
        name: "reference plugins",
        plugins: &["bridge", "host-device", "ipvlan", "macvlan", "ptp"],
        links: &["cni", "nkt", "veth"],
        messages: Messages {
            exhausted: &["no ip addresses available"],
            conflict: &["already has an ip address different from", "already exists but is not a bridge"],
            ..NO_MESSAGES
        },
        ..UNKNOWN
    },
    Cni {
        name: "Spiderpool",
        plugins: &["spiderpool"],
        agent: "spiderpool-agent",
        executables: &["spiderpool-agent"],
        daemonsets: &["spiderpool-agent"],
        socket: "/spiderpool.sock",
        messages: Messages { exhausted: &["all ip addresses used out"], ..NO_MESSAGES },
        ..UNKNOWN
    },
    Cni {
        name: "Weave Net",
        plugins: &["weave-net", "weave-ipam"],
        agent: "weave",
        executables: &["weaver"],
        daemonsets: &["weave-net"],
        links: &["vethwe", "weave"],
        ..UNKNOWN
    },
    Cni {
        name: "Whereabouts",
        plugins: &["whereabouts"],
        messages: Messages { exhausted: &["could not allocate ip in range"], ..NO_MESSAGES },
        ..UNKNOWN
    },
];

/// Returns whether a run, `PLUGIN` or `PLUGIN ▸ DELEGATE`, is one of the `loopback` plugin.
pub(crate) fn is_loopback(run: &str) -> bool {
    run.split(' ').next() == Some(LOOPBACK)
}

/// The plugin that sets up `lo`. containerd runs it for every sandbox, whatever the configuration is.
pub const LOOPBACK: &str = "loopback";

/// Returns the CNI to which a configuration belongs, by its plugins, then by its file name.
pub(crate) fn of_config(file: &str, plugins: &[impl AsRef<str>]) -> Option<&'static Cni> {
    let by_plugin = plugins.iter().find_map(|plugin| of_plugin(plugin.as_ref()));
    // Reference plugins are used by several CNIs.
    by_plugin
        .filter(|cni| !cni.executables.is_empty() || cni.bridge.is_some())
        .or_else(|| CNIS.iter().find(|cni| cni.files.contains(&file)))
        .or(by_plugin)
}

/// Returns whether a plugin of this name is implemented inside another one, without a binary of its own.
pub fn is_built_in(plugin: &str) -> bool {
    CNIS.iter().any(|cni| cni.built_in.contains(&plugin))
}

/// Returns the CNI to which a plugin belongs.
pub(crate) fn of_plugin(plugin: &str) -> Option<&'static Cni> {
    CNIS.iter().find(|cni| cni.plugins.contains(&plugin))
}

/// Returns whether a message, in lower case, contains a substring of this kind of any CNI.
pub(crate) fn mentions(message: &str, kind: fn(&Messages) -> &'static [&'static str]) -> bool {
    let all = CNIS.iter().map(|cni| &cni.messages).chain([&COMMON]);
    all.flat_map(kind).any(|words| message.contains(words))
}

/// Returns the CNI whose agent is overloaded according to a message in lower case.
pub(crate) fn of_overloaded(message: &str) -> Option<&'static Cni> {
    CNIS.iter().find(|cni| cni.messages.overloaded.iter().any(|words| message.contains(words)))
}

/// Returns the CNI to which an executable belongs, as agent or as plugin.
pub(crate) fn of_process(name: &str) -> Option<&'static Cni> {
    CNIS.iter().find(|cni| cni.executables.contains(&name) || cni.plugins.contains(&name))
}

/// Returns the CNI whose agent listens on the socket at `path`.
pub(crate) fn of_socket(path: &str) -> Option<&'static Cni> {
    CNIS.iter().find(|cni| !cni.socket.is_empty() && path.ends_with(cni.socket))
}

/// Returns whether a DaemonSet, by `namespace/name`, runs the agent of a CNI. The name of most CNIs without a row
/// contains `cni`.
pub(crate) fn is_daemonset(name: &str) -> bool {
    let bare = name.rsplit('/').next().unwrap_or(name);
    let known = |cni: &Cni| cni.daemonsets.iter().any(|begins| bare.starts_with(begins));
    CNIS.iter().any(known) || bare.contains("cni")
}

/// Returns the CNI to which a link belongs, by its name.
pub(crate) fn of_link(name: &str) -> Option<&'static Cni> {
    CNIS.iter().find(|cni| cni.links.iter().any(|begins| name.starts_with(begins)))
}

/// Returns the kubeconfigs of plugins, relative to the configuration directory, with the names of their CNIs.
pub fn kubeconfigs() -> impl Iterator<Item = (&'static str, &'static str)> {
    let own = CNIS.iter().filter(|cni| !cni.kubeconfig.is_empty());
    own.map(|cni| (cni.kubeconfig, cni.name))
}

/// Reference plugins that any CNI may use, <https://github.com/containernetworking/plugins>, version 1.9.
const FOR_ANY: [&str; 13] = [
    "bandwidth",
    "dhcp",
    "dummy",
    "firewall",
    "host-local",
    "loopback",
    "portmap",
    "sbr",
    "static",
    "tap",
    "tuning",
    "vlan",
    "vrf",
];

/// Returns the names of all known plugins.
pub fn plugins() -> impl Iterator<Item = &'static str> {
    CNIS.iter().flat_map(|cni| cni.plugins).copied().chain(FOR_ANY)
}

/// Returns the prefixes of the link names of every CNI.
pub fn link_prefixes() -> impl Iterator<Item = &'static str> {
    CNIS.iter().flat_map(|cni| cni.links).copied()
}

/// Returns the configuration file of Multus' daemon, relative to the configuration directory, and the type of the plugin
/// that the daemon serves.
pub const fn multus_daemon() -> (&'static str, &'static str) {
    ("multus.d/daemon-config.json", "multus-shim")
}

/// Returns the reference plugin that keeps its leases in files, and its default directory for them
/// (plugins/ipam/host-local/backend/disk/backend.go, `defaultDataDir`).
pub const fn host_local() -> (&'static str, &'static str) {
    ("host-local", "/var/lib/cni/networks")
}

/// Returns the executables of all agents.
pub fn executables() -> impl Iterator<Item = &'static str> {
    CNIS.iter().flat_map(|cni| cni.executables).copied()
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use super::*;

    #[test]
    fn rows_share_no_name_plugin_or_executable() {
        let mut names = BTreeSet::new();
        let mut plugins = BTreeSet::new();
        let mut executables = BTreeSet::new();
        for cni in CNIS {
            assert!(names.insert(cni.name), "{} has two rows", cni.name);
            assert!(cni.plugins.iter().all(|plugin| plugins.insert(*plugin)), "{} shares a plugin", cni.name);
            let mut own = cni.executables.iter();
            assert!(own.all(|name| executables.insert(*name)), "{} shares an executable", cni.name);
            assert!(!cni.plugins.is_empty() || !cni.files.is_empty(), "{} cannot be identified", cni.name);
            assert_eq!(cni.agent.is_empty(), cni.executables.is_empty(), "{}", cni.name);
        }
        assert!(CNIS.is_sorted_by_key(|cni| cni.name.to_lowercase()));
        assert!(CNIS.iter().flat_map(|cni| cni.built_in).all(|name| !plugins.contains(name)));
    }

    #[test]
    fn identifies_daemonsets_of_cnis() {
        for name in ["kube-system/calico-node", "kube-flannel/kube-flannel-ds", "x/my-cni", "cilium"] {
            assert!(is_daemonset(name), "{name}");
        }
        assert!(!is_daemonset("monitoring/node-exporter") && !is_daemonset("cilium/fluentd"));
    }

    #[test]
    fn configuration_belongs_to_cni_with_agent_before_reference_plugins() {
        let whose = |file, plugins: &[&'static str]| of_config(file, plugins).map(|cni| cni.name);
        assert_eq!(whose("10-calico.conflist", &["calico", "portmap", "calico-ipam"]), Some("Calico"));
        assert_eq!(whose("10-kuberouter.conflist", &["bridge", "portmap"]), Some("kube-router"));
        assert_eq!(whose("10-gke-ptp.conflist", &["ptp", "portmap", "cilium-cni"]), Some("GKE"));
        assert_eq!(whose("10-canal.conflist", &["calico", "portmap", "host-local"]), Some("Calico"));
        assert_eq!(whose("10-pods.conflist", &["bridge", "host-local"]), Some("reference plugins"));
        assert_eq!(whose("99-mine.conf", &["mine"]), None);
    }
}
