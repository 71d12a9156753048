//! A host that should serve the API, and nothing listens.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::{Causes, Fault};
use crate::facts::Facts;
use crate::observation::ProcessClass;
use crate::reason::Reason;

/// Of an address of this host's own, where it serves the API itself.
pub(super) fn nobody_listens(facts: &Facts, addr: &SocketAddr) -> String {
    let end = end_of_service(facts, addr, |_, class| class == ProcessClass::ApiServer);
    format!("is refused: this host should serve the API and nothing listens there{end}")
}

/// How those ended who served this address, if they did since it was last reached.
pub(super) fn end_of_service(
    facts: &Facts,
    addr: &SocketAddr,
    who: impl Fn(&str, ProcessClass) -> bool,
) -> String {
    let reached = facts.targets.get(addr).and_then(|ledger| ledger.last_ok);
    let end = facts.newest_end(who).filter(|(_, at, _)| reached.is_none_or(|reached| reached < *at));
    end.map(|(name, _, how)| format!("; {name} ended {how}")).unwrap_or_default()
}

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let since = facts.listeners_since.max(facts.snapshot_done.unwrap_or_default());
    let serves = |_: &str, class| matches!(class, ProcessClass::ApiServer | ProcessClass::Etcd);
    let settles = facts.settling(serves);
    facts
        .missing_listeners()
        .into_iter()
        .map(|addr| {
            let message = format!("{addr} {}", nobody_listens(facts, &addr));
            Fault::new(Reason::APIServerDown, addr.to_string(), message, since)
                .state()
                .settles(settles)
                .may_come_from(Causes::StaticPods)
        })
        .collect()
}
