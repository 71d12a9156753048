//! Routes and rules of pods that were removed by a process that does not belong to a CNI.

use alloc::format;
use alloc::vec::Vec;

use super::Fault;
use crate::cnis;
use crate::facts::Facts;
use crate::memory::Seen;
use crate::observation::RouteGone;
use crate::reason::Reason;

/// Services that manage all routes of a host and remove routes that they did not create.
const MANAGERS: &[&str] = &["NetworkManager", "systemd-network"];

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let foreign = facts.routes_gone.values().filter(|known| is_foreign(facts, &known.value));
    foreign
        .map(|Seen { value: gone, since, .. }| {
            let (what, who) = (gone.words(), gone.process.who());
            let message = format!("{who} removed {what}, which has not been restored");
            Fault::new(Reason::RoutesRemoved, gone.object.as_str(), message, *since)
        })
        .collect()
}

/// Returns whether a process outside the CNI removed a route of pods, which is a route to a link of a CNI. CNIs and
/// their agents may remove their own routes. Of rules only the process is known: a plugin removes the rules of its pod.
fn is_foreign(facts: &Facts, gone: &RouteGone) -> bool {
    let who = gone.process.name.as_str();
    if gone.rule {
        return MANAGERS.iter().any(|name| who.starts_with(name));
    }
    let configured =
        || facts.config.iter().flat_map(|(config, _)| &config.links).any(|link| *link == gone.device);
    let of_pods = cnis::of_link(&gone.device).is_some() || configured();
    let is_own = cnis::of_plugin(who).is_some() || cnis::executables().any(|agent| agent == who);
    // A process without a name may be a plugin that exited before its name was read.
    of_pods && !is_own && !who.is_empty()
}
