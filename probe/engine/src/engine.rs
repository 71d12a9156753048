//! The only door: observations and time in, effects out.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::chain::Chain;
use crate::config::Config;
use crate::evidence::{Facts, Ledger};
use crate::explain::explain;
use crate::hold::{Held, Wanted};
use crate::limits::{self, SECOND};
use crate::observation::{Gap, Mono, Observation, Role, Scope};
use crate::origins;
use crate::reason::{Reason, Side, Status};
use crate::rules::{self, Fault};
use crate::verdict::{ConditionType, Effect, Finding, Report};

/// Clients' failures make the agent ask for itself, at most this often for one address.
const ASK_AGAIN: u64 = SECOND;

/// What was judged last, undamped.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Judged {
    status: Status,
    root: Finding,
    consequences: Vec<Finding>,
    also: Vec<Finding>,
    because: Vec<Finding>,
    /// In the order of [`ConditionType::ALL`].
    wanted: [Wanted; 2],
}

/// See the crate's documentation for the order of calls.
#[derive(Clone, Debug)]
pub struct Engine {
    config: Config,
    start: Mono,
    now: Mono,
    facts: Facts,
    judged: Judged,
    held: [Held; 2],
    effects: VecDeque<Effect>,
    asked: BTreeMap<SocketAddr, Mono>,
    rereads: Vec<Scope>,
    /// When the judgement may change by time alone.
    due: Option<Mono>,
}

impl Engine {
    /// An engine that knows nothing yet.
    pub fn new(config: Config, start: Mono) -> Self {
        let facts = Facts { plugin_limit_ns: config.plugin_limit_ns, ..Facts::default() };
        let judged = judge(&facts, &config, start, start);
        let held = ConditionType::ALL.map(|condition| Held::new(condition, start));
        let mut engine = Self {
            config,
            start,
            now: start,
            facts,
            judged,
            held,
            effects: VecDeque::new(),
            asked: BTreeMap::new(),
            rereads: Vec::new(),
            due: None,
        };
        engine.hold();
        engine.effects.clear();
        engine
    }

    /// Takes one fact. A time before the newest one counts as the newest: time never runs back.
    pub fn observe(&mut self, at: Mono, observation: Observation) {
        self.now = self.now.max(at);
        if let Observation::Lost(lost) = &observation {
            // Asked for anew with every loss: a re-read that is under way may have missed this one.
            if !self.rereads.contains(&lost.scope) {
                self.rereads.push(lost.scope);
                self.effects.push_back(Effect::Reread(lost.scope));
            }
        }
        if let Observation::Reread { scope } = &observation {
            self.rereads.retain(|known| known != scope);
        }
        if let Observation::Remembered(remembered) = &observation {
            for held in &mut self.held {
                remembered.conditions.iter().for_each(|condition| held.remember(condition, self.now));
            }
        }
        let quiet = self.facts.is_quiet(self.now, &observation);
        if matches!(observation, Observation::CniStart(_)) {
            let waits = self.now.plus(limits::WAITS);
            self.due = Some(self.due.map_or(waits, |due| due.min(waits)));
        }
        if let Some(addr) = self.facts.take(self.now, observation) {
            self.ask(addr);
        }
        if !quiet || self.due.is_some_and(|due| due <= self.now) {
            self.rejudge();
        }
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: Mono) {
        self.now = self.now.max(now);
        self.facts.expire(self.now);
        self.rejudge();
    }

    /// Returns the newest time that it was given.
    pub const fn now(&self) -> Mono {
        self.now
    }

    /// When [`Self::tick`] must be called next, if nothing is observed before.
    pub fn next_deadline(&self) -> Option<Mono> {
        let held =
            self.held.iter().zip(&self.judged.wanted).filter_map(|(h, w)| h.next_deadline(w, &self.config));
        let grace = self.start.plus(self.config.start_grace_ns);
        let grace = (self.now < grace).then_some(grace);
        held.chain(grace).chain(self.facts.next_expiry()).filter(|at| *at > self.now).min()
    }

    /// What is to be done; call until it answers `None`.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Everything that is known now.
    pub fn report(&self) -> Report {
        Report {
            role: self.facts.host.role,
            verdict: self.judged.root.clone(),
            status: self.judged.status,
            remedy: explain(self.to_explain()).remedy.to_string(),
            because: self.judged.because.clone(),
            consequences: self.judged.consequences.clone(),
            also: self.judged.also.clone(),
            conditions: self.held.iter().map(|held| held.condition.clone()).collect(),
            evidence: self.facts.lines.iter().cloned().collect(),
            gaps: self.facts.gaps.values().cloned().chain(self.facts.losses.gaps(self.now)).collect(),
            writes: self.facts.writes.clone(),
        }
    }

