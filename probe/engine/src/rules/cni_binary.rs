//! Plugins that are missing or cannot be executed.
//!
//! The runtime searches for a plugin before it executes it: a missing plugin leaves no trace of an execution, and the
//! node stays Ready.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Fault;
use super::cni_config::{path, winner};
use crate::cnis;
use crate::errno::{EACCES, ENOENT, ENOEXEC, EPERM, ETXTBSY, errno_words};
use crate::facts::Facts;
use crate::limits;
use crate::observation::{BootTime, DeniedBy, PluginFile, Runtime, UnusablePlugin};
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let mut faults = missing(facts);
    let found = faults.len();
    for (plugin, known) in facts.files.iter().filter(|(_, known)| known.times >= least_failures(&known.file))
    {
        // The state of its file is more specific than the errno of the process that tried to execute it.
        let is_known = faults[..found].iter().any(|fault| fault.finding.subject == *plugin);
        if known.file.write || !is_known {
            faults.push(refused(plugin, &known.file, known.since));
        }
    }
    faults
}

/// Returns the number of failures from which a refusal counts. While one thread of a runtime copies a plugin into
/// place, a child that another thread has just forked holds the copy open for a moment (ETXTBSY): runtimes retry once a
/// second, up to six times.
fn least_failures(file: &PluginFile) -> u32 {
    if file.errno == ETXTBSY && !file.write { 3 } else { 1 }
}

/// Returns the fault of a plugin that exists and cannot be executed or replaced.
fn refused(plugin: &str, file: &PluginFile, since: BootTime) -> Fault {
    // A runtime forks a child for each attempt: with its PID the message would differ for each attempt.
    let mut who = file.process.name.clone();
    if file.write {
        who += &format!("[{}]", file.process.pid);
    }
    let what = if file.write { "replace" } else { "execute" };
    let (reason, message) = match (file.errno, file.write) {
        (ETXTBSY, true) => (
            Reason::CNIBinaryBusy,
            format!("{who} cannot replace the plugin {plugin} (ETXTBSY): it is running"),
        ),
        (ETXTBSY, false) => (
            Reason::CNIBinaryBusy,
            format!("{who} cannot execute the plugin {plugin} (ETXTBSY): its file is open for writing"),
        ),
        (ENOEXEC, false) => (
            Reason::CNIBinaryMissing,
            format!(
                "{who} cannot execute the plugin {plugin} (ENOEXEC): it is not an executable for this machine"
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
                "{who} cannot {what} the plugin {plugin} ({}): {}",
                errno_words(file.errno),
                DeniedBy::words(file.denied_by)
            ),
        ),
        (errno, _) => (
            Reason::CNIPluginFailed,
            format!("{who} cannot {what} the plugin {plugin} ({})", errno_words(errno)),
        ),
    };
    Fault::new(reason, plugin, message, since)
}

fn missing(facts: &Facts) -> Vec<Fault> {
    let Some((config, since)) = &facts.config else { return Vec::new() };
    let Some((file, plugins)) = winner(config, facts.host.runtime) else { return Vec::new() };
    // CRI-O configures the loopback device without the plugin.
    let own = (facts.host.runtime != Runtime::CriO).then_some(cnis::LOOPBACK);
    let mut faults: Vec<Fault> = Vec::new();
    for plugin in plugins.iter().map(String::as_str).chain(own) {
        let is_missing = config.missing_plugins.iter().any(|missing| missing == plugin);
        let unusable = config.unusable_plugins.iter().find(|unusable| unusable.plugin == plugin);
        let what = match unusable {
            Some(UnusablePlugin { path, why, .. }) => format!("{path} {why}"),
            None if is_missing => format!("not found in {}", config.bin_dirs.join(", ")),
            None => continue,
        };
        // The runtime has run the plugin since: its plugin directories are others.
        let ran = facts.ran.get(plugin).is_some_and(|at| *at >= since.plus(limits::LOAD));
        if ran || faults.iter().any(|fault| fault.finding.subject == plugin) {
            continue;
        }
        let is_named = plugins.iter().any(|named| named == plugin);
        let by = if is_named { path(config, file) } else { "the runtime".into() };
        let message = format!("plugin {plugin}, required by {by}, cannot be executed: {what}");
        let fault = Fault::new(Reason::CNIBinaryMissing, plugin, message, *since);
        faults.push(fault.state());
    }
    faults
}
