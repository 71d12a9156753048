//! A configuration that wins by its name, of a CNI that is not the one that runs here.

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
    let (Some((config, since)), Some(told)) = (&facts.config, facts.snapshot_done) else { return Vec::new() };
    if facts.gaps.contains_key("process.exit") || facts.hides_processes() {
        return Vec::new();
    }
    let Some((first, plugins)) = winner(config, facts.host.runtime) else { return Vec::new() };
    let whose = cnis::of_config(&first.name, plugins);
    let path = path(config, first);
    let name = whose.map_or("another CNI", |cni| cni.name);
    // An agent that is there, or that was, makes its configuration right.
    if whose.is_some_and(|cni| has_lived(facts, cni)) {
        return Vec::new();
    }
    let absent = |at: u64| facts.now.since(told.max(*since)) >= at;
    if let Some((shadowed, cni)) = shadowed(facts, config, first, whose)
        && (whose.is_none_or(|cni| cni.executables.is_empty()) || absent(limits::SETTLE))
    {
        let message = format!(
            "the runtime uses {path} of {name}; {} of {}, whose agent runs here, comes after it by name",
            shadowed.name, cni.name
        );
        let fault = Fault::new(Reason::CNIConfigShadowed, path, message, *since);
        return Vec::from([fault.state()]);
    }
    let fails = plugins.iter().any(|plugin| facts.plugins.contains_key(plugin));
    let busy = plugins.iter().any(|plugin| facts.files.contains_key(plugin));
    let Some(cni) = whose.filter(|cni| !cni.executables.is_empty() && fails && !busy) else {
        return Vec::new();
    };
    if !absent(limits::ORPHAN) {
        return Vec::new();
    }
    let message = format!("the runtime uses {path} of {name}, and no {} was seen on this node", cni.agent);
    let fault = Fault::new(Reason::CNIConfigOrphaned, path, message, *since);
    Vec::from([fault.state().may_come_from(Causes::Agent)])
}

/// Its agent runs, or did.
fn has_lived(facts: &Facts, cni: &Cni) -> bool {
    facts.lives_of(|name, _| cni.executables.contains(&name)).next().is_some()
}

/// A file behind the first one, of a CNI whose agent runs. A meta-plugin stands before others by its design, and
/// so does a network that is chained with one of its own kind.
fn shadowed<'a>(
    facts: &Facts,
    config: &'a CniConfig,
    first: &ConfFile,
    whose: Option<&Cni>,
) -> Option<(&'a ConfFile, &'static Cni)> {
    let behind = config.files.iter().skip_while(|file| file.name != first.name).skip(1);
    let of_others = behind.filter_map(network).filter_map(|(file, plugins)| {
        let cni = cnis::of_config(&file.name, plugins)?;
        (whose.is_none_or(|own| own.name != cni.name) && !cni.executables.is_empty()).then_some((file, cni))
    });
    let runs = |cni: &Cni| {
        let mut lives = facts.lives_of(|name, _| cni.executables.contains(&name));
        lives.any(|(_, life)| !life.pids.is_empty())
    };
    let is_meta = whose.is_some_and(|cni| cni.meta && cni.executables.is_empty());
    of_others.into_iter().find(|(_, cni)| !is_meta && runs(cni))
}
