//! One rule per file: from facts to faults. A rule is a pure function; it knows no other rule.

mod admission;
mod api_answer;
mod api_connect;
mod api_denied;
mod api_listener;
mod api_name;
mod api_route;
mod cni_binary;
mod cni_config;
mod cni_order;
mod cni_plugin;
mod cni_stalled;
mod control_plane;
mod credentials;
mod datapath;
mod kubelet;
mod ovs;
mod pod_cidr;
mod resources;
mod routes;
mod runtime;
mod sandbox;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::facts::Facts;
use crate::limits;
use crate::observation::Mono;
use crate::reason::{Reason, Side};
use crate::verdict::Finding;

pub(crate) use cni_config::{displaced, winner};

/// A fault that holds now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) finding: Finding,
    /// Holds by itself (no file, no listener, no route), as against something that is tried again.
    pub(crate) state: bool,
    /// Until when it may go away by itself, because somebody has just started: no condition says it before.
    pub(crate) settles: Option<Mono>,
    /// What may be its cause. API → CNI only: pods of the host's network, the control plane among them, are
    /// started whatever the CNI does, so CNI is never the cause of an API fault.
    pub(crate) causes: &'static [Reason],
    /// How near to the ground it lies: of two independent faults the lower one is told first.
    pub(crate) depth: u8,
    /// Clients have another way that works: it is reported beside the verdict and changes no status.
    pub(crate) degraded: bool,
}

/// Depths, in the order of the contract: API path → runtime → configuration → plugin → datapath.
mod depth {
    pub(super) const API: u8 = 0;
    pub(super) const RUNTIME: u8 = 1;
    pub(super) const CONFIGURATION: u8 = 2;
    pub(super) const PLUGIN: u8 = 3;
    pub(super) const DATAPATH: u8 = 4;
}

/// What may be the cause of what.
mod causes {
    use crate::reason::Reason;

    /// Reasons by their names; with a list before them, those of that list first.
    macro_rules! reasons {
        ($($name:ident),* $(,)?) => { &[$(Reason::$name),*] };
        ($list:ident; $($name:ident),* $(,)?) => {{
            const MORE: &[Reason] = &[$(Reason::$name),*];
            const ALL: [Reason; $list.len() + MORE.len()] = {
                let mut all = [Reason::NetworkReady; $list.len() + MORE.len()];
                let mut at = 0;
                while at < all.len() {
                    all[at] = if at < $list.len() { $list[at] } else { MORE[at - $list.len()] };
                    at += 1;
                }
                all
            };
            &ALL
        }};
    }

    /// Without the runtime, or the kubelet, no pod is started: those of the control plane neither.
    pub(super) const OF_STATIC_PODS: &[Reason] = reasons![
        ControlPlaneCrashLoop,
        CredentialExpired,
        CredentialRefused,
        RuntimeDown,
        RuntimeLimitExceeded,
        KubeletDown
    ];

    /// New connections are dropped where they are counted.
    pub(super) const OF_SILENCE: &[Reason] = reasons![ConntrackExhausted];

    /// A route is missing because somebody took it away.
    pub(super) const OF_NO_ROUTE: &[Reason] = reasons![RoutesRemoved];

    /// The kubelet ends at once without a valid credential, and without a runtime.
    pub(super) const OF_KUBELET: &[Reason] =
        reasons![CredentialExpired, CredentialRefused, RuntimeDown, RuntimeLimitExceeded];

    /// A runtime does not serve without an inotify instance to watch its configuration.
    pub(super) const OF_RUNTIME: &[Reason] = reasons![RuntimeLimitExceeded];

    /// CRI-O does not load a configuration whose plugins are missing, and no runtime loads one without an inotify instance.
    pub(super) const OF_LOADING: &[Reason] = reasons![CNIBinaryMissing, RuntimeLimitExceeded];

    /// An agent needs the API server, and what its datapath is made of, before it answers or writes anything.
    pub(super) const OF_AGENTS: &[Reason] = reasons![
        APIServerDown,
        ControlPlaneCrashLoop,
        APIServerRefused,
        APILocalProxyDown,
        APIServiceNoEndpoints,
        APIServiceNotProgrammed,
        APIVIPUnreachable,
        APIFirewalled,
        APIPolicyDenied,
        APIBPFDenied,
        APIRouteMissing,
        APINameUnresolved,
        APIProxyRefused,
        APITimeout,
        APIHairpin,
        APIServerReset,
        APIConnectionStalled,
        APITLSStalled,
        APITLSFailed,
        APIServerUnhealthy,
        CredentialExpired,
        CredentialRefused,
        AdmissionBlocked,
        RuntimeDown,
        RuntimeLimitExceeded,
        KubeletDown,
        PodCIDRNotAssigned,
        CNIConfigShadowed,
        CNIConfigOrphaned,
        CNIBinaryBusy,
        KernelModuleMissing,
        LinkConflict,
        LinkSetupFailed,
        ConntrackExhausted,
    ];

