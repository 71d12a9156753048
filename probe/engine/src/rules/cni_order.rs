//! The configuration in use belongs to a CNI that does not run on this node.

use alloc::format;
use alloc::vec::Vec;

use super::cni_config::{network, path, winner};
use super::{Causes, Fault};
use crate::cnis::{self, Cni};
use crate::facts::Facts;
use crate::limits;
use crate::observation::{CniConfig, ConfFile};
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let (Some((config, since)), Some(snapshot)) = (&facts.config, facts.snapshot_done) else {
        return Vec::new();
    };
    if facts.gaps.contains_key("process.exit") || facts.hides_processes() {
        return Vec::new();
    }
    let Some((first, plugins)) = winner(config, facts.host.runtime) else { return Vec::new() };
    let owner = cnis::of_config(&first.name, plugins);
    let path = path(config, first);
    let name = owner.map_or("another CNI", |cni| cni.name);
    // A configuration whose agent runs, or has run, is the intended one.
    if owner.is_some_and(|cni| has_run(facts, cni)) {
        return Vec::new();
    }
    let absent = |at: u64| facts.now.since(snapshot.max(*since)) >= at;
    if let Some((shadowed, cni)) = shadowed(facts, config, first, owner)
        && (owner.is_none_or(|cni| cni.executables.is_empty()) || absent(limits::SETTLE))
    {
        let message = format!(
            "the runtime uses {path} of {name}; {} of {}, whose agent runs on this node, sorts after it",
            shadowed.name, cni.name
        );
        let fault = Fault::new(Reason::CNIConfigShadowed, path, message, *since);
        return Vec::from([fault.state()]);
    }
    let fails = plugins.iter().any(|plugin| facts.plugins.contains_key(plugin));
    let busy = plugins.iter().any(|plugin| facts.files.contains_key(plugin));
    let Some(cni) = owner.filter(|cni| !cni.executables.is_empty() && fails && !busy) else {
        return Vec::new();
    };
    if !absent(limits::ORPHAN) {
        return Vec::new();
    }
    let message = format!("the runtime uses {path} of {name}, but {} has not run on this node", cni.agent);
    let fault = Fault::new(Reason::CNIConfigOrphaned, path, message, *since);
    Vec::from([fault.state().may_come_from(Causes::Agent)])
}

/// Returns whether the agent of the CNI runs or has run.
fn has_run(facts: &Facts, cni: &Cni) -> bool {
    facts.lives_of(|name, _| cni.executables.contains(&name)).next().is_some()
}

/// Returns a file after the first one that belongs to a CNI whose agent runs. The file of a meta-plugin sorts before
/// others by design, and so does a network that is chained with another of the same CNI.
fn shadowed<'a>(
    facts: &Facts,
    config: &'a CniConfig,
    first: &ConfFile,
    owner: Option<&Cni>,
) -> Option<(&'a ConfFile, &'static Cni)> {
    let behind = config.files.iter().skip_while(|file| file.name != first.name).skip(1);
    let of_others = behind.filter_map(network).filter_map(|(file, plugins)| {
        let cni = cnis::of_config(&file.name, plugins)?;
        (owner.is_none_or(|own| own.name != cni.name) && !cni.executables.is_empty()).then_some((file, cni))
    });
    let runs = |cni: &Cni| {
        let mut lives = facts.lives_of(|name, _| cni.executables.contains(&name));
        lives.any(|(_, life)| !life.pids.is_empty())
    };
    let is_meta = owner.is_some_and(|cni| cni.meta && cni.executables.is_empty());
    of_others.into_iter().find(|(_, cni)| !is_meta && runs(cni))
}
