//! Open vSwitch carries the pods' packets: its processes, its database, its datapath.

use alloc::format;
use alloc::vec::Vec;

use super::cni_config::winner;
use super::{Causes, Fault};
use crate::cnis;
use crate::facts::Facts;
use crate::limits;
use crate::observation::{OVS_DATABASE, ProcessClass};
use crate::reason::Reason;

/// Kinds of interfaces that connect this node to the others.
const TUNNELS: &[&str] = &["geneve", "gre", "stt", "vxlan"];

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let wanted = facts.config.as_ref().and_then(|(config, _)| {
        let (_, plugins) = winner(config, facts.host.runtime)?;
        plugins.iter().find_map(|plugin| Some((plugin, cnis::of_plugin(plugin)?.bridge?)))
    });
    let settles = facts.settling(|_, class| class == ProcessClass::Ovs);
    let known = facts.ovs.as_ref();
    let in_kernel = known.is_some_and(|(ovs, _)| !ovs.datapaths.is_empty());
    // A host without it, and without a plugin that wants it, has nothing to miss.
    if wanted.is_none() && !in_kernel && facts.vswitchd_gone.is_none() {
        return Vec::new();
    }
    let mut faults = Vec::new();
    // Nothing here is a state that stands by itself: daemons are restarted, and come back within seconds.
    let mut fault = |subject: &str, message, since| {
        let fault = Fault::new(Reason::OVSNotReady, subject, message, since);
        faults.push(fault.settles(settles).may_come_from(Causes::Ovs));
    };
    if let Some((name, since)) = &facts.vswitchd_gone {
        let left = if in_kernel { "; its datapath stays in the kernel and takes no new flows" } else { "" };
        fault("ovs-vswitchd", format!("{name} has ended and nothing runs in its place{left}"), *since);
    }
    let Some((ovs, since)) = known else { return faults };
    match &ovs.database {
        Some(database) => {
            if let Some(error) = &database.error {
                fault(
                    "ovsdb-server",
                    format!("the database of Open vSwitch cannot be read: {error}"),
                    *since,
                );
            } else if let Some((plugin, bridge)) = wanted
                && !bridge.is_empty()
                && !database.bridges.iter().any(|known| known == bridge)
            {
                let message = format!("Open vSwitch has no bridge {bridge}, which {plugin} needs");
                fault(bridge, message, *since);
            }
            if facts.behind.is_some_and(|behind| facts.now.since(behind.since) >= limits::BEHIND) {
                let message =
                    "ovs-vswitchd does not make the changes that it was asked for (cur_cfg < next_cfg)";
                fault("ovs-vswitchd", message.into(), facts.behind.map_or(*since, |behind| behind.since));
            }
            for failed in database.failed.iter().filter(|failed| TUNNELS.contains(&failed.port_kind.as_str()))
            {
                let message = format!(
                    "Open vSwitch cannot make the {} port {}: {}",
                    failed.port_kind, failed.name, failed.error
                );
                fault(&failed.name, message, *since);
            }
        }
        // What the agent may not read says nothing.
        None if wanted.is_some() && !facts.gaps.contains_key(OVS_DATABASE) => {
            let message = "the database of Open vSwitch has no socket: ovsdb-server does not run";
            fault("ovsdb-server", message.into(), *since);
        }
        None => {}
    }
    if let Some((upcalls, since)) = &facts.upcalls_lost {
        let message = format!(
            "the datapath {} asks about packets and nobody takes its questions: ovs-vswitchd does not run or is \
             overwhelmed",
            upcalls.datapath
        );
        fault(&upcalls.datapath, message, *since);
    }
    faults
}
