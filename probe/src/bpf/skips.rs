//! What the kernel half could not report.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray};
use probe_common::{Hook, Skip};

use super::runs::{RunCounters, Runs};
use super::{HookState, HookStatus};

/// Events that one hook did not report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loss {
    /// Which one.
    pub(crate) hook: Hook,
    /// How many.
    pub(crate) count: u64,
    /// Runs that the kernel left out: nobody can say whether they had an event to report.
    pub(crate) left_out: bool,
}

/// The counters: our own of what could not be kept or read, and the kernel's of the runs that it left out.
pub(crate) struct Skips {
    map: PerCpuArray<MapData, u64>,
    /// What was told of these, hook by hook.
    skipped: BTreeMap<Hook, u64>,
    runs: BTreeMap<Hook, RunCounters>,
    left_out: BTreeMap<Hook, u64>,
}

impl Skips {
    /// Those of the attached hooks.
    pub(super) fn take(programs: &mut Ebpf, hooks: &[HookStatus]) -> Result<Self> {
        let map = programs.take_map("SKIPS").context("find the map SKIPS")?.try_into()?;
        let counters = |status: &HookStatus| match &status.state {
            HookState::Attached { program, .. } => Some((status.hook, RunCounters::open(programs, program)?)),
            HookState::Missing { .. } => None,
        };
        let runs = hooks.iter().filter_map(counters).collect();
        Ok(Self { map, skipped: BTreeMap::new(), runs, left_out: BTreeMap::new() })
    }

    /// What the kernel half could not keep or read since the last call.
    pub(crate) fn take_skipped(&mut self) -> Result<Vec<Loss>> {
        let mut losses = Vec::new();
        for hook in Hook::ALL {
            let mut total = 0;
            for skip in Skip::ALL {
                let values = self.map.get(&skip.slot(*hook), 0).context("read the loss counters")?;
                total += values.iter().sum::<u64>();
            }
            let count = new(&mut self.skipped, *hook, total);
            losses.extend(count.map(|count| Loss { hook: *hook, count, left_out: false }));
        }
        Ok(losses)
    }

    /// The runs that the kernel left out since the last call.
    pub(crate) fn take_left_out(&mut self) -> Vec<Loss> {
        let totals = self.runs.iter().filter_map(|(hook, counters)| Some((*hook, counters.read()?.left_out)));
        let new = totals.filter_map(|(hook, total)| Some((hook, new(&mut self.left_out, hook, total)?)));
        new.map(|(hook, count)| Loss { hook, count, left_out: true }).collect()
    }

    /// The runs of a hook's program, when it is attached.
    pub(crate) fn runs(&self, hook: Hook) -> Option<Runs> {
        self.runs.get(&hook)?.read()
    }
}

fn new(told: &mut BTreeMap<Hook, u64>, hook: Hook, total: u64) -> Option<u64> {
    let count = total.saturating_sub(told.insert(hook, total).unwrap_or(0));
    (count > 0).then_some(count)
}
