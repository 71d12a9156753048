//! The closed vocabulary of verdicts: reasons, sides, statuses. It is a public interface and only grows.

use serde::{Deserialize, Serialize};

/// Which part of the node a reason belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The path from this node to the API server.
    Api,
    /// CNI configuration, plugins and agents.
    Cni,
    /// Links, namespaces, routes, Open vSwitch.
    Datapath,
    /// Container runtime and kubelet.
    Runtime,
    /// No fault.
    None,
}

impl Side {
    /// Every side.
    pub const ALL: [Self; 5] = [Self::Api, Self::Cni, Self::Datapath, Self::Runtime, Self::None];

    /// Returns its name in metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Cni => "cni",
            Self::Datapath => "datapath",
            Self::Runtime => "runtime",
            Self::None => "none",
        }
    }
}

/// The status of a verdict or condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Status {
    /// Proven to be good.
    True,
    /// A fault is proven.
    False,
    /// Neither is proven.
    Unknown,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 3] = [Self::True, Self::False, Self::Unknown];

    /// Returns its name in conditions, metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// The layers that pod networking is built of, lowest first. Of independent faults the one at the lowest layer is the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layer {
    Api,
    Runtime,
    Configuration,
    Plugin,
    Datapath,
}

/// One row per reason: name, side, layer.
macro_rules! reasons {
    ($($name:ident $side:ident $layer:ident,)*) => {
        /// The reason of a verdict. `docs/reasons.md` and `probe explain` give the meaning of each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[expect(missing_docs, reason = "each one's meaning, evidence and remedy stand in explain.rs")]
        pub enum Reason { $($name,)* }

        impl Reason {
            /// Every reason, in the order of the contract.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Returns its name in conditions, metrics and JSON.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// Returns the side that it belongs to.
            pub const fn side(self) -> Side {
                match self { $(Self::$name => Side::$side,)* }
            }

            /// Returns the layer at which it lies.
            pub(crate) const fn layer(self) -> Layer {
                match self { $(Self::$name => Layer::$layer,)* }
            }
        }
    };
}

reasons! {
    NetworkReady None Configuration,
    Learning None Configuration,
    ProbeDegraded None Configuration,
    AgentStopping None Configuration,
    NotApplicable None Configuration,
    APIServerDown Api Api,
    ControlPlaneCrashLoop Api Api,
    APIServerRefused Api Api,
    APILocalProxyDown Api Api,
    APIServiceNoEndpoints Api Api,
    APIServiceNotProgrammed Api Api,
    APIVIPUnreachable Api Api,
    APIFirewalled Api Api,
    APIPolicyDenied Api Api,
    APIBPFDenied Api Api,
    APIRouteMissing Api Api,
    APITimeout Api Api,
    APIHairpin Api Api,
    APIServerReset Api Api,
    APIConnectionStalled Api Api,
    APITLSStalled Api Api,
    APITLSFailed Api Api,
    APIServerUnhealthy Api Api,
    CredentialExpired Api Api,
    CNIConfigMissing Cni Configuration,
    CNIConfigInvalid Cni Configuration,
    CNIConfigNotLoaded Cni Configuration,
    CNIConfigShadowed Cni Configuration,
    CNIConfigDisplaced Cni Configuration,
    CNIConfigOrphaned Cni Configuration,
    CNIBinaryMissing Cni Plugin,
    CNIBinaryBusy Cni Plugin,
    CNIPluginFailed Cni Plugin,
    CNIPluginStalled Cni Plugin,
    CNIAgentNotReady Cni Plugin,
    CNIDefaultNetworkNotReady Cni Plugin,
    CNIUnauthorized Cni Plugin,
    PodCIDRNotAssigned Cni Configuration,
    IPAMExhausted Cni Plugin,
    NetnsInvalid Datapath Datapath,
    LinkConflict Datapath Datapath,
    LinkSetupFailed Datapath Datapath,
    KernelModuleMissing Datapath Datapath,
    OVSNotReady Datapath Plugin,
    OVNPortNotBound Datapath Datapath,
    ReversePathFiltered Datapath Datapath,
    RoutesRemoved Datapath Datapath,
    ConntrackExhausted Datapath Datapath,
    RuntimeDown Runtime Runtime,
    KubeletDown Runtime Runtime,
    RuntimeLimitExceeded Runtime Runtime,
    SandboxImageUnavailable Runtime Runtime,
    AdmissionBlocked Api Api,
    EtcdDown Api Api,
    APINameUnresolved Api Api,
    CredentialRefused Api Api,
    APIProxyRefused Api Api,
}

impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(self.as_str())
    }
}
