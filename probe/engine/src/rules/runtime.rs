//! The container runtime does not serve CRI.

use alloc::format;
use alloc::vec::Vec;

use super::{Fault, causes};
use crate::evidence::{Facts, socket_errno};
use crate::observation::ProcessClass;
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let down = facts.dead_endpoint().into_iter();
    down.map(|failure| {
        let words = socket_errno(failure.errno);
        let message = format!("the kubelet cannot reach the container runtime: {} {words}", failure.path);
        Fault::new(Reason::RuntimeDown, failure.path.as_str(), message, failure.since)
            .settles(facts.settling(|_, class| class == ProcessClass::Runtime))
            .may_come_from(causes::OF_RUNTIME)
    })
    .collect()
}
