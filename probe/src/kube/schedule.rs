//! When the Node object is written, decided without a clock and without a network: what is wanted and how each
//! try ended go in, the next time comes out. Thousands of nodes do this at once; see `docs/design.md` §8.

use probe_engine::{Condition, Mono, Reason, Status};

const SECOND: u64 = 1_000_000_000;

/// Between two writes of the same, ± a fifth: the kubelet's own, `nodeStatusReportFrequency`.
const HEARTBEAT: u64 = 300 * SECOND;
/// Writes of one node: one in five seconds in the long run, two at once.
const EVERY: u64 = 5 * SECOND;
const BURST: u64 = 2;
/// After the first failure, which may be a connection that had grown old; then from a minute on, doubled with
/// each failure: the fleet fails together, and what it tries within that minute is spread over it.
const AT_FIRST: u64 = SECOND;
const BACKOFF: u64 = 60 * SECOND;
const BACKOFF_MOST: u64 = 300 * SECOND;
/// An account that has just been renewed: by whoever does that, often for many nodes at once.
const RENEWED: u64 = 5 * SECOND;
/// A Node object that is not there yet comes within moments of the kubelet.
const NO_NODE: u64 = 10 * SECOND;
/// How long the first write waits, at most, after the API server has come back: shorter where it says that the
/// node's network is broken.
const RETURN_TRUE: u64 = 60 * SECOND;
const RETURN_FALSE: u64 = 15 * SECOND;
/// The condition says that the API server is back once its trouble has been over for ten seconds, and a moment for that.
const CLEAN: u64 = 11 * SECOND;
/// How long an agent that has just started may learn before it says that it does: it knows within moments, and a
/// fleet that starts would write everything twice.
const LEARNS: u64 = 3 * SECOND;
/// When a kubelet that has just started has registered its node: 10 s on a cold one, measured.
const REGISTERED: [u64; 3] = [3 * SECOND, 15 * SECOND, 60 * SECOND];

/// How a write failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nobody answered, or not as an API server does.
    Away,
    /// It answered, and did not do it.
    Refused,
    /// It has no such Node object.
    NoNode,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Schedule {
    random: fastrand::Rng,
    /// An agent ran before this one on this boot: what it wrote stands until this one knows better.
    resumed: bool,
    wanted: Vec<Condition>,
    /// When `wanted` last became what it is.
    changed: Mono,
    written: Option<Vec<Condition>>,
    heartbeat: Mono,
    /// How often it failed since it last worked, and when it is tried again.
    failed: Option<(u32, Mono)>,
    /// Times at which it is written whatever was written before.
    again: Vec<Mono>,
    /// When the bucket of writes is full again.
    full: Mono,
    /// When a write has succeeded after an outage.
    returned: Option<Mono>,
    /// The next try of this outage has been put off already.
    put_off: bool,
    /// Good news of the API server's return wait until then.
    not_before: Mono,
}

