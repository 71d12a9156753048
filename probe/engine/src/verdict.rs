//! What the engine says.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::observation::{Gap, Mono, Role, Writes};
use crate::reason::{Reason, Status};

/// One finding in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which one.
    pub reason: Reason,
    /// What it is about: an address, a file, a plugin, a process. May be empty.
    pub subject: String,
    /// One line, at most 512 bytes, the same for the same state: no times, no counts that run.
    pub message: String,
    /// Since when it holds.
    pub since: Mono,
}

/// One of the two conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConditionType {
    /// Can this node set up pod networks?
    NodeNetworkReady,
    /// Can this node's own clients reach the API server?
    APIServerReachable,
}

impl ConditionType {
    /// Both.
    pub const ALL: [Self; 2] = [Self::NodeNetworkReady, Self::APIServerReachable];

    /// Without the domain prefix.
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
    /// Which one.
    pub condition: ConditionType,
    /// Its status.
    pub status: Status,
    /// Why.
    pub reason: Reason,
    /// One line, at most 512 bytes.
    pub message: String,
    /// When `status` last changed.
    pub since: Mono,
}

/// One line of proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// When it was seen.
    pub at: Mono,
    /// `tcp.connect`, `cni.exec`, `cni.config`, `process.exit`, `tcp.listen`, …
    pub signal: String,
    /// For people: `kubelet[812] → 10.0.0.1:6443 no answer, 3 SYN, 7.2 s`.
    pub text: String,
}

/// Everything that is known at one time. Undamped, but for `conditions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The host's role.
    pub role: Role,
    /// The root cause, or `NetworkReady`, `Learning`, `ProbeDegraded`, `NotApplicable`, `AgentStopping`.
    pub verdict: Finding,
    /// Its status: True for `NetworkReady`, and for `CNIConfigDisplaced` while another network takes its place; False
    /// for a proven fault; else Unknown.
    pub status: Status,
    /// What to look at first, and what not to restart.
    pub remedy: String,
    /// What stands behind the root, nearest first.
    pub because: Vec<Finding>,
    /// What hangs from the root.
    pub consequences: Vec<Finding>,
    /// Faults that are independent of the root.
    pub also: Vec<Finding>,
    /// The two conditions.
    pub conditions: Vec<Condition>,
    /// Newest last, at most [`crate::limits::EVIDENCE`].
    pub evidence: Vec<Evidence>,
    /// What could not be seen.
    pub gaps: Vec<Gap>,
    /// How the conditions reach the Node object; `None` when nobody has tried yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writes: Option<Writes>,
}

/// What the engine wants done. It does nothing itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// The verdict, its chain or its message changed.
    Verdict(alloc::boxed::Box<Report>),
    /// A condition changed its status, reason or message.
    Condition(Condition),
    /// State must be read again after a loss; answer with [`crate::Observation::Reread`].
    Reread(crate::observation::Scope),
    /// Someone's connect to this API address failed: ask it now.
    Ask(core::net::SocketAddr),
}
