//! One rule per file: from facts to faults. A rule is a pure function; it knows no other rule.

mod api_answer;
mod api_connect;
mod api_denied;
mod api_listener;
mod api_route;
mod cni_binary;
mod cni_config;
mod cni_plugin;
mod cni_stalled;
mod control_plane;
mod datapath;
mod ovs;
mod resources;
mod runtime;

use alloc::string::String;
use alloc::vec::Vec;

use crate::evidence::Facts;
use crate::limits;
use crate::observation::Mono;
use crate::reason::{Reason, Side};
use crate::verdict::Finding;

/// A fault that holds now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) finding: Finding,
    /// Holds by itself (no file, no listener, no route), as against something that is tried again.
    pub(crate) state: bool,
    /// A fault of this side may be its cause. API → CNI only: pods of the host's network, the control plane
    /// among them, are started whatever the CNI does, so CNI is never the cause of an API fault.
    pub(crate) may_come_from: Option<Side>,
    /// How near to the ground it lies: of two independent faults the lower one is told first.
    pub(crate) depth: u8,
}

/// Depths, in the order of the contract: API path → runtime → configuration → plugin → datapath.
mod depth {
    pub(super) const API: u8 = 0;
    pub(super) const RUNTIME: u8 = 1;
    pub(super) const CONFIGURATION: u8 = 2;
    pub(super) const PLUGIN: u8 = 3;
    pub(super) const DATAPATH: u8 = 4;
}

impl Fault {
    fn new(reason: Reason, subject: impl Into<String>, message: String, since: Mono) -> Self {
        let depth = match reason.side() {
            Side::Api => depth::API,
            _ => depth::CONFIGURATION,
        };
        Self {
            finding: Finding {
                reason,
                subject: limits::cut(subject.into(), limits::SUBJECT),
                message: limits::cut(message, limits::MESSAGE),
                since,
            },
            state: false,
            may_come_from: None,
            depth,
        }
    }

    fn state(mut self) -> Self {
        self.state = true;
        self
    }

    fn may_come_from(mut self, side: Side) -> Self {
        self.may_come_from = Some(side);
        self
    }

    fn at_depth(mut self, depth: u8) -> Self {
        self.depth = depth;
        self
    }
}

/// Every fault that holds, in the order of the contract; the first is nearest to the ground.
pub(crate) fn faults(facts: &Facts) -> Vec<Fault> {
    let mut all = Vec::new();
    for rule in [
        control_plane::judge,
        api_listener::judge,
        api_denied::judge,
        api_route::judge,
        api_connect::judge,
        api_answer::judge,
        runtime::judge,
        resources::judge,
        cni_config::judge,
        cni_binary::judge,
        ovs::judge,
        cni_plugin::judge,
        cni_stalled::judge,
        datapath::judge,
    ] {
        for fault in rule(facts) {
            let is_known = |known: &Fault| {
                (known.finding.reason, &known.finding.subject)
                    == (fault.finding.reason, &fault.finding.subject)
            };
            // What a state shows and a connect confirms is one fault.
            if !all.iter().any(is_known) {
                all.push(fault);
            }
        }
    }
    // Stable: within one depth the rules' own order stands.
    all.sort_by_key(|fault| fault.depth);
    all
}