impl Schedule {
    /// `seed` spreads the nodes: it should differ between them.
    pub(crate) fn new(seed: u64, resumed: bool) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            resumed,
            wanted: Vec::new(),
            changed: Mono(0),
            written: None,
            heartbeat: Mono(0),
            failed: None,
            again: Vec::new(),
            full: Mono(0),
            returned: None,
            put_off: false,
            not_before: Mono(0),
        }
    }

    /// Another account is there, or another way.
    pub(crate) fn renewed(&mut self, now: Mono) {
        if let Some((_, next)) = &mut self.failed {
            *next = (*next).min(now.plus(self.random.u64(0..=RENEWED)));
        }
    }

    /// The conditions as they are now.
    pub(crate) fn want(&mut self, now: Mono, conditions: &[Condition]) {
        // On a host that is no node there is no object.
        if conditions.iter().any(|condition| condition.reason == Reason::NotApplicable) {
            self.wanted.clear();
            return;
        }
        // What an earlier agent wrote of a side stands until this one knows that side.
        let known = |condition: &&Condition| !self.resumed || condition.reason != Reason::Learning;
        let conditions: Vec<_> = conditions.iter().filter(known).cloned().collect();
        let back = |conditions: &[Condition]| {
            let api = probe_engine::ConditionType::APIServerReachable;
            conditions.iter().any(|known| known.condition == api && known.status == Status::True)
        };
        if back(&conditions) && !back(&self.wanted) {
            self.came_back(now, &conditions);
        }
        if self.wanted != conditions {
            if is_broken(&conditions) {
                self.not_before = Mono(0);
            }
            self.wanted = conditions;
            self.changed = now;
        }
    }

    /// The API server's trouble is over, which is not yet said: what a try would write until then is about to be wrong.
    /// Once in an outage, for an API server that comes and goes is to be told of too.
    pub(crate) fn clears(&mut self, now: Mono) {
        if let Some((_, next)) = &mut self.failed
            && !std::mem::replace(&mut self.put_off, true)
        {
            *next = (*next).max(now.plus(CLEAN));
        }
    }

    /// The API server answers again: the whole fleet sees that at the same moment, also those nodes whose last try
    /// has just succeeded.
    fn came_back(&mut self, now: Mono, conditions: &[Condition]) {
        let at =
            now.plus(self.random.u64(0..=if is_broken(conditions) { RETURN_FALSE } else { RETURN_TRUE }));
        match &mut self.failed {
            Some((_, next)) => *next = at,
            None if self.returned.is_some_and(|returned| now.since(returned) < RETURN_TRUE) => {
                self.not_before = at;
            }
            None => {}
        }
    }

    /// A kubelet has started: it may register the node anew, without our conditions.
    pub(crate) fn registers(&mut self, now: Mono) {
        self.again = REGISTERED.iter().map(|after| now.plus(*after)).collect();
    }

    /// When to write next; `None`: when something else is wanted.
    pub(crate) fn due(&self) -> Option<Mono> {
        if self.wanted.is_empty() {
            return None;
        }
        let news = (self.written.as_ref() != Some(&self.wanted)).then_some(self.changed);
        let at = match (self.failed, news) {
            (Some((_, next)), _) => next,
            (None, Some(changed)) => {
                changed.plus(if self.learns() { LEARNS } else { 0 }).max(self.not_before)
            }
            (None, None) => self.again.iter().copied().fold(self.heartbeat, Mono::min),
        };
        // The bucket has room for one as soon as it lacks no more than the rest.
        Some(at.max(Mono(self.full.0.saturating_sub((BURST - 1) * EVERY))))
    }

    fn learns(&self) -> bool {
        self.wanted.iter().any(|condition| condition.reason == Reason::Learning)
    }

    /// The agent is being stopped, and that can be written: where writing has failed nobody waits for it.
    pub(crate) fn says_goodbye(&self) -> bool {
        let stops = self.wanted.iter().any(|condition| condition.reason == Reason::AgentStopping);
        stops && self.failed.is_none() && self.written.as_ref().is_some_and(|written| *written != self.wanted)
    }

    /// What to write now; counts as a write whatever comes of it.
    pub(crate) fn take(&mut self, now: Mono) -> Vec<Condition> {
        self.full = self.full.max(now).plus(EVERY);
        self.again.retain(|at| *at > now);
        self.wanted.clone()
    }

    /// `conditions` stand on the Node object.
    pub(crate) fn wrote(&mut self, now: Mono, conditions: Vec<Condition>) {
        self.written = Some(conditions);
        if self.is_away() {
            self.returned = Some(now);
        }
        self.failed = None;
        self.put_off = false;
        self.heartbeat = now.plus(HEARTBEAT * 4 / 5 + self.random.u64(0..=HEARTBEAT * 2 / 5));
    }

    /// It failed more than once: not for a connection that had grown old.
    pub(crate) fn is_away(&self) -> bool {
        self.failed.is_some_and(|(failures, _)| failures > 1)
    }

    /// They do not.
    pub(crate) fn failed(&mut self, now: Mono, failure: Failure) {
        let failures = self.failed.map_or(0, |(failures, _)| failures).saturating_add(1);
        let most = match (failure, failures) {
            (Failure::NoNode, _) => NO_NODE << failures.min(3),
            (_, 1) => AT_FIRST,
            _ => (BACKOFF << (failures - 2).min(8)).min(BACKOFF_MOST),
        };
        let mut next = now.plus(self.random.u64(0..=most));
        if failure == Failure::NoNode {
            // A kubelet that has just started is about to make one.
            next = self.again.iter().copied().fold(next, Mono::min);
        }
        self.failed = Some((failures, next));
    }
}

fn is_broken(conditions: &[Condition]) -> bool {
    conditions.iter().any(|condition| condition.status == Status::False)
}

#[cfg(test)]
mod tests {
    use probe_engine::ConditionType;

    use super::*;

    fn conditions(network: Status, api: Status) -> Vec<Condition> {
        let condition = |condition, status, reason| Condition {
            condition,
            status,
            reason,
            message: String::new(),
            since: Mono(1),
        };
        let reason = |status| if status == Status::True { Reason::NetworkReady } else { Reason::APITimeout };
        vec![
            condition(ConditionType::NodeNetworkReady, network, reason(network)),
            condition(ConditionType::APIServerReachable, api, reason(api)),
        ]
    }

    /// Both Unknown, for this reason.
    fn saying(reason: Reason) -> Vec<Condition> {
        let unknown = conditions(Status::Unknown, Status::Unknown).into_iter();
        unknown.map(|condition| Condition { reason, ..condition }).collect()
    }

    const S: u64 = SECOND;

