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

/// Sending half. Bounded: a source that is too fast waits.
pub(crate) type Feed = mpsc::Sender<Seen>;
