//! Failed plugins.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::{Causes, Fault};
use crate::cnis::{self, Cni};
use crate::errno::{EADDRINUSE, ECONNREFUSED, EEXIST, signal_words, socket_words};
use crate::facts::{ERRNOS, Facts, PluginFailure};
use crate::observation::{Leases, NetlinkError, NetnsSeen, ProcessClass};
use crate::reason::Reason;

/// Texts by which clients of the API server report 401 Unauthorized and 403 Forbidden.
const UNAUTHORIZED: &[&str] = &[
    "unauthorized",
    "asked for the client to provide credentials",
    "is forbidden: user",
    "token has expired",
    "invalid bearer token",
];

/// Text by which the library of the reference plugins reports a path that is not a network namespace
/// (`containernetworking/plugins/pkg/ns`).
const NO_NAMESPACE: &str = "unknown FS magic on";

/// Texts of a failed write for want of space: strerror(3), and Go, in lower case.
const NO_SPACE: &[&str] = &["no space left on device", "read-only file system", "disk quota exceeded"];

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    // The rule for waiting plugins judges a plugin whose file is missing.
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
    let error_text =
        failure.error.as_ref().map(|error| format!("{} {}", error.msg, error.details)).unwrap_or_default();
    let (netns, seen) = &failure.netns;
    // The plugin found a plain file where this host has a namespace. Its parent may have exited before its mounts could
    // be compared.
    let seen = match seen {
        NetnsSeen::Namespace { .. } if error_text.contains(NO_NAMESPACE) => &NetnsSeen::Hidden,
        seen => seen,
    };
    // A runtime removes a failed sandbox at once, perhaps before its path was read: a missing path counts only if the
    // plugin itself reports it.
    if let Some(words) = netns_words(*seen)
        && (error_text.contains(netns.as_str()) || failure.error.is_none() && *seen != NetnsSeen::Missing)
    {
        let message = format!("plugin {plugin} was passed the namespace path {netns}, which {words}");
        return Fault::new(Reason::NetnsInvalid, netns.as_str(), message, failure.since);
    }
    if let Some(fault) = unreachable_agent(facts, plugin, failure, &error_text) {
        return fault;
    }
    let lower = error_text.to_lowercase();
    let has = |texts: &[&str]| texts.iter().any(|text| lower.contains(text));
    let words = words(plugin, failure);
    let fault = |reason, subject: &str, words| Fault::new(reason, subject, words, failure.since);
    if let Some(cni) = cnis::of_overloaded(&lower) {
        let words = format!("{words}; {} is overloaded", cni.agent);
        return fault(Reason::CNIAgentNotReady, cni.agent, words);
    }
    if cnis::mentions(&lower, |words| words.exhausted) {
        return fault(Reason::IPAMExhausted, &failure.speaker, words + &full_or_leak(facts));
    }
    if has(UNAUTHORIZED) {
        return fault(Reason::CNIUnauthorized, plugin, words).may_come_from(Causes::ValidCredential);
    }
    if cnis::mentions(&lower, |words| words.unbound) {
        return fault(Reason::OVNPortNotBound, plugin, words).may_come_from(Causes::Port);
    }
    if cnis::mentions(&lower, |words| words.no_range) {
        return fault(Reason::PodCIDRNotAssigned, plugin, words).may_come_from(Causes::Agent);
    }
    if cnis::mentions(&lower, |words| words.conflict) {
        // Go's %q quotes the name of the link.
        let link = error_text.split('"').nth(1).filter(|name| !name.is_empty()).unwrap_or(plugin);
        return fault(Reason::LinkConflict, link, words);
    }
    if let Some(refused) = failure.refusal.as_ref().filter(|refused| is_reported(refused, &lower)) {
        let object = if refused.object.is_empty() { plugin } else { &refused.object };
        let conflict = matches!(refused.errno, EEXIST | EADDRINUSE);
        let reason = if conflict { Reason::LinkConflict } else { Reason::LinkSetupFailed };
        return fault(reason, object, format!("{words}; the kernel refused {}", refused.words()));
    }
    let fault = fault(Reason::CNIPluginFailed, plugin, words);
    if has(NO_SPACE) {
        return fault.may_come_from(Causes::Space);
    }
    // Only a plugin whose message names the API address failed because of the API server.
    if facts.targets.keys().any(|addr| error_text.contains(&format!("{addr}"))) {
        fault.may_come_from(Causes::Agent)
    } else {
        fault
    }
}

/// Returns whether the allocated addresses belong to existing sandboxes (`full`) or not (`leak`): host-local keeps the
/// addresses of sandboxes that were never torn down. Empty where that is not known.
fn full_or_leak(facts: &Facts) -> String {
    // A pod on the host's network has a namespace and no address: twice as many addresses as namespaces leave room for
    // these.
    let leaks = |leases: &&Leases| leases.held > 0 && leases.held >= leases.namespaces.saturating_mul(2);
    match facts.leases.values().find(leaks) {
        Some(leases) => format!("; leak: {} keeps addresses of sandboxes that no longer exist", leases.dir),
        None if facts.leases.is_empty() => String::new(),
        None => "; full: the addresses belong to existing sandboxes".to_string(),
    }
}