    /// Returns the reason whose remedy fits: where connects to a proxy fail, it is not the API server that needs a repair.
    fn to_explain(&self) -> Reason {
        let root = &self.judged.root;
        let addr: Option<SocketAddr> = root.subject.parse().ok();
        let is_proxy =
            addr.and_then(|addr| self.facts.targets.get(&addr)).is_some_and(|to| to.proxy.is_some());
        let is_of_server = matches!(root.reason, Reason::APIServerUnhealthy | Reason::APITLSFailed);
        if is_proxy && !is_of_server { Reason::APIProxyRefused } else { root.reason }
    }

    fn ask(&mut self, addr: SocketAddr) {
        if self.asked.get(&addr).is_some_and(|at| self.now.since(*at) < ASK_AGAIN) {
            return;
        }
        if self.asked.len() >= limits::TARGETS {
            self.asked.clear();
        }
        self.asked.insert(addr, self.now);
        self.effects.push_back(Effect::Ask(addr));
    }

    fn rejudge(&mut self) {
        let mut judged = judge(&self.facts, &self.config, self.start, self.now);
        // The same verdict keeps its time: it did not begin anew.
        if (judged.status, judged.root.reason, &judged.root.subject)
            == (self.judged.status, self.judged.root.reason, &self.judged.root.subject)
        {
            judged.root.since = self.judged.root.since.min(judged.root.since);
        }
        let changed = judged.root != self.judged.root
            || judged.status != self.judged.status
            || judged.because != self.judged.because
            || judged.consequences != self.judged.consequences
            || judged.also != self.judged.also;
        self.judged = judged;
        let before = self.effects.len();
        self.hold();
        if changed {
            let report = Box::new(self.report());
            // The verdict before the conditions that follow from it.
            self.effects.insert(before, Effect::Verdict(report));
        }
        self.due = self.next_deadline();
    }

    fn hold(&mut self) {
        for (held, wanted) in self.held.iter_mut().zip(&self.judged.wanted) {
            if held.update(self.now, wanted, &self.config) {
                self.effects.push_back(Effect::Condition(held.condition.clone()));
            }
        }
    }
}

/// One side's answer without a fault.
enum Proof {
    Good(String),
    /// There was one, and events were lost since.
    Lost(String),
    None(String),
}

fn judge(facts: &Facts, config: &Config, start: Mono, now: Mono) -> Judged {
    if let Some(at) = facts.stopping {
        return plain(Reason::AgentStopping, "the agent is being stopped".to_string(), at);
    }
    if let (Role::Etcd | Role::None, Some(at)) = (facts.host.role, facts.snapshot_done) {
        let role = if facts.host.role == Role::Etcd {
            "an etcd host without a kubelet"
        } else {
            "no Kubernetes node"
        };
        let mut judged = plain(Reason::NotApplicable, format!("this host is {role}"), at);
        // Nothing of a node is here, and its etcd matters to others all the same.
        judged.also = origins::etcd(facts).into_iter().collect();
        return judged;
    }
    // Half of the state at start proves nothing: a configuration may be read before the role is known.
    if facts.snapshot_done.is_none() {
        return plain(Reason::Learning, "the state at start is being read".to_string(), start);
    }
    let proofs = [network_proof(facts, now), api_proof(facts, now)];
    let (degraded, faults): (Vec<_>, Vec<_>) =
        rules::faults(facts).into_iter().partition(|fault| fault.degraded);
    let degraded = degraded.into_iter().map(|fault| fault.finding);
    let Some(chain) = Chain::new(faults) else {
        let mut judged = without_fault(facts, config, start, now, proofs);
        judged.also.extend(degraded);
        return judged;
    };
    let [network, api] = proofs;
    let grace_over = now >= start.plus(config.start_grace_ns);
    let wanted = [
        wanted(&chain, |side| side != Side::Api, network, facts, grace_over, now),
        wanted(&chain, |side| side == Side::Api, api, facts, grace_over, now),
    ];
    let because = origins::of(&chain.root, facts);
    let findings = |faults: Vec<Fault>| faults.into_iter().map(|fault| fault.finding).collect::<Vec<_>>();
    let mut also = findings(chain.also);
    also.extend(degraded);
    // What stands behind a fault that is not the root is a fact of its own.
    also.extend(rules::displaced(facts).filter(|displaced| !because.contains(displaced)));
    Judged {
        status: Status::False,
        root: chain.root.finding,
        consequences: findings(chain.consequences),
        also,
        because,
        wanted,
    }
}