    fn write(schedule: &mut Schedule, at: Mono) {
        let taken = schedule.take(at);
        schedule.wrote(at, taken);
    }

    #[test]
    fn the_same_is_written_once_and_then_as_a_heartbeat() {
        let good = conditions(Status::True, Status::True);
        for seed in 0..50 {
            let mut schedule = Schedule::new(seed, false);
            assert_eq!(schedule.due(), None);
            schedule.want(Mono(S), &good);
            assert_eq!(schedule.due(), Some(Mono(S)));
            write(&mut schedule, Mono(S));
            schedule.want(Mono(9 * S), &good);
            let due = schedule.due().expect("a heartbeat");
            assert!((Mono(241 * S)..=Mono(361 * S)).contains(&due), "{due:?}");
        }
    }

    #[test]
    fn news_are_written_at_once_but_never_too_often() {
        let mut schedule = Schedule::new(1, false);
        let mut now = Mono(100 * S);
        for turn in 0..50 {
            let status = if turn % 2 == 0 { Status::True } else { Status::False };
            schedule.want(now, &conditions(status, Status::True));
            let due = schedule.due().expect("news").max(now);
            assert!(turn > 1 || due == now, "the first two are not delayed");
            write(&mut schedule, due);
            now = due.plus(S / 10);
        }
        assert!(now.since(Mono(100 * S)) >= 48 * EVERY, "{}", now.since(Mono(100 * S)));
    }

    /// Evenly: two draws of which the earlier one counted had most of the fleet write at once.
    #[test]
    fn an_outage_s_end_is_spread_over_the_fleet() {
        let (mut soonest, mut latest, mut sum) = (u64::MAX, 0, 0);
        for seed in 0..200 {
            let mut schedule = Schedule::new(seed, false);
            schedule.want(Mono(0), &conditions(Status::True, Status::True));
            write(&mut schedule, Mono(S));
            schedule.want(Mono(100 * S), &conditions(Status::True, Status::False));
            let mut now = Mono(100 * S);
            while now < Mono(1000 * S) {
                now = schedule.due().expect("it is not written").max(now);
                let _ = schedule.take(now);
                schedule.failed(now, Failure::Away);
            }
            let back = now.plus(S);
            schedule.want(back, &conditions(Status::True, Status::True));
            let due = schedule.due().expect("news").since(back);
            assert!(due <= RETURN_TRUE);
            (soonest, latest, sum) = (soonest.min(due), latest.max(due), sum + due);
        }
        assert!(soonest < 5 * S && latest > 50 * S, "{soonest} {latest}");
        let mean = sum / 200;
        assert!((25 * S..=35 * S).contains(&mean), "{mean}");
    }

    #[test]
    fn who_has_just_written_of_an_outage_waits_with_its_end_too() {
        let mut latest = 0;
        for seed in 0..50 {
            let mut schedule = Schedule::new(seed, false);
            schedule.want(Mono(S), &conditions(Status::True, Status::False));
            schedule.failed(Mono(S), Failure::Away);
            schedule.failed(Mono(2 * S), Failure::Away);
            write(&mut schedule, Mono(90 * S));
            schedule.want(Mono(100 * S), &conditions(Status::True, Status::True));
            latest = latest.max(schedule.due().expect("news").since(Mono(100 * S)));
            // What is wrong meanwhile does not wait.
            schedule.want(Mono(101 * S), &conditions(Status::False, Status::True));
            assert_eq!(schedule.due(), Some(Mono(101 * S)));
        }
        assert!(latest > 50 * S && latest <= RETURN_TRUE, "{latest}");
    }

    #[test]
    fn a_renewed_account_is_tried_soon() {
        for seed in 0..50 {
            let mut schedule = Schedule::new(seed, false);
            schedule.want(Mono(S), &conditions(Status::True, Status::False));
            for turn in 1..9 {
                schedule.failed(Mono(turn * 100 * S), Failure::Refused);
            }
            schedule.renewed(Mono(801 * S));
            let due = schedule.due().expect("a try");
            assert!(due <= Mono(801 * S + RENEWED), "{due:?}");
            // It is refused too: as before.
            schedule.failed(due, Failure::Refused);
            assert!(schedule.due() > Some(due));
        }
    }

    /// A fleet that tries within the ten seconds would write everything twice.
    #[test]
    fn what_is_about_to_be_wrong_is_not_written() {
        let mut schedule = Schedule::new(1, false);
        schedule.want(Mono(S), &conditions(Status::True, Status::False));
        schedule.clears(Mono(S));
        assert_eq!(schedule.due(), Some(Mono(S)), "nothing has failed");
        schedule.failed(Mono(2 * S), Failure::Away);
        schedule.clears(Mono(3 * S));
        let due = schedule.due().expect("a try");
        assert_eq!(due, Mono(3 * S + CLEAN));
        // It was away again, and comes once more.
        schedule.failed(due, Failure::Away);
        let next = schedule.due();
        schedule.clears(due);
        assert_eq!(schedule.due(), next);
        write(&mut schedule, Mono(100 * S));
        schedule.failed(Mono(101 * S), Failure::Away);
        schedule.clears(Mono(102 * S));
        assert_eq!(schedule.due(), Some(Mono(102 * S + CLEAN)));
    }

