//! The kubelet does not run, is crash-looping, or does not respond.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Causes, Fault};
use crate::facts::Facts;
use crate::observation::{ProcessClass, Role, Scope};
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let is_node = matches!(facts.host.role, Role::Worker | Role::ControlPlane);
    let blind = facts.gaps.contains_key("process.exit");
    let Some(snapshot) = facts.snapshot_done.filter(|_| is_node && !blind) else { return Vec::new() };
    let is_kubelet = |_: &str, class| class == ProcessClass::Kubelet;
    let kubelets: Vec<_> = facts.lives_of(is_kubelet).collect();
    let looping = kubelets.iter().find(|(_, life)| life.loops(facts.now));
    let runs = kubelets.iter().any(|(_, life)| !life.pids.is_empty());
    if let Some((who, how, since)) = facts.stuck_of(ProcessClass::Kubelet) {
        let message = format!("{} does not respond: it {}", who.with_pid(), how.words());
        return Vec::from([Fault::new(Reason::KubeletDown, who.name.as_str(), message, since)]);
    }
    // If none was ever observed, its files must show that there should be one, and a running one must be observable.
    let is_expected = facts.host.kubelet_installed && !facts.hides_processes();
    if looping.is_none() && (runs || kubelets.is_empty() && !is_expected) {
        return Vec::new();
    }
    let newest = kubelets.iter().filter_map(|(name, life)| Some((*name, life.ended.as_ref()?)));
    let (name, since, how) = match newest.max_by_key(|(_, (at, _))| *at) {
        Some((name, (at, event))) => {
            let how = event.how().map(|how| format!(": it {how}"));
            (name.as_str(), *at, how.unwrap_or_default())
        }
        None => ("kubelet", snapshot, String::new()),
    };
    let message = match looping {
        Some((name, _)) => format!("{name} is crash-looping{how}"),
        None => format!("{name} is not running{how}"),
    };
    if facts.losses.may_explain(Scope::Processes, since, facts.now) {
        return Vec::new();
    }
    let settles = facts.settling(is_kubelet).filter(|_| looping.is_none());
    let fault = Fault::new(Reason::KubeletDown, name, message, since);
    Vec::from([fault.settles(settles).may_come_from(Causes::Kubelet)])
}
