//! API addresses that fail intermittently: their recent states, and when they count as stable again.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::mem;

use super::api::{Failure, Ledger, same};
use crate::limits;
use crate::memory::Memory;
use crate::observation::BootTime;
use crate::outcome::Outcome;

/// A connect that succeeded after others had failed.
#[derive(Clone, Debug)]
pub(super) struct Cure {
    pub(super) at: BootTime,
    /// How they had failed.
    failure: Failure,
    /// Whether a request of the agent was served since.
    pub(super) served: bool,
}

impl Cure {
    pub(super) const fn new(at: BootTime, failure: Failure) -> Self {
        Self { at, failure, served: false }
    }

    /// Returns until when a server that starts may accept connections that it does not answer.
    fn grace_until(&self) -> BootTime {
        self.at.plus(limits::RESTART)
    }
}

impl Memory for Cure {
    fn deadlines(&self, _now: BootTime, at: &mut dyn FnMut(BootTime)) {
        at(self.grace_until());
    }
}

/// What an address looks like to the node's clients.
#[derive(Clone, Debug)]
enum Phase {
    /// Connections are accepted, and there is no evidence that the server cannot serve. `serves`: since when it is known to
    /// serve.
    Works { serves: Option<BootTime> },
    /// Connections are accepted, and the server answers that it cannot serve.
    Unwell,
    /// Connections fail, or are closed before an answer.
    Fails(Failure),
}

impl Phase {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fails(one), Self::Fails(other)) => same(one.outcome, other.outcome),
            (one, other) => mem::discriminant(one) == mem::discriminant(other),
        }
    }

    const fn works(&self) -> bool {
        matches!(self, Self::Works { .. })
    }
}

/// Returns when an address that has accepted connections `since` then began to serve. If no request of the agent was served,
/// the server may still be starting and may exit before it serves.
fn began(since: BootTime, serves: Option<BootTime>) -> BootTime {
    serves.unwrap_or(since.plus(limits::RESTART))
}

/// The newest phases of one address and when each began, from its first failure on.
#[derive(Clone, Debug, Default)]
pub(super) struct Phases(VecDeque<(BootTime, Phase)>);

/// An address whose phases alternate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Instability {
    /// How connections fail; of several ways, the most specific one. Its time is that of the first failure.
    pub(crate) failure: Failure,
    /// How many times it began to fail, or to fail in another way, within [`limits::UNSTABLE_WINDOW`].
    pub(crate) failures: usize,
    /// When it counts as stable again if it works, or fails in a single way, until then.
    until: BootTime,
}

/// A period in which an address did not work.
#[derive(Debug)]
struct Episode<'a> {
    since: BootTime,
    /// Its end, or the newest change within it.
    until: BootTime,
    /// One for each way in which connections failed, in order.
    failures: Vec<&'a Failure>,
    /// The longest time that the address served before the next period began, nanoseconds.
    served_ns: u64,
}

impl Episode<'_> {
    /// Returns the most specific failure.
    fn worst(&self) -> Option<&Failure> {
        self.failures.iter().copied().min_by_key(|failure| rank(failure.outcome))
    }
}

/// Returns the rank of an outcome, most specific first: a closed port proves that nothing listens, whatever else a server
/// that restarts repeatedly shows.
const fn rank(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::RefusedLocal | Outcome::RefusedRemote => 0,
        Outcome::Reset => 1,
        _ => 2,
    }
}

impl Phases {
    /// Starts a new working phase if the address works now: the server was replaced without a failed connect.
    fn work_anew(&mut self, at: BootTime) {
        if matches!(self.0.back(), Some((since, Phase::Works { .. })) if at.since(*since) >= limits::TOGETHER)
        {
            self.push(at, Phase::Works { serves: None });
        }
    }

    fn push(&mut self, at: BootTime, phase: Phase) {
        if self.0.len() >= limits::PHASES {
            self.0.pop_front();
        }
        self.0.push_back((at, phase));
    }

