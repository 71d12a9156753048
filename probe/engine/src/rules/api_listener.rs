//! A host that should serve the API has no listener.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::{Causes, Fault};
use crate::facts::Facts;
use crate::observation::ProcessClass;
use crate::reason::Reason;

/// Returns the message for an API address of this host without a listener, to follow the address.
pub(super) fn no_listener(facts: &Facts, addr: &SocketAddr) -> String {
    let exit = exit_of_server(facts, addr, |_, class| class == ProcessClass::ApiServer);
    format!("has no listener, although this host should serve the API{exit}")
}

/// Returns how the process that served this address exited, if it has since the address was last reached; otherwise an
/// empty text.
pub(super) fn exit_of_server(
    facts: &Facts,
    addr: &SocketAddr,
    who: impl Fn(&str, ProcessClass) -> bool,
) -> String {
    let reached = facts.targets.get(addr).and_then(|ledger| ledger.last_ok);
    let exit = facts.newest_exit(who).filter(|(_, at, _)| reached.is_none_or(|reached| reached < *at));
    exit.map(|(name, _, how)| format!("; {name} {how}")).unwrap_or_default()
}

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let since = facts.listeners_since.max(facts.snapshot_done.unwrap_or_default());
    let serves = |_: &str, class| matches!(class, ProcessClass::ApiServer | ProcessClass::Etcd);
    let settles = facts.settling(serves);
    facts
        .missing_listeners()
        .into_iter()
        .map(|addr| {
            let message = format!("{addr} {}", no_listener(facts, &addr));
            Fault::new(Reason::APIServerDown, addr.to_string(), message, since)
                .state()
                .settles(settles)
                .may_come_from(Causes::StaticPods)
        })
        .collect()
}
