//! What is known of each CNI: one row, and nothing of it anywhere else.
//!
//! Everything here makes an answer better and nothing depends on it: a CNI without a row is judged by what its
//! plugins say and do. Names are from the projects' own sources.

/// One CNI, or one meta-plugin.
#[derive(Clone, Copy, Debug)]
pub struct Cni {
    /// As people call it.
    pub name: &'static str,
    /// The `type` of its own plugins in a configuration; of reference plugins that it uses, none.
    pub plugins: &'static [&'static str],
    /// `ipam` types that its plugin implements itself, without a binary of that name.
    pub built_in: &'static [&'static str],
    /// Names of its configuration files, where the plugins do not tell whose they are.
    pub files: &'static [&'static str],
    /// Its agent, as its project calls it; empty for a CNI that has none.
    pub agent: &'static str,
    /// Executables of that agent.
    pub executables: &'static [&'static str],
    /// How the names of the DaemonSets begin that bring its agent.
    pub daemonsets: &'static [&'static str],
    /// What the path of the agent's socket ends with; empty where plugins do not talk to it.
    pub socket: &'static str,
    /// Kubeconfig of its plugins inside the configuration directory; empty when they have none.
    pub kubeconfig: &'static str,
    /// What the agent writes when it is ready and the plugins read; empty when there is no such file.
    pub writes: &'static str,
    /// The Open vSwitch bridge without which nothing works; empty for "any", `None` without OVS.
    pub bridge: Option<&'static str>,
    /// Where its Open vSwitch has its sockets on the host; empty for the default.
    pub ovs_run_dir: &'static str,
    /// It stands before others, and hands their networks on.
    pub meta: bool,
    /// It gives pods addresses of the range that stands in the Node object.
    pub needs_pod_cidr: bool,
    /// How the names of its links begin.
    pub links: &'static [&'static str],
    /// Messages of its plugins and agent that identify a reason.
    pub says: Words,
    /// The longest that its plugins wait by themselves, in seconds, and half as long again; 0 when they do not.
    pub plugin_limit_s: u64,
}

/// Substrings of messages, in lower case.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    /// No address is left.
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

const SILENT: Words = Words { exhausted: &[], overloaded: &[], no_range: &[], unbound: &[], conflict: &[] };

/// Used by several CNIs, or by one without a row.
const COMMON: Words = Words {
    exhausted: &["no ips available", "no more ips available", "no available ip", "no available address"],
    no_range: &["podcidr is not", "no podcidr", "no pod cidr"],
    ..SILENT
};

/// A CNI of which nothing is known: what a row does not say.
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
    says: SILENT,
    plugin_limit_s: 0,
};

/// Every row, in the order of the alphabet.
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
        says: Words { exhausted: &["failed to assign an ip address to container"], ..SILENT },
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
        says: Words { exhausted: &["waiting on azure cns to allocate", "no more free ip"], ..SILENT },
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
        says: Words { exhausted: &["assigned 0 out of"], ..SILENT },
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
        says: Words {
            exhausted: &["range is full"],
            overloaded: &["putendpointidtoomanyrequests", "cilium api client timeout exceeded"],
            ..SILENT
        },
        ..UNKNOWN
    },
    // k3s has flannel inside.
    Cni {
        name: "flannel",
        plugins: &["flannel"],
        agent: "flanneld",
        executables: &["flanneld", "k3s", "k3s-server", "k3s-agent"],
        daemonsets: &["kube-flannel", "canal"],
        writes: "/run/flannel/subnet.env",
        needs_pod_cidr: true,
        links: &["cni", "flannel"],
        says: Words { no_range: &["pod cidr not assigned"], ..SILENT },
        ..UNKNOWN
    },
    // Reference plugins; netd keeps routing policies, and its init container writes the file once the node has a range.
    // With Dataplane V2, cilium-cni is chained behind.
    Cni {
        name: "GKE",
        files: &["10-gke-ptp.conflist"],
        agent: "netd",
        executables: &["netd"],
        daemonsets: &["netd"],
        needs_pod_cidr: true,
        ..UNKNOWN
    },
    // Waits up to 200 s for the gateway.
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
        says: Words { exhausted: &["noavailableaddress"], ..SILENT },
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
    // Waits 60 s for its daemon and 45 s for the default network.
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
        says: Words {
            unbound: &["ovn-installed", "waiting for ovs port binding", "waiting for port binding"],
            ..SILENT
        },
        ..UNKNOWN
    },
    Cni { name: "ovs-cni", plugins: &["ovs"], bridge: Some(""), ..UNKNOWN },
    Cni {
        name: "reference plugins",
        plugins: &["bridge", "host-device", "ipvlan", "macvlan", "ptp"],
        links: &["cni", "nkt", "veth"],
        says: Words {
            exhausted: &["no ip addresses available"],
            conflict: &["already has an ip address different from", "already exists but is not a bridge"],
            ..SILENT
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
        says: Words { exhausted: &["all ip addresses used out"], ..SILENT },
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
        says: Words { exhausted: &["could not allocate ip in range"], ..SILENT },
        ..UNKNOWN
    },
];

/// Returns whether a run, `PLUGIN` or `PLUGIN ▸ DELEGATE`, is of the plugin that gives a sandbox its `lo`.
pub(crate) fn is_loopback(run: &str) -> bool {
    run.split(' ').next() == Some(LOOPBACK)
}

/// containerd runs it for every sandbox, whatever the configuration says.
pub const LOOPBACK: &str = "loopback";

