//! The state of the network configuration that the runtime reads.
//!
//! containerd loads the first file by name, or as many as it is configured for, and fails on an invalid one; CRI-O
//! skips invalid files.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Causes, Fault};
use crate::cnis;
use crate::facts::Facts;
use crate::limits;
use crate::observation::{
    Access, Actor, BootTime, CniConfig, ConfContent, ConfFile, CriStatus, ProcessClass, Runtime,
};
use crate::reason::Reason;
use crate::verdict::Finding;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let Some((config, since)) = &facts.config else { return Vec::new() };
    // The runtime reads another directory: the content of this one does not matter.
    if facts.contradicted.is_some() {
        return Vec::new();
    }
    if let Some((winner, _)) = winner(config, facts.host.runtime) {
        let fault = not_loaded(facts, config, winner).or_else(|| refused(facts, config, winner, *since));
        return fault.into_iter().map(|fault| quoting(facts, fault)).collect();
    }
    // A runtime that reports a ready network although it had time to react to the last change has its configuration
    // elsewhere.
    let noticed = if facts.config_vanished.is_some() { since.plus(limits::LOAD) } else { *since };
    let has_network = facts
        .runtime_status()
        .is_some_and(|(status, known)| status.network_not_ready.is_none() && known.last >= noticed);
    if has_network {
        return Vec::new();
    }
    let fault = quoting(facts, unusable(facts, config, *since));
    let until = fault.settles.max(facts.until_asked());
    Vec::from([fault.settles(until)])
}

/// Returns the fault of a directory without a usable configuration.
fn unusable(facts: &Facts, config: &CniConfig, since: BootTime) -> Fault {
    if let Some(error) = &config.dir_error {
        let message = format!("cannot read {}: {error}", config.dir);
        return Fault::new(Reason::CNIConfigInvalid, config.dir.as_str(), message, since).state();
    }
    let Some(first) = config.files.first() else {
        let there =
            if config.dir_missing { "does not exist" } else { "contains no .conf, .conflist or .json file" };
        let removed = removed(facts);
        let message = match &removed {
            Some((file, access, who)) => {
                format!("{} {there}: {} {} {file}", config.dir, who.with_pid(), removal(*access))
            }
            None if facts.config_vanished.is_some() => {
                format!("{} {there}: the previous configuration was removed", config.dir)
            }
            None => format!("{} {there}: the CNI agent has not written its configuration", config.dir),
        };
        let fault = Fault::new(Reason::CNIConfigMissing, config.dir.as_str(), message, since).state();
        // No other fault removes a configuration: the process that removed it is the cause, unless it is an agent,
        // which will write the configuration again.
        let by_agent = removed.is_some_and(|(_, _, who)| cnis::of_process(&who.name).is_some());
        if facts.config_vanished.is_some() && !by_agent {
            return fault;
        }
        // Agents write it after they have reached the API server and set up their datapath.
        let waits = |_: &str, class| {
            matches!(class, ProcessClass::Kubelet | ProcessClass::CniAgent | ProcessClass::Ovs)
        };
        return fault.settles(facts.settling(waits)).may_come_from(Causes::OvsAgent);
    };
    let bad = config.loaded().iter().find(|file| network(file).is_none()).unwrap_or(first);
    let path = path(config, bad);
    let message = if bad.name == first.name {
        format!("{path}, which the runtime reads first, is not a valid network configuration: {}", why(bad))
    } else {
        let most =
            if config.max_files == 0 { "all files".into() } else { format!("{} files", config.max_files) };
        let why = why(bad);
        format!(
            "{path} is not a valid network configuration: {why}; containerd loads {most} (max_conf_num) or none"
        )
    };
    Fault::new(Reason::CNIConfigInvalid, path, message, since).state()
}

/// Appends the runtime's own message about its network, which the kubelet prints.
fn quoting(facts: &Facts, fault: Fault) -> Fault {
    match facts.runtime_status() {
        Some((CriStatus { runtime, network_not_ready: Some(words), .. }, _)) => {
            fault.with_note(&format!("; {runtime} reports {words:?}"))
        }
        _ => fault,
    }
}

/// Returns the file that was removed last, the kind of removal, and the process.
fn removed(facts: &Facts) -> Option<(&str, Access, &Actor)> {
    let (file, _, access, who) = removals(facts).max_by_key(|(_, at, ..)| *at)?;
    Some((file, access, who))
}

/// Returns files that were removed or renamed and have not been created again.
fn removals(facts: &Facts) -> impl Iterator<Item = (&str, BootTime, Access, &Actor)> {
    let exists = |file: &str| {
        let files = facts.config.iter().flat_map(|(config, _)| &config.files);
        files.into_iter().any(|known| known.name == file)
    };
    let changes = facts.accesses.iter().filter_map(|(file, known)| Some((file, known.changed.as_ref()?)));
    let changes = changes.map(|(file, (at, access, who))| (file.as_str(), *at, *access, who));
    changes.filter(move |(file, _, access, _)| {
        // Installers write to a temporary name that runtimes do not read, and rename the file.
        let is_removal = matches!(access, Access::Removed | Access::RenamedFrom);
        is_removal && ConfFile::is_read(file) && !exists(file)
    })
}

