//! The Node object has no pod CIDR, from which the CNI allocates addresses.

use alloc::format;
use alloc::vec::Vec;

use super::Fault;
use super::cni_config::winner;
use crate::cnis::{self, Cni};
use crate::facts::Facts;
use crate::observation::BootTime;
use crate::reason::Reason;

/// Returns a fault only where the network of such a CNI is not set up: many clusters assign no pod CIDRs to their nodes
/// and work.
pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    if !facts.without_pod_cidr {
        return Vec::new();
    }
    let Some((cni, since)) = waiting(facts).filter(|(cni, _)| cni.needs_pod_cidr) else { return Vec::new() };
    let message =
        format!("the Node object has no pod CIDR, from which {} allocates pod addresses", cni.agent);
    Vec::from([Fault::new(Reason::PodCIDRNotAssigned, cni.agent, message, since).state()])
}

/// Returns the CNI whose network is not set up, and since when.
fn waiting(facts: &Facts) -> Option<(&'static Cni, BootTime)> {
    let (config, since) = facts.config.as_ref()?;
    if config.files.is_empty() {
        let cni = cnis::CNIS.iter().find(|cni| cni.needs_pod_cidr && is_expected(facts, cni))?;
        return Some((cni, *since));
    }
    let (file, plugins) = winner(config, facts.host.runtime)?;
    let since =
        plugins.iter().filter_map(|plugin| facts.plugins.get(plugin)).map(|failed| failed.since).min()?;
    Some((cnis::of_config(&file.name, plugins)?, since))
}

/// Returns whether the agent of the CNI runs or crashed: some agents exit without a pod CIDR. A stopped agent needs
/// none.
fn is_expected(facts: &Facts, cni: &Cni) -> bool {
    let mut lives = facts.lives_of(|name, _| cni.executables.contains(&name));
    lives.any(|(_, life)| !life.pids.is_empty() || !life.was_stopped())
}
