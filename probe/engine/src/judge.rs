//! The judgement of the facts: one root cause with what follows from it, and what each condition should show.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::chain::Chain;
use crate::config::Config;
use crate::facts::{Facts, Ledger};
use crate::hold::Wanted;
use crate::limits;
use crate::observation::{BootTime, Gap, Role, Scope};
use crate::origins;
use crate::reason::{Reason, Side, Status};
use crate::rules::{self, Fault};
use crate::verdict::Finding;

/// What is judged at one time, undamped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub(crate) status: Status,
    pub(crate) root: Finding,
    pub(crate) consequences: Vec<Finding>,
    pub(crate) also: Vec<Finding>,
    pub(crate) because: Vec<Finding>,
    /// What each condition should show, in the order of [`crate::ConditionType::ALL`].
    pub(crate) wanted: [Wanted; 2],
}

/// The present time, and the end of the grace period after the start of the agent.
#[derive(Clone, Copy, Debug)]
struct Clock {
    now: BootTime,
    grace_until: BootTime,
}

impl Clock {
    fn is_grace_over(&self) -> bool {
        self.now >= self.grace_until
    }
}

impl Judgement {
    /// Judges `facts` at `now`, for an agent that was started at `start`.
    pub(crate) fn of(facts: &Facts, config: &Config, start: BootTime, now: BootTime) -> Self {
        if let Some(at) = facts.stopping {
            return Self::unknown(Reason::AgentStopping, "the agent is being stopped".to_string(), at);
        }
        if let (Role::Etcd | Role::None, Some(at)) = (facts.host.role, facts.snapshot_done) {
            let role = if facts.host.role == Role::Etcd {
                "an etcd host without a kubelet"
            } else {
                "not a Kubernetes node"
            };
            let judged = Self::unknown(Reason::NotApplicable, format!("this host is {role}"), at);
            // Other hosts need its etcd.
            return Self { also: origins::etcd(facts).into_iter().collect(), ..judged };
        }
        // Half of the state at start proves nothing: a configuration may be read before the role is known.
        if facts.snapshot_done.is_none() {
            let message = "the state at start is still being read".to_string();
            return Self::unknown(Reason::Learning, message, start);
        }
        let clock = Clock { now, grace_until: start.plus(config.start_grace_ns) };
        let (degraded, faults): (Vec<_>, Vec<_>) =
            rules::faults(facts).into_iter().partition(|fault| fault.degraded);
        let degraded = degraded.into_iter().map(|fault| fault.finding);
        let mut judged = match Chain::new(faults) {
            Some(chain) => Self::of_chain(facts, chain, clock),
            None => Self::without_fault(facts, clock),
        };
        judged.also.extend(degraded);
        judged
    }

    /// Returns whether both report the same, whatever the conditions should show.
    pub(crate) fn is_same_report(&self, other: &Self) -> bool {
        (self.status, &self.root, &self.because, &self.consequences, &self.also)
            == (other.status, &other.root, &other.because, &other.consequences, &other.also)
    }

    /// Keeps the time of a verdict that continues.
    pub(crate) fn continue_from(&mut self, before: &Self) {
        let of = |judged: &Self| (judged.status, judged.root.reason);
        if of(self) == of(before) && self.root.subject == before.root.subject {
            self.root.since = before.root.since.min(self.root.since);
        }
    }

    fn of_chain(facts: &Facts, chain: Chain, clock: Clock) -> Self {
        let wanted = [
            wanted(&chain, |side| side != Side::Api, || network_proof(facts, clock.now), facts, clock),
            wanted(&chain, |side| side == Side::Api, || api_proof(facts, clock.now), facts, clock),
        ];
        let because = origins::of(&chain.root, facts);
        let findings = |faults: Vec<Fault>| faults.into_iter().map(|fault| fault.finding).collect::<Vec<_>>();
        let mut also = findings(chain.also);
        // The origin of a fault that is not the root is an independent finding.
        also.extend(rules::displaced(facts).filter(|displaced| !because.contains(displaced)));
        Self {
            status: Status::False,
            root: chain.root.finding,
            consequences: findings(chain.consequences),
            also,
            because,
            wanted,
        }
    }

    fn without_fault(facts: &Facts, clock: Clock) -> Self {
        let proofs = [network_proof(facts, clock.now), api_proof(facts, clock.now)];
        let mut wanted = proofs.map(|proof| unproven(proof, facts, clock));
        // Pods get networks, but not all that they should.
        let displaced = rules::displaced(facts).filter(|_| wanted[0].status == Status::True);
        if let Some(displaced) = &displaced {
            wanted[0].reason = displaced.reason;
            wanted[0].message.clone_from(&displaced.message);
        }
        // The verdict is the weaker of the two.
        let weaker = if wanted[0].status == Status::True { &wanted[1] } else { &wanted[0] };
        let message = match weaker.status {
            Status::True => {
                limits::cut(format!("{}; {}", wanted[0].message, wanted[1].message), limits::MESSAGE)
            }
            _ => weaker.message.clone(),
        };
        let root = match displaced {
            Some(displaced) if weaker.status == Status::True => displaced,
            _ => Finding { reason: weaker.reason, subject: String::new(), message, since: clock.now },
        };
        let status = weaker.status;
        Self { status, root, consequences: Vec::new(), also: Vec::new(), because: Vec::new(), wanted }
    }

    /// Neither ready nor a fault, for both conditions.
    fn unknown(reason: Reason, message: String, since: BootTime) -> Self {
        let wanted = Wanted {
            status: Status::Unknown,
            reason,
            message: message.clone(),
            at_once: true,
            since,
            not_before: BootTime::default(),
        };
        Self {
            status: Status::Unknown,
            root: Finding { reason, subject: String::new(), message, since },
            consequences: Vec::new(),
            also: Vec::new(),
            because: Vec::new(),
            wanted: [wanted.clone(), wanted],
        }
    }
}

