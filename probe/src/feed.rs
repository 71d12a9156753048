//! The one queue by which every source reaches the loop.

use probe_engine::{Mono, Observation};
use tokio::sync::mpsc;

/// An observation and when it was made.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Boot clock.
    pub(crate) at: Mono,
    /// What was seen.
    pub(crate) observation: Observation,
}

/// What loses events beside the hooks, as [`probe_engine::Lost::hook`] names it: the ring buffer, whose records may not be decodable; the kernel's
/// multicast messages about links; the thread that watches, while it is blocked.
pub(crate) const RING_BUFFER: &str = "ring buffer";
pub(crate) const RTNETLINK: &str = "rtnetlink multicast";
pub(crate) const WATCHER: &str = "watcher";
pub(crate) const LOSERS: [&str; 3] = [RING_BUFFER, RTNETLINK, WATCHER];

/// Sending half. Bounded: a source that is too fast waits.
pub(crate) type Feed = mpsc::Sender<Seen>;
