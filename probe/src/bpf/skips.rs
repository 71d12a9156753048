//! Events that the kernel programs could not report.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray};
use probe_common::{Hook, Skip};

use super::runs::{RunCounters, Runs};
use super::{HookState, HookStatus};

/// Events that a hook did not report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreported {
    pub(crate) hook: Hook,
    pub(crate) count: u64,
    pub(crate) how: How,
}

/// Why events were not reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum How {
    /// A table or the ring buffer was full, or memory could not be read.
    Lost,
    /// The kernel skipped runs of the program; whether those had an event to report is not known.
    Skipped,
    /// Processes that are not components of the node exceeded their budget.
    Throttled,
}

/// The counters of the kernel programs for lost and throttled events, and the kernel's counters of skipped runs.
pub(crate) struct Skips {
    map: PerCpuArray<MapData, u64>,
    runs: BTreeMap<Hook, RunCounters>,
    /// Totals that were reported last.
    reported: BTreeMap<(Hook, How), u64>,
}

impl Skips {
    /// Opens the counters of the attached hooks.
    pub(super) fn take(programs: &mut Ebpf, hooks: &[HookStatus]) -> Result<Self> {
        let map = programs.take_map("SKIPS").context("find the map SKIPS")?.try_into()?;
        let counters = |status: &HookStatus| match &status.state {
            HookState::Attached { program, .. } => Some((status.hook, RunCounters::open(programs, program)?)),
            HookState::Missing { .. } => None,
        };
        let runs = hooks.iter().filter_map(counters).collect();
        Ok(Self { map, runs, reported: BTreeMap::new() })
    }

    /// Returns the events that were lost or throttled since the last call.
    pub(crate) fn take_losses(&mut self) -> Result<Vec<Unreported>> {
        let mut unreported = Vec::new();
        for hook in Hook::ALL {
            let (mut lost, mut throttled) = (0, 0);
            for skip in Skip::ALL {
                let values = self.map.get(&skip.slot(*hook), 0).context("read the loss counters")?;
                *if skip.is_loss() { &mut lost } else { &mut throttled } += values.iter().sum::<u64>();
            }
            unreported.extend(self.since_last(*hook, How::Lost, lost));
            unreported.extend(self.since_last(*hook, How::Throttled, throttled));
        }
        Ok(unreported)
    }

    /// Returns the runs that the kernel skipped since the last call.
    pub(crate) fn take_skipped_runs(&mut self) -> Vec<Unreported> {
        let totals = self.runs.iter().filter_map(|(hook, counters)| Some((*hook, counters.read()?.skipped)));
        let totals: Vec<_> = totals.collect();
        totals.into_iter().filter_map(|(hook, total)| self.since_last(hook, How::Skipped, total)).collect()
    }

    fn since_last(&mut self, hook: Hook, how: How, total: u64) -> Option<Unreported> {
        let count = total.saturating_sub(self.reported.insert((hook, how), total).unwrap_or(0));
        (count > 0).then_some(Unreported { hook, count, how })
    }

    /// Returns the counters of a hook's program; `None` unless it is attached.
    pub(crate) fn runs(&self, hook: Hook) -> Option<Runs> {
        self.runs.get(&hook)?.read()
    }
}
