//! Decides when the Node object is written, without a clock and without a network: the input is the conditions and the result of
//! each write, the output the time of the next one. Thousands of nodes do this concurrently; see `docs/design.md` §8.

use probe_engine::{BootTime, Condition, Reason, Status};

const SECOND: u64 = 1_000_000_000;

/// Interval between two writes of unchanged conditions, ± a fifth: that of the kubelet, `nodeStatusReportFrequency`.
const HEARTBEAT: u64 = 300 * SECOND;
/// Rate limit of a node's writes: one in five seconds on average.
const WRITE_INTERVAL: u64 = 5 * SECOND;
/// Rate limit of a node's writes: how many at once.
const BURST: u64 = 2;
/// Maximum delay after the first failure, which may be due to a stale connection.
const FIRST_RETRY: u64 = SECOND;
/// Maximum delay after the second failure, doubled with each further one. The nodes of a cluster fail at the same time, and their
/// retries are spread over this interval.
const BACKOFF: u64 = 60 * SECOND;
/// Upper limit of the maximum delay.
const MAX_BACKOFF: u64 = 300 * SECOND;
/// Maximum delay after a credential has changed, which often happens on many nodes at once.
const CREDENTIALS_CHANGED: u64 = 5 * SECOND;
/// Base of the delay while there is no Node object. It is created soon after the kubelet has started.
const NO_NODE: u64 = 10 * SECOND;
/// Maximum delay of the first write after an outage of the API server.
const RECOVERY: u64 = 60 * SECOND;
/// Maximum delay of the first write after an outage if the conditions report a fault of the node.
const RECOVERY_BROKEN: u64 = 15 * SECOND;
/// Until the condition reports that the API server has recovered: ten seconds after the last failure, plus a margin.
const RECOVERY_REPORTED: u64 = 11 * SECOND;
/// How long the first write waits while a condition has the reason `Learning`: usually the result is known soon, and otherwise
/// all nodes of a cluster would write twice.
const LEARNING: u64 = 3 * SECOND;
/// Times after the start of a kubelet at which the conditions are written, because it may have registered its node: 10 s on a
/// cold one, measured.
const REGISTERED: [u64; 3] = [3 * SECOND, 15 * SECOND, 60 * SECOND];

/// How a write failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No response, or not that of an API server.
    Unavailable,
    /// The API server refused the request.
    Refused,
    /// The API server has no such Node object.
    NoNode,
}

/// Schedule of a node's writes, see the module.
#[derive(Debug)]
pub(crate) struct Schedule {
    random: fastrand::Rng,
    /// An agent ran before this one on this boot: what it wrote remains until this one has a result.
    resumed: bool,
    /// The conditions to write; empty if nothing is to be written.
    desired: Vec<Condition>,
    /// When `desired` last changed.
    changed: BootTime,
    /// The conditions that were written last.
    written: Option<Vec<Condition>>,
    /// When unchanged conditions are written again.
    heartbeat: BootTime,
    /// Number of failures since the last success, and the time of the next attempt.
    failed: Option<(u32, BootTime)>,
    /// Times of further writes, whatever was written before.
    extra: Vec<BootTime>,
    /// When the token bucket of the rate limit is full again.
    full: BootTime,
    /// Time of the first successful write after an outage.
    returned: Option<BootTime>,
    /// The next attempt of this outage has been postponed already.
    postponed: bool,
    /// Earliest time to report that the API server has recovered.
    not_before: BootTime,
}

