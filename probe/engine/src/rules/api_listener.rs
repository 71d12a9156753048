//! A host that should serve the API, and nothing listens.

use alloc::format;
use alloc::string::ToString as _;
use alloc::vec::Vec;

use super::{Fault, causes};
use crate::evidence::Facts;
use crate::observation::ProcessClass;
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let since = facts.listeners_since.max(facts.snapshot_done.unwrap_or_default());
    let serves = |_: &str, class| matches!(class, ProcessClass::ApiServer | ProcessClass::Etcd);
    let settles = facts.settling(serves);
    facts
        .missing_listeners()
        .into_iter()
        .map(|addr| {
            let message =
                format!("{addr} is refused: this host should serve the API and nothing listens there");
            Fault::new(Reason::APIServerDown, addr.to_string(), message, since)
                .state()
                .settles(settles)
                .may_come_from(causes::OF_STATIC_PODS)
        })
        .collect()
}