    fn enter(&mut self, at: BootTime, phase: Phase) {
        let is_news = match (self.0.back_mut(), &phase) {
            (Some((_, Phase::Works { serves })), Phase::Works { serves: now }) => {
                *serves = serves.or(*now);
                false
            }
            (Some((_, newest)), _) => !newest.is_same(&phase),
            (None, _) => !phase.works(),
        };
        if is_news {
            self.push(at, phase);
        }
    }

    /// Removes the newest phase if it is a working one: it was a server that accepts connections before it answers.
    fn retract(&mut self) {
        self.0.pop_back_if(|(_, newest)| newest.works());
    }

    /// Forgets the phases that began since then, if it works now.
    fn forgive(&mut self, since: BootTime) {
        if self.0.back().is_some_and(|(_, newest)| newest.works()) {
            self.0.retain(|(at, _)| *at < since);
        }
    }

    /// Returns the periods within the window in which the address did not work.
    fn episodes(&self, now: BootTime) -> Vec<Episode<'_>> {
        let mut episodes: Vec<Episode<'_>> = Vec::new();
        let mut is_open = false;
        let ends = self.0.iter().skip(1).map(|(end, _)| Some(*end)).chain([None]);
        for ((since, phase), end) in self.0.iter().zip(ends) {
            if end.is_some_and(|end| now.since(end) >= limits::UNSTABLE_WINDOW) {
                continue;
            }
            if let (true, Some(episode)) = (is_open, episodes.last_mut()) {
                episode.until = *since;
            }
            let failure = match phase {
                Phase::Works { serves } => {
                    let lasted = end.map(|end| end.since(*since));
                    // A connect that is accepted and reset at once looks briefly like one that works.
                    is_open &= lasted.is_some_and(|lasted| lasted < limits::UNSTABLE_BLINK);
                    if let (false, Some(before), Some(end)) = (is_open, episodes.last_mut(), end) {
                        before.served_ns = before.served_ns.max(end.since(began(*since, *serves)));
                    }
                    continue;
                }
                Phase::Unwell => None,
                Phase::Fails(failure) => Some(failure),
            };
            if !is_open {
                episodes.push(Episode { since: *since, until: *since, failures: Vec::new(), served_ns: 0 });
                is_open = true;
            }
            episodes.last_mut().into_iter().for_each(|episode| episode.failures.extend(failure));
        }
        episodes
    }

    /// Returns the longest time that it failed in one way before the newest phase, nanoseconds.
    fn longest_failure(&self) -> u64 {
        let fails = self.0.iter().zip(self.0.iter().skip(1)).filter(|((_, phase), _)| !phase.works());
        fails.map(|((since, _), (end, _))| end.since(*since)).max().unwrap_or_default()
    }

    /// See [`Ledger::instability`].
    fn instability(&self, now: BootTime) -> Option<Instability> {
        let episodes = self.episodes(now);
        let long =
            || episodes.iter().filter(|episode| episode.until.since(episode.since) >= limits::UNSTABLE_AWAY);
        let newest = episodes.last()?;
        let follows = |episode: &Episode<'_>| {
            episode.since < newest.since && newest.since.since(episode.since) <= limits::UNSTABLE_CYCLE
        };
        let often = episodes.iter().rev().nth(limits::UNSTABLE_OFTEN - 1).is_some_and(follows);
        let in_many_ways = long().any(|episode| episode.failures.len() >= limits::CRASHES);
        // Outages of different kinds are different faults, however soon they follow each other.
        let alike = |episode: &&Episode<'_>| match (episode.worst(), newest.worst()) {
            (Some(one), Some(other)) => same(one.outcome, other.outcome),
            _ => false,
        };
        let again = long().filter(alike).count() >= limits::CRASHES;
        if !often && !in_many_ways && !again && !long().any(follows) {
            return None;
        }
        let (since, phase) = self.0.back()?;
        let (from, longest_ns) = match phase {
            // How long it served between other faults is no measure of this one.
            Phase::Works { serves } => {
                let of_this = episodes.iter().filter(|episode| episode.worst().is_none() || alike(episode));
                let served_ns = of_this.map(|episode| episode.served_ns).max().unwrap_or_default();
                (began(*since, *serves), served_ns)
            }
            _ => (*since, self.longest_failure()),
        };
        // A condition adds its own clean time.
        let hold = (longest_ns.saturating_mul(5) / 4).min(limits::UNSTABLE_WINDOW);
        let until = from.plus(hold).max(since.plus(limits::UNSTABLE_REST));
        if until <= now {
            return None;
        }
        let worst = episodes.iter().filter_map(Episode::worst).min_by_key(|failure| rank(failure.outcome))?;
        let failure = Failure { since: episodes.first()?.since, ..worst.clone() };
        let failures = episodes.iter().map(|episode| episode.failures.len()).sum();
        Some(Instability { failure, failures, until })
    }
}

