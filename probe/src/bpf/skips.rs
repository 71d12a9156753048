//! What the kernel half could not report.

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray};
use probe_common::{Hook, Skip};

/// Events that one hook did not report since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loss {
    /// Which one.
    pub(crate) hook: Hook,
    /// Why.
    pub(crate) skip: Skip,
    /// How many, at least.
    pub(crate) count: u64,
}

/// The counters.
pub(crate) struct Skips {
    map: PerCpuArray<MapData, u64>,
    seen: Vec<u64>,
}

impl Skips {
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self> {
        let map = programs.take_map("SKIPS").context("find the map SKIPS")?;
        Ok(Self { map: map.try_into()?, seen: vec![0; Skip::SLOTS as usize] })
    }

    /// What was lost since the last call.
    pub(crate) fn take_new(&mut self) -> Result<Vec<Loss>> {
        let mut losses = Vec::new();
        for hook in Hook::ALL {
            for skip in Skip::ALL {
                let slot = skip.slot(*hook);
                let values = self.map.get(&slot, 0).context("read the loss counters")?;
                let total: u64 = values.iter().sum();
                let seen = &mut self.seen[slot as usize];
                if total > *seen {
                    losses.push(Loss { hook: *hook, skip, count: total - *seen });
                    *seen = total;
                }
            }
        }
        Ok(losses)
    }
}
