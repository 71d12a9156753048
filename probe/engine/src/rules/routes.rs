//! Routes and rules of pods that somebody takes away who is neither their CNI nor the kernel.

use alloc::format;
use alloc::vec::Vec;

use super::Fault;
use crate::cnis;
use crate::facts::Facts;
use crate::memory::Seen;
use crate::observation::RouteGone;
use crate::reason::Reason;

/// Services that manage every route of a host and remove those that they do not know.
const MANAGERS: &[&str] = &["NetworkManager", "systemd-network"];

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let foreign = facts.routes_gone.values().filter(|known| is_foreign(facts, &known.value));
    foreign
        .map(|Seen { value: gone, since, .. }| {
            let (what, who) = (gone.words(), gone.process.who());
            let message = format!("{who} removed {what}, and nobody has put it back");
            Fault::new(Reason::RoutesRemoved, gone.object.as_str(), message, *since)
        })
        .collect()
}

/// A route of pods leads to a link of a CNI; a CNI and its agent may take back what they made. Of rules only who
/// did it is known: a plugin removes those of its pod.
fn is_foreign(facts: &Facts, gone: &RouteGone) -> bool {
    let who = gone.process.name.as_str();
    if gone.rule {
        return MANAGERS.iter().any(|name| who.starts_with(name));
    }
    let configured =
        || facts.config.iter().flat_map(|(config, _)| &config.links).any(|link| *link == gone.device);
    let of_pods = cnis::of_link(&gone.device).is_some() || configured();
    let is_own = cnis::of_plugin(who).is_some() || cnis::executables().any(|agent| agent == who);
    // A plugin that has ended before it could be looked up has no name.
    of_pods && !is_own && !who.is_empty()
}
