//! The plugins that the configuration names must be there: the runtime looks before it executes, so a
//! missing one leaves no trace of an execution, and the node stays Ready.

use alloc::format;
use alloc::vec::Vec;

use super::cni_config::{path, winner};
use super::{Fault, depth};
use crate::errno::ETXTBSY;
use crate::evidence::Facts;
use crate::observation::{DeniedBy, Mono, PluginFile, Runtime};
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let mut faults = missing(facts);
    let told = facts.files.iter().filter(|(_, known)| known.times >= tries(&known.file));
    faults.extend(told.map(|(plugin, known)| refused(plugin, &known.file, known.since)));
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
    let who = format!("{}[{}]", file.process.name, file.process.pid);
    let (reason, message) = match (file.errno, file.write) {
        (ETXTBSY, true) => (
            Reason::CNIBinaryBusy,
            format!("{who} cannot replace the plugin {plugin}: it is running (text file busy)"),
        ),
        (ETXTBSY, false) => (
            Reason::CNIBinaryBusy,
            format!("{who} cannot execute the plugin {plugin}: it is being written (text file busy)"),
        ),
        (errno, _) => (
            Reason::CNIPluginFailed,
            format!(
                "{who} may not execute the plugin {plugin} (errno {errno}): {}",
                DeniedBy::words(file.denied_by)
            ),
        ),
    };
    Fault::new(reason, plugin, message, since).at_depth(depth::PLUGIN)
}

fn missing(facts: &Facts) -> Vec<Fault> {
    let Some((config, since)) = &facts.config else { return Vec::new() };
    let Some((file, plugins)) = winner(config, facts.host.runtime) else { return Vec::new() };
    // containerd runs `loopback` for every sandbox, whatever the configuration says; CRI-O does it itself.
    let own = (facts.host.runtime != Runtime::CriO).then_some("loopback");
    let mut seen = Vec::new();
    for plugin in plugins.iter().map(alloc::string::String::as_str).chain(own) {
        if config.missing_plugins.iter().any(|missing| missing == plugin) && !seen.contains(&plugin) {
            seen.push(plugin);
        }
    }
    seen.into_iter()
        .map(|plugin| {
            let by = if plugins.iter().any(|named| named == plugin) {
                path(config, file)
            } else {
                "the runtime".into()
            };
            let message =
                format!("plugin {plugin} is needed by {by} and is not in {}", config.bin_dirs.join(", "));
            Fault::new(Reason::CNIBinaryMissing, plugin, message, *since).state().at_depth(depth::PLUGIN)
        })
        .collect()
}
