//! A CNI that takes its addresses from the Node object, and a Node object that has none.

use alloc::format;
use alloc::vec::Vec;

use super::Fault;
use super::cni_config::winner;
use crate::cnis::{self, Cni};
use crate::facts::Facts;
use crate::observation::Mono;
use crate::reason::Reason;

/// Many clusters give no ranges to their nodes, and nothing is wrong there: it counts where the network of such a
/// CNI does not come.
pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    if !facts.without_pod_cidr {
        return Vec::new();
    }
    let Some((cni, since)) = waiting(facts).filter(|(cni, _)| cni.needs_pod_cidr) else { return Vec::new() };
    let message =
        format!("{} takes the addresses of pods from the Node object, which has no pod CIDR", cni.agent);
    Vec::from([Fault::new(Reason::PodCIDRNotAssigned, cni.agent, message, since).state()])
}

/// The CNI whose network does not come, and since when.
fn waiting(facts: &Facts) -> Option<(&'static Cni, Mono)> {
    let (config, since) = facts.config.as_ref()?;
    if config.files.is_empty() {
        let cni = cnis::CNIS.iter().find(|cni| cni.needs_pod_cidr && is_wanted(facts, cni))?;
        return Some((cni, *since));
    }
    let (file, plugins) = winner(config, facts.host.runtime)?;
    let since =
        plugins.iter().filter_map(|plugin| facts.plugins.get(plugin)).map(|failed| failed.since).min()?;
    Some((cnis::of_config(&file.name, plugins)?, since))
}

/// Its agent runs, or crashed: without a range some agents exit. One that was stopped waits for nothing.
fn is_wanted(facts: &Facts, cni: &Cni) -> bool {
    let mut lives = facts.lives_of(|name, _| cni.executables.contains(&name));
    lives.any(|(_, life)| !life.pids.is_empty() || !life.was_stopped())
}
