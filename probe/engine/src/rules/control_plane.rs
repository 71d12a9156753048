//! etcd or kube-apiserver end again and again.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Fault;
use crate::evidence::Facts;
use crate::limits;
use crate::observation::{Process, ProcessClass, ProcessEvent};
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let mut ends: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for (at, process) in &facts.exits {
        if matches!(process.class, ProcessClass::ApiServer | ProcessClass::Etcd) {
            ends.entry(&process.process.name).or_default().push((*at, process));
        }
    }
    // etcd first: kube-apiserver cannot live without it.
    let mut loops: Vec<_> = ends.into_iter().filter(|(_, ends)| ends.len() >= limits::CRASHES).collect();
    loops.sort_by_key(|(_, ends)| ends[0].1.class != ProcessClass::Etcd);
    // A loop that has come to rest is over: nothing ended for a while, and what should listen does.
    let own_down = !facts.missing_listeners().is_empty();
    loops
        .into_iter()
        .filter(|(_, ends)| own_down || facts.now.since(ends[ends.len() - 1].0) < limits::CRASH_REST)
        .take(1)
        .map(|(name, ends)| {
            let (_, newest) = ends[ends.len() - 1];
            let message = format!("{name} ends again and again: {}", how(newest));
            Fault::new(Reason::ControlPlaneCrashLoop, name, message, ends[0].0)
        })
        .collect()
}

fn how(process: &Process) -> String {
    let ProcessEvent::Exited { exit, sender, oom } = &process.event else { return String::new() };
    if *oom {
        return String::from("it is out of memory");
    }
    match (exit.signal, sender) {
        (0, None) => format!("by itself, with exit code {}", exit.code),
        (0, Some(sender)) => format!("told to by {}, with exit code {}", sender.name, exit.code),
        (signal, None) => format!("by signal {signal}"),
        (signal, Some(sender)) => format!("by signal {signal} from {}", sender.name),
    }
}
