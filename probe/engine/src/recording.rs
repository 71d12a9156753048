//! The format of recordings: JSON lines, a header followed by observations in the order in which they were judged.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::observation::{BootTime, Observation};

/// The first line of a recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordingHeader {
    /// Version of this format: 1.
    pub netready_recording: u32,
    /// Name of the node.
    #[serde(default)]
    pub node: String,
    /// `/proc/sys/kernel/random/boot_id`.
    #[serde(default)]
    pub boot_id: String,
    /// When the agent started, boot time. The engine is created with this time.
    pub started: BootTime,
    /// The configuration of the engine.
    #[serde(default)]
    pub config: Config,
    /// Whether it was composed from `source` instead of recorded.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub composed: bool,
    /// Where the case is described: a report, or the test that plays it on a real kernel.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Wall clock minus [`BootTime`], nanoseconds since 1970; replays print recorded time with it.
    #[serde(default)]
    pub wall_offset_ns: u64,
}

/// Each further line: `{"at":123,"kind":"connect",…}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When it was judged, boot time.
    pub at: BootTime,
    /// What was observed.
    #[serde(flatten)]
    pub observation: Observation,
}
