//! What the runtime finds where it looks for a network configuration.
//!
//! containerd takes the first file by name, or as many as it is configured for, and stops at a bad one; CRI-O skips bad ones.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Causes, Fault};
use crate::cnis;
use crate::facts::Facts;
use crate::limits;
use crate::observation::{
    Access, Actor, CniConfig, ConfContent, ConfFile, CriStatus, Mono, ProcessClass, Runtime,
};
use crate::reason::Reason;
use crate::verdict::Finding;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let Some((config, since)) = &facts.config else { return Vec::new() };
    // The runtime reads another directory: what lies in this one is of no consequence.
    if facts.contradicted.is_some() {
        return Vec::new();
    }
    if let Some((winner, _)) = winner(config, facts.host.runtime) {
        let fault = not_loaded(facts, config, winner).or_else(|| refused(facts, config, winner, *since));
        return fault.into_iter().map(|fault| quoting(facts, fault)).collect();
    }
    // The runtime reports a ready network, and has had time to react to the last change: its configuration is elsewhere.
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
fn unusable(facts: &Facts, config: &CniConfig, since: Mono) -> Fault {
    if let Some(error) = &config.dir_error {
        let message = format!("{} cannot be read: {error}", config.dir);
        return Fault::new(Reason::CNIConfigInvalid, config.dir.as_str(), message, since).state();
    }
    let Some(first) = config.files.first() else {
        let there =
            if config.dir_missing { "does not exist" } else { "holds no .conf, .conflist or .json file" };
        let removed = removed(facts);
        let message = match &removed {
            Some((file, access, who)) => {
                format!("{} {there}: {} {} {file}", config.dir, person(who), took(*access))
            }
            None if facts.config_vanished.is_some() => {
                format!("{} {there}: the configuration that was there was removed", config.dir)
            }
            None => format!("{} {there}: the CNI's agent has not written its configuration", config.dir),
        };
        let fault = Fault::new(Reason::CNIConfigMissing, config.dir.as_str(), message, since).state();
        // A configuration does not disappear because something else fails: whoever removed it is the cause, unless it is
        // an agent that will write it again.
        let by_agent = removed.is_some_and(|(_, _, who)| cnis::of_process(&who.name).is_some());
        if facts.config_vanished.is_some() && !by_agent {
            return fault;
        }
        // Agents write it once they have reached the API server and made their datapath.
        let waits = |_: &str, class| {
            matches!(class, ProcessClass::Kubelet | ProcessClass::CniAgent | ProcessClass::Ovs)
        };
        return fault.settles(facts.settling(waits)).may_come_from(Causes::OvsAgent);
    };
    let bad = config.loaded().iter().find(|file| network(file).is_none()).unwrap_or(first);
    let path = path(config, bad);
    let message = if bad.name == first.name {
        format!("{path} is what the runtime reads first and it is no network configuration: {}", why(bad))
    } else {
        let most =
            if config.max_files == 0 { "all files".into() } else { format!("{} files", config.max_files) };
        let why = why(bad);
        format!(
            "{path} is not a network configuration: {why}; containerd is configured to load {most} (max_conf_num) or none"
        )
    };
    Fault::new(Reason::CNIConfigInvalid, path, message, since).state()
}

/// Appends the message that the kubelet prints for it.
fn quoting(facts: &Facts, fault: Fault) -> Fault {
    match facts.runtime_status() {
        Some((CriStatus { runtime, network_not_ready: Some(words), .. }, _)) => {
            fault.with_note(&format!("; {runtime} reports {words:?}"))
        }
        _ => fault,
    }
}

/// The file that was removed last, how, and by whom.
fn removed(facts: &Facts) -> Option<(&str, Access, &Actor)> {
    let (file, _, access, who) = taken(facts).max_by_key(|(_, at, ..)| *at)?;
    Some((file, access, who))
}

/// Files that somebody has taken away and that are not there again.
fn taken(facts: &Facts) -> impl Iterator<Item = (&str, Mono, Access, &Actor)> {
    let there = |file: &str| {
        let files = facts.config.iter().flat_map(|(config, _)| &config.files);
        files.into_iter().any(|known| known.name == file)
    };
    let changes = facts.accesses.iter().filter_map(|(file, known)| Some((file, known.changed.as_ref()?)));
    let changes = changes.map(|(file, (at, access, who))| (file.as_str(), *at, *access, who));
    changes.filter(move |(file, _, access, _)| {
        // Installers write beside a file that is read, and rename.
        let took = matches!(access, Access::Removed | Access::RenamedFrom);
        took && ConfFile::is_read(file) && !there(file)
    })
}

