//! Namespaces and what is done for a sandbox.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{Actor, Pod};

/// See [`super::Observation::Netns`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netns {
    /// Inode number.
    pub inum: u32,
    /// Created or ended.
    pub up: bool,
    /// Who created it.
    #[serde(default)]
    pub process: Actor,
}

/// See [`super::Observation::NetnsName`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsName {
    /// Where; control characters are escaped.
    pub path: String,
    /// Inode number of the namespace; 0 for a file that is bound to none.
    pub inum: u32,
    /// What became of it.
    pub state: NameState,
}

/// What became of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameState {
    /// A namespace is bound to it.
    Bound,
    /// It is gone.
    Unbound,
    /// A file is there and no namespace is bound to it.
    Stale,
}

/// What the path that a runtime hands to its plugins is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum NetnsSeen {
    /// It was not looked at, or none was given.
    #[default]
    Unknown,
    /// A network namespace.
    Namespace {
        /// Its inode number.
        inum: u32,
    },
    /// Nothing is there.
    Missing,
    /// Something is there that is no namespace.
    NoNamespace,
    /// A namespace on the host, and something else for the process that hands it on: its mounts are not
    /// shared.
    Hidden,
}

impl NetnsSeen {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
    pub(super) const fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown)
    }
}

/// See [`super::Observation::Sandbox`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Inode number of its namespace; 0 when it is not known.
    pub netns: u32,
    /// `CNI_CONTAINERID`
    #[serde(default)]
    pub container_id: String,
    /// From `CNI_ARGS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// An ADD was seen; without one, a DEL cleans up what somebody else left.
    pub added: bool,
    /// Everything that was done succeeded.
    pub ok: bool,
    /// Nanoseconds from the first step to the last.
    pub took_ns: u64,
    /// In the order of their time; of many only the first and the newest.
    pub steps: Vec<Step>,
}

/// One step of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Nanoseconds since the first step.
    pub after_ns: u64,
    /// Kind.
    pub step: StepKind,
    /// The plugin and its delegates, the link and its kind, the path, the process; control characters are
    /// escaped.
    #[serde(default)]
    pub what: String,
    /// It succeeded.
    pub ok: bool,
    /// Nanoseconds that it took; 0 for what takes no time.
    #[serde(default)]
    pub took_ns: u64,
}

/// What was done for a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// Its namespace was made.
    Created,
    /// The namespace got its name.
    Named,
    /// A plugin added it to a network.
    Add,
    /// A link came into it, or was made there.
    Link,
    /// A plugin looked after it.
    Check,
    /// A plugin removed it from a network.
    Del,
    /// The name went.
    Unnamed,
    /// The namespace ended.
    Ended,
}

impl StepKind {
    /// In plain words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Created => "made",
            Self::Named => "named",
            Self::Add => "ADD",
            Self::Link => "link",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Unnamed => "unnamed",
            Self::Ended => "ended",
        }
    }
}
