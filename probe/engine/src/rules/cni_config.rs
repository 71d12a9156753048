//! What the runtime finds where it looks for a network configuration.
//!
//! containerd takes the first file by name and stops at a bad one; CRI-O skips bad ones.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Fault;
use crate::evidence::Facts;
use crate::limits;
use crate::observation::{Access, Actor, CniConfig, ConfContent, ConfFile, Runtime};
use crate::reason::{Reason, Side};

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let Some((config, since)) = &facts.config else { return Vec::new() };
    if let Some(error) = &config.dir_error {
        let message = format!("{} cannot be read: {error}", config.dir);
        return Vec::from([
            Fault::new(Reason::CNIConfigInvalid, config.dir.as_str(), message, *since).state()
        ]);
    }
    let Some(first) = config.files.first() else {
        let there =
            if config.dir_missing { "does not exist" } else { "holds no .conf, .conflist or .json file" };
        let message = match removed(facts) {
            Some(by) => format!("{} {there}: {by}", config.dir),
            None => format!("{} {there}: the CNI's agent has not written its configuration", config.dir),
        };
        let fault = Fault::new(Reason::CNIConfigMissing, config.dir.as_str(), message, *since).state();
        // Agents write it once they have reached the API server.
        return Vec::from([fault.may_come_from(Side::Api)]);
    };
    if let Some((winner, _)) = winner(config, facts.host.runtime) {
        return not_loaded(facts, config, winner).into_iter().collect();
    }
    let path = path(config, first);
    let message =
        format!("{path} is what the runtime reads first and it is no network configuration: {}", why(first));
    Vec::from([Fault::new(Reason::CNIConfigInvalid, path, message, *since).state()])
}

/// Who took the last file away.
fn removed(facts: &Facts) -> Option<String> {
    let gone = |access| matches!(access, Access::Removed | Access::RenamedFrom);
    let changes = facts.accesses.iter().filter_map(|(file, known)| Some((file, known.changed.as_ref()?)));
    let (file, (_, access, who)) =
        changes.filter(|(_, (_, access, _))| gone(*access)).max_by_key(|(_, (at, ..))| *at)?;
    let what = if *access == Access::Removed { "removed" } else { "renamed" };
    Some(format!("{file} was {what} by {}", person(who)))
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

/// The file that the runtime uses, with its plugins.
pub(super) fn winner(config: &CniConfig, runtime: Runtime) -> Option<(&ConfFile, &[String])> {
    let mut files = config.files.iter();
    match runtime {
        Runtime::CriO => files.find_map(network),
        Runtime::Containerd | Runtime::Unknown => files.next().and_then(network),
    }
}

fn network(file: &ConfFile) -> Option<(&ConfFile, &[String])> {
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
