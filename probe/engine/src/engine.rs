//! The entry point: observations and time in, effects out.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::ToString as _;
use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::config::Config;
use crate::explain::explain;
use crate::facts::Facts;
use crate::hold::Held;
use crate::judge::Judgement;
use crate::limits::{self, SECOND};
use crate::observation::{BootTime, Observation, Scope};
use crate::reason::Reason;
use crate::verdict::{ConditionType, Effect, Report};

/// The shortest time between two requests to probe one address, nanoseconds. Failures of clients cause them.
const ASK_AGAIN: u64 = SECOND;

/// The engine. See the crate's documentation for the order of calls.
#[derive(Clone, Debug)]
pub struct Engine {
    config: Config,
    start: BootTime,
    now: BootTime,
    facts: Facts,
    judged: Judgement,
    held: [Held; 2],
    effects: VecDeque<Effect>,
    asked: BTreeMap<SocketAddr, BootTime>,
    rereads: Vec<Scope>,
    /// When the judgement may change although nothing is observed.
    due: Option<BootTime>,
}

impl Engine {
    /// Returns an engine for an agent that is started at `start`.
    pub fn new(config: Config, start: BootTime) -> Self {
        let facts = Facts { plugin_limit_ns: config.plugin_limit_ns, ..Facts::default() };
        let judged = Judgement::of(&facts, &config, start, start);
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

    /// Takes one observation. A time before the newest one counts as the newest: time never runs backwards.
    pub fn observe(&mut self, at: BootTime, observation: Observation) {
        self.now = self.now.max(at);
        if let Observation::Lost(lost) = &observation {
            // One request covers later losses until the state was read.
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
        if matches!(observation, Observation::CniStart(_)) {
            let waits = self.now.plus(limits::WAITS);
            self.due = Some(self.due.map_or(waits, |due| due.min(waits)));
        }
        let taken = self.facts.take(self.now, observation);
        if let Some(addr) = taken.ask {
            self.ask(addr);
        }
        if taken.is_news || self.due.is_some_and(|due| due <= self.now) {
            self.rejudge();
        }
    }

    /// Advances time to `now`.
    pub fn tick(&mut self, now: BootTime) {
        self.now = self.now.max(now);
        self.facts.expire(self.now);
        self.rejudge();
    }

    /// Returns the newest time that was passed in.
    pub const fn now(&self) -> BootTime {
        self.now
    }

    /// Returns when [`Self::tick`] has to be called next, if nothing is observed before.
    pub fn next_deadline(&self) -> Option<BootTime> {
        let held =
            self.held.iter().zip(&self.judged.wanted).filter_map(|(h, w)| h.next_deadline(w, &self.config));
        let grace = self.start.plus(self.config.start_grace_ns);
        let grace = (self.now < grace).then_some(grace);
        held.chain(grace).chain(self.facts.next_deadline()).filter(|at| *at > self.now).min()
    }

    /// Returns the next thing to do. Call it until it returns `None`.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Returns everything that is known now.
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

    /// Returns the reason whose remedy fits: if connects to a proxy fail, the proxy needs the repair and not the API server.
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
        let mut judged = Judgement::of(&self.facts, &self.config, self.start, self.now);
        judged.continue_from(&self.judged);
        let changed = !judged.is_same_report(&self.judged);
        self.judged = judged;
        let before = self.effects.len();
        self.hold();
        if changed {
            let report = Box::new(self.report());
            // The verdict precedes the conditions that follow from it.
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
