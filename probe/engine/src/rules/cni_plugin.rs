//! A plugin ran and failed.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Fault, depth};
use crate::evidence::{ERRNOS, Facts, PluginFailure, refusal, socket_errno};
use crate::observation::{AgentSocket, NetlinkError, NetnsSeen};
use crate::reason::{Reason, Side};

/// What IPAM plugins say when they have no address left: host-local, whereabouts and Calico, Kube-OVN, AWS.
const EXHAUSTED: [&str; 6] = [
    "no ip addresses available",
    "no available ip",
    "no available address",
    "failed to assign an ip address to container",
    "could not allocate ip in range",
    "no more free ip",
];

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    // What a plugin waits for in vain is told by itself.
    let waits = |plugin: &str| {
        let config = facts.config.as_ref();
        config.is_some_and(|(config, _)| {
            config.waits_for.iter().any(|waits| waits.plugin == plugin && !waits.present)
        })
    };
    let failed = facts.plugins.iter().filter(|(plugin, _)| !waits(plugin));
    failed.map(|(plugin, failure)| fault(facts, plugin, failure)).collect()
}

fn fault(facts: &Facts, plugin: &str, failure: &PluginFailure) -> Fault {
    let words = words(plugin, failure);
    let said =
        failure.error.as_ref().map(|error| format!("{} {}", error.msg, error.details)).unwrap_or_default();
    let lower = said.to_lowercase();
    let (netns, seen) = &failure.netns;
    let (reason, subject) = if let Some(words) = netns_words(*seen)
        // A runtime takes a failed sandbox away at once, perhaps before it was looked at: the plugin must have
        // stumbled over the path itself.
        && (said.contains(netns.as_str()) || failure.error.is_none() && *seen != NetnsSeen::Missing)
    {
        let message = format!("plugin {plugin} was given {netns}, which {words}");
        let fault = Fault::new(Reason::NetnsInvalid, netns.as_str(), message, failure.since);
        return fault.at_depth(depth::DATAPATH);
    } else if let Some(socket) = &failure.socket {
        (Reason::CNIAgentNotReady, agent_of(&socket.path).map_or(socket.path.as_str(), |agent| agent.name))
    } else if EXHAUSTED.iter().any(|text| lower.contains(text)) {
        (Reason::IPAMExhausted, failure.speaker.as_str())
    } else if let Some(refusal) = &failure.refusal
        && blames(refusal, &lower)
    {
        let object = if refusal.object.is_empty() { plugin } else { &refusal.object };
        let conflict = matches!(refusal.errno, EEXIST | EADDRINUSE);
        (if conflict { Reason::LinkConflict } else { Reason::LinkSetupFailed }, object)
    } else {
        (Reason::CNIPluginFailed, plugin)
    };
    let words = match &failure.refusal {
        Some(error) if reason.side() == Side::Datapath => {
            format!("{words}; the kernel refused {}", refusal(error))
        }
        _ => words,
    };
    let depth = if reason.side() == Side::Datapath { depth::DATAPATH } else { depth::PLUGIN };
    let fault = Fault::new(reason, subject, words, failure.since).at_depth(depth);
    let waits_for_ovs = |socket: &AgentSocket| agent_of(&socket.path).is_some_and(|agent| agent.needs_ovs);
    if reason == Reason::CNIAgentNotReady && failure.socket.as_ref().is_some_and(waits_for_ovs) {
        return fault.may_come_from(Side::Datapath);
    }
    // Only a plugin that names the API's address failed because of it.
    if facts.targets.keys().any(|addr| said.contains(&format!("{addr}"))) {
        fault.may_come_from(Side::Api)
    } else {
        fault
    }
}

/// What is wrong with the namespace that a plugin was given; a failed plugin says it less well.
fn netns_words(seen: NetnsSeen) -> Option<&'static str> {
    Some(match seen {
        NetnsSeen::Unknown | NetnsSeen::Namespace { .. } => return None,
        NetnsSeen::Missing => "is not there",
        NetnsSeen::NoNamespace => "is no network namespace: a file that was left over",
        NetnsSeen::Hidden => {
            "is a namespace on the host and a plain file for the process that started it: its mounts are not \
             propagated (HostToContainer)"
        }
    })
}

/// Who answers on a socket: every CNI that talks to an agent has its own. A new one is one row; the path
/// itself says enough for the others.
const AGENTS: &[Agent] = &[
    Agent { socket: "/cilium.sock", name: "cilium-agent", needs_ovs: false },
    Agent { socket: "/kube-ovn-daemon.sock", name: "kube-ovn-cni", needs_ovs: true },
    Agent { socket: "/multus.sock", name: "multus-daemon", needs_ovs: false },
    Agent { socket: "/ovn-cni-server.sock", name: "ovnkube-node", needs_ovs: true },
    Agent { socket: "/ipamd.sock", name: "aws-node", needs_ovs: false },
    Agent { socket: "/cni.sock", name: "antrea-agent", needs_ovs: true },
];

struct Agent {
    /// What the path of its socket ends with.
    socket: &'static str,
    name: &'static str,
    /// It serves once Open vSwitch does.
    needs_ovs: bool,
}

const EEXIST: u32 = 17;
const EADDRINUSE: u32 = 98;

/// Plugins try things that may fail and go on: a refusal is the reason only when the plugin says so, by the
/// text of the errno (of any, where it is not known) or by the kernel's own words.
fn blames(refusal: &NetlinkError, said: &str) -> bool {
    let mut errnos = ERRNOS.iter().filter(|(errno, _)| refusal.errno == 0 || refusal.errno == *errno);
    errnos.any(|(_, text)| said.contains(text))
        || (!refusal.text.is_empty() && said.contains(&refusal.text.to_lowercase()))
}

fn agent_of(path: &str) -> Option<&'static Agent> {
    AGENTS.iter().find(|agent| path.ends_with(agent.socket))
}

fn words(plugin: &str, failure: &PluginFailure) -> String {
    if let Some(socket) = &failure.socket {
        return format!(
            "plugin {plugin} failed because its agent's socket {} {}",
            socket.path,
            socket_errno(socket.errno)
        );
    }
    let through =
        if failure.speaker == plugin { String::new() } else { format!(" (through {})", failure.speaker) };
    match (&failure.error, failure.signal) {
        (Some(error), _) => {
            let details =
                if error.details.is_empty() { String::new() } else { format!(": {}", error.details) };
            format!("plugin {plugin}{through} failed with code {}: {}{details}", error.code, error.msg)
        }
        (None, 0) => {
            format!("plugin {plugin}{through} ended with exit code {} and no error message", failure.code)
        }
        (None, signal) => format!("plugin {plugin}{through} was ended by signal {signal}"),
    }
}
