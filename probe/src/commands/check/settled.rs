//! Recognizes when the answer of `probe check` can no longer change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use probe_engine::{BootTime, ConditionType, Observation, Reason, Report, Side, Status};
use tokio::sync::oneshot;

use crate::sinks::Sink;

/// How long the root cause must stay the same, and how long the snapshot must lie back. A container runtime answers over CRI
/// within milliseconds, and a refused connect takes less.
const QUIET_NS: u64 = 1_000_000_000;

/// A condition that becomes False within this time of the verdict had no hold time: its fault is a state. It is the time in
/// which a proven fault reaches every sink, `docs/verdicts.md` section 4.
const AT_ONCE_NS: u64 = 100_000_000;

/// Waits for an answer that can no longer change:
///
/// - `NotApplicable`, which follows from the snapshot;
/// - a state fault (no configuration, no listener, no route), after every known address of the API server has been asked once:
///   a fault on the way to the API server may be its cause.
///
/// Nothing else ends the check early. Failures that are retried need their hold time, and `NetworkReady` is only as good as
/// the time in which nothing failed.
pub(super) struct Settled {
    decided: Option<oneshot::Sender<()>>,
    snapshot: Option<BootTime>,
    /// Addresses of the API server, and whether a connect to each has ended.
    targets: BTreeMap<SocketAddr, bool>,
    /// Hosts to which a question of the agent has ended.
    asked: BTreeSet<IpAddr>,
    report: Option<Report>,
    /// When the current root cause appeared.
    root_at: BootTime,
}

impl Settled {
    /// Returns the sink, and a channel on which it reports that the answer is final.
    pub(super) fn new() -> (Self, oneshot::Receiver<()>) {
        let (decided, is_decided) = oneshot::channel();
        let settled = Self {
            decided: Some(decided),
            snapshot: None,
            targets: BTreeMap::new(),
            asked: BTreeSet::new(),
            report: None,
            root_at: BootTime::default(),
        };
        (settled, is_decided)
    }

    fn is_settled(&self, now: BootTime) -> bool {
        let (Some(snapshot), Some(report)) = (self.snapshot, &self.report) else { return false };
        if report.verdict.reason == Reason::NotApplicable {
            return true;
        }
        let is_quiet = now.since(snapshot.max(self.root_at)) >= QUIET_NS;
        is_quiet && self.is_state(report) && self.knows_api(report)
    }

    /// Returns whether the root cause is a state fault: its condition became False together with the verdict.
    fn is_state(&self, report: &Report) -> bool {
        let side = match report.verdict.reason.side() {
            Side::Api => ConditionType::APIServerReachable,
            Side::Cni | Side::Datapath | Side::Runtime => ConditionType::NodeNetworkReady,
            Side::None => return false,
        };
        report.status == Status::False
            && report.conditions.iter().any(|condition| {
                let apart = condition.since.since(self.root_at).max(self.root_at.since(condition.since));
                condition.condition == side && condition.status == Status::False && apart <= AT_ONCE_NS
            })
    }

    /// Returns whether the path to the API server is known at every address.
    fn knows_api(&self, report: &Report) -> bool {
        let is_known = report.conditions.iter().any(|condition| {
            condition.condition == ConditionType::APIServerReachable && condition.status != Status::Unknown
        });
        let mut targets = self.targets.iter();
        is_known
            && !self.targets.is_empty()
            && targets.all(|(to, has_ended)| *has_ended && self.asked.contains(&to.ip()))
    }

    fn decide(&mut self, now: BootTime) {
        if self.is_settled(now)
            && let Some(decided) = self.decided.take()
        {
            // The check may have been stopped meanwhile.
            let _ = decided.send(());
        }
    }
}

impl Sink for Settled {
    fn observation(&mut self, at: BootTime, observation: &Observation) {
        match observation {
            Observation::SnapshotDone => self.snapshot = Some(at),
            Observation::ApiTarget(target) => _ = self.targets.entry(target.addr).or_default(),
            Observation::ApiTargetGone { addr } => _ = self.targets.remove(addr),
            Observation::Connect(connect) => {
                if let Some(has_ended) = self.targets.get_mut(&connect.to) {
                    *has_ended = true;
                }
            }
            // Reported at the end of each question, after what the API server answered.
            Observation::Route(route) => _ = self.asked.insert(route.to),
            _ => {}
        }
    }

    fn report(&mut self, at: BootTime, report: &Report) {
        let root = |report: &Report| (report.verdict.reason, report.verdict.subject.clone());
        if self.report.as_ref().map(root) != Some(root(report)) {
            self.root_at = at;
        }
        self.report = Some(report.clone());
        self.decide(at);
    }