impl Schedule {
    /// Creates a schedule. `seed` should differ between nodes, so that their writes are spread.
    pub(crate) fn new(seed: u64, resumed: bool) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            resumed,
            desired: Vec::new(),
            changed: BootTime(0),
            written: None,
            heartbeat: BootTime(0),
            failed: None,
            extra: Vec::new(),
            full: BootTime(0),
            returned: None,
            postponed: false,
            not_before: BootTime(0),
        }
    }

    /// Records a change of the credentials or addresses: the next attempt is made soon.
    pub(crate) fn credentials_changed(&mut self, now: BootTime) {
        if let Some((_, next)) = &mut self.failed {
            *next = (*next).min(now.plus(self.random.u64(0..=CREDENTIALS_CHANGED)));
        }
    }

    /// Sets the current conditions.
    pub(crate) fn update(&mut self, now: BootTime, conditions: &[Condition]) {
        // A host that is not a node has no Node object.
        if conditions.iter().any(|condition| condition.reason == Reason::NotApplicable) {
            self.desired.clear();
            return;
        }
        // What an earlier agent wrote of a condition remains until this one has a result for it.
        let known = |condition: &&Condition| !self.resumed || condition.reason != Reason::Learning;
        let conditions: Vec<_> = conditions.iter().filter(known).cloned().collect();
        let is_reachable = |conditions: &[Condition]| {
            let api = probe_engine::ConditionType::APIServerReachable;
            conditions.iter().any(|known| known.condition == api && known.status == Status::True)
        };
        if is_reachable(&conditions) && !is_reachable(&self.desired) {
            self.api_recovered(now, &conditions);
        }
        if self.desired != conditions {
            if is_broken(&conditions) {
                self.not_before = BootTime(0);
            }
            self.desired = conditions;
            self.changed = now;
        }
    }

    /// Records that the API server is recovering, which the conditions do not report yet: a write before they do would soon be
    /// outdated. The next attempt is postponed only once in an outage, so that an unstable API server is reported as well.
    pub(crate) fn api_recovering(&mut self, now: BootTime) {
        if let Some((_, next)) = &mut self.failed
            && !std::mem::replace(&mut self.postponed, true)
        {
            *next = (*next).max(now.plus(RECOVERY_REPORTED));
        }
    }

    /// Spreads the writes after an outage of the API server: all nodes notice its end at the same time, including those whose last
    /// attempt has just succeeded.
    fn api_recovered(&mut self, now: BootTime, conditions: &[Condition]) {
        let most = if is_broken(conditions) { RECOVERY_BROKEN } else { RECOVERY };
        let at = now.plus(self.random.u64(0..=most));
        match &mut self.failed {
            Some((_, next)) => *next = at,
            None if self.returned.is_some_and(|returned| now.since(returned) < RECOVERY) => {
                self.not_before = at;
            }
            None => {}
        }
    }

    /// Records the start of a kubelet, which may register the node again, without the agent's conditions.
    pub(crate) fn kubelet_started(&mut self, now: BootTime) {
        self.extra = REGISTERED.iter().map(|after| now.plus(*after)).collect();
    }

    /// Returns when to write next; `None` if there is nothing to write.
    pub(crate) fn due(&self) -> Option<BootTime> {
        if self.desired.is_empty() {
            return None;
        }
        let changed = (self.written.as_ref() != Some(&self.desired)).then_some(self.changed);
        let at = match (self.failed, changed) {
            (Some((_, next)), _) => next,
            (None, Some(changed)) => {
                changed.plus(if self.is_learning() { LEARNING } else { 0 }).max(self.not_before)
            }
            (None, None) => self.extra.iter().copied().fold(self.heartbeat, BootTime::min),
        };
        // The token bucket allows a write if at most `BURST - 1` tokens are missing.
        Some(at.max(BootTime(self.full.0.saturating_sub((BURST - 1) * WRITE_INTERVAL))))
    }

    fn is_learning(&self) -> bool {
        self.desired.iter().any(|condition| condition.reason == Reason::Learning)
    }

    /// Returns whether the shutdown of the agent must be written. Not if the last write failed, because the shutdown would wait for
    /// it.
    pub(crate) fn must_write_shutdown(&self) -> bool {
        let stops = self.desired.iter().any(|condition| condition.reason == Reason::AgentStopping);
        stops
            && self.failed.is_none()
            && self.written.as_ref().is_some_and(|written| *written != self.desired)
    }

    /// Returns the conditions to write now. This counts as a write for the rate limit, whatever its result.
    pub(crate) fn take(&mut self, now: BootTime) -> Vec<Condition> {
        self.full = self.full.max(now).plus(WRITE_INTERVAL);
        self.extra.retain(|at| *at > now);
        self.desired.clone()
    }

    /// Records a successful write of `conditions`.
    pub(crate) fn wrote(&mut self, now: BootTime, conditions: Vec<Condition>) {
        self.written = Some(conditions);
        if self.is_failing() {
            self.returned = Some(now);
        }
        self.failed = None;
        self.postponed = false;
        self.heartbeat = now.plus(HEARTBEAT * 4 / 5 + self.random.u64(0..=HEARTBEAT * 2 / 5));
    }

    /// Returns whether more than one write has failed since the last success, so that a stale connection is not the cause.
    pub(crate) fn is_failing(&self) -> bool {
        self.failed.is_some_and(|(failures, _)| failures > 1)
    }

    /// Records a failed write.
    pub(crate) fn failed(&mut self, now: BootTime, failure: Failure) {
        let failures = self.failed.map_or(0, |(failures, _)| failures).saturating_add(1);
        let most = match (failure, failures) {
            (Failure::NoNode, _) => NO_NODE << failures.min(3),
            (_, 1) => FIRST_RETRY,
            _ => (BACKOFF << (failures - 2).min(8)).min(MAX_BACKOFF),
        };
        let mut next = now.plus(self.random.u64(0..=most));
        if failure == Failure::NoNode {
            // A kubelet that has just started is about to create it.
            next = self.extra.iter().copied().fold(next, BootTime::min);
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
            since: BootTime(1),
        };
        let reason = |status| if status == Status::True { Reason::NetworkReady } else { Reason::APITimeout };
        vec![
            condition(ConditionType::NodeNetworkReady, network, reason(network)),
            condition(ConditionType::APIServerReachable, api, reason(api)),
        ]
    }

    /// Returns both conditions with the status Unknown and this reason.
    fn unknown(reason: Reason) -> Vec<Condition> {
        let both = conditions(Status::Unknown, Status::Unknown).into_iter();
        both.map(|condition| Condition { reason, ..condition }).collect()
    }

    const S: u64 = SECOND;

    fn write(schedule: &mut Schedule, at: BootTime) {
        let taken = schedule.take(at);
        schedule.wrote(at, taken);
    }

    #[test]
    fn unchanged_conditions_are_written_as_heartbeat() {
        let good = conditions(Status::True, Status::True);
        for seed in 0..50 {
            let mut schedule = Schedule::new(seed, false);
            assert_eq!(schedule.due(), None);
            schedule.update(BootTime(S), &good);
            assert_eq!(schedule.due(), Some(BootTime(S)));
            write(&mut schedule, BootTime(S));
            schedule.update(BootTime(9 * S), &good);
            let due = schedule.due().expect("a heartbeat");
            assert!((BootTime(241 * S)..=BootTime(361 * S)).contains(&due), "{due:?}");
        }
    }

    #[test]
    fn changes_are_written_at_once_within_rate_limit() {
        let mut schedule = Schedule::new(1, false);
        let mut now = BootTime(100 * S);
        for turn in 0..50 {
            let status = if turn % 2 == 0 { Status::True } else { Status::False };
            schedule.update(now, &conditions(status, Status::True));
            let due = schedule.due().expect("a write is due").max(now);
            assert!(turn > 1 || due == now, "the first two are not delayed");
            write(&mut schedule, due);
            now = due.plus(S / 10);
        }
        assert!(now.since(BootTime(100 * S)) >= 48 * WRITE_INTERVAL, "{}", now.since(BootTime(100 * S)));
    }

    /// The distribution must be uniform: with the earlier of two random times, most nodes would write at once.
    #[test]
    fn writes_after_outage_are_spread_over_all_nodes() {
        let (mut soonest, mut latest, mut sum) = (u64::MAX, 0, 0);
        for seed in 0..200 {
            let mut schedule = Schedule::new(seed, false);
            schedule.update(BootTime(0), &conditions(Status::True, Status::True));
            write(&mut schedule, BootTime(S));
            schedule.update(BootTime(100 * S), &conditions(Status::True, Status::False));
            let mut now = BootTime(100 * S);
            while now < BootTime(1000 * S) {
                now = schedule.due().expect("a write is due").max(now);
                let _ = schedule.take(now);
                schedule.failed(now, Failure::Unavailable);
            }
            let back = now.plus(S);
            schedule.update(back, &conditions(Status::True, Status::True));
            let due = schedule.due().expect("a write is due").since(back);
            assert!(due <= RECOVERY);
            (soonest, latest, sum) = (soonest.min(due), latest.max(due), sum + due);
        }
        assert!(soonest < 5 * S && latest > 50 * S, "{soonest} {latest}");
        let mean = sum / 200;
        assert!((25 * S..=35 * S).contains(&mean), "{mean}");
    }

    #[test]
    fn node_that_has_just_reported_outage_also_delays_its_end() {
        let mut latest = 0;
        for seed in 0..50 {
            let mut schedule = Schedule::new(seed, false);
            schedule.update(BootTime(S), &conditions(Status::True, Status::False));
            schedule.failed(BootTime(S), Failure::Unavailable);
            schedule.failed(BootTime(2 * S), Failure::Unavailable);
            write(&mut schedule, BootTime(90 * S));
            schedule.update(BootTime(100 * S), &conditions(Status::True, Status::True));
            latest = latest.max(schedule.due().expect("a write is due").since(BootTime(100 * S)));
            // A fault of the node is written without a delay.
            schedule.update(BootTime(101 * S), &conditions(Status::False, Status::True));
            assert_eq!(schedule.due(), Some(BootTime(101 * S)));
        }
        assert!(latest > 50 * S && latest <= RECOVERY, "{latest}");
    }

    #[test]
    fn changed_credentials_are_tried_soon() {
        for seed in 0..50 {
            let mut schedule = Schedule::new(seed, false);
            schedule.update(BootTime(S), &conditions(Status::True, Status::False));
            for turn in 1..9 {
                schedule.failed(BootTime(turn * 100 * S), Failure::Refused);
            }
            schedule.credentials_changed(BootTime(801 * S));
            let due = schedule.due().expect("a write is due");
            assert!(due <= BootTime(801 * S + CREDENTIALS_CHANGED), "{due:?}");
            // If it is refused as well, the backoff continues.
            schedule.failed(due, Failure::Refused);
            assert!(schedule.due() > Some(due));
        }
    }

    /// Nodes that write during the ten seconds would write twice.
    #[test]
    fn postpones_write_while_api_server_is_recovering() {
        let mut schedule = Schedule::new(1, false);
        schedule.update(BootTime(S), &conditions(Status::True, Status::False));
        schedule.api_recovering(BootTime(S));
        assert_eq!(schedule.due(), Some(BootTime(S)), "nothing has failed");
        schedule.failed(BootTime(2 * S), Failure::Unavailable);
        schedule.api_recovering(BootTime(3 * S));
        let due = schedule.due().expect("a write is due");
        assert_eq!(due, BootTime(3 * S + RECOVERY_REPORTED));
        // It fails and recovers once more.
        schedule.failed(due, Failure::Unavailable);
        let next = schedule.due();
        schedule.api_recovering(due);
        assert_eq!(schedule.due(), next);
        write(&mut schedule, BootTime(100 * S));
        schedule.failed(BootTime(101 * S), Failure::Unavailable);
        schedule.api_recovering(BootTime(102 * S));
        assert_eq!(schedule.due(), Some(BootTime(102 * S + RECOVERY_REPORTED)));
    }

    #[test]
    fn broken_node_waits_less_after_outage() {
        for seed in 0..50 {
            let mut schedule = Schedule::new(seed, false);
            schedule.update(BootTime(0), &conditions(Status::False, Status::False));
            for _ in 0..9 {
                schedule.failed(BootTime(S), Failure::Unavailable);
            }
            schedule.update(BootTime(100 * S), &conditions(Status::False, Status::True));
            assert!(schedule.due().expect("a write is due") <= BootTime(115 * S));
        }
    }

    #[test]
    fn conditions_of_earlier_agent_remain_while_learning() {
        let learning = unknown(Reason::Learning);
        let mut schedule = Schedule::new(1, true);
        schedule.update(BootTime(S), &learning);
        assert_eq!(schedule.due(), None);
        // Only the known condition is written.
        let mut one_known = learning.clone();
        one_known[0] = conditions(Status::False, Status::True).swap_remove(0);
        schedule.update(BootTime(S), &one_known);
        assert_eq!(schedule.take(schedule.due().expect("a write is due")), one_known[..1]);
        let mut first = Schedule::new(1, false);
        first.update(BootTime(S), &learning);
        // Without an earlier agent `Learning` is written after a delay.
        assert_eq!(first.due(), Some(BootTime(S + LEARNING)));
        first.update(BootTime(2 * S), &conditions(Status::True, Status::True));
        assert_eq!(first.due(), Some(BootTime(2 * S)));
        schedule.update(BootTime(2 * S), &conditions(Status::True, Status::True));
        assert_eq!(schedule.due(), Some(BootTime(2 * S)));
        assert_eq!(schedule.take(BootTime(2 * S)).len(), 2);
    }

    #[test]
    fn shutdown_is_written_only_after_successful_write() {
        let mut schedule = Schedule::new(1, false);
        schedule.update(BootTime(S), &conditions(Status::True, Status::True));
        assert!(!schedule.must_write_shutdown());
        write(&mut schedule, BootTime(S));
        schedule.update(BootTime(2 * S), &unknown(Reason::AgentStopping));
        assert!(schedule.must_write_shutdown());
        schedule.failed(BootTime(3 * S), Failure::Unavailable);
        assert!(!schedule.must_write_shutdown());
        let mut unwritten = Schedule::new(1, false);
        unwritten.update(BootTime(S), &unknown(Reason::AgentStopping));
        assert!(!unwritten.must_write_shutdown());
    }

    #[test]
    fn host_that_is_not_a_node_is_not_written() {
        let none = unknown(Reason::NotApplicable);
        let mut schedule = Schedule::new(1, false);
        schedule.update(BootTime(S), &none);
        assert_eq!(schedule.due(), None);
    }

    #[test]
    fn start_of_kubelet_causes_further_writes() {
        let mut schedule = Schedule::new(1, false);
        schedule.update(BootTime(0), &conditions(Status::True, Status::True));
        write(&mut schedule, BootTime(S));
        schedule.kubelet_started(BootTime(50 * S));
        for after in [53, 65, 110] {
            assert_eq!(schedule.due(), Some(BootTime(after * S)));
            write(&mut schedule, BootTime(after * S));
        }
        assert!(schedule.due() > Some(BootTime(240 * S)));
    }

    #[test]
    fn waits_for_slow_registration_of_kubelet() {
        for seed in 0..50 {
            let mut schedule = Schedule::new(seed, false);
            schedule.update(BootTime(0), &conditions(Status::True, Status::True));
            write(&mut schedule, BootTime(S));
            schedule.kubelet_started(BootTime(50 * S));
            // The old object was deleted, and the kubelet has not yet created the new one.
            while let Some(due) = schedule.due().filter(|due| *due < BootTime(65 * S)) {
                let _ = schedule.take(due);
                schedule.failed(due, Failure::NoNode);
            }
            let due = schedule.due().expect("a write is due");
            assert!(due <= BootTime(65 * S + WRITE_INTERVAL), "{due:?}");
        }
    }

    #[test]
    fn missing_node_object_is_retried_with_bounded_delay() {
        let mut schedule = Schedule::new(3, false);
        schedule.update(BootTime(0), &conditions(Status::True, Status::True));
        for turn in 0..20 {
            schedule.failed(BootTime(turn), Failure::NoNode);
            assert!(schedule.due().expect("a write is due").since(BootTime(turn)) <= 8 * NO_NODE);
        }
    }
}