    #[test]
    fn a_broken_node_waits_less_after_an_outage() {
        for seed in 0..50 {
            let mut schedule = Schedule::new(seed, false);
            schedule.want(Mono(0), &conditions(Status::False, Status::False));
            for _ in 0..9 {
                schedule.failed(Mono(S), Failure::Away);
            }
            schedule.want(Mono(100 * S), &conditions(Status::False, Status::True));
            assert!(schedule.due().expect("news") <= Mono(115 * S));
        }
    }

    #[test]
    fn what_an_earlier_agent_wrote_stands_while_this_one_learns() {
        let learning = saying(Reason::Learning);
        let mut schedule = Schedule::new(1, true);
        schedule.want(Mono(S), &learning);
        assert_eq!(schedule.due(), None);
        // One side is known, and is told.
        let mut half = learning.clone();
        half[0] = conditions(Status::False, Status::True).swap_remove(0);
        schedule.want(Mono(S), &half);
        assert_eq!(schedule.take(schedule.due().expect("news")), half[..1]);
        let mut first = Schedule::new(1, false);
        first.want(Mono(S), &learning);
        // It has nothing to say for a moment.
        assert_eq!(first.due(), Some(Mono(S + LEARNS)));
        first.want(Mono(2 * S), &conditions(Status::True, Status::True));
        assert_eq!(first.due(), Some(Mono(2 * S)));
        schedule.want(Mono(2 * S), &conditions(Status::True, Status::True));
        assert_eq!(schedule.due(), Some(Mono(2 * S)));
        assert_eq!(schedule.take(Mono(2 * S)).len(), 2);
    }

    #[test]
    fn an_agent_that_is_stopped_says_so_where_it_has_written_before() {
        let mut schedule = Schedule::new(1, false);
        schedule.want(Mono(S), &conditions(Status::True, Status::True));
        assert!(!schedule.says_goodbye());
        write(&mut schedule, Mono(S));
        schedule.want(Mono(2 * S), &saying(Reason::AgentStopping));
        assert!(schedule.says_goodbye());
        schedule.failed(Mono(3 * S), Failure::Away);
        assert!(!schedule.says_goodbye());
        let mut silent = Schedule::new(1, false);
        silent.want(Mono(S), &saying(Reason::AgentStopping));
        assert!(!silent.says_goodbye());
    }

    #[test]
    fn a_host_that_is_no_node_is_not_written() {
        let none = saying(Reason::NotApplicable);
        let mut schedule = Schedule::new(1, false);
        schedule.want(Mono(S), &none);
        assert_eq!(schedule.due(), None);
    }

    #[test]
    fn a_kubelet_that_starts_makes_it_written_anew() {
        let mut schedule = Schedule::new(1, false);
        schedule.want(Mono(0), &conditions(Status::True, Status::True));
        write(&mut schedule, Mono(S));
        schedule.registers(Mono(50 * S));
        for after in [53, 65, 110] {
            assert_eq!(schedule.due(), Some(Mono(after * S)));
            write(&mut schedule, Mono(after * S));
        }
        assert!(schedule.due() > Some(Mono(240 * S)));
    }

    #[test]
    fn a_kubelet_that_takes_its_time_to_register_is_waited_for() {
        for seed in 0..50 {
            let mut schedule = Schedule::new(seed, false);
            schedule.want(Mono(0), &conditions(Status::True, Status::True));
            write(&mut schedule, Mono(S));
            schedule.registers(Mono(50 * S));
            // Gone with the old object, and not there yet: as often as it is tried until the kubelet is cold no more.
            while let Some(due) = schedule.due().filter(|due| *due < Mono(65 * S)) {
                let _ = schedule.take(due);
                schedule.failed(due, Failure::NoNode);
            }
            let due = schedule.due().expect("a try");
            assert!(due <= Mono(65 * S + EVERY), "{due:?}");
        }
    }

    #[test]
    fn a_node_that_is_not_there_is_asked_for_soon_and_not_for_ever_soon() {
        let mut schedule = Schedule::new(3, false);
        schedule.want(Mono(0), &conditions(Status::True, Status::True));
        for turn in 0..20 {
            schedule.failed(Mono(turn), Failure::NoNode);
            assert!(schedule.due().expect("a try").since(Mono(turn)) <= 8 * NO_NODE);
        }
    }
}
