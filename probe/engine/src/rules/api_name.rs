//! The API server's name does not resolve.

use alloc::format;
use alloc::vec::Vec;

use super::Fault;
use crate::facts::Facts;
use crate::reason::Reason;

/// Returns a fault for each name without a working connection. Clients keep their connections for hours, and such a
/// connection proves that the name resolved.
pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let unknown = facts.unresolved.iter().filter(|(name, _)| !facts.works_by_name(name));
    unknown
        .map(|(name, unresolved)| {
            let (resolver, words) = (&unresolved.resolver, unresolved.failure.words());
            let what = match &unresolved.proxy {
                Some(proxy) => format!("name {name} of the kubelet's proxy {proxy}"),
                None => format!("API server name {name}"),
            };
            let message = format!("{what} does not resolve: {resolver} {words}");
            Fault::new(Reason::APINameUnresolved, name.as_str(), message, unresolved.since)
        })
        .collect()
}
