//! Failed connects to API addresses.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::api_listener::{exit_of_server, no_listener};
use super::api_route::no_route;
use super::{Causes, Fault};
use crate::facts::{Facts, Failure, Ledger};
use crate::limits;
use crate::observation::{ProcessClass, SENDS_NOTHING, TargetKind};
use crate::outcome::{Outcome, is_own};
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    facts
        .targets_in_order()
        .into_iter()
        .filter_map(|(addr, ledger)| {
            let unstable = ledger.instability(facts.now);
            let starting = ledger.starting(facts.now);
            let failure = unstable.as_ref().map(|unstable| &unstable.failure);
            let failure = failure.or(ledger.failure.as_ref()).or(starting);
            if let Some(failure) = failure.or(ledger.broken.as_ref()) {
                let (reason, mut words) = verdict(facts, addr, ledger, failure)?;
                if let Some(unstable) = &unstable {
                    words.push_str(&format!("; unstable: {}", frequency(unstable.failures)));
                } else if starting.is_some() {
                    let before = failure.outcome.words();
                    words = format!(
                        "accepts connections again but does not serve requests yet; before: {before}"
                    );
                }
                let fault = Fault::new(
                    reason,
                    addr.to_string(),
                    format!("{} {words}", ledger.label(addr)),
                    failure.since,
                );
                return Some(match reason {
                    Reason::APIServerDown | Reason::APILocalProxyDown => {
                        fault.settles(facts.settling(serves)).may_come_from(Causes::StaticPods)
                    }
                    Reason::APIRouteMissing => fault.may_come_from(Causes::Route),
                    Reason::APITimeout | Reason::APIServiceNotProgrammed | Reason::APIHairpin => {
                        fault.may_come_from(Causes::Reply)
                    }
                    // A server on this host fails in more than one way while its processes restart.
                    Reason::APIServerReset | Reason::APITLSStalled
                        if is_own(addr.ip(), &facts.host.addresses) =>
                    {
                        fault.may_come_from(Causes::StaticPods)
                    }
                    _ => fault,
                });
            }
            let stalled = ledger.stalled.as_ref()?;
            let words =
                "no longer acknowledges data on an established connection, and no client opens a new one";
            let message = format!("{} {words}", ledger.label(addr));
            Some(Fault::new(Reason::APIConnectionStalled, addr.to_string(), message, stalled.since))
        })
        .collect()
}

/// Returns how often an address failed, in steps, so that the message does not change with every failure.
fn frequency(failures: usize) -> String {
    let steps = [20, 10, 5, 2];
    let least = steps.into_iter().find(|step| *step <= failures).unwrap_or(2);
    let minutes = limits::UNSTABLE_WINDOW / (60 * limits::SECOND);
    format!("at least {least} failures in {minutes} min")
}

/// Returns whether processes of this class listen on API addresses of this host.
fn serves(_: &str, class: ProcessClass) -> bool {
    matches!(class, ProcessClass::ApiServer | ProcessClass::Etcd | ProcessClass::Proxy)
}