/// What one condition should say when there is any fault.
fn wanted(
    chain: &Chain,
    mine: impl Fn(Side) -> bool,
    proof: Proof,
    facts: &Facts,
    grace_over: bool,
    now: Mono,
) -> Wanted {
    let mine: Vec<_> = chain.all().filter(|fault| mine(fault.finding.reason.side())).collect();
    // What may go away by itself within moments is told when nothing else is.
    let stuck = mine.iter().find(|fault| fault.settles.is_none());
    let Some(fault) = stuck.or(mine.first()) else {
        return unproven(proof, facts, grace_over, now);
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

fn unproven(proof: Proof, facts: &Facts, grace_over: bool, now: Mono) -> Wanted {
    let (status, reason, message) = match proof {
        Proof::Good(message) => (Status::True, Reason::NetworkReady, message),
        Proof::Lost(what) => (Status::Unknown, Reason::ProbeDegraded, what),
        Proof::None(missing) if grace_over || facts.gaps.values().any(|gap| gap.blind) => {
            (Status::Unknown, Reason::ProbeDegraded, degraded(facts, &missing))
        }
        Proof::None(missing) => (Status::Unknown, Reason::Learning, missing),
    };
    Wanted { status, reason, message, at_once: true, since: now, not_before: Mono::default() }
}

fn without_fault(facts: &Facts, config: &Config, start: Mono, now: Mono, proofs: [Proof; 2]) -> Judged {
    let grace_over = now >= start.plus(config.start_grace_ns);
    let mut wanted = proofs.map(|proof| unproven(proof, facts, grace_over, now));
    // Pods get networks, though not all that they should.
    let displaced = rules::displaced(facts).filter(|_| wanted[0].status == Status::True);
    if let Some(displaced) = &displaced {
        wanted[0].reason = displaced.reason;
        wanted[0].message.clone_from(&displaced.message);
    }
    // The weaker answer is the node's.
    let weaker = if wanted[0].status == Status::True { &wanted[1] } else { &wanted[0] };
    let message = match weaker.status {
        Status::True => limits::cut(format!("{}; {}", wanted[0].message, wanted[1].message), limits::MESSAGE),
        _ => weaker.message.clone(),
    };
    let root = match displaced {
        Some(displaced) if weaker.status == Status::True => displaced,
        _ => Finding { reason: weaker.reason, subject: String::new(), message, since: now },
    };
    Judged {
        status: weaker.status,
        root,
        consequences: Vec::new(),
        also: Vec::new(),
        because: Vec::new(),
        wanted,
    }
}

/// A verdict that is the same on both sides and no fault.
fn plain(reason: Reason, message: String, since: Mono) -> Judged {
    let wanted = Wanted {
        status: Status::Unknown,
        reason,
        message: message.clone(),
        at_once: true,
        since,
        not_before: Mono::default(),
    };
    Judged {
        status: Status::Unknown,
        root: Finding { reason, subject: String::new(), message, since },
        consequences: Vec::new(),
        also: Vec::new(),
        because: Vec::new(),
        wanted: [wanted.clone(), wanted],
    }
}

fn network_proof(facts: &Facts, now: Mono) -> Proof {
    // Plugins are processes, too: their starts and ends are lost with those of others.
    let blinds = |scope| facts.losses.blinds(scope, now);
    if let Some(how) = blinds(Scope::Cni).or_else(|| blinds(Scope::Processes)) {
        return Proof::Lost(format!("events of CNI runs {how}"));
    }
    // A configuration alone sets up no pod network: whether the kubelet and the runtime run decides as much.
    if facts.hides_processes() {
        return Proof::None("whether the kubelet and the container runtime run is not known".to_string());
    }
    match (&facts.config, facts.snapshot_done) {
        (Some((config, _)), Some(_)) if facts.contradicted.is_some() => {
            let plugin = facts.contradicted.as_deref().unwrap_or_default();
            let message = format!(
                "pods get networks by the plugin {plugin}, though {} holds no configuration: the runtime reads another \
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
            let message = format!("{} holds a valid network configuration", config.dir);
            Proof::Good(limits::cut(message, limits::MESSAGE))
        }
        _ if facts.gaps.contains_key(Gap::CNI_CONFIG_DENIED) => {
            Proof::None("whether the CNI configuration and its plugins are valid is not known".to_string())
        }
        _ => Proof::None("the CNI configuration was not read yet".to_string()),
    }
}

fn api_proof(facts: &Facts, now: Mono) -> Proof {
    if let Some(how) = facts.losses.blinds(Scope::Sockets, now) {
        return Proof::Lost(format!("events of connects {how}"));
    }
    if facts.targets.is_empty() {
        return Proof::None("no address of the API server is known".to_string());
    }
    let mut answered = facts.targets_in_order();
    answered.retain(|(_, ledger)| ledger.last_ok.is_some());
    if answered.is_empty() {
        return Proof::None("no connect to the API server has ended yet".to_string());
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

fn degraded(facts: &Facts, missing: &str) -> String {
    let gap = facts.gaps.values().find(|gap| gap.blind).or_else(|| facts.gaps.values().next());
    let because = gap.map(|Gap { signal, why, .. }| format!(" ({signal}: {why})")).unwrap_or_default();
    limits::cut(format!("{missing}{because}"), limits::MESSAGE)
}
