//! What the outside gets to see. Sinks act and do not judge.

#[cfg(not(fuzzing))]
pub(crate) mod conditions;
pub(crate) mod http;
pub(crate) mod journal;
pub(crate) mod layout;
pub(crate) mod metrics;
pub(crate) mod record;
pub(crate) mod socket;
pub(crate) mod state;
pub(crate) mod topic;
pub(crate) mod trace;
pub(crate) mod trace_json;
mod trace_node;
pub(crate) mod writing;

use std::time::Duration;

use probe_engine::{Effect, Mono, Observation, Report};

use crate::bpf::HookStatus;

/// Receives everything, in order, on the loop's own thread: it must not block.
pub(crate) trait Sink {
    /// The hooks as they were attached; once, at start.
    fn hooks(&mut self, _hooks: &[HookStatus]) {}

    /// An observation, before the engine judges it.
    fn observation(&mut self, _at: Mono, _observation: &Observation) {}

    /// The same observation, with the time that the engine takes it for: later than that of the event where a deadline was reached
    /// first. Only with these times a recording replays to the same verdicts.
    fn judged(&mut self, _at: Mono, _observation: &Observation) {}

    /// An effect of the engine, after the observation or the tick that caused it.
    fn effect(&mut self, _at: Mono, _effect: &Effect) {}

    /// Called after each drain in which something changed: the state as it stands now.
    fn report(&mut self, _at: Mono, _report: &Report) {}

    /// The judge is alive; ten times a second. `late`: by how much this is after its time.
    fn turn(&mut self, _at: Mono, _late: Duration) {}
}
