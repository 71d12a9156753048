//! The explanation of each reason, for `probe explain`, the remedy of a verdict, and `docs/reasons.md`.

use crate::reason::Reason;

/// The explanation of one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The reason.
    pub reason: Reason,
    /// Its meaning, in one sentence.
    pub meaning: &'static str,
    /// The evidence that proves it.
    pub evidence: &'static str,
    /// Reasons with the same symptoms.
    pub look_alikes: &'static [Reason],
    /// The first thing to inspect, and what not to restart.
    pub remedy: &'static str,
}

/// Returns the explanation of `reason`.
pub fn explain(reason: Reason) -> &'static Explanation {
    // The table has the order of `Reason::ALL`, which a test checks.
    &ALL[reason as usize]
}

const fn row(
    reason: Reason,
    look_alikes: &'static [Reason],
    meaning: &'static str,
    evidence: &'static str,
    remedy: &'static str,
) -> Explanation {
    Explanation { reason, meaning, evidence, look_alikes, remedy }
}

const ALL: &[Explanation] = &[
    row(
        Reason::NetworkReady,
        &[],
        "This node can set up pod networks, and its clients reach the API server.",
        "The configuration that the runtime reads is valid, its plugins are present, and a connect to the \
         API server completed.",
        "Inspect the events of pods that fail nevertheless (`kubectl describe pod`): the network setup of \
         this node is not the fault. Nothing on this node needs a restart.",
    ),
    row(
        Reason::Learning,
        &[Reason::ProbeDegraded],
        "The agent was started recently and has no proof of either state yet.",
        "None yet. This state ends with the first proof, or after the start grace period (60 s).",
        "Wait for the end of the start grace period. If the state persists, pass the address of the API \
         server with --apiserver.",
    ),
    row(
        Reason::ProbeDegraded,
        &[Reason::Learning],
        "A signal that the verdict requires is not available on this host.",
        "The gaps of the verdict, which name each signal and its fallback.",
        "Run `probe doctor`: it lists the missing hooks and the limitation that follows from each. Do not \
         restart components of the node because of this.",
    ),
    row(
        Reason::AgentStopping,
        &[],
        "The agent is being stopped.",
        "The agent received a request to stop.",
        "Check that a new agent starts (`kubectl get pods -o wide`, or the unit on the host). Without an \
         agent the conditions are no longer updated.",
    ),
    row(
        Reason::NotApplicable,
        &[Reason::KubeletDown],
        "This host is not a Kubernetes node.",
        "No kubelet was found. The message names the detected role.",
        "Check the detected role with `probe check -o json`, or set it with --role. If this host should be \
         a node, install the kubelet; otherwise there is nothing to repair.",
    ),
    row(
        Reason::APIServerDown,
        &[Reason::APILocalProxyDown, Reason::APIServerRefused, Reason::ControlPlaneCrashLoop],
        "This host should serve the API, but nothing listens on its port.",
        "No listener on the API address of a control-plane host, or a connect to that address that this \
         host reset.",
        "Read the log of kube-apiserver (`crictl ps -a`, `crictl logs`, /var/log/pods), then the log of \
         etcd. The CNI is never the cause: do not reinstall or restart it.",
    ),
    row(
        Reason::ControlPlaneCrashLoop,
        &[Reason::APIServerDown],
        "The API server or etcd on this host is crash-looping.",
        "At least three exits in ten minutes, with exit code, signal and sender.",
        "Check the exit in the message. SIGTERM from the runtime: compare SystemdCgroup in its \
         configuration with the kubelet's cgroupDriver. An exit code: read the log of etcd and check its \
         disk. Do not restart the CNI.",
    ),
    row(
        Reason::APIServerRefused,
        &[Reason::APILocalProxyDown, Reason::APIServiceNoEndpoints, Reason::APIFirewalled],
        "The host of the API address responds, but nothing listens on the port.",
        "A TCP reset from another host in response to the SYN.",
        "Check kube-apiserver on the host that owns the address, or the backends of the load balancer. This \
         node is not at fault: do not restart its kubelet or CNI.",
    ),
    row(
        Reason::APILocalProxyDown,
        &[Reason::APIServerDown, Reason::APIServerRefused],
        "The node-local proxy to the API server (nginx, haproxy, kube-vip) does not listen.",
        "A TCP reset from this host, on a node without the control-plane role.",
        "Check the static pod or unit of the proxy (for example /etc/kubernetes/manifests/nginx-proxy.yml, \
         `crictl ps -a`) and restore it. The API server itself may be healthy: do not restart the CNI.",
    ),
    row(
        Reason::APIServiceNoEndpoints,
        &[Reason::APIServerRefused, Reason::APIPolicyDenied, Reason::APIFirewalled],
        "The Service address of the API server has no endpoints.",
        "ECONNREFUSED from an ICMP port unreachable that this host sent for a Service address, without a \
         TCP reset.",
        "Run `kubectl get endpointslices` for the Service, and check the pods behind it. The API server \
         does not refuse the connection: do not restart it.",
    ),
    row(
        Reason::APIServiceNotProgrammed,
        &[Reason::APITimeout],
        "The Service address of the API server is not translated on this node.",
        "The Service address does not reply, while the API server accepts connections on its own address.",
        "Check kube-proxy on this node, or configure the CNI agent with the direct address of the API \
         server (for Cilium: k8sServiceHost). The API server is not at fault: do not restart it.",
    ),
    row(
        Reason::APIVIPUnreachable,
        &[Reason::APITimeout, Reason::APIRouteMissing],
        "No host answers ARP or neighbour discovery for the API address.",
        "EHOSTUNREACH after failed neighbour discovery (about 3 s).",
        "Check the component that announces the virtual address (kube-vip, keepalived) and its log. The API \
         servers behind it may be healthy on their own addresses: do not restart them.",
    ),
    row(
        Reason::APIFirewalled,
        &[Reason::APIPolicyDenied, Reason::APIServiceNoEndpoints],
        "A packet filter on the path or on the server rejects connections from this node.",
        "ICMP administratively prohibited, host prohibited or port unreachable, sent by another host.",
        "Check the packet filter of the host that the message names, which sent the ICMP error, and allow \
         the port there. Nothing on this node needs a restart.",
    ),
    row(
        Reason::APIPolicyDenied,
        &[Reason::APIServiceNoEndpoints, Reason::APIFirewalled],
        "A packet filter or eBPF policy on this host drops or rejects connections to the API server.",
        "The SYN was dropped or rejected on this host, and the address is not a Service without endpoints.",
        "List the rules of this host (`nft list ruleset`, `iptables-save`) and the host policies of the \
         CNI. The API server is not at fault: do not restart it.",
    ),
    row(
        Reason::APIBPFDenied,
        &[Reason::APIPolicyDenied, Reason::APIRouteMissing],
        "connect(2) to the API server is denied before a packet is sent.",
        "connect(2) returned EPERM or EACCES, and no SYN was sent.",
        "List the cgroup programs (`bpftool cgroup tree`) and the security modules. The connect-time load \
         balancers of Calico and Cilium deny a Service without backends: check its endpoints. Do not \
         restart the API server.",
    ),
    row(
        Reason::APIRouteMissing,
        &[Reason::APIVIPUnreachable, Reason::APIBPFDenied],
        "This host has no route to the API server.",
        "ENETUNREACH or EHOSTUNREACH before a packet was sent, or a route lookup that fails.",
        "Run `ip route get ADDRESS` and restore the route; the message names the process that removed it, \
         if known. The API server is not at fault: do not restart it.",
    ),
    row(
        Reason::APITimeout,
        &[Reason::APIVIPUnreachable, Reason::APIServiceNotProgrammed, Reason::APIHairpin],
        "The API address does not reply to the SYN.",
        "The SYN was retransmitted without a reply, also if the client gave up first.",
        "Check security groups and firewalls on the path, then the load balancer and the host of the API \
         server: packets are dropped. Restarting the kubelet or the CNI does not help.",
    ),
    row(
        Reason::APIHairpin,
        &[Reason::APITimeout],
        "This control-plane node cannot reach its own API server through the load balancer.",
        "The address of the load balancer does not reply, while this node's own API server accepts \
         connections.",
        "Disable client address preservation on the load balancer, or use the local address on \
         control-plane nodes. Do not restart the API server.",
    ),
    row(
        Reason::APIServerReset,
        &[Reason::APITLSFailed],
        "The API server accepts connections and closes them before it sends data.",
        "An established connection, then RST or FIN without received data.",
        "Check the proxy or load balancer in front of the API server: it accepts connections but has no \
         backend. Do not restart the kubelet or the CNI.",
    ),
    row(
        Reason::APIConnectionStalled,
        &[Reason::APITimeout],
        "An established connection to the API server receives no acknowledgements.",
        "Retransmissions in state ESTABLISHED, while no client opens a new connection.",
        "Check firewalls and connection tracking on the path: packets of established connections are \
         dropped. The API server may be healthy: do not restart it.",
    ),
    row(
        Reason::APITLSStalled,
        &[Reason::APIServerUnhealthy],
        "The connection is established, but the server sends no data.",
        "Data of the client is acknowledged, and no data is received.",
        "Check whether the API server responds on its own host. If it does, the path drops large packets: \
         compare the MTUs and look for tunnels. Do not restart the kubelet or the CNI.",
    ),
    row(
        Reason::APITLSFailed,
        &[Reason::CredentialExpired, Reason::CredentialRefused],
        "The TLS handshake with the API server fails, or the kubelet does not accept the server's \
         certificate.",
        "A TLS alert, or a certificate that is expired, for another name, or issued by none of the CAs in \
         the kubelet's kubeconfig while no kubelet is served. The message names it.",
        "Check the certificate's names and dates, and this host's clock. Issued by another CA: compare the \
         CA file that the message names with the cluster's (/etc/kubernetes/pki/ca.crt on a control-plane \
         host), correct the kubeconfig, then restart the kubelet. Do not restart it before that.",
    ),
    row(
        Reason::APIServerUnhealthy,
        &[Reason::APITLSStalled],
        "The API server responds, but is not ready.",
        "408, 429 or 5xx for /readyz, /livez/etcd or the kubelet's own request, or late and missing \
         responses to requests of the node's clients.",
        "Run `kubectl get --raw '/readyz?verbose'` against that API server. The most frequent cause is \
         etcd: check its log and its disk. Do not restart the kubelet or the CNI.",
    ),
    row(
        Reason::CredentialExpired,
        &[Reason::APITLSFailed, Reason::CNIUnauthorized],
        "A client certificate or token of this node is expired or not yet valid.",
        "The dates in the file that the message names.",
        "Check this host's clock. Then renew the certificate (`kubeadm certs renew`, or bootstrap the \
         kubelet again). Restarting the kubelet without a valid credential does not help.",
    ),
    row(
        Reason::CNIConfigMissing,
        &[Reason::CNIConfigInvalid, Reason::CNIConfigNotLoaded],
        "The directory that the runtime reads has no network configuration (\"cni plugin not \
         initialized\").",
        "The configuration directory contains no .conf, .conflist or .json file.",
        "Check whether the CNI's DaemonSet has a pod on this node (`kubectl get pods -o wide`, `crictl ps \
         -a`), and read its log. If the API side is the cause, repair that first: the agent then writes its \
         file. Do not restart the runtime or the kubelet.",
    ),
    row(
        Reason::CNIConfigInvalid,
        &[Reason::CNIConfigMissing, Reason::CNIConfigShadowed],
        "A configuration file that the runtime loads is empty or does not parse.",
        "The content of the file; the message has the error. The kubelet prints the same text as for a \
         missing file.",
        "Repair or remove the file that the message names; its owner should write it again. Do not restart \
         a CNI whose own file is valid.",
    ),
    row(
        Reason::CNIConfigNotLoaded,
        &[Reason::CNIConfigMissing],
        "A valid configuration file is present, but the runtime has not loaded it.",
        "The runtime did not open the file after its last change, or reports over CRI that its network is \
         not ready.",
        "Write the file again in place, or restart the runtime once. Do not restart the kubelet or the CNI.",
    ),
    row(
        Reason::CNIConfigShadowed,
        &[Reason::CNIConfigOrphaned],
        "Another file sorts before the one of the running CNI agent.",
        "The names and the order of the files, and the agents that run: the agent of the later file runs, \
         that of the first file does not.",
        "Check which process wrote the first file (`probe trace` shows writers), and remove it if that CNI \
         is no longer used. Recreate the pods that were started meanwhile. Do not restart the running \
         agent.",
    ),
    row(
        Reason::CNIConfigDisplaced,
        &[Reason::CNIConfigMissing],
        "Another component renamed or removed a configuration file.",
        "The rename or removal, and its process, which is not the agent of that CNI.",
        "Configure the component to keep files of others (for Cilium: cni.exclusive=false), restore the \
         file, and recreate the pods that were started without it. Do not restart the runtime or the \
         kubelet.",
    ),
    row(
        Reason::CNIConfigOrphaned,
        &[Reason::CNIAgentNotReady],
        "The configuration in use belongs to a CNI that does not run on this node.",
        "Its plugins fail, and its agent has not run for ten minutes.",
        "Check whether that CNI should run on this node. If not, remove its file; if so, check why its \
         DaemonSet has no pod here. Do not restart the runtime: it reads the same file again.",
    ),
    row(
        Reason::CNIBinaryMissing,
        &[Reason::CNIPluginFailed, Reason::CNIConfigInvalid],
        "A plugin that the configuration requires is missing or cannot be executed.",
        "The files in the plugin directories. The runtime searches before it executes a plugin, and the \
         node stays Ready.",
        "Install the plugin that the message names (package containernetworking-plugins, or the CNI's \
         installer). Restarting the kubelet or the runtime does not help.",
    ),
    row(
        Reason::CNIBinaryBusy,
        &[Reason::CNIAgentNotReady],
        "A plugin binary cannot be replaced while it runs.",
        "ETXTBSY for a file in the plugin directory, and processes that execute it.",
        "Remove the stale configuration once, so that no process runs the old binary while the new one is \
         installed. Do not restart the kubelet.",
    ),
    row(
        Reason::CNIPluginFailed,
        &[Reason::IPAMExhausted, Reason::CNIAgentNotReady, Reason::CNIBinaryMissing],
        "A plugin ran and failed.",
        "Its exit status and its error object.",
        "Read the plugin's own error in the message: it names the cause. Restarting the kubelet only \
         repeats the failure.",
    ),
    row(
        Reason::CNIPluginStalled,
        &[Reason::CNIAgentNotReady],
        "A plugin has run longer than its limit.",
        "An execution without an exit.",
        "Check what the plugin waits for (/proc/PID/stack, `ss -xp`), in most cases the socket of its \
         agent. Do not restart the kubelet.",
    ),
    row(
        Reason::CNIAgentNotReady,
        &[Reason::CNIPluginFailed],
        "The plugin's agent does not respond, has not written its file, or is overloaded.",
        "The plugin's connect to the socket of the agent, or its message about a file that the agent \
         writes.",
        "Repair the cause of the verdict first, if it has one. Otherwise read the log of the agent that the \
         message names. Do not create its file by hand, and do not restart the kubelet.",
    ),
    row(
        Reason::CNIDefaultNetworkNotReady,
        &[Reason::CNIAgentNotReady],
        "A meta-plugin waits for its default network.",
        "The readiness file of the default network does not exist.",
        "Repair the default network: read the log of its agent. The meta-plugin then continues; do not \
         restart it.",
    ),
    row(
        Reason::CNIUnauthorized,
        &[Reason::CredentialExpired],
        "The plugin reaches the API server, which refuses its credential.",
        "The plugin's own error: 401 Unauthorized or 403 Forbidden.",
        "Check the CNI's kubeconfig in the configuration directory and this host's clock, then restart the \
         CNI agent on this node, which writes a new token. Network and API server are not at fault: do not \
         restart them.",
    ),
    row(
        Reason::PodCIDRNotAssigned,
        &[Reason::IPAMExhausted],
        "The node has no pod CIDR, and its CNI needs one.",
        "The Node object, read while the network of a CNI that allocates from its pod CIDR is not set up; \
         or the plugin's own error.",
        "Check kube-controller-manager: --allocate-node-cidrs, and whether --cluster-cidr has a free range \
         (kubectl get nodes -o custom-columns=N:.metadata.name,C:.spec.podCIDR). The agent then continues; \
         do not restart it.",
    ),
    row(
        Reason::IPAMExhausted,
        &[Reason::CNIPluginFailed, Reason::PodCIDRNotAssigned],
        "No address is available for pods on this node.",
        "The IPAM plugin's own error.",
        "Compare the leases (for host-local: /var/lib/cni/networks) with the running pods. Remove leaked \
         leases, or assign a larger range to the node. Do not restart the kubelet or the CNI.",
    ),
    row(
        Reason::NetnsInvalid,
        &[Reason::CNIPluginFailed],
        "A namespace path is not a network namespace.",
        "The file system type of the path.",
        "Check the path that the message names. Mount /run with HostToContainer propagation into the agent, \
         or remove stale files after a reboot. Do not restart the kubelet.",
    ),
    row(
        Reason::LinkConflict,
        &[Reason::LinkSetupFailed],
        "A link with other parameters already exists.",
        "EEXIST or EADDRINUSE from the kernel: for a plugin that reports it, or for an agent whose port or \
         VNI belongs to another link.",
        "List links left by another CNI (`ip -d link`: an old bridge, a VXLAN link with the same port or \
         VNI), and remove them or change the parameters of the new link. Restarting the agent alone repeats \
         the conflict.",
    ),
    row(
        Reason::LinkSetupFailed,
        &[Reason::LinkConflict, Reason::KernelModuleMissing],
        "The kernel refused to create or move a link.",
        "The errno and the error text of the kernel.",
        "Read the kernel's error text in the message: it names the cause. Restarting the kubelet only \
         repeats the failure.",
    ),
    row(
        Reason::KernelModuleMissing,
        &[Reason::LinkSetupFailed],
        "A kernel module that this node needs is not available.",
        "The kernel requested the module, and it was not loaded.",
        "Run `modprobe MODULE`, and install the package that has the module for the running kernel. Do not \
         restart the CNI before that.",
    ),
    row(
        Reason::OVSNotReady,
        &[Reason::CNIAgentNotReady],
        "Open vSwitch, its datapath or its bridge is missing or stalled.",
        "Its processes, its sockets, its database and its datapath.",
        "Check ovs-vswitchd and ovsdb-server first (`ovs-vsctl show`). The CNI on top then recovers: do not \
         restart it.",
    ),
    row(
        Reason::OVNPortNotBound,
        &[Reason::OVSNotReady],
        "The port exists, but ovn-controller has not bound it.",
        "The plugin waited for ovn-installed until its timeout, and its link exists.",
        "Read the log of ovn-controller on this node and check its connection to the southbound database \
         (port 6642), then the leader of that database. Do not restart the kubelet: it only waits, as the \
         plugin does.",
    ),
    row(
        Reason::ReversePathFiltered,
        &[Reason::RoutesRemoved],
        "The reverse path filter drops packets of pods.",
        "The drop reason of the packets.",
        "Set net.ipv4.conf.*.rp_filter to 0 for the CNI's links in sysctl.d. Restarting the CNI or the \
         kubelet does not help.",
    ),
    row(
        Reason::RoutesRemoved,
        &[Reason::ReversePathFiltered],
        "Routes or rules of the CNI were removed.",
        "The removal of a route to a CNI's link by a process that does not belong to a CNI, without a later \
         restoration.",
        "Configure that process to keep routes of others (systemd-networkd: ManageForeignRoutes=no and \
         ManageForeignRoutingPolicyRules=no), then restart the CNI agent on this node, which restores them. \
         Do not restart the kubelet.",
    ),
    row(
        Reason::ConntrackExhausted,
        &[Reason::APITimeout],
        "The connection tracking table is full.",
        "Its count and its limit. New connections are dropped, established ones continue.",
        "Raise net.netfilter.nf_conntrack_max, and find the source of the connections (`conntrack -L`). Do \
         not restart components: established connections still work.",
    ),
    row(
        Reason::RuntimeDown,
        &[Reason::KubeletDown],
        "The container runtime does not serve the kubelet.",
        "Its process, its socket, and its responses over CRI.",
        "Read the runtime's log (`journalctl -u containerd`, `journalctl -u crio`). Where it does not serve \
         CRI, remove \"cri\" from disabled_plugins in its configuration and restart it. Do not restart the \
         CNI.",
    ),
    row(
        Reason::KubeletDown,
        &[Reason::RuntimeDown, Reason::CredentialExpired],
        "The kubelet does not run, is crash-looping, or does not respond.",
        "No such process on a host that was set up as a node, its exits with their status, or a process \
         that makes no progress.",
        "Read the end of its log (`journalctl -u kubelet`). Running pods continue without it: do not reboot \
         the node for this.",
    ),
    row(
        Reason::RuntimeLimitExceeded,
        &[Reason::RuntimeDown],
        "The runtime or the kubelet reached a limit.",
        "The system call that failed, or the usage, and the name of the limit.",
        "Raise the limit that the message names, then restart the process that reached it once. Local \
         ports: check net.ipv4.ip_local_port_range and which processes hold them (`ss -tanp`). Do not \
         restart the CNI.",
    ),
    row(
        Reason::SandboxImageUnavailable,
        &[Reason::CNIBinaryMissing],
        "Sandboxes fail after their network was set up: image, resolv.conf or cgroup.",
        "The network of one pod was set up and removed within a minute, at least three times.",
        "Read the runtime's log for the pod that the message names, and check the pause image, resolv.conf \
         and the cgroup driver. The network is not at fault: do not restart the CNI.",
    ),
    row(
        Reason::AdmissionBlocked,
        &[Reason::CNIConfigMissing],
        "An admission webhook blocks creation of the CNI's pods.",
        "The error of the API server for the DaemonSet, and on a control-plane host the outcome of its own \
         connects to the webhook's backend.",
        "Set failurePolicy of the webhook that the message names to Ignore until its backend runs, then \
         restore it. Do not restart the CNI.",
    ),
    row(
        Reason::EtcdDown,
        &[Reason::APIServerDown],
        "etcd on this host does not run or is crash-looping.",
        "Its exit, with exit code, signal and sender; a full disk, if there is one.",
        "Read the log of etcd first (`crictl logs`, `journalctl -u etcd`), then check space and latency of \
         the disk under /var/lib/etcd. The API server recovers when etcd does: do not restart it.",
    ),
    row(
        Reason::APINameUnresolved,
        &[Reason::APITimeout, Reason::APIServiceNotProgrammed],
        "The host name of the API server does not resolve.",
        "The node's resolver (/etc/hosts, then /etc/resolv.conf) returns no address for the server name in \
         the kubelet's kubeconfig, and no connection to an address of that name works.",
        "Query the resolver that the message names: `dig @ADDRESS NAME`. For NXDOMAIN check the zone and \
         the search domains; without a response check the path to port 53. Do not restart the API server or \
         the CNI.",
    ),
    row(
        Reason::CredentialRefused,
        &[Reason::CredentialExpired, Reason::APITLSFailed],
        "The API server refuses the kubelet's own credential.",
        "A request for the kubelet's own Node object, with its client certificate or token, was refused at \
         least twice in a row: 401 Unauthorized, a TLS alert about the certificate, or 403 Forbidden where \
         the certificate names the node. No other API server accepted it.",
        "Inspect the file that the message names (`openssl x509 -noout -issuer -subject -in FILE`): \
         kube-apiserver's --client-ca-file must contain the issuer. A bootstrap token is a Secret in \
         kube-system, with kubeadm for one day: `kubeadm token list`. For 403 the subject must be \
         system:node:NAME in the group system:nodes. Do not restart the kubelet before that.",
    ),
    row(
        Reason::APIProxyRefused,
        &[Reason::APIServerUnhealthy, Reason::APITLSFailed],
        "The proxy that the kubelet uses (HTTPS_PROXY) refuses to connect to the API server.",
        "A CONNECT request for the server in the kubelet's kubeconfig, sent to the proxy with the user \
         information of the kubelet's own environment, returned another status than 200. The message quotes \
         the proxy's status line.",
        "Read the log of the proxy that the message names: 403 and 407 come from its rules and accounts, \
         502 to 504 mean that it does not reach the API server. If the node has a direct route, add the \
         server to NO_PROXY in the environment of the kubelet's unit. Do not restart the API server or the \
         CNI.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_the_order_of_reasons_and_short_sentences() {
        assert_eq!(ALL.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            let explanation = explain(*reason);
            assert_eq!(explanation.reason, *reason);
            assert!(!explanation.look_alikes.contains(reason), "{reason} looks like itself");
            for text in [explanation.meaning, explanation.evidence, explanation.remedy] {
                assert!(text.len() > 10 && text.len() <= 512 && text.ends_with('.'), "{reason}: {text}");
            }
        }
    }

    #[test]
    fn every_reason_is_a_valid_condition_reason() {
        for reason in Reason::ALL {
            let text = reason.as_str();
            assert!(text.starts_with(|c: char| c.is_ascii_uppercase()) && text.len() <= 64, "{text}");
            assert!(text.chars().all(|c| c.is_ascii_alphanumeric()), "{text}");
        }
    }
}