const fn removal(access: Access) -> &'static str {
    if matches!(access, Access::Removed) { "removed" } else { "renamed" }
}

/// Returns the newest removal of a file by a process other than the agent to which it belongs. With another file in its
/// place pods still get networks, but not all that they should.
pub(crate) fn displaced(facts: &Facts) -> Option<Finding> {
    let (config, _) = facts.config.as_ref()?;
    let first = winner(config, facts.host.runtime);
    // A file that sorts after the one in use was not used, unless that one delegates to others, or several files are
    // loaded.
    let unused = |file: &str| {
        config.max_files == 1
            && first.is_some_and(|(first, plugins)| {
                let is_meta = cnis::of_config(&first.name, plugins).is_some_and(|cni| cni.meta);
                first.name.as_str() < file && !is_meta
            })
    };
    let foreign = removals(facts).filter_map(|(file, since, access, who)| {
        // The owner of a file is known only if its content was read.
        let owner = facts.owners.get(file)?;
        // An operator may remove an unused file; a CNI that removes the file of another will do so again.
        let counts =
            cnis::of_process(&who.name).map_or_else(|| !unused(file), |remover| remover.name != owner.name);
        counts.then_some((file, since, access, who, owner))
    });
    let (file, since, access, who, owner) = foreign.max_by_key(|(_, at, ..)| *at)?;
    let path = format!("{}/{file}", config.dir.trim_end_matches('/'));
    let message = format!("{path} of {} was {} by {}", owner.name, removal(access), who.with_pid());
    let fault = Fault::new(Reason::CNIConfigDisplaced, path, message, since);
    Some(fault.finding)
}

/// Judges a runtime that has not opened the file since its last change. Only an observed change counts: what was read
/// before the agent started is not known.
fn not_loaded(facts: &Facts, config: &CniConfig, winner: &ConfFile) -> Option<Fault> {
    let known = facts.accesses.get(&winner.name)?;
    let (at, access, who) = known.changed.as_ref()?;
    let runtime = facts.runtime.as_ref()?;
    // A runtime that reacts to the write has often read the file before the writer closes it.
    let slack = if *access == Access::Written { limits::LOAD } else { 0 };
    let unread = known.opened.is_none_or(|opened| opened.plus(slack) < *at);
    if !unread || facts.now.since(*at) < limits::LOAD {
        return None;
    }
    let how = if *access == Access::RenamedTo { "renamed it into place" } else { "wrote it" };
    let path = path(config, winner);
    let (runtime, who) = (runtime.with_pid(), who.with_pid());
    let message = format!("{path} is valid, but {runtime} has not opened it since {who} {how}");
    Some(Fault::new(Reason::CNIConfigNotLoaded, path, message, *at).state())
}

/// Judges a valid configuration while the runtime reports that its network is not ready.
fn refused(facts: &Facts, config: &CniConfig, winner: &ConfFile, since: BootTime) -> Option<Fault> {
    let (status, known) = facts.runtime_status()?;
    status.network_not_ready.as_ref()?;
    // The runtime has had time to load it and has reported the same twice.
    if known.last < since.plus(limits::LOAD) || known.times < 2 {
        return None;
    }
    let path = path(config, winner);
    let since = since.max(known.since);
    let settles = facts.settling(|_, class| class == ProcessClass::Runtime);
    let fault = if status.config_load.as_deref() == Some(CriStatus::LOADED) {
        // The failure of a plugin that was run for a pod is more specific.
        if !facts.plugins.is_empty() {
            return None;
        }
        let message = format!("{path} is loaded, but the runtime reports that its network is not ready");
        let fault = Fault::new(Reason::CNIPluginFailed, path, message, since);
        fault.may_come_from(Causes::PluginStatus)
    } else {
        let message = match &status.config_load {
            Some(load) => format!("{path} is valid, but the runtime did not load it: {load}"),
            None => format!("{path} is valid, but the runtime did not load it"),
        };
        Fault::new(Reason::CNIConfigNotLoaded, path, message, since).may_come_from(Causes::LoadedConfig)
    };
    Some(fault.settles(settles))
}

/// Returns the file that the runtime uses, with its plugins.
pub(crate) fn winner(config: &CniConfig, runtime: Runtime) -> Option<(&ConfFile, &[String])> {
    match runtime {
        Runtime::CriO => config.files.iter().find_map(network),
        Runtime::Containerd | Runtime::Unknown => {
            let first = config.files.first().and_then(network);
            first.filter(|_| config.loaded().iter().all(|file| network(file).is_some()))
        }
    }
}

pub(super) fn network(file: &ConfFile) -> Option<(&ConfFile, &[String])> {
    match &file.content {
        ConfContent::Network { plugins, .. } => Some((file, plugins)),
        _ => None,
    }
}

pub(super) fn path(config: &CniConfig, file: &ConfFile) -> String {
    format!("{}/{}", config.dir.trim_end_matches('/'), file.name)
}

fn why(file: &ConfFile) -> &str {
    match &file.content {
        ConfContent::Invalid { why } | ConfContent::Unreadable { why } => why,
        ConfContent::Network { .. } => "",
    }
}
