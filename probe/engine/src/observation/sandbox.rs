//! Network namespaces, and the steps of setting up and removing a sandbox.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{Actor, Pod};

/// See [`super::Observation::Netns`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netns {
    /// Inode number.
    pub inum: u32,
    /// Whether it was created; false when it was destroyed.
    pub up: bool,
    /// The process that created it.
    #[serde(default)]
    pub process: Actor,
}

/// See [`super::Observation::NetnsName`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsName {
    /// Path; control characters are escaped.
    pub path: String,
    /// Inode number of the namespace; 0 for a file to which no namespace is bound.
    pub inum: u32,
    /// Its new state.
    pub state: NameState,
}

/// The state of a name in the directory where runtimes bind namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameState {
    /// A namespace is bound to it.
    Bound,
    /// The name was removed.
    Unbound,
    /// The file exists, but no namespace is bound to it.
    Stale,
}

/// What the agent found at the namespace path that a runtime passes to its plugins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum NetnsSeen {
    /// The path was not examined, or none was passed.
    #[default]
    Unknown,
    /// A network namespace.
    Namespace {
        /// Its inode number.
        inum: u32,
    },
    /// The path does not exist.
    Missing,
    /// The path is not a network namespace.
    NoNamespace,
    /// A namespace on the host, but not for the process that passes the path: mounts are not propagated to it.
    Hidden,
}

impl NetnsSeen {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub(super) const fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown)
    }
}

/// See [`super::Observation::Sandbox`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Inode number of its namespace; 0 when not known.
    pub netns: u32,
    /// `CNI_CONTAINERID`
    #[serde(default)]
    pub container_id: String,
    /// From `CNI_ARGS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// An ADD was observed. Without one, a DEL removes what an earlier attempt left.
    pub added: bool,
    /// Every step succeeded.
    pub ok: bool,
    /// Nanoseconds from the first step to the last.
    pub took_ns: u64,
    /// Steps in order of time; if there are many, only the first and the newest.
    pub steps: Vec<Step>,
}

/// One step of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Nanoseconds since the first step.
    pub after_ns: u64,
    /// The kind of step.
    pub step: StepKind,
    /// The plugin with its delegates, the link with its kind, the path, or the process; control characters are escaped.
    #[serde(default)]
    pub what: String,
    /// Whether it succeeded.
    pub ok: bool,
    /// Duration in nanoseconds; 0 for steps without a duration.
    #[serde(default)]
    pub took_ns: u64,
}

/// A kind of step in the life of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// Its namespace was created.
    Created,
    /// The namespace was bound to its name.
    Named,
    /// A plugin added it to a network.
    Add,
    /// A link was moved into the namespace or created there.
    Link,
    /// A plugin checked it.
    Check,
    /// A plugin removed it from a network.
    Del,
    /// The name was removed.
    Unnamed,
    /// The namespace was destroyed.
    Ended,
}

impl StepKind {
    /// Returns a word for a timeline.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Named => "named",
            Self::Add => "ADD",
            Self::Link => "link",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Unnamed => "name removed",
            Self::Ended => "destroyed",
        }
    }
}
