//! etcd or kube-apiserver end again and again.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::{Causes, Fault};
use crate::facts::Facts;
use crate::limits;
use crate::observation::{Mono, Process, ProcessClass, ProcessEvent};
use crate::outcome::is_own;
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let mut ends: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for (at, process) in facts.exits.iter() {
        if matches!(process.class, ProcessClass::ApiServer | ProcessClass::Etcd) {
            ends.entry(&process.process.name).or_default().push((*at, process));
        }
    }
    // etcd first: kube-apiserver cannot live without it.
    let mut loops: Vec<_> = ends.into_iter().filter(|(_, ends)| ends.len() >= limits::CRASHES).collect();
    loops.sort_by_key(|(_, ends)| ends[0].1.class != ProcessClass::Etcd);
    // A loop ends when a process outlives its predecessors, or when none has exited for a while, and only if everything that
    // should listen does.
    let own_down = !facts.missing_listeners().is_empty();
    let rests = |name: &str, newest: Mono| {
        let up_again = facts.lives.get(name).is_some_and(|life| life.is_up_again(facts.now));
        up_again || facts.now.since(newest) >= limits::CRASH_REST
    };
    loops
        .into_iter()
        .filter(|(name, ends)| own_down || !rests(name, ends[ends.len() - 1].0))
        .take(1)
        .map(|(name, ends)| {
            let (_, newest) = ends[ends.len() - 1];
            let how = newest.event.how().unwrap_or_default();
            let own = facts.targets_in_order().into_iter().filter(|(_, ledger)| ledger.proxy.is_none());
            let own = own.map(|(addr, _)| addr);
            let own = own.filter(|addr| is_own(addr.ip(), &facts.host.addresses)).min();
            // Nobody ends it: what stands behind is etcd's own trouble.
            if let (Some(addr), ProcessClass::Etcd, true) = (own, newest.class, by_itself(newest)) {
                let message = format!("{addr} comes and goes: {name} ends again and again, {how}");
                let fault = Fault::new(Reason::APIServerDown, addr.to_string(), message, ends[0].0);
                return fault.state().may_come_from(Causes::StaticPods);
            }
            let message = format!("{name} ends again and again: {how}{}", disagreement(facts, newest));
            Fault::new(Reason::ControlPlaneCrashLoop, name, message, ends[0].0)
        })
        .collect()
}

/// Who makes the cgroups, when runtime and kubelet do not agree and it is a signal that ends the control plane.
fn disagreement(facts: &Facts, process: &Process) -> String {
    match (&facts.drivers, by_itself(process)) {
        (Some(drivers), false) if drivers.runtime != drivers.kubelet => format!(
            "; the kubelet's cgroupDriver is {} and the runtime's is {}: containers are ended because of that",
            drivers.kubelet, drivers.runtime
        ),
        _ => String::new(),
    }
}

fn by_itself(process: &Process) -> bool {
    matches!(&process.event, ProcessEvent::Exited { exit, sender: None, oom: false, .. } if exit.signal == 0)
}
