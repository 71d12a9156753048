//! A plugin waits for a file that is not written, or runs longer than its limit.

use alloc::format;
use alloc::vec::Vec;

use super::{Causes, Fault};
use crate::facts::{Facts, RunningPlugin};
use crate::limits::{self, SECOND};
use crate::observation::ProcessClass;
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let mut faults = waiting(facts);
    faults.extend(stalled(facts));
    faults
}

fn waiting(facts: &Facts) -> Vec<Fault> {
    let Some((config, _)) = &facts.config else { return Vec::new() };
    let mut faults = Vec::new();
    for waits in config.waits_for.iter().filter(|waits| !waits.present) {
        let failed = facts.plugins.get(&waits.plugin).map(|failure| failure.since);
        let runs = facts.running.values().filter(|running| {
            running.start.plugin == waits.plugin && facts.now.since(running.since) >= limits::WAITS
        });
        let Some(since) = runs.map(|running| running.since).chain(failed).min() else { continue };
        let message = format!(
            "{} waits for {}, which the agent of the default network has not written",
            waits.plugin, waits.file
        );
        let fault = Fault::new(Reason::CNIDefaultNetworkNotReady, waits.file.as_str(), message, since);
        let agents = |_: &str, class| matches!(class, ProcessClass::CniAgent | ProcessClass::Ovs);
        let fault = fault.settles(facts.settling(agents));
        faults.push(fault.may_come_from(Causes::DefaultNetwork));
    }
    faults
}

fn stalled(facts: &Facts) -> Vec<Fault> {
    let stalled = facts.running.values().filter(|running| facts.now.since(running.since) >= running.limit_ns);
    stalled
        .map(|RunningPlugin { start, since, limit_ns }| {
            let pod = start.pod.as_ref().map(|pod| format!(" for {pod}"));
            let message = format!(
                "plugin {}[{}] {}{} has been running for more than {} s, the limit of this plugin",
                start.plugin,
                start.pid,
                start.command,
                pod.unwrap_or_default(),
                limit_ns / SECOND
            );
            let fault = Fault::new(Reason::CNIPluginStalled, start.plugin.as_str(), message, *since);
            fault.state().may_come_from(Causes::DefaultNetwork)
        })
        .collect()
}
