//! The output of the engine.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::observation::{BootTime, Gap, Role, Writes};
use crate::reason::{Reason, Status};

/// A finding in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its reason.
    pub reason: Reason,
    /// What it is about: an address, a file, a plugin, a process. May be empty.
    pub subject: String,
    /// One line of at most 512 bytes, the same for the same state: it holds no times and no running counts.
    pub message: String,
    /// Since when it has held, boot time.
    pub since: BootTime,
}

/// One of the two conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConditionType {
    /// Whether this node can set up pod networks.
    NodeNetworkReady,
    /// Whether this node's own clients can reach the API server.
    APIServerReachable,
}

impl ConditionType {
    /// Both types.
    pub const ALL: [Self; 2] = [Self::NodeNetworkReady, Self::APIServerReachable];

    /// Returns its name without the domain prefix.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NodeNetworkReady => "NodeNetworkReady",
            Self::APIServerReachable => "APIServerReachable",
        }
    }
}

/// A condition, damped by hold times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// Its type.
    pub condition: ConditionType,
    /// Its status.
    pub status: Status,
    /// The reason for the status.
    pub reason: Reason,
    /// One line of at most 512 bytes.
    pub message: String,
    /// When `status` last changed, boot time.
    pub since: BootTime,
}

/// One line of evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// When it was observed, boot time.
    pub at: BootTime,
    /// `tcp.connect`, `cni.exec`, `cni.config`, `process.exit`, `tcp.listen`, …
    pub signal: String,
    /// The observation in words: `kubelet[812] → 10.0.0.1:6443 no answer, 3 SYN, 7.2 s`.
    pub text: String,
}

/// Everything that is known at one time. Only `conditions` are damped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The host's role.
    pub role: Role,
    /// The root cause, or `NetworkReady`, `Learning`, `ProbeDegraded`, `NotApplicable`, `AgentStopping`.
    pub verdict: Finding,
    /// Its status: True for `NetworkReady`, and for `CNIConfigDisplaced` while another network is configured; False for a
    /// proven fault; otherwise Unknown.
    pub status: Status,
    /// What to inspect first, and what not to restart.
    pub remedy: String,
    /// Origins of the root, nearest first.
    pub because: Vec<Finding>,
    /// Consequences of the root.
    pub consequences: Vec<Finding>,
    /// Faults that are independent of the root.
    pub also: Vec<Finding>,
    /// The two conditions.
    pub conditions: Vec<Condition>,
    /// The newest evidence, oldest first, at most [`crate::limits::EVIDENCE`] lines.
    pub evidence: Vec<Evidence>,
    /// Signals that are not observed.
    pub gaps: Vec<Gap>,
    /// How the conditions are written to the Node object; `None` before the first attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writes: Option<Writes>,
}

/// What the caller of the engine has to do. The engine itself does no IO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// The verdict, its chain or its message changed: publish the report.
    Verdict(alloc::boxed::Box<Report>),
    /// The status, reason or message of a condition changed: write it.
    Condition(Condition),
    /// Events were lost: read the state again and observe [`crate::Observation::Reread`].
    Reread(crate::observation::Scope),
    /// A client has trouble with this API address: probe it now.
    Ask(core::net::SocketAddr),
}
