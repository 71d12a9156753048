//! The plugins that the configuration names must be there: the runtime looks before it executes, so a
//! missing one leaves no trace of an execution, and the node stays Ready.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Fault;
use super::cni_config::{path, winner};
use crate::cnis;
use crate::errno::{EACCES, ENOENT, ENOEXEC, EPERM, ETXTBSY, errno_words};
use crate::facts::Facts;
use crate::limits;
use crate::observation::{DeniedBy, Mono, PluginFile, Runtime, UnusablePlugin};
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let mut faults = missing(facts);
    let found = faults.len();
    for (plugin, known) in facts.files.iter().filter(|(_, known)| known.times >= tries(&known.file)) {
        // What its file shows says more than the error of whoever tried to execute it.
        let is_known = faults[..found].iter().any(|fault| fault.finding.subject == *plugin);
        if known.file.write || !is_known {
            faults.push(refused(plugin, &known.file, known.since));
        }
    }
    faults
}

/// How often it must have been refused to mean something. While one thread of a runtime copies a plugin into
/// place, a child that another has just forked holds the copy open for a moment: runtimes try again, once a
/// second, up to six times.
fn tries(file: &PluginFile) -> u32 {
    if file.errno == ETXTBSY && !file.write { 3 } else { 1 }
}

/// A plugin that is there and cannot be run, or cannot be replaced.
fn refused(plugin: &str, file: &PluginFile, since: Mono) -> Fault {
    // A runtime forks a child for each attempt: its pid would make every attempt another fault.
    let mut who = file.process.name.clone();
    if file.write {
        who += &format!("[{}]", file.process.pid);
    }
    let what = if file.write { "replace" } else { "execute" };
    let (reason, message) = match (file.errno, file.write) {
        (ETXTBSY, true) => (
            Reason::CNIBinaryBusy,
            format!("{who} cannot replace the plugin {plugin}: it is running (text file busy)"),
        ),
        (ETXTBSY, false) => (
            Reason::CNIBinaryBusy,
            format!("{who} cannot execute the plugin {plugin}: it is being written (text file busy)"),
        ),
        (ENOEXEC, false) => (
            Reason::CNIBinaryMissing,
            format!(
                "{who} cannot execute the plugin {plugin} (ENOEXEC): it is not a program for this machine"
            ),
        ),
        (ENOENT, false) => (
            Reason::CNIBinaryMissing,
            format!(
                "{who} cannot execute the plugin {plugin} (ENOENT): its interpreter or loader does not exist"
            ),
        ),
        (EACCES | EPERM, _) => (
            Reason::CNIPluginFailed,
            format!(
                "{who} may not {what} the plugin {plugin} ({}): {}",
                errno_words(file.errno),
                DeniedBy::words(file.denied_by)
            ),
        ),
        (errno, _) => (
            Reason::CNIPluginFailed,
            format!("{who} cannot {what} the plugin {plugin}: {}", errno_words(errno)),
        ),
    };
    Fault::new(reason, plugin, message, since)
}

fn missing(facts: &Facts) -> Vec<Fault> {
    let Some((config, since)) = &facts.config else { return Vec::new() };
    let Some((file, plugins)) = winner(config, facts.host.runtime) else { return Vec::new() };
    // CRI-O does itself what it is for.
    let own = (facts.host.runtime != Runtime::CriO).then_some(cnis::LOOPBACK);
    let mut faults: Vec<Fault> = Vec::new();
    for plugin in plugins.iter().map(String::as_str).chain(own) {
        let is_missing = config.missing_plugins.iter().any(|missing| missing == plugin);
        let unusable = config.unusable_plugins.iter().find(|unusable| unusable.plugin == plugin);
        let what = match unusable {
            Some(UnusablePlugin { path, why, .. }) => format!("{path} {why}"),
            None if is_missing => format!("it is not in {}", config.bin_dirs.join(", ")),
            None => continue,
        };
        // The runtime has run it since: it looks for plugins elsewhere.
        let ran = facts.ran.get(plugin).is_some_and(|at| *at >= since.plus(limits::LOAD));
        if ran || faults.iter().any(|fault| fault.finding.subject == plugin) {
            continue;
        }
        let is_named = plugins.iter().any(|named| named == plugin);
        let by = if is_named { path(config, file) } else { "the runtime".into() };
        let message = format!("plugin {plugin}, needed by {by}, cannot be run: {what}");
        let fault = Fault::new(Reason::CNIBinaryMissing, plugin, message, *since);
        faults.push(fault.state());
    }
    faults
}
