//! Sandboxes that are removed although their network was set up: a step after CNI fails.

use alloc::format;
use alloc::string::ToString as _;
use alloc::vec::Vec;

use super::{Causes, Fault};
use crate::facts::Facts;
use crate::limits;
use crate::observation::SandboxImage;
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    // As many as for a crash loop: one removal is a deleted pod, two are chance.
    let is_frequent = |times: u32| usize::try_from(times).is_ok_and(|times| times >= limits::CRASHES);
    let failing = facts.sandboxes.given_up(facts.now).filter(|(_, known)| is_frequent(known.times));
    let Some((pod, known)) = failing.min_by_key(|(_, known)| known.since) else { return Vec::new() };
    let image = facts.runtime_status().and_then(|(status, _)| status.sandbox_image.as_ref());
    let why = match image {
        Some(SandboxImage { name, is_here: false }) => {
            format!("the sandbox image {name} is not on this node")
        }
        Some(SandboxImage { name, is_here: true }) => {
            format!("resolv.conf or cgroup setup fails after CNI (the sandbox image {name} is on this node)")
        }
        None => "sandbox image, resolv.conf or cgroup setup fails after CNI".to_string(),
    };
    let message = format!(
        "the runtime repeatedly removes the sandbox of {pod} after its network was set up: {why}; the network is not \
         at fault"
    );
    let fault = Fault::new(Reason::SandboxImageUnavailable, pod.to_string(), message, known.since);
    Vec::from([fault.may_come_from(Causes::Sandboxes)])
}