impl Memory for Phases {
    fn deadlines(&self, now: BootTime, at: &mut dyn FnMut(BootTime)) {
        let until = self.instability(now).map(|unstable| unstable.until);
        let ends = self.0.iter().skip(1).map(|(end, _)| end.plus(limits::UNSTABLE_WINDOW));
        ends.chain(until).for_each(at);
    }
}

impl Ledger {
    /// Returns how connects failed until recently, if they are accepted again and the server does not serve yet: a server that
    /// starts listens before it answers.
    pub(crate) fn starting(&self, now: BootTime) -> Option<&Failure> {
        let cure = self.cure.as_ref().filter(|cure| !cure.served && now < cure.grace_until())?;
        let serves = self.broken.is_none() && self.unanswered.is_none() && !self.is_unwell();
        (self.failure.is_none() && !serves).then_some(&cure.failure)
    }

    /// Takes a connection that the server closed after it had answered on it. Several at once mean that its process exited.
    /// That may be the only evidence of a crash-looping server, if no client connects before the next process listens.
    pub(super) fn connection_ended(&mut self, at: BootTime) {
        let last = self.last_end.replace(at);
        if last.is_some_and(|last| at.since(last) < limits::TOGETHER) && self.instability(at).is_some() {
            self.phases.work_anew(at);
            self.cure.iter_mut().for_each(|cure| *cure = Cure::new(at, cure.failure.clone()));
        }
    }

    /// Records the present state of the address.
    pub(super) fn enter_phase(&mut self, at: BootTime) {
        if self.starting(at).is_some() {
            self.phases.retract();
        }
        let phase = match self.failure.as_ref().or(self.starting(at)).or(self.broken.as_ref()) {
            Some(failure) => Phase::Fails(failure.clone()),
            None if self.works() => {
                let serves = self.cure.as_ref().is_none_or(|cure| cure.served);
                Phase::Works { serves: serves.then_some(at) }
            }
            None if self.last_ok.is_some() => Phase::Unwell,
            None => return,
        };
        self.phases.enter(at, phase);
    }

    /// Returns whether a failure of the address is remembered.
    pub(super) fn has_failed(&self) -> bool {
        !self.phases.0.is_empty()
    }

    /// Forgets an outage that has ended and was caused by an orderly restart: the server exited at `stopped`, and may have
    /// closed its port before that.
    pub(super) fn forgive(&mut self, stopped: BootTime) {
        self.phases.forgive(stopped.minus(limits::RESTART));
    }

    /// Returns the instability of the address at `now`; `None` if it works, or fails in a single way.
    ///
    /// An address is unstable if it fails again soon after it worked, fails three times in the same way within minutes, or fails
    /// in three ways in one period. Failures as short as those of a rolling update behind a load balancer count only if there are
    /// more of them within a minute than there are replicas. The address is stable again once it has worked, or failed in a
    /// single way, for longer than before.
    pub(crate) fn instability(&self, now: BootTime) -> Option<Instability> {
        self.phases.instability(now)
    }
}