    /// The same, and Open vSwitch.
    pub(super) const OF_OVS_AGENTS: &[Reason] = reasons![OF_AGENTS; OVSNotReady];

    /// A meta-plugin needs all that its default network needs, and that network's agent.
    pub(super) const OF_DEFAULT_NETWORK: &[Reason] = reasons![
        OF_OVS_AGENTS;
        CNIAgentNotReady,
        CNIConfigMissing,
        CNIConfigInvalid,
        OVNPortNotBound,
    ];

    /// The runtime runs plugins for their status (CNI 1.1), and they report that of their agent.
    pub(super) const OF_STATUS: &[Reason] = reasons![
        OF_OVS_AGENTS;
        CNIBinaryMissing,
        CNIPluginStalled,
        CNIAgentNotReady,
        CNIDefaultNetworkNotReady,
        CNIUnauthorized,
        IPAMExhausted,
    ];

    /// Open vSwitch needs its module, and its links.
    pub(super) const OF_OVS: &[Reason] =
        reasons![KernelModuleMissing, LinkConflict, RuntimeDown, KubeletDown];

    /// Files are not written where no space is left.
    pub(super) const OF_SPACE: &[Reason] = reasons![RuntimeLimitExceeded];

    /// A port is bound by an agent of Open vSwitch that talks to its own database.
    pub(super) const OF_PORTS: &[Reason] = reasons![OVSNotReady, CNIAgentNotReady];

    /// The API server refuses a credential that is over.
    pub(super) const OF_REFUSED_CREDENTIALS: &[Reason] = reasons![CredentialExpired];

    /// Sandboxes go with the pods of a control plane that is ended again and again.
    pub(super) const OF_SANDBOXES: &[Reason] =
        reasons![ControlPlaneCrashLoop, RuntimeDown, RuntimeLimitExceeded];
}

impl Fault {
    fn new(reason: Reason, subject: impl Into<String>, message: String, since: Mono) -> Self {
        let depth = match reason.side() {
            Side::Api => depth::API,
            Side::Runtime => depth::RUNTIME,
            Side::Datapath => depth::DATAPATH,
            Side::Cni | Side::None => depth::CONFIGURATION,
        };
        Self {
            finding: Finding {
                reason,
                subject: limits::cut(subject.into(), limits::SUBJECT),
                message: limits::cut(message, limits::MESSAGE),
                since,
            },
            state: false,
            settles: None,
            causes: &[],
            depth,
            degraded: false,
        }
    }

    /// Appends to the message.
    fn saying_also(mut self, words: &str) -> Self {
        let message = format!("{}{words}", self.finding.message);
        self.finding.message = limits::cut(message, limits::MESSAGE);
        self
    }

    /// Of one of several addresses of a name, while clients of that name get through by `other`.
    fn degraded(mut self, other: Option<&SocketAddr>) -> Self {
        let Some(other) = other else { return self };
        self.degraded = true;
        self.saying_also(&format!("; degraded: {other} of the same name works"))
    }

    fn state(mut self) -> Self {
        self.state = true;
        self
    }

    fn settles(mut self, until: Option<Mono>) -> Self {
        self.settles = until;
        self
    }

    fn may_come_from(mut self, causes: &'static [Reason]) -> Self {
        self.causes = causes;
        self
    }

    fn at_depth(mut self, depth: u8) -> Self {
        self.depth = depth;
        self
    }
}

/// Every fault that holds, in the order of the contract; the first is nearest to the ground.
pub(crate) fn faults(facts: &Facts) -> Vec<Fault> {
    let mut all = Vec::new();
    for rule in [
        control_plane::judge,
        api_listener::judge,
        api_denied::judge,
        api_route::judge,
        api_name::judge,
        api_connect::judge,
        api_answer::judge,
        credentials::judge,
        admission::judge,
        runtime::judge,
        kubelet::judge,
        resources::judge,
        sandbox::judge,
        pod_cidr::judge,
        cni_config::judge,
        cni_order::judge,
        cni_binary::judge,
        ovs::judge,
        cni_plugin::judge,
        cni_stalled::judge,
        routes::judge,
        datapath::judge,
    ] {
        for fault in rule(facts) {
            let other = fault.finding.subject.parse().ok().and_then(|addr| facts.other_way(&addr));
            let fault = fault.degraded(other.as_ref());
            let is_known = |known: &Fault| {
                (known.finding.reason, &known.finding.subject)
                    == (fault.finding.reason, &fault.finding.subject)
            };
            // What a state shows and a connect confirms is one fault.
            if !all.iter().any(is_known) {
                all.push(fault);
            }
        }
    }
    // Stable: within one depth the rules' own order stands.
    all.sort_by_key(|fault| fault.depth);
    all
}
