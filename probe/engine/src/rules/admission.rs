//! An admission webhook blocks creation of the CNI agent's pods.

use alloc::format;
use alloc::vec::Vec;

use super::Fault;
use crate::cnis;
use crate::facts::Facts;
use crate::observation::ProcessClass;
use crate::reason::Reason;

/// Returns no fault on a node where the agent runs and has written its configuration, even if pods of other nodes are
/// blocked.
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
            "admission webhook {} blocks creation of the pods of {}: {}",
            blocked.webhook, blocked.daemonset, blocked.why
        );
        // On a control-plane host the outcome of kube-apiserver's own connect to the webhook is known.
        if let Some(own) = blocked.backend.and_then(|backend| facts.unreached.get(&backend)) {
            message.push_str(&format!("; observed on this host: {}", own.outcome.words()));
        }
        Fault::new(Reason::AdmissionBlocked, blocked.webhook.as_str(), message, *since)
    });
    fault.into_iter().collect()
}
