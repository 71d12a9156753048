//! A host that should serve the API, and nothing listens.

use alloc::format;
use alloc::string::ToString as _;
use alloc::vec::Vec;

use super::Fault;
use crate::evidence::Facts;
use crate::outcome::is_own;
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let Some(snapshot) = facts.snapshot_done else { return Vec::new() };
    // Without the listeners that were read at start, or after a loss, an absence proves nothing.
    if !facts.is_control_plane()
        || facts.gaps.contains_key("tcp.listen")
        || facts.lost.contains_key(&crate::observation::Scope::Sockets)
    {
        return Vec::new();
    }
    facts
        .targets_in_order()
        .into_iter()
        .filter(|(addr, _)| is_own(addr.ip(), &facts.host.addresses) && !facts.listens(addr))
        .map(|(addr, _)| {
            let message =
                format!("{addr} is refused: this host should serve the API and nothing listens there");
            let since = facts.listeners_since.max(snapshot);
            Fault::new(Reason::APIServerDown, addr.to_string(), message, since).state()
        })
        .collect()
}
