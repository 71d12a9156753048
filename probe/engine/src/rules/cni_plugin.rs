//! A plugin ran and failed.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::{Causes, Fault};
use crate::cnis::{self, Cni};
use crate::errno::{EADDRINUSE, EEXIST};
use crate::facts::{ERRNOS, Facts, PluginFailure, refusal, socket_errno};
use crate::observation::{Leases, NetlinkError, NetnsSeen, ProcessClass};
use crate::reason::Reason;

/// What the API server's refusal looks like in the words of its clients: HTTP 401 and 403.
const UNAUTHORIZED: &[&str] = &[
    "unauthorized",
    "asked for the client to provide credentials",
    "is forbidden: user",
    "token has expired",
    "invalid bearer token",
];

/// What the library of the reference plugins says of a path to a network namespace that is none
/// (`containernetworking/plugins/pkg/ns`).
const NO_NAMESPACE: &str = "unknown FS magic on";

/// What anybody says whose file cannot be written: strerror(3), and Go in lower case.
const NO_SPACE: &[&str] = &["no space left on device", "read-only file system", "disk quota exceeded"];

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
    let said =
        failure.error.as_ref().map(|error| format!("{} {}", error.msg, error.details)).unwrap_or_default();
    let (netns, seen) = &failure.netns;
    // The plugin itself has found a plain file where this host has a namespace. Whoever called it may have ended before
    // its mounts could be compared.
    let seen = match seen {
        NetnsSeen::Namespace { .. } if said.contains(NO_NAMESPACE) => &NetnsSeen::Hidden,
        seen => seen,
    };
    // A runtime takes a failed sandbox away at once, perhaps before it was looked at: the plugin must have
    // stumbled over the path itself.
    if let Some(words) = netns_words(*seen)
        && (said.contains(netns.as_str()) || failure.error.is_none() && *seen != NetnsSeen::Missing)
    {
        let message = format!("plugin {plugin} was given {netns}, which {words}");
        return Fault::new(Reason::NetnsInvalid, netns.as_str(), message, failure.since);
    }
    if let Some(fault) = agent_away(facts, plugin, failure, &said) {
        return fault;
    }
    let lower = said.to_lowercase();
    let has = |texts: &[&str]| texts.iter().any(|text| lower.contains(text));
    let words = words(plugin, failure);
    let fault = |reason, subject: &str, words| Fault::new(reason, subject, words, failure.since);
    if let Some(cni) = cnis::of_overloaded(&lower) {
        let words = format!("{words}; {} is overloaded", cni.agent);
        return fault(Reason::CNIAgentNotReady, cni.agent, words);
    }
    if cnis::says(&lower, |words| words.exhausted) {
        return fault(Reason::IPAMExhausted, &failure.speaker, words + &full_or_leak(facts));
    }
    if has(UNAUTHORIZED) {
        return fault(Reason::CNIUnauthorized, plugin, words).may_come_from(Causes::ValidCredential);
    }
    if cnis::says(&lower, |words| words.unbound) {
        return fault(Reason::OVNPortNotBound, plugin, words).may_come_from(Causes::Port);
    }
    if cnis::says(&lower, |words| words.no_range) {
        return fault(Reason::PodCIDRNotAssigned, plugin, words).may_come_from(Causes::Agent);
    }
    if cnis::says(&lower, |words| words.conflict) {
        // Go's %q puts the link's name into quotation marks.
        let link = said.split('"').nth(1).filter(|name| !name.is_empty()).unwrap_or(plugin);
        return fault(Reason::LinkConflict, link, words);
    }
    if let Some(refused) = failure.refusal.as_ref().filter(|refused| blames(refused, &lower)) {
        let object = if refused.object.is_empty() { plugin } else { &refused.object };
        let conflict = matches!(refused.errno, EEXIST | EADDRINUSE);
        let reason = if conflict { Reason::LinkConflict } else { Reason::LinkSetupFailed };
        return fault(reason, object, format!("{words}; the kernel refused {}", refusal(refused)));
    }
    let fault = fault(Reason::CNIPluginFailed, plugin, words);
    if has(NO_SPACE) {
        return fault.may_come_from(Causes::Space);
    }
    // Only a plugin that names the API's address failed because of it.
    if facts.targets.keys().any(|addr| said.contains(&format!("{addr}"))) {
        fault.may_come_from(Causes::Agent)
    } else {
        fault
    }
}

