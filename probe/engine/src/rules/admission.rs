//! An admission webhook keeps the pods of the CNI's agent from being created.

use alloc::format;
use alloc::vec::Vec;

use super::Fault;
use crate::cnis;
use crate::facts::Facts;
use crate::observation::ProcessClass;
use crate::reason::Reason;

/// A node where the agent runs and has written its configuration has what it needs, whatever other nodes lack.
pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let Some((admission, since)) = &facts.admission else { return Vec::new() };
    let configured = facts.config.as_ref().is_some_and(|(config, _)| !config.files.is_empty());
    let mut agents = facts.lives_of(|_, class| class == ProcessClass::CniAgent);
    if configured && agents.any(|(_, life)| !life.pids.is_empty()) {
        return Vec::new();
    }
    let of_cni = admission.blocked.iter().find(|blocked| cnis::is_daemonset(&blocked.daemonset));
    let fault = of_cni.map(|blocked| {
        let mut message = format!(
            "the admission webhook {} keeps {} from creating its pods: {}",
            blocked.webhook, blocked.daemonset, blocked.why
        );
        // On a host of the control plane the kernel has seen it too, and knows how.
        if let Some(own) = blocked.backend.and_then(|backend| facts.unreached.get(&backend)) {
            message.push_str(&format!("; seen on this host: {}", own.outcome.words()));
        }
        Fault::new(Reason::AdmissionBlocked, blocked.webhook.as_str(), message, *since)
    });
    fault.into_iter().collect()
}
