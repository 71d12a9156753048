//! A host that should serve the API, and nothing listens.

use alloc::format;
use alloc::string::ToString as _;
use alloc::vec::Vec;

use super::Fault;
use crate::evidence::Facts;
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let since = facts.listeners_since.max(facts.snapshot_done.unwrap_or_default());
    facts
        .missing_listeners()
        .into_iter()
        .map(|addr| {
            let message =
                format!("{addr} is refused: this host should serve the API and nothing listens there");
            Fault::new(Reason::APIServerDown, addr.to_string(), message, since).state()
        })
        .collect()
}
