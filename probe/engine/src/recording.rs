//! The format of recordings: JSON lines, first a header, then observations in the order of their arrival.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::observation::{Mono, Observation};

/// First line of a recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordingHeader {
    /// Version of this format: 1.
    pub netready_recording: u32,
    /// Name of the node.
    #[serde(default)]
    pub node: String,
    /// `/proc/sys/kernel/random/boot_id`
    #[serde(default)]
    pub boot_id: String,
    /// When the agent started; the engine is created with this time.
    pub started: Mono,
    /// The times that the engine worked with.
    #[serde(default)]
    pub config: Config,
    /// Made event by event from the source, not recorded.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub composed: bool,
    /// Where the story is told: a report, or the test that shows it on a real kernel.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Wall clock minus [`Mono`], nanoseconds since 1970; replays print recorded time with it.
    #[serde(default)]
    pub wall_offset_ns: u64,
}

/// Every further line: `{"at":123,"kind":"connect",…}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When it was seen.
    pub at: Mono,
    /// What was seen.
    #[serde(flatten)]
    pub observation: Observation,
}
