//! What each reason means to a person: `probe explain`, the remedy of a verdict, `docs/reasons.md`.

use crate::reason::Reason;

/// One reason, explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Which one.
    pub reason: Reason,
    /// What it means, in a sentence.
    pub meaning: &'static str,
    /// What proves it.
    pub evidence: &'static str,
    /// Reasons that look the same from outside.
    pub look_alikes: &'static [Reason],
    /// What to look at first, and what not to restart.
    pub remedy: &'static str,
}

/// The explanation of `reason`.
pub fn explain(reason: Reason) -> &'static Explanation {
    // In the order of `Reason::ALL`, which a test checks.
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
        "This node can set up pod networks and its clients reach the API server.",
        "The configuration that the runtime reads is valid and its plugins are there; a connect to \
         the API server completed.",
        "Nothing to do. If pods fail all the same, look at their events: the fault is not in this \
         node's network set-up.",
    ),
    row(
        Reason::Learning,
        &[Reason::ProbeDegraded],
        "The agent has just started and has no proof either way.",
        "None yet; ends with the first proof or after the start grace.",
        "Wait for the start grace (60 s). If it stays, name the API server with --apiserver.",
    ),
    row(
        Reason::ProbeDegraded,
        &[Reason::Learning],
        "A signal that the question needs is not available here.",
        "The gaps of the verdict name the signal and what stands in.",
        "Run `probe doctor`: it says which hook is missing and what that costs. Do not restart the \
         node's components because of this.",
    ),
    row(
        Reason::AgentStopping,
        &[],
        "The agent is being removed.",
        "It was told to stop.",
        "Nothing to do: a new agent goes on. Without one nobody looks after the conditions any more.",
    ),
    row(
        Reason::NotApplicable,
        &[Reason::KubeletDown],
        "This host is not a Kubernetes node.",
        "No kubelet was found; the message names the role.",
        "Nothing to repair here. If this should be a node, the kubelet is not installed: see the role \
         with `probe check -o json`, or set --role.",
    ),
    row(
        Reason::APIServerDown,
        &[Reason::APILocalProxyDown, Reason::APIServerRefused, Reason::ControlPlaneCrashLoop],
        "This host should serve the API and nothing listens on its port.",
        "No listener on the API address of a control-plane host, or a connect to it that this host \
         reset.",
        "Look at kube-apiserver's own log (crictl ps -a, /var/log/pods) and at etcd. CNI is never the \
         cause of this: do not reinstall it.",
    ),
    row(
        Reason::ControlPlaneCrashLoop,
        &[Reason::APIServerDown],
        "The API server or etcd is ended again and again.",
        "Three or more ends in ten minutes, with exit code, signal and sender.",
        "Read who ended it: SIGTERM from the runtime points to SystemdCgroup in the runtime's \
         configuration against the kubelet's cgroupDriver; an own exit points to etcd or its disk. Do \
         not touch the CNI.",
    ),
    row(
        Reason::APIServerRefused,
        &[Reason::APILocalProxyDown, Reason::APIServiceNoEndpoints, Reason::APIFirewalled],
        "The host of the API address answers and nothing listens on the port.",
        "A TCP reset from another host in answer to the SYN.",
        "Look at kube-apiserver on the host that owns the address, or at the load balancer's \
         backends. This node is not at fault: do not restart its kubelet or CNI.",
    ),
    row(
        Reason::APILocalProxyDown,
        &[Reason::APIServerDown, Reason::APIServerRefused],
        "The node-local proxy to the API server (nginx, haproxy, kube-vip) does not listen.",
        "A reset from this host on a node without control-plane role.",
        "Restore the proxy's static pod (for example /etc/kubernetes/manifests/nginx-proxy.yml) and \
         see why it is gone. The API server itself may be fine.",
    ),
    row(
        Reason::APIServiceNoEndpoints,
        &[Reason::APIServerRefused, Reason::APIPolicyDenied, Reason::APIFirewalled],
        "The Service address of the API server has no endpoints.",
        "ECONNREFUSED by ICMP port unreachable, no reset, sent by this host, for a Service address.",
        "Look at the endpoints of the Service (kubectl get endpointslices) and at the backend's pods. \
         It is not the API server that refuses.",
    ),
    row(
        Reason::APIServiceNotProgrammed,
        &[Reason::APITimeout],
        "The Service address is not translated on this node.",
        "The Service address gives no answer while the API server answers on its direct address.",
        "Look at kube-proxy, or give the CNI agent the direct address (for Cilium: k8sServiceHost). \
         The API server is fine.",
    ),
    row(
        Reason::APIVIPUnreachable,
        &[Reason::APITimeout, Reason::APIRouteMissing],
        "Nobody holds the API address.",
        "EHOSTUNREACH after neighbour discovery got no answer (about 3 s).",
        "Look at who should announce the virtual address (kube-vip, keepalived) and at its log. The \
         API servers behind it may be fine on their own addresses.",
    ),
    row(
        Reason::APIFirewalled,
        &[Reason::APIPolicyDenied, Reason::APIServiceNoEndpoints],
        "A packet filter on the way or at the server rejects this node.",
        "ICMP administratively prohibited, host prohibited or port unreachable, sent by another host.",
        "Open the port on the host that sent the ICMP message; the message names it. Nothing on this \
         node needs a restart.",
    ),
    row(
        Reason::APIPolicyDenied,
        &[Reason::APIServiceNoEndpoints, Reason::APIFirewalled],
        "A packet filter or eBPF policy of this host drops or rejects the way to the API server.",
        "Rejected by this host, and the address is no empty Service.",
        "Look at this host's own rules (nft list ruleset, iptables-save) and at host policies of the \
         CNI.",
    ),
    row(
        Reason::APIBPFDenied,
        &[Reason::APIPolicyDenied, Reason::APIRouteMissing],
        "connect(2) to the API server is denied before a packet leaves.",
        "connect(2) returned EPERM or EACCES and no SYN was sent.",
        "List the cgroup programs (bpftool cgroup tree) and security modules. Calico's and Cilium's \
         connect-time load balancers deny when the Service has no backend: look at its endpoints.",
    ),
    row(
        Reason::APIRouteMissing,
        &[Reason::APIVIPUnreachable, Reason::APIBPFDenied],
        "There is no route to the API server.",
        "ENETUNREACH or EHOSTUNREACH before a packet left, or a route look-up that fails.",
        "Run `ip route get ADDRESS` and see who removed the route. The API server is not at fault.",
    ),
    row(
        Reason::APITimeout,
        &[Reason::APIVIPUnreachable, Reason::APIServiceNotProgrammed, Reason::APIHairpin],
        "Nobody answers on the API address.",
        "The SYN was sent again and again, also when the client gave up first.",
        "Packets are lost on the way: look at security groups and firewalls that drop, at the load \
         balancer, and at the server's host. Restarting the kubelet does not help.",
    ),
    row(
        Reason::APIHairpin,
        &[Reason::APITimeout],
        "This control-plane node cannot reach itself through the load balancer.",
        "The load balancer's address gives no answer here, while this node's own API server answers.",
        "Turn off client address preservation at the load balancer, or use the local address on \
         control-plane nodes.",
    ),
    row(
        Reason::APIServerReset,
        &[Reason::APITLSFailed],
        "The API server accepts a connection and ends it before a byte comes back.",
        "Established, then RST or FIN with nothing received.",
        "Look at the proxy or load balancer before the API server: it accepts and has no backend.",
    ),
    row(
        Reason::APIConnectionStalled,
        &[Reason::APITimeout],
        "An established connection to the API server gets no acknowledgements.",
        "Retransmissions in ESTABLISHED while nobody opens a new connection.",
        "Packets of existing connections are dropped: look at firewalls and conntrack on the way.",
    ),
    row(
        Reason::APITLSStalled,
        &[Reason::APIServerUnhealthy],
        "The connection is there and the server does not speak.",
        "Bytes of the client are acknowledged and none come back.",
        "Either the path drops large packets (compare MTUs, look for tunnels) or the API server is \
         frozen: see whether it answers on its own host.",
    ),
    row(
        Reason::APITLSFailed,
        &[Reason::CredentialExpired, Reason::CredentialRefused],
        "The TLS handshake with the API server fails, or the kubelet does not accept the server's certificate.",
        "A TLS alert, or a certificate that is expired, for another name, or issued by none of the CAs in the kubelet's \
         kubeconfig while no kubelet is served; the message names it.",
        "Check the certificate's names and dates, and this host's clock. Issued by another CA: compare the CA file that the \
         message names with the cluster's (/etc/kubernetes/pki/ca.crt on a control-plane host), correct the kubeconfig, then \
         restart the kubelet.",
    ),
    row(
        Reason::APIServerUnhealthy,
        &[Reason::APITLSStalled],
        "The API server answers and is not ready.",
        "HTTP answers, and /readyz or the kubelet's own request is not ok.",
        "Read /readyz?verbose on the API server; most often it is etcd.",
    ),
    row(
        Reason::CredentialExpired,
        &[Reason::APITLSFailed, Reason::CNIUnauthorized],
        "A client certificate or token of this node is expired or not yet valid.",
        "The dates in the file named by the message.",
        "Check the clock first. Then renew the certificate (kubeadm certs renew, or bootstrap the \
         kubelet anew).",
    ),
    row(
        Reason::CNIConfigMissing,
        &[Reason::CNIConfigInvalid, Reason::CNIConfigNotLoaded],
        "There is no network configuration where the runtime looks: \"cni plugin not initialized\".",
        "The configuration directory has no .conf, .conflist or .json file.",
        "See whether the CNI's DaemonSet has a pod on this node and read its log. When the API side \
         is the cause, repair that first: the agent writes its file by itself.",
    ),
    row(
        Reason::CNIConfigInvalid,
        &[Reason::CNIConfigMissing, Reason::CNIConfigShadowed],
        "The file that the runtime reads first is empty or does not parse.",
        "The file was read; the message says what is wrong with it. The kubelet's text is the same as \
         for no file.",
        "Repair or remove the named file; who wrote it should write it again. Do not restart the CNI \
         whose own file is fine.",
    ),
    row(
        Reason::CNIConfigNotLoaded,
        &[Reason::CNIConfigMissing],
        "A valid file is there and the runtime has not loaded it.",
        "The runtime did not open the file after its last change, or reports over CRI that its network is not ready.",
        "Write the file again in place, or restart the runtime once.",
    ),
    row(
        Reason::CNIConfigShadowed,
        &[Reason::CNIConfigOrphaned],
        "Another file wins by name order over the one of the running CNI agent.",
        "The names and order of the files, and which agents run: the one whose file comes later does, that \
         of the first file does not.",
        "Look who wrote the first file (`probe trace` names writers) and remove it if that CNI is not used \
         any more; pods that were started meanwhile must be made again. The running agent needs no restart.",
    ),
    row(
        Reason::CNIConfigDisplaced,
        &[Reason::CNIConfigMissing],
        "A file was renamed or removed by another component.",
        "The rename or removal, and the process that did it, which is not the agent of that CNI.",
        "Tell the component to leave foreign files alone (for Cilium: cni.exclusive=false), put the file \
         back, and make those pods again that were started without it. Neither runtime nor kubelet needs a \
         restart.",
    ),
    row(
        Reason::CNIConfigOrphaned,
        &[Reason::CNIAgentNotReady],
        "The file that wins belongs to a CNI that does not run here.",
        "Its plugins fail, and in ten minutes nobody saw its agent run.",
        "See whether that CNI is still meant to be here: if not, remove its file; if so, see why its \
         DaemonSet has no pod on this node. Restarting the runtime only reads the same file again.",
    ),
    row(
        Reason::CNIBinaryMissing,
        &[Reason::CNIPluginFailed, Reason::CNIConfigInvalid],
        "A plugin that the configuration names is not in the plugin directories.",
        "The file system. The runtime only looks and executes nothing, and the node stays Ready.",
        "Install the named plugin (package containernetworking-plugins or the CNI's installer). \
         Restarting the kubelet or runtime does not help.",
    ),
    row(
        Reason::CNIBinaryBusy,
        &[Reason::CNIAgentNotReady],
        "A plugin binary cannot be replaced while it runs.",
        "ETXTBSY on a file in the plugin directory, and processes that execute it.",
        "Remove the stale configuration once, so that nothing runs the old binary while the new one \
         is installed.",
    ),
    row(
        Reason::CNIPluginFailed,
        &[Reason::IPAMExhausted, Reason::CNIAgentNotReady, Reason::CNIBinaryMissing],
        "A plugin ran and failed.",
        "Its exit status and its own error object.",
        "Read the plugin's own message above: it names the cause. Restarting the kubelet only repeats \
         it.",
    ),
    row(
        Reason::CNIPluginStalled,
        &[Reason::CNIAgentNotReady],
        "A plugin has run longer than its known limit.",
        "An execution without an end.",
        "See what it waits for: mostly the socket of its agent.",
    ),
    row(
        Reason::CNIAgentNotReady,
        &[Reason::CNIPluginFailed],
        "The plugin's agent does not answer.",
        "The plugin's own connect to the agent's socket, or its words on a file that the agent writes.",
        "If the verdict has a cause behind it, repair that first. Else read the named agent's log. The file \
         is the agent's to write: do not make it by hand, and leave the kubelet alone.",
    ),
    row(
        Reason::CNIDefaultNetworkNotReady,
        &[Reason::CNIAgentNotReady],
        "A meta-plugin waits for its default network.",
        "Repeated looks for the readiness file of the default network.",
        "Repair the default network; the meta-plugin goes on by itself.",
    ),
    row(
        Reason::CNIUnauthorized,
        &[Reason::CredentialExpired],
        "The plugin reaches the API server and is refused.",
        "The plugin's own message: unauthorized or forbidden, HTTP 401 or 403. The API server is reached.",
        "Look at the CNI's kubeconfig in the configuration directory and at this host's clock; restart the \
         CNI's agent on this node, which writes the token anew. Network and API server are not at fault.",
    ),
    row(
        Reason::PodCIDRNotAssigned,
        &[Reason::IPAMExhausted],
        "The node has no pod CIDR and its CNI needs one.",
        "The Node object, read when the network of a CNI that takes its addresses from there does not come; or the \
         plugin's own message.",
        "Look at kube-controller-manager: --allocate-node-cidrs, and whether its --cluster-cidr has a range left \
         (kubectl get nodes -o custom-columns=N:.metadata.name,C:.spec.podCIDR). The agent goes on by itself.",
    ),
    row(
        Reason::IPAMExhausted,
        &[Reason::CNIPluginFailed, Reason::PodCIDRNotAssigned],
        "No address is left for pods on this node.",
        "The IPAM plugin's own message.",
        "Compare the leases (for host-local: /var/lib/cni/networks) with the pods that run: remove \
         leaked ones, or give the node a larger range.",
    ),
    row(
        Reason::NetnsInvalid,
        &[Reason::CNIPluginFailed],
        "A namespace path is no network namespace.",
        "The file system type of the path.",
        "Mount /run with HostToContainer propagation into the agent, or remove stale files after a \
         reboot.",
    ),
    row(
        Reason::LinkConflict,
        &[Reason::LinkSetupFailed],
        "A link exists with other parameters.",
        "The kernel refused with EEXIST or EADDRINUSE: a plugin, which says so, or an agent whose port or VNI another \
         link has.",
        "Look for the left-over of another CNI (`ip -d link`: an old bridge, a VXLAN link with the same port or VNI) \
         and remove that, or change those of the new one. A restart of the agent alone meets it again.",
    ),
    row(
        Reason::LinkSetupFailed,
        &[Reason::LinkConflict, Reason::KernelModuleMissing],
        "The kernel refused to create or move a link.",
        "errno and the kernel's own text.",
        "Read the kernel's text; it names what is wrong.",
    ),
    row(
        Reason::KernelModuleMissing,
        &[Reason::LinkSetupFailed],
        "The kernel needs a module that is not there.",
        "A request for the module without a load.",
        "Install the module's package for the running kernel.",
    ),
    row(
        Reason::OVSNotReady,
        &[Reason::CNIAgentNotReady],
        "Open vSwitch, its datapath or its bridge is missing or stalled.",
        "The process, its sockets, its datapath.",
        "Look at ovs-vswitchd and ovsdb-server first; the CNI on top recovers by itself.",
    ),
    row(
        Reason::OVNPortNotBound,
        &[Reason::OVSNotReady],
        "The port exists and ovn-controller has not bound it.",
        "The plugin has waited for ovn-installed and gave up; its link is there.",
        "Look at ovn-controller's log on this node and at its connection to the southbound database (port \
         6642), then at that database's leader. The plugin and the kubelet only wait.",
    ),
    row(
        Reason::ReversePathFiltered,
        &[Reason::RoutesRemoved],
        "Packets of pods are dropped by rp_filter.",
        "The setting and the drop reason.",
        "Set net.ipv4.conf.*.rp_filter to 0 for the CNI's links in sysctl.d.",
    ),
    row(
        Reason::RoutesRemoved,
        &[Reason::ReversePathFiltered],
        "Routes or rules of the CNI were removed.",
        "The removal of a route to a CNI's link by a process that is no CNI, and nobody put it back.",
        "Stop that process from managing foreign routes (systemd-networkd: ManageForeignRoutes=no and \
         ManageForeignRoutingPolicyRules=no), then restart the CNI's agent on this node, which puts them back.",
    ),
    row(
        Reason::ConntrackExhausted,
        &[Reason::APITimeout],
        "The conntrack table is full.",
        "Count and limit; new connections are dropped, old ones live.",
        "Raise nf_conntrack_max and find who opens the connections.",
    ),
    row(
        Reason::RuntimeDown,
        &[Reason::KubeletDown],
        "The container runtime does not serve the kubelet.",
        "Its process, its socket, and its own answers over CRI.",
        "Look at the runtime's log (journalctl -u containerd, -u crio). Where it serves no CRI, remove \"cri\" from \
         disabled_plugins in its configuration and restart it.",
    ),
    row(
        Reason::KubeletDown,
        &[Reason::RuntimeDown, Reason::CredentialExpired],
        "The kubelet does not run or exits at once.",
        "No such process on a host that has been set up as a node, or one that ends again and again; how it \
         ended.",
        "Read the end of its log (journalctl -u kubelet). Running pods go on without it: do not reboot the \
         node for this.",
    ),
    row(
        Reason::RuntimeLimitExceeded,
        &[Reason::RuntimeDown],
        "The runtime or the kubelet hit a limit.",
        "The refused call and the limit's name.",
        "Raise the named limit, then restart once what hit it. Local ports: net.ipv4.ip_local_port_range, or see who \
         holds them (ss -tan).",
    ),
    row(
        Reason::SandboxImageUnavailable,
        &[Reason::CNIBinaryMissing],
        "Sandboxes fail for another reason than the network: image, resolv.conf or cgroup.",
        "The network of one pod is made and given up within a minute, three times or more.",
        "Read the runtime's log for that pod: the pause image, resolv.conf, or the cgroup driver. The network \
         is not at fault: leave the CNI alone.",
    ),
    row(
        Reason::AdmissionBlocked,
        &[Reason::CNIConfigMissing],
        "An admission webhook keeps the CNI's pods from being created.",
        "The API server's words to the DaemonSet, and on a host of the control plane how its own connects to the \
         webhook's backend ended.",
        "Set the named webhook to Ignore until its backend runs, then back.",
    ),
    row(
        Reason::EtcdDown,
        &[Reason::APIServerDown],
        "etcd on this host does not run, or ends again and again.",
        "Its end, with exit code, signal and sender; a full disk, when there is one.",
        "Look at etcd's own log first (crictl logs, journalctl -u etcd), then at space and latency of \
         the disk under /var/lib/etcd. The API server comes back by itself.",
    ),
    row(
        Reason::APINameUnresolved,
        &[Reason::APITimeout, Reason::APIServiceNotProgrammed],
        "The host name of the API server does not resolve.",
        "The node's resolver (/etc/hosts, then /etc/resolv.conf) returns no address for the server name in the kubelet's \
         kubeconfig, and no connection to an address of that name works.",
        "Query the resolver that the message names: `dig @ADDRESS NAME`. For NXDOMAIN check the zone and the search domains; \
         without a response check the path to port 53. Do not restart the API server or the CNI.",
    ),
    row(
        Reason::CredentialRefused,
        &[Reason::CredentialExpired, Reason::APITLSFailed],
        "The API server refuses the kubelet's own credential.",
        "A request for the kubelet's own Node object, with its client certificate or token, was refused at least twice in a \
         row: 401 Unauthorized, a TLS alert about the certificate, or 403 Forbidden where the certificate names the node. No \
         other API server accepted it.",
        "Inspect the file that the message names (`openssl x509 -noout -issuer -subject -in FILE`): kube-apiserver's \
         --client-ca-file must hold the issuer. A bootstrap token lives in a Secret of kube-system, with kubeadm for a day: \
         `kubeadm token list`. For 403 the subject must be system:node:NAME in the group system:nodes. Do not restart the \
         kubelet before that.",
    ),
    row(
        Reason::APIProxyRefused,
        &[Reason::APIServerUnhealthy, Reason::APITLSFailed],
        "The proxy that the kubelet uses (HTTPS_PROXY) refuses to connect to the API server.",
        "A CONNECT request for the server in the kubelet's kubeconfig, sent to the proxy with the user information of the \
         kubelet's own environment, was answered with another status than 200. The message quotes the proxy's status line.",
        "Look at the log of the proxy that the message names: 403 and 407 are its own rules and its accounts, 502 to 504 mean \
         that it does not reach the API server. If the node has a direct route, add the server to NO_PROXY in the \
         environment of the kubelet's unit. Do not restart the API server or the CNI.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_explained_in_its_place() {
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
