//! The processes, the database and the datapath of Open vSwitch, which forwards the pods' packets.

use alloc::format;
use alloc::vec::Vec;

use super::cni_config::winner;
use super::{Causes, Fault};
use crate::cnis;
use crate::facts::Facts;
use crate::limits;
use crate::observation::{OVS_DATABASE, ProcessClass};
use crate::reason::Reason;

/// Kinds of interfaces that connect this node to other nodes.
const TUNNELS: &[&str] = &["geneve", "gre", "stt", "vxlan"];

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let required = facts.config.as_ref().and_then(|(config, _)| {
        let (_, plugins) = winner(config, facts.host.runtime)?;
        plugins.iter().find_map(|plugin| Some((plugin, cnis::of_plugin(plugin)?.bridge?)))
    });
    let settles = facts.settling(|_, class| class == ProcessClass::Ovs);
    let known = facts.ovs.as_ref();
    let in_kernel = known.is_some_and(|(ovs, _)| !ovs.datapaths.is_empty());
    // A host that has no datapath and no plugin that requires one does not need Open vSwitch.
    if required.is_none() && !in_kernel && facts.vswitchd_gone.is_none() {
        return Vec::new();
    }
    let mut faults = Vec::new();
    // None of these faults is a state: daemons are restarted within seconds.
    let mut fault = |subject: &str, message, since| {
        let fault = Fault::new(Reason::OVSNotReady, subject, message, since);
        faults.push(fault.settles(settles).may_come_from(Causes::Ovs));
    };
    if let Some((name, since)) = &facts.vswitchd_gone {
        let left = if in_kernel { "; its datapath stays in the kernel without new flows" } else { "" };
        fault("ovs-vswitchd", format!("{name} exited and was not restarted{left}"), *since);
    }
    let Some((ovs, since)) = known else { return faults };
    match &ovs.database {
        Some(database) => {
            if let Some(error) = &database.error {
                fault("ovsdb-server", format!("cannot read the Open vSwitch database: {error}"), *since);
            } else if let Some((plugin, bridge)) = required
                && !bridge.is_empty()
                && !database.bridges.iter().any(|known| known == bridge)
            {
                let message = format!("Open vSwitch has no bridge {bridge}, which {plugin} requires");
                fault(bridge, message, *since);
            }
            if facts.behind.is_some_and(|behind| facts.now.since(behind.since) >= limits::BEHIND) {
                let message = "ovs-vswitchd does not apply the requested changes (cur_cfg < next_cfg)";
                fault("ovs-vswitchd", message.into(), facts.behind.map_or(*since, |behind| behind.since));
            }
            for failed in database.failed.iter().filter(|failed| TUNNELS.contains(&failed.port_kind.as_str()))
            {
                let message = format!(
                    "Open vSwitch cannot create the {} port {}: {}",
                    failed.port_kind, failed.name, failed.error
                );
                fault(&failed.name, message, *since);
            }
        }
        // A database that the agent may not read is not evidence.
        None if required.is_some() && !facts.gaps.contains_key(OVS_DATABASE) => {
            let message = "the Open vSwitch database has no socket: ovsdb-server is not running";
            fault("ovsdb-server", message.into(), *since);
        }
        None => {}
    }
    if let Some((upcalls, since)) = &facts.upcalls_lost {
        let message = format!(
            "upcalls of the datapath {} are lost: ovs-vswitchd is not running or is overloaded",
            upcalls.datapath
        );
        fault(&upcalls.datapath, message, *since);
    }
    faults
}
