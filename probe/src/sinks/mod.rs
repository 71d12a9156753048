//! Outputs. Sinks act on the results of the engine and make no decisions.

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

use probe_engine::{BootTime, Effect, Observation, Report};

use crate::bpf::HookStatus;

/// Receives everything in order, on the thread of the engine: it must not block.
pub(crate) trait Sink {
    /// Takes the state of all hooks, once at the start.
    fn hooks(&mut self, _hooks: &[HookStatus]) {}

    /// Takes an observation before the engine does. `at` is the time of the event.
    fn observation(&mut self, _at: BootTime, _observation: &Observation) {}

    /// Takes the same observation with the time that the engine uses for it, which is later than the event if a deadline passed
    /// first. A recording replays to the same verdicts only with these times.
    fn judged(&mut self, _at: BootTime, _observation: &Observation) {}

    /// Takes an effect of the engine, after the observation or the tick that caused it.
    fn effect(&mut self, _at: BootTime, _effect: &Effect) {}

    /// Takes the current report, after each observation or tick that changed it.
    fn report(&mut self, _at: BootTime, _report: &Report) {}

    /// Is called ten times a second. `late` is how late the call is.
    fn turn(&mut self, _at: BootTime, _late: Duration) {}
}