/// Judges a plugin whose agent does not respond on its socket or has not written the file that the plugin reads.
fn unreachable_agent(
    facts: &Facts,
    plugin: &str,
    failure: &PluginFailure,
    error_text: &str,
) -> Option<Fault> {
    let observed = failure.socket.as_ref().map(|socket| (socket.path.as_str(), socket_words(socket.errno)));
    let socket = observed.or_else(|| Some((dialled(error_text)?, "does not respond".to_string())));
    let (cni, words) = if let Some((path, how)) = socket {
        let words = format!("plugin {plugin} failed: its agent's socket {path} {how}");
        (cnis::of_socket(path).ok_or(path), words)
    } else if let Some(addr) = refused_here(facts, error_text) {
        let how = socket_words(ECONNREFUSED);
        let words = format!("plugin {plugin} failed: its agent's address {addr} {how}");
        (cnis::of_plugin(plugin).filter(|cni| !cni.agent.is_empty()).ok_or(addr), words)
    } else {
        // A file that is known only from the plugin's message can be any file: that of an agent is identified by its
        // path.
        let cni = cnis::CNIS.iter().find(|cni| !cni.writes.is_empty() && error_text.contains(cni.writes))?;
        let words = format!("plugin {plugin} failed: {} has not written {}", cni.agent, cni.writes);
        (Ok(cni), words)
    };
    let (subject, how) = match cni {
        Ok(cni) => (cni.agent, state_of_agent(facts, cni)),
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

/// Returns the path from Go's message about a Unix socket that could not be reached: `dial unix PATH: connect: …`.
fn dialled(error_text: &str) -> Option<&str> {
    let (_, rest) = error_text.split_once("dial unix ")?;
    let (path, _) = rest.split_once(": ")?;
    path.starts_with('/').then_some(path)
}

/// Returns the address from Go's message about a refused TCP connection: `dial tcp ADDRESS: connect: connection
/// refused`. A loopback address is the agent's (Weave, older AWS), unless it is an address of the API server.
fn refused_here<'a>(facts: &Facts, error_text: &'a str) -> Option<&'a str> {
    error_text.split("dial tcp ").skip(1).find_map(|rest| {
        let (text, how) = rest.split_once(": ")?;
        let addr: SocketAddr = text.parse().ok()?;
        let refused = how.starts_with("connect: connection refused");
        (refused && addr.ip().is_loopback() && !facts.targets.contains_key(&addr)).then_some(text)
    })
}

/// Returns whether the agent of the CNI runs, or how it exited; empty when neither is known.
fn state_of_agent(facts: &Facts, cni: &Cni) -> String {
    let is_agent = |name: &str, _| cni.executables.contains(&name);
    if facts.lives_of(is_agent).any(|(_, life)| !life.pids.is_empty()) {
        return format!("; {} is running", cni.agent);
    }
    let exit = facts.newest_exit(is_agent);
    exit.map(|(name, _, how)| format!("; {name} {how}")).unwrap_or_default()
}

/// Returns what is wrong with the namespace path that a plugin was passed. This is more specific than the plugin's own
/// message.
fn netns_words(seen: NetnsSeen) -> Option<&'static str> {
    Some(match seen {
        NetnsSeen::Unknown | NetnsSeen::Namespace { .. } => return None,
        NetnsSeen::Missing => "does not exist",
        NetnsSeen::NoNamespace => "is not a network namespace, but a leftover file",
        NetnsSeen::Hidden => {
            "is a namespace on the host, but a plain file for the process that started the plugin: mounts are not \
             propagated (HostToContainer)"
        }
    })
}

/// Returns whether the plugin's message names the refused request. Plugins also send requests that may fail: a refusal
/// is the cause only if the message contains the text of its errno (of any errno, where it is not known) or the error
/// text of the kernel.
fn is_reported(refusal: &NetlinkError, error_text: &str) -> bool {
    let mut errnos = ERRNOS.iter().filter(|(errno, _)| refusal.errno == 0 || refusal.errno == *errno);
    errnos.any(|(_, text)| error_text.contains(text))
        || (!refusal.text.is_empty() && error_text.contains(&refusal.text.to_lowercase()))
}

fn words(plugin: &str, failure: &PluginFailure) -> String {
    let through =
        if failure.speaker == plugin { String::new() } else { format!(" (through {})", failure.speaker) };
    match (&failure.error, failure.signal) {
        (Some(error), _) => {
            let details =
                if error.details.is_empty() { String::new() } else { format!(": {}", error.details) };
            format!("plugin {plugin}{through} failed (code {}): {}{details}", error.code, error.msg)
        }
        (None, 0) => {
            format!("plugin {plugin}{through} exited (code {}) without an error message", failure.code)
        }
        (None, signal) => format!("plugin {plugin}{through} was killed ({})", signal_words(signal)),
    }
}