/// Whether the addresses belong to anybody: host-local keeps those of sandboxes that were never taken down. Empty
/// where that is not known.
fn full_or_leak(facts: &Facts) -> String {
    // A pod of the host's network has a namespace and no address: half is left for these.
    let leaks = |leases: &&Leases| leases.held > 0 && leases.held >= leases.namespaces.saturating_mul(2);
    match facts.leases.values().find(leaks) {
        Some(leases) => format!("; leak: {} keeps addresses of sandboxes that are gone", leases.dir),
        None if facts.leases.is_empty() => String::new(),
        None => "; full: the addresses belong to sandboxes that live".to_string(),
    }
}

/// The plugin's agent does not answer on its socket, or has not written what the plugin reads.
fn agent_away(facts: &Facts, plugin: &str, failure: &PluginFailure, said: &str) -> Option<Fault> {
    let told = failure.socket.as_ref().map(|socket| (socket.path.as_str(), socket_errno(socket.errno)));
    let unheard = told.or_else(|| Some((dialled(said)?, "does not answer".to_string())));
    let (cni, words) = if let Some((path, how)) = unheard {
        let words = format!("plugin {plugin} failed because its agent's socket {path} {how}");
        (cnis::of_socket(path).ok_or(path), words)
    } else if let Some(addr) = refused_here(facts, said) {
        let words =
            format!("plugin {plugin} failed because its agent's address {addr} refuses: nobody listens");
        (cnis::of_plugin(plugin).filter(|cni| !cni.agent.is_empty()).ok_or(addr), words)
    } else {
        // A file that only the plugin speaks of may be anything: that of an agent is known by its path.
        let cni = cnis::CNIS.iter().find(|cni| !cni.writes.is_empty() && said.contains(cni.writes))?;
        let words = format!("plugin {plugin} failed because {} has not written {}", cni.agent, cni.writes);
        (Ok(cni), words)
    };
    let (subject, how) = match cni {
        Ok(cni) => (cni.agent, end_of(facts, cni)),
        Err(path) => (path, String::new()),
    };
    let cni = cni.ok();
    let needs_ovs = cni.is_some_and(|cni| cni.bridge.is_some());
    let starts = |name: &str, class| {
        cni.is_some_and(|cni| cni.executables.contains(&name)) || needs_ovs && class == ProcessClass::Ovs
    };
    let fault = Fault::new(Reason::CNIAgentNotReady, subject, words + &how, failure.since);
    let fault = fault.settles(facts.settling(starts));
    Some(fault.may_come_from(match cni {
        Some(cni) if cni.meta => Causes::DefaultNetwork,
        _ if needs_ovs => Causes::OvsAgent,
        _ => Causes::Agent,
    }))
}

/// The path in Go's words for a Unix socket that could not be reached: `dial unix PATH: connect: …`.
fn dialled(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once("dial unix ")?;
    let (path, _) = rest.split_once(": ")?;
    path.starts_with('/').then_some(path)
}

/// The address in Go's words for a TCP port of this host that refused: `dial tcp ADDRESS: connect: connection refused`.
/// On a loopback address it is the agent's (Weave, older AWS), unless the API server is reached by it.
fn refused_here<'a>(facts: &Facts, said: &'a str) -> Option<&'a str> {
    said.split("dial tcp ").skip(1).find_map(|rest| {
        let (text, how) = rest.split_once(": ")?;
        let addr: SocketAddr = text.parse().ok()?;
        let refused = how.starts_with("connect: connection refused");
        (refused && addr.ip().is_loopback() && !facts.targets.contains_key(&addr)).then_some(text)
    })
}

/// Where its agent is, when it does not run.
fn end_of(facts: &Facts, cni: &Cni) -> String {
    let is_agent = |name: &str, _| cni.executables.contains(&name);
    if facts.lives_of(is_agent).any(|(_, life)| !life.pids.is_empty()) {
        return format!("; {} runs", cni.agent);
    }
    let ended = facts.newest_end(is_agent);
    ended.map(|(name, _, how)| format!("; {name} ended {how}")).unwrap_or_default()
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

/// Plugins try things that may fail and go on: a refusal is the reason only when the plugin says so, by the
/// text of the errno (of any, where it is not known) or by the kernel's own words.
fn blames(refusal: &NetlinkError, said: &str) -> bool {
    let mut errnos = ERRNOS.iter().filter(|(errno, _)| refusal.errno == 0 || refusal.errno == *errno);
    errnos.any(|(_, text)| said.contains(text))
        || (!refusal.text.is_empty() && said.contains(&refusal.text.to_lowercase()))
}

fn words(plugin: &str, failure: &PluginFailure) -> String {
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