const fn took(access: Access) -> &'static str {
    if matches!(access, Access::Removed) { "removed" } else { "renamed away" }
}

/// A file that somebody took away who is not the agent that it belongs to. With another one in its place pods go
/// on to get networks, though not all that they should.
pub(crate) fn displaced(facts: &Facts) -> Option<Finding> {
    let (config, _) = facts.config.as_ref()?;
    let first = winner(config, facts.host.runtime);
    // Behind the file that the runtime uses it was never used, unless that one hands networks on, or several are loaded.
    let unused = |file: &str| {
        config.max_files == 1
            && first.is_some_and(|(first, plugins)| {
                let is_meta = cnis::of_config(&first.name, plugins).is_some_and(|cni| cni.meta);
                first.name.as_str() < file && !is_meta
            })
    };
    let foreign = taken(facts).filter_map(|(file, since, access, who)| {
        // Of a file whose content was never seen nobody knows what is missing now.
        let owner = facts.owners.get(file)?;
        // A person may tidy up; a CNI that takes away what is another's will do so again.
        let counts =
            cnis::of_process(&who.name).map_or_else(|| !unused(file), |taker| taker.name != owner.name);
        counts.then_some((file, since, access, who, owner))
    });
    let (file, since, access, who, owner) = foreign.max_by_key(|(_, at, ..)| *at)?;
    let path = format!("{}/{file}", config.dir.trim_end_matches('/'));
    let message = format!("{path} of {} was {} by {}", owner.name, took(access), person(who));
    let fault = Fault::new(Reason::CNIConfigDisplaced, path, message, since);
    Some(fault.finding)
}

/// A process that has ended before it could be looked up has no name.
fn person(who: &Actor) -> String {
    let name = if who.name.is_empty() { "a short-lived process" } else { &who.name };
    format!("{name}[{}]", who.pid)
}

/// A runtime that is there and has not opened what was put before it. Only a change that was seen counts:
/// what was read before the agent came is not known.
fn not_loaded(facts: &Facts, config: &CniConfig, winner: &ConfFile) -> Option<Fault> {
    let known = facts.accesses.get(&winner.name)?;
    let (at, access, who) = known.changed.as_ref()?;
    let runtime = facts.runtime.as_ref()?;
    // A runtime that reacts to the writing itself has often read everything before the writer closes.
    let slack = if *access == Access::Written { limits::LOAD } else { 0 };
    let unread = known.opened.is_none_or(|opened| opened.plus(slack) < *at);
    if !unread || facts.now.since(*at) < limits::LOAD {
        return None;
    }
    let how = if *access == Access::RenamedTo { "renamed into place" } else { "written" };
    let path = path(config, winner);
    let message = format!(
        "{path} is valid, was {how} by {}, and {} has not opened it since",
        person(who),
        person(runtime)
    );
    Some(Fault::new(Reason::CNIConfigNotLoaded, path, message, *at).state())
}

/// Judges a valid configuration with which the runtime does not report a ready network.
fn refused(facts: &Facts, config: &CniConfig, winner: &ConfFile, since: Mono) -> Option<Fault> {
    let (status, known) = facts.runtime_status()?;
    status.network_not_ready.as_ref()?;
    // The runtime has had time to load it and reported the same twice.
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
        let message = format!("{path} is loaded, and the runtime does not report the network as ready");
        let fault = Fault::new(Reason::CNIPluginFailed, path, message, since);
        fault.may_come_from(Causes::PluginStatus)
    } else {
        let message = match &status.config_load {
            Some(load) => format!("{path} is valid, and the runtime did not load it: {load}"),
            None => format!("{path} is valid, and the runtime did not load it"),
        };
        Fault::new(Reason::CNIConfigNotLoaded, path, message, since).may_come_from(Causes::LoadedConfig)
    };
    Some(fault.settles(settles))
}

/// The file that the runtime uses, with its plugins.
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
