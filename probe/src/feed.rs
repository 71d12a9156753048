//! The queue through which all sources deliver their observations.

use probe_engine::{BootTime, Observation};
use tokio::sync::mpsc;

/// An observation and its time.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Time of the observation, boot time.
    pub(crate) at: BootTime,
    /// What was observed.
    pub(crate) observation: Observation,
}

/// Name of the ring buffer in [`probe_engine::Lost::hook`], for records that cannot be decoded.
pub(crate) const RING_BUFFER: &str = "ring buffer";
/// Name of the kernel's multicast messages about links.
pub(crate) const RTNETLINK: &str = "rtnetlink multicast";
/// Name of the watcher thread, for the time while it is blocked.
pub(crate) const WATCHER: &str = "watcher";
/// All sources of losses that are not hooks.
pub(crate) const LOSS_SOURCES: [&str; 3] = [RING_BUFFER, RTNETLINK, WATCHER];

/// Sending half of the queue. It is bounded: a source that is too fast waits.
pub(crate) type Feed = mpsc::Sender<Seen>;