/// What is known of one side that has no fault.
enum Proof {
    /// It works.
    Good(String),
    /// It worked, and events were lost since.
    Lost(String),
    /// Nothing proves it; what is missing.
    None(String),
}

/// Returns what a condition should show while there is any fault.
fn wanted(
    chain: &Chain,
    is_mine: impl Fn(Side) -> bool,
    proof: impl FnOnce() -> Proof,
    facts: &Facts,
    clock: Clock,
) -> Wanted {
    let mine: Vec<_> = chain.all().filter(|fault| is_mine(fault.finding.reason.side())).collect();
    // A fault that may disappear within moments is shown only when there is no other.
    let lasting = mine.iter().find(|fault| fault.settles.is_none());
    let Some(fault) = lasting.or(mine.first()) else {
        return unproven(proof(), facts, clock);
    };
    let mut message = fault.finding.message.clone();
    if chain.follows(fault) {
        let root = &chain.root.finding;
        let because = format!("; because {}: {}", root.reason, root.subject);
        message = limits::cut(message, limits::MESSAGE - because.len().min(limits::MESSAGE / 2));
        message = limits::cut(message + &because, limits::MESSAGE);
    }
    Wanted {
        status: Status::False,
        reason: fault.finding.reason,
        message,
        at_once: fault.state,
        since: fault.finding.since,
        not_before: fault.settles.unwrap_or_default(),
    }
}

fn unproven(proof: Proof, facts: &Facts, clock: Clock) -> Wanted {
    let (status, reason, message) = match proof {
        Proof::Good(message) => (Status::True, Reason::NetworkReady, message),
        Proof::Lost(what) => (Status::Unknown, Reason::ProbeDegraded, what),
        Proof::None(missing) if clock.is_grace_over() || facts.gaps.values().any(|gap| gap.blind) => {
            (Status::Unknown, Reason::ProbeDegraded, with_gap(facts, &missing))
        }
        Proof::None(missing) => (Status::Unknown, Reason::Learning, missing),
    };
    Wanted { status, reason, message, at_once: true, since: clock.now, not_before: BootTime::default() }
}

fn network_proof(facts: &Facts, now: BootTime) -> Proof {
    // Plugins are processes, too: their starts and exits are lost with those of others.
    let blinds = |scope| facts.losses.blinds(scope, now);
    if let Some(how) = blinds(Scope::Cni).or_else(|| blinds(Scope::Processes)) {
        return Proof::Lost(format!("events of CNI runs {how}"));
    }
    // A configuration alone does not set up pod networks: the kubelet and the runtime have to run as well.
    if facts.hides_processes() {
        return Proof::None("it is not known whether the kubelet and the container runtime run".to_string());
    }
    match (&facts.config, facts.snapshot_done) {
        (Some((config, _)), Some(_)) if facts.contradicted.is_some() => {
            let plugin = facts.contradicted.as_deref().unwrap_or_default();
            let message = format!(
                "the plugin {plugin} sets up pod networks although {} contains no configuration: the runtime reads another \
                 directory (--cni-conf-dir)",
                config.dir
            );
            Proof::Good(limits::cut(message, limits::MESSAGE))
        }
        (Some((config, _)), Some(_)) if config.files.is_empty() => {
            // Without files there is proof only if the runtime reports a ready network.
            let who = facts.runtime_status().map_or("the runtime", |(status, _)| status.runtime.as_str());
            let message = format!("{who} reports that its network is ready");
            Proof::Good(limits::cut(message, limits::MESSAGE))
        }
        (Some((config, _)), Some(_)) => {
            let message = format!("{} contains a valid network configuration", config.dir);
            Proof::Good(limits::cut(message, limits::MESSAGE))
        }
        _ if facts.gaps.contains_key(Gap::CNI_CONFIG_DENIED) => {
            Proof::None("it is not known whether the CNI configuration and its plugins are valid".to_string())
        }
        _ => Proof::None("the CNI configuration has not been read yet".to_string()),
    }
}

fn api_proof(facts: &Facts, now: BootTime) -> Proof {
    if let Some(how) = facts.losses.blinds(Scope::Sockets, now) {
        return Proof::Lost(format!("events of connects {how}"));
    }
    if facts.targets.is_empty() {
        return Proof::None("no address of the API server is known".to_string());
    }
    let mut answered = facts.targets_in_order();
    answered.retain(|(_, ledger)| ledger.last_ok.is_some());
    if answered.is_empty() {
        return Proof::None("no connection attempt to the API server has completed yet".to_string());
    }
    // A degraded address is listed with its fault.
    if answered.iter().any(|(_, ledger)| ledger.failure.is_none()) {
        answered.retain(|(_, ledger)| ledger.failure.is_none());
    }
    let shown = |(addr, ledger): (&SocketAddr, &Ledger)| match &ledger.proxy {
        Some(proxy) => format!("{addr} (the proxy {proxy})"),
        None => addr.to_string(),
    };
    let answered: Vec<_> = answered.into_iter().map(shown).collect();
    Proof::Good(limits::cut(
        format!("the API server accepts connections on {}", answered.join(", ")),
        limits::MESSAGE,
    ))
}

/// Returns what is missing with the gap that may be the reason.
fn with_gap(facts: &Facts, missing: &str) -> String {
    let gap = facts.gaps.values().find(|gap| gap.blind).or_else(|| facts.gaps.values().next());
    let because = gap.map(|Gap { signal, why, .. }| format!(" ({signal}: {why})")).unwrap_or_default();
    limits::cut(format!("{missing}{because}"), limits::MESSAGE)
}
