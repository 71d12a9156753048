//! Which faults may be the cause of which.

use crate::reason::{Reason, Side};

/// The components that a fault depends on, as the set of reasons that may be its cause.
///
/// CNI is never the cause of an API fault: pods on the host network, those of the control plane among them, start whatever
/// the state of CNI is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Causes {
    /// It has no cause that is judged.
    None,
    /// A route: it may have been removed.
    Route,
    /// A reply: a full connection tracking table drops new connections.
    Reply,
    /// Static pods, the control plane's among them: neither starts without the runtime and the kubelet.
    StaticPods,
    /// The kubelet, which exits at once without a valid credential or a runtime.
    Kubelet,
    /// The runtime, which needs an inotify instance to watch its configuration.
    Runtime,
    /// A loaded configuration. CRI-O does not load one whose plugins are missing, and no runtime loads one without an inotify
    /// instance.
    LoadedConfig,
    /// An agent of a CNI. It needs the API server and the parts of its datapath before it answers or writes anything.
    Agent,
    /// An agent of a CNI that uses Open vSwitch.
    OvsAgent,
    /// The default network of a meta-plugin, with its agent.
    DefaultNetwork,
    /// The plugins' own status (CNI 1.1 STATUS), in which they report that of their agent.
    PluginStatus,
    /// Open vSwitch, which needs its kernel module and its links.
    Ovs,
    /// Free disk space.
    Space,
    /// A bound port: agents of Open vSwitch bind ports through their database.
    Port,
    /// A credential that the API server accepts.
    ValidCredential,
    /// Sandboxes. A crash-looping control plane takes its own with it.
    Sandboxes,
}

impl Causes {
    /// Returns whether `reason` may be the cause.
    pub(crate) fn include(self, reason: Reason) -> bool {
        use Reason as R;
        match self {
            Self::None => false,
            Self::Route => reason == R::RoutesRemoved,
            Self::Reply => reason == R::ConntrackExhausted,
            Self::StaticPods => {
                Self::Kubelet.include(reason) || matches!(reason, R::ControlPlaneCrashLoop | R::KubeletDown)
            }
            Self::Kubelet => {
                Self::Runtime.include(reason)
                    || matches!(reason, R::CredentialExpired | R::CredentialRefused | R::RuntimeDown)
            }
            Self::Runtime | Self::Space => reason == R::RuntimeLimitExceeded,
            Self::LoadedConfig => Self::Runtime.include(reason) || reason == R::CNIBinaryMissing,
            Self::Agent => {
                let is_api = reason.side() == Side::Api;
                is_api
                    || matches!(
                        reason,
                        R::RuntimeDown
                            | R::RuntimeLimitExceeded
                            | R::KubeletDown
                            | R::PodCIDRNotAssigned
                            | R::CNIConfigShadowed
                            | R::CNIConfigOrphaned
                            | R::CNIBinaryBusy
                            | R::KernelModuleMissing
                            | R::LinkConflict
                            | R::LinkSetupFailed
                            | R::ConntrackExhausted
                    )
            }
            Self::OvsAgent => Self::Agent.include(reason) || reason == R::OVSNotReady,
            Self::DefaultNetwork => {
                Self::OvsAgent.include(reason)
                    || matches!(
                        reason,
                        R::CNIAgentNotReady | R::CNIConfigMissing | R::CNIConfigInvalid | R::OVNPortNotBound
                    )
            }
            Self::PluginStatus => {
                Self::OvsAgent.include(reason)
                    || matches!(
                        reason,
                        R::CNIBinaryMissing
                            | R::CNIPluginStalled
                            | R::CNIAgentNotReady
                            | R::CNIDefaultNetworkNotReady
                            | R::CNIUnauthorized
                            | R::IPAMExhausted
                    )
            }
            Self::Ovs => {
                matches!(reason, R::KernelModuleMissing | R::LinkConflict | R::RuntimeDown | R::KubeletDown)
            }
            Self::Port => matches!(reason, R::OVSNotReady | R::CNIAgentNotReady),
            Self::ValidCredential => reason == R::CredentialExpired,
            Self::Sandboxes => {
                Self::Runtime.include(reason) || matches!(reason, R::ControlPlaneCrashLoop | R::RuntimeDown)
            }
        }
    }
}