    fn turn(&mut self, at: BootTime, _late: Duration) {
        self.decide(at);
    }
}

#[cfg(test)]
mod tests {
    use probe_engine::{
        ApiTarget, CniConfig, ConfContent, ConfFile, Config, Engine, Host, Role, Route, TargetKind,
    };

    use super::*;

    const API: &str = "10.0.0.1:6443";

    /// Milliseconds after the start of the check, an hour after the boot: a host that has just booted has a grace period.
    fn at(ms: u64) -> BootTime {
        BootTime(3_600_000_000_000 + ms * 1_000_000)
    }

    /// A check on a host of this role, without a CNI configuration, whose snapshot has just been taken.
    struct Run {
        engine: Engine,
        settled: Settled,
        is_decided: oneshot::Receiver<()>,
    }

    impl Run {
        fn new(role: Role, files: Vec<ConfFile>) -> Self {
            let (settled, is_decided) = Settled::new();
            let mut run = Self { engine: Engine::new(Config::default(), at(0)), settled, is_decided };
            run.observe(0, Observation::Host(Host { role, ..Host::default() }));
            let dir = "/etc/cni/net.d".to_owned();
            run.observe(0, Observation::CniConfig(CniConfig { dir, files, ..CniConfig::default() }));
            let addr = API.parse().expect("an address");
            let target =
                ApiTarget { addr, kind: TargetKind::Direct, source: String::new(), name: None, proxy: None };
            run.observe(0, Observation::ApiTarget(target));
            run.observe(0, Observation::SnapshotDone);
            run
        }

        fn observe(&mut self, ms: u64, observation: Observation) {
            let at = at(ms);
            self.settled.observation(at, &observation);
            self.engine.observe(at, observation);
            while self.engine.poll_effect().is_some() {}
            self.settled.report(at, &self.engine.report());
        }

        /// The agent's own question to the API server ends.
        fn asked(&mut self, ms: u64, end: &str) {
            let connect = format!(
                r#"{{"kind":"connect","client":{{"pid":1,"name":"probe"}},"role":"probe","host_netns":true,
                    "to":"{API}","took_ns":90000,{end}}}"#
            );
            self.observe(ms, serde_json::from_str(&connect).expect("a connect"));
            let to = API.parse::<SocketAddr>().expect("an address").ip();
            self.observe(ms, Observation::Route(Route { to, errno: 0 }));
        }

        /// Returns whether the check has its answer at this time.
        fn is_over(&mut self, ms: u64) -> bool {
            let at = at(ms);
            while let Some(deadline) = self.engine.next_deadline().filter(|deadline| *deadline < at) {
                self.engine.tick(deadline);
                while self.engine.poll_effect().is_some() {}
                self.settled.report(deadline, &self.engine.report());
            }
            self.settled.turn(at, Duration::ZERO);
            self.is_decided.try_recv().is_ok()
        }
    }

    fn file() -> ConfFile {
        let content = ConfContent::Network { network: "pods".to_owned(), plugins: Vec::new() };
        ConfFile { name: "10-pods.conflist".to_owned(), size: 1, content }
    }

    #[test]
    fn host_that_is_not_a_node_is_answered_right_after_the_snapshot() {
        for role in [Role::None, Role::Etcd] {
            assert!(Run::new(role, Vec::new()).is_over(0), "{role:?}");
        }
    }

    #[test]
    fn state_fault_is_answered_one_second_after_the_snapshot() {
        let mut run = Run::new(Role::Worker, Vec::new());
        run.asked(10, r#""established":true"#);
        assert!(!run.is_over(900));
        assert!(run.is_over(1100));
        assert_eq!(run.engine.report().verdict.reason, Reason::CNIConfigMissing);
    }

    #[test]
    fn state_fault_waits_until_the_api_server_was_asked() {
        let mut run = Run::new(Role::Worker, Vec::new());
        assert!(!run.is_over(3000));
        run.asked(3100, r#""established":true"#);
        assert!(run.is_over(3200));
    }

    #[test]
    fn failure_that_is_retried_takes_the_whole_time() {
        let mut run = Run::new(Role::Worker, Vec::new());
        run.asked(10, r#""sk_err":111,"rst":true"#);
        assert!(!run.is_over(9900));
        assert_eq!(run.engine.report().verdict.reason, Reason::APIServerRefused);
    }

    #[test]
    fn ready_takes_the_whole_time() {
        let mut run = Run::new(Role::Worker, vec![file()]);
        run.asked(10, r#""established":true"#);
        assert!(!run.is_over(9900));
        assert_eq!(run.engine.report().verdict.reason, Reason::NetworkReady);
    }
}