/// Whose configuration this is: by its plugins, then by its name.
pub(crate) fn of_config(file: &str, plugins: &[impl AsRef<str>]) -> Option<&'static Cni> {
    let by_plugin = plugins.iter().find_map(|plugin| of_plugin(plugin.as_ref()));
    // Reference plugins are used by many.
    by_plugin
        .filter(|cni| !cni.executables.is_empty() || cni.bridge.is_some())
        .or_else(|| CNIS.iter().find(|cni| cni.files.contains(&file)))
        .or(by_plugin)
}

/// Returns whether a plugin of this name is implemented inside another one, without a binary of its own.
pub fn is_built_in(plugin: &str) -> bool {
    CNIS.iter().any(|cni| cni.built_in.contains(&plugin))
}

/// Whose plugin this is.
pub(crate) fn of_plugin(plugin: &str) -> Option<&'static Cni> {
    CNIS.iter().find(|cni| cni.plugins.contains(&plugin))
}

/// Returns whether a message, in lower case, contains such a substring of any CNI.
pub(crate) fn says(said: &str, such: fn(&Words) -> &'static [&'static str]) -> bool {
    let all = CNIS.iter().map(|cni| &cni.says).chain([&COMMON]);
    all.flat_map(such).any(|words| said.contains(words))
}

/// Returns the CNI whose agent is overloaded according to a message in lower case.
pub(crate) fn of_overloaded(said: &str) -> Option<&'static Cni> {
    CNIS.iter().find(|cni| cni.says.overloaded.iter().any(|words| said.contains(words)))
}

/// Whose agent, or whose plugin, the executable of this name is.
pub(crate) fn of_process(name: &str) -> Option<&'static Cni> {
    CNIS.iter().find(|cni| cni.executables.contains(&name) || cni.plugins.contains(&name))
}

/// Whose agent listens on the socket at `path`.
pub(crate) fn of_socket(path: &str) -> Option<&'static Cni> {
    CNIS.iter().find(|cni| !cni.socket.is_empty() && path.ends_with(cni.socket))
}

/// Whether a DaemonSet, by its namespace and name, brings the agent of a CNI; those without a row mostly say so.
pub(crate) fn is_daemonset(name: &str) -> bool {
    let bare = name.rsplit('/').next().unwrap_or(name);
    let known = |cni: &Cni| cni.daemonsets.iter().any(|begins| bare.starts_with(begins));
    CNIS.iter().any(known) || bare.contains("cni")
}

/// Whose link this is.
pub(crate) fn of_link(name: &str) -> Option<&'static Cni> {
    CNIS.iter().find(|cni| cni.links.iter().any(|begins| name.starts_with(begins)))
}

/// Kubeconfigs of plugins, inside the configuration directory, and whose they are.
pub fn kubeconfigs() -> impl Iterator<Item = (&'static str, &'static str)> {
    let own = CNIS.iter().filter(|cni| !cni.kubeconfig.is_empty());
    own.map(|cni| (cni.kubeconfig, cni.name))
}

/// Reference plugins that serve any CNI, <https://github.com/containernetworking/plugins>, version 1.9.
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

/// Every plugin that is known by its name.
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

/// Executables of every agent.
pub fn executables() -> impl Iterator<Item = &'static str> {
    CNIS.iter().flat_map(|cni| cni.executables).copied()
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_row_is_told_from_every_other() {
        let mut names = BTreeSet::new();
        let mut plugins = BTreeSet::new();
        let mut executables = BTreeSet::new();
        for cni in CNIS {
            assert!(names.insert(cni.name), "{} stands twice", cni.name);
            assert!(cni.plugins.iter().all(|plugin| plugins.insert(*plugin)), "{} shares a plugin", cni.name);
            let mut own = cni.executables.iter();
            assert!(own.all(|name| executables.insert(*name)), "{} shares an executable", cni.name);
            assert!(!cni.plugins.is_empty() || !cni.files.is_empty(), "{} is never found", cni.name);
            assert_eq!(cni.agent.is_empty(), cni.executables.is_empty(), "{}", cni.name);
        }
        assert!(CNIS.is_sorted_by_key(|cni| cni.name.to_lowercase()));
        assert!(CNIS.iter().flat_map(|cni| cni.built_in).all(|name| !plugins.contains(name)));
    }

    #[test]
    fn daemonsets_of_networks_are_told_from_others() {
        for name in ["kube-system/calico-node", "kube-flannel/kube-flannel-ds", "x/my-cni", "cilium"] {
            assert!(is_daemonset(name), "{name}");
        }
        assert!(!is_daemonset("monitoring/node-exporter") && !is_daemonset("cilium/fluentd"));
    }

    #[test]
    fn a_configuration_is_its_agent_s_before_it_is_a_reference_plugin_s() {
        let whose = |file, plugins: &[&'static str]| of_config(file, plugins).map(|cni| cni.name);
        assert_eq!(whose("10-calico.conflist", &["calico", "portmap", "calico-ipam"]), Some("Calico"));
        assert_eq!(whose("10-kuberouter.conflist", &["bridge", "portmap"]), Some("kube-router"));
        assert_eq!(whose("10-gke-ptp.conflist", &["ptp", "portmap", "cilium-cni"]), Some("GKE"));
        assert_eq!(whose("10-canal.conflist", &["calico", "portmap", "host-local"]), Some("Calico"));
        assert_eq!(whose("10-pods.conflist", &["bridge", "host-local"]), Some("reference plugins"));
        assert_eq!(whose("99-mine.conf", &["mine"]), None);
    }
}
