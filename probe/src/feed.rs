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

/// The ring buffer, whose records may not be decodable, as [`probe_engine::Lost::hook`] names it.
pub(crate) const RING_BUFFER: &str = "ring buffer";
/// The kernel's multicast messages about links.
pub(crate) const RTNETLINK: &str = "rtnetlink multicast";
/// The thread that watches, while it is blocked.
pub(crate) const WATCHER: &str = "watcher";
/// Every source of losses that is not a hook.
pub(crate) const LOSS_SOURCES: [&str; 3] = [RING_BUFFER, RTNETLINK, WATCHER];

/// Sending half. Bounded: a source that is too fast waits.
pub(crate) type Feed = mpsc::Sender<Seen>;
