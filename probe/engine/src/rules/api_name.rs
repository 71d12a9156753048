//! The name of the API server has no address.

use alloc::format;
use alloc::vec::Vec;

use super::Fault;
use crate::evidence::Facts;
use crate::reason::Reason;

/// An address that works is proof that the name was resolved: clients keep their connections for hours.
pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let unknown = facts.unresolved.iter().filter(|(name, _)| !facts.works_by_name(name));
    unknown
        .map(|(name, unresolved)| {
            let (resolver, words) = (&unresolved.resolver, unresolved.failure.words());
            let message = format!("the API server's name {name} has no address: {resolver} {words}");
            Fault::new(Reason::APINameUnresolved, name.as_str(), message, unresolved.since)
        })
        .collect()
}
