//! The container runtime does not serve CRI.

use alloc::format;
use alloc::vec::Vec;

use super::{Fault, causes};
use crate::evidence::{Facts, socket_errno};
use crate::observation::ProcessClass;
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    if let Some((who, how, since)) = facts.stuck_of(ProcessClass::Runtime) {
        let message =
            format!("the container runtime does not respond: {}[{}] {}", who.name, who.pid, how.words());
        return Vec::from([Fault::new(Reason::RuntimeDown, who.name.as_str(), message, since)]);
    }
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
