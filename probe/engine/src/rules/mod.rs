//! The rules: pure functions from facts to faults, one kind of fault per file.

mod admission;
mod api_answer;
mod api_connect;
mod api_denied;
mod api_listener;
mod api_name;
mod api_route;
mod causes;
mod cni_binary;
mod cni_config;
mod cni_order;
mod cni_plugin;
mod cni_stalled;
mod control_plane;
mod credentials;
mod datapath;
mod kubelet;
mod ovs;
mod pod_cidr;
mod resources;
mod routes;
mod runtime;
mod sandbox;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::facts::Facts;
use crate::limits;
use crate::observation::BootTime;
use crate::reason::Reason;
use crate::verdict::Finding;

pub(crate) use causes::Causes;
pub(crate) use cni_config::{displaced, winner};

/// A fault that holds now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) finding: Finding,
    /// Whether it holds by itself (no file, no listener, no route), as opposed to a failure that is retried.
    pub(crate) state: bool,
    /// Until when it may disappear by itself, because a component has just started. No condition shows it earlier.
    pub(crate) settles: Option<BootTime>,
    /// What may be its cause.
    pub(crate) causes: Causes,
    /// Whether clients have another address that works: it is reported beside the verdict and changes no status.
    pub(crate) degraded: bool,
}

impl Fault {
    fn new(reason: Reason, subject: impl Into<String>, message: String, since: BootTime) -> Self {
        Self {
            finding: Finding {
                reason,
                subject: limits::cut(subject.into(), limits::SUBJECT),
                message: limits::cut(message, limits::MESSAGE),
                since,
            },
            state: false,
            settles: None,
            causes: Causes::None,
            degraded: false,
        }
    }

    /// Appends `words` to the message.
    fn with_note(mut self, words: &str) -> Self {
        let message = format!("{}{words}", self.finding.message);
        self.finding.message = limits::cut(message, limits::MESSAGE);
        self
    }

    /// Marks the fault of one of several addresses of a name, if clients of that name get through by `other`.
    fn degraded(mut self, other: Option<&SocketAddr>) -> Self {
        let Some(other) = other else { return self };
        self.degraded = true;
        self.with_note(&format!("; degraded: {other} of the same name works"))
    }

    fn state(mut self) -> Self {
        self.state = true;
        self
    }

    fn settles(mut self, until: Option<BootTime>) -> Self {
        self.settles = until;
        self
    }

    fn may_come_from(mut self, causes: Causes) -> Self {
        self.causes = causes;
        self
    }
}

/// Returns every fault that holds, in the order of the contract: the lowest layer first.
pub(crate) fn faults(facts: &Facts) -> Vec<Fault> {
    let mut all = Vec::new();
    for rule in [
        control_plane::judge,
        api_listener::judge,
        api_denied::judge,
        api_route::judge,
        api_name::judge,
        api_connect::judge,
        api_answer::judge,
        credentials::judge,
        admission::judge,
        runtime::judge,
        kubelet::judge,
        resources::judge,
        sandbox::judge,
        pod_cidr::judge,
        cni_config::judge,
        cni_order::judge,
        cni_binary::judge,
        ovs::judge,
        cni_plugin::judge,
        cni_stalled::judge,
        routes::judge,
        datapath::judge,
    ] {
        for fault in rule(facts) {
            let other = fault.finding.subject.parse().ok().and_then(|addr| facts.other_way(&addr));
            let fault = fault.degraded(other.as_ref());
            let is_known = |known: &Fault| {
                (known.finding.reason, &known.finding.subject)
                    == (fault.finding.reason, &fault.finding.subject)
            };
            // A state and a connect that confirms it are one fault.
            if !all.iter().any(is_known) {
                all.push(fault);
            }
        }
    }
    // The sort is stable: within a layer the order of the rules counts.
    all.sort_by_key(|fault| fault.finding.reason.layer());
    all
}