fn verdict(facts: &Facts, addr: &SocketAddr, ledger: &Ledger, failure: &Failure) -> Option<(Reason, String)> {
    Some(match failure.outcome {
        Outcome::RefusedLocal if ledger.proxy.is_some() => (
            Reason::APILocalProxyDown,
            "refuses connections (ECONNREFUSED): the proxy does not listen on this host".to_string(),
        ),
        Outcome::RefusedLocal if facts.is_control_plane() => {
            (Reason::APIServerDown, no_listener(facts, addr))
        }
        Outcome::RefusedLocal => {
            let exit = exit_of_server(facts, addr, |_, class| class == ProcessClass::Proxy);
            let words =
                "refuses connections (ECONNREFUSED): the node-local proxy to the API server does not listen";
            (Reason::APILocalProxyDown, format!("{words}{exit}"))
        }
        Outcome::RefusedRemote => (
            Reason::APIServerRefused,
            "refuses connections (ECONNREFUSED): TCP reset from the remote host, nothing listens on the port"
                .to_string(),
        ),
        Outcome::RefusedIcmp => refused_by_icmp(facts, ledger, failure),
        Outcome::FilteredIcmp => filtered_by_icmp(facts, failure),
        Outcome::UnreachableNeighbour => {
            let protocol = if addr.is_ipv4() { "ARP" } else { "neighbour discovery" };
            let words = format!(
                "is unreachable (EHOSTUNREACH): no host answers {protocol} for the address or its next hop"
            );
            (Reason::APIVIPUnreachable, words)
        }
        Outcome::NoRoute => (Reason::APIRouteMissing, no_route(facts, addr.ip())),
        Outcome::Timeout | Outcome::GaveUp => {
            if let Some(reason) = failure.dropped.as_deref().filter(|_| failure.is_policy()) {
                let words = format!(
                    "is unreachable: a packet filter on this host drops the SYN (drop reason {reason})"
                );
                return Some((Reason::APIPolicyDenied, words));
            }
            timed_out(facts, addr, ledger)
        }
        Outcome::Reset => {
            (Reason::APIServerReset, "accepts the connection and resets it before a response".to_string())
        }
        Outcome::Stalled => (Reason::APITLSStalled, SENDS_NOTHING.to_string()),
        Outcome::Ok | Outcome::Cancelled | Outcome::Denied | Outcome::NoPort => return None,
    })
}

/// Returns whether this host sent the ICMP message; `None` where the kernel does not keep the sender (ICMPv6).
fn sent_here(facts: &Facts, failure: &Failure) -> Option<bool> {
    failure.from.map(|from| is_own(from, &facts.host.addresses))
}

/// Judges a port-unreachable message without a reset. A packet filter sends it: a closed port sends a reset.
fn refused_by_icmp(facts: &Facts, ledger: &Ledger, failure: &Failure) -> (Reason, String) {
    let is_service = ledger.kind == TargetKind::Service;
    match (sent_here(facts, failure), is_service) {
        (Some(true) | None, true) => (
            Reason::APIServiceNoEndpoints,
            "is a Service address without endpoints: this host rejects it (ICMP port unreachable, no TCP reset)"
                .to_string(),
        ),
        (Some(true), false) => (
            Reason::APIPolicyDenied,
            "is rejected by a packet filter on this host (ICMP port unreachable, no TCP reset)".to_string(),
        ),
        (Some(false) | None, _) => (Reason::APIFirewalled, format!("is rejected by {} (ICMP port unreachable)", sender(failure))),
    }
}

fn filtered_by_icmp(facts: &Facts, failure: &Failure) -> (Reason, String) {
    if sent_here(facts, failure) == Some(true) {
        let words = "is rejected by a packet filter on this host (ICMP administratively prohibited)";
        (Reason::APIPolicyDenied, words.to_string())
    } else {
        (
            Reason::APIFirewalled,
            format!("is rejected by {} (ICMP administratively prohibited)", sender(failure)),
        )
    }
}

fn sender(failure: &Failure) -> String {
    failure.from.map_or_else(|| "a packet filter on the path".to_string(), |from| from.to_string())
}

fn timed_out(facts: &Facts, addr: &SocketAddr, ledger: &Ledger) -> (Reason, String) {
    let other = facts.targets_in_order().into_iter().find(|(other, known)| {
        *other != addr
            && known.kind == TargetKind::Direct
            && known.failure.is_none()
            && known.last_ok.is_some()
    });
    match other {
        Some((direct, _)) if ledger.kind == TargetKind::Service => (
            Reason::APIServiceNotProgrammed,
            format!(
                "is a Service address that does not reply, while the API server accepts connections on {direct}"
            ),
        ),
        Some((direct, _)) if facts.is_control_plane() && is_own(direct.ip(), &facts.host.addresses) => (
            Reason::APIHairpin,
            format!(
                "does not reply to this control-plane node, whose own API server accepts connections on {direct}"
            ),
        ),
        _ => (Reason::APITimeout, "timed out: SYN retransmitted, no reply".to_string()),
    }
}
