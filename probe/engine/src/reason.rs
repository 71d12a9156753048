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

macro_rules! reasons {
    ($($name:ident $side:ident,)*) => {
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
        }
    };
}

reasons! {
    NetworkReady None,
    Learning None,
    ProbeDegraded None,
    AgentStopping None,
    NotApplicable None,
    APIServerDown Api,
    ControlPlaneCrashLoop Api,
    APIServerRefused Api,
    APILocalProxyDown Api,
    APIServiceNoEndpoints Api,
    APIServiceNotProgrammed Api,
    APIVIPUnreachable Api,
    APIFirewalled Api,
    APIPolicyDenied Api,
    APIBPFDenied Api,
    APIRouteMissing Api,
    APITimeout Api,
    APIHairpin Api,
    APIServerReset Api,
    APIConnectionStalled Api,
    APITLSStalled Api,
    APITLSFailed Api,
    APIServerUnhealthy Api,
    CredentialExpired Api,
    CNIConfigMissing Cni,
    CNIConfigInvalid Cni,
    CNIConfigNotLoaded Cni,
    CNIConfigShadowed Cni,
    CNIConfigDisplaced Cni,
    CNIConfigOrphaned Cni,
    CNIBinaryMissing Cni,
    CNIBinaryBusy Cni,
    CNIPluginFailed Cni,
    CNIPluginStalled Cni,
    CNIAgentNotReady Cni,
    CNIDefaultNetworkNotReady Cni,
    CNIUnauthorized Cni,
    PodCIDRNotAssigned Cni,
    IPAMExhausted Cni,
    NetnsInvalid Datapath,
    LinkConflict Datapath,
    LinkSetupFailed Datapath,
    KernelModuleMissing Datapath,
    OVSNotReady Datapath,
    OVNPortNotBound Datapath,
    ReversePathFiltered Datapath,
    RoutesRemoved Datapath,
    ConntrackExhausted Datapath,
    RuntimeDown Runtime,
    KubeletDown Runtime,
    RuntimeLimitExceeded Runtime,
    SandboxImageUnavailable Runtime,
    AdmissionBlocked Api,
    EtcdDown Api,
    APINameUnresolved Api,
    CredentialRefused Api,
    APIProxyRefused Api,
}

impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(self.as_str())
    }
}
