//! Sandboxes whose network is made and that are given up all the same: what fails comes after CNI.

use alloc::format;
use alloc::vec::Vec;

use super::{Fault, causes};
use crate::evidence::Facts;
use crate::limits;
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    // As often as an end is a loop: once, a pod was removed; twice, by chance.
    let often = |times: u32| usize::try_from(times).is_ok_and(|times| times >= limits::CRASHES);
    let failing = facts.given_up.iter().filter(|(_, known)| often(known.times) && !known.works(facts.now));
    let Some((pod, known)) = failing.min_by_key(|(_, known)| known.since) else { return Vec::new() };
    let pod = format!("{}/{}", pod.namespace, pod.name);
    let message = format!(
        "the network of {pod} is made and its sandbox is given up at once, again and again: the pause image, \
         resolv.conf or the cgroup fails after CNI; not a fault of the network"
    );
    let fault = Fault::new(Reason::SandboxImageUnavailable, pod, message, known.since);
    Vec::from([fault.may_come_from(causes::OF_SANDBOXES)])
}
