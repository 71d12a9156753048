//! etcd or kube-apiserver is crash-looping.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::{Causes, Fault};
use crate::facts::Facts;
use crate::limits;
use crate::observation::{BootTime, Process, ProcessClass, ProcessEvent};
use crate::outcome::is_own;
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let mut exits: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for (at, process) in facts.exits.iter() {
        if matches!(process.class, ProcessClass::ApiServer | ProcessClass::Etcd) {
            exits.entry(&process.process.name).or_default().push((*at, process));
        }
    }
    // etcd comes first: kube-apiserver exits without it.
    let mut loops: Vec<_> = exits.into_iter().filter(|(_, exits)| exits.len() >= limits::CRASHES).collect();
    loops.sort_by_key(|(_, exits)| exits[0].1.class != ProcessClass::Etcd);
    // A loop ends when a process outlives its predecessors, or when none has exited for a while, and only if everything
    // that should listen does.
    let own_down = !facts.missing_listeners().is_empty();
    let rests = |name: &str, newest: BootTime| {
        let up_again = facts.lives.get(name).is_some_and(|life| life.is_up_again(facts.now));
        up_again || facts.now.since(newest) >= limits::CRASH_REST
    };
    loops
        .into_iter()
        .filter(|(name, exits)| own_down || !rests(name, exits[exits.len() - 1].0))
        .take(1)
        .map(|(name, exits)| {
            let (_, newest) = exits[exits.len() - 1];
            let how = newest.event.how().unwrap_or_default();
            let own = facts.targets_in_order().into_iter().filter(|(_, ledger)| ledger.proxy.is_none());
            let own = own.map(|(addr, _)| addr);
            let own = own.filter(|addr| is_own(addr.ip(), &facts.host.addresses)).min();
            // An etcd that exits by itself is the origin, and is reported as such behind the API server.
            if let (Some(addr), ProcessClass::Etcd, true) = (own, newest.class, exited_without_signal(newest))
            {
                let message =
                    format!("{addr} is unavailable intermittently: {name} is crash-looping, it {how}");
                let fault = Fault::new(Reason::APIServerDown, addr.to_string(), message, exits[0].0);
                return fault.state().may_come_from(Causes::StaticPods);
            }
            let message = format!("{name} is crash-looping: it {how}{}", differing_drivers(facts, newest));
            Fault::new(Reason::ControlPlaneCrashLoop, name, message, exits[0].0)
        })
        .collect()
}

/// Returns the cgroup drivers of kubelet and runtime if they differ and a signal ended the process; otherwise an empty
/// text.
fn differing_drivers(facts: &Facts, process: &Process) -> String {
    match (&facts.drivers, exited_without_signal(process)) {
        (Some(drivers), false) if drivers.runtime != drivers.kubelet => format!(
            "; cgroup drivers differ: the kubelet uses {}, the runtime {}",
            drivers.kubelet, drivers.runtime
        ),
        _ => String::new(),
    }
}

/// Returns whether the process exited without a signal.
fn exited_without_signal(process: &Process) -> bool {
    matches!(&process.event, ProcessEvent::Exited { exit, sender: None, oom: false, .. } if exit.signal == 0)
}
