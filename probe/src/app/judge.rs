//! The judge: it passes observations to the engine, and the resulting verdicts to the sinks. Nothing in it can block.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use probe_engine::{BootTime, Effect, Engine, Gap, Lost, Observation, Remembered, Report, Scope};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::bpf::HookStatus;
use crate::clock::{self, Wall};
use crate::feed::{Feed, Seen, WATCHER};
use crate::sinks::Sink;
use crate::threads::Operation;

/// What the engine has requested to be read again; the watcher takes the requests.
pub(super) type Rereads = Arc<Mutex<BTreeSet<Scope>>>;

/// The judge, see the module.
pub(crate) struct Judge {
    pub(super) engine: Engine,
    /// Observations of the watcher, in their order.
    pub(super) seen: mpsc::Receiver<Vec<Seen>>,
    pub(super) rereads: Rereads,
    /// Addresses to which a request is due.
    pub(super) wake: mpsc::Sender<SocketAddr>,
    pub(super) hooks: Vec<HookStatus>,
    /// Interval at which sinks are informed that the judge is running.
    pub(super) turn: Duration,
    pub(super) about: About,
    /// Whether the sinks have been given the hooks.
    pub(super) has_sent_hooks: bool,
    /// Shows whether the watcher is blocked, if it has a thread of its own.
    pub(super) watcher: Option<Arc<Operation>>,
    /// Whether the watcher was found blocked.
    pub(super) is_blind: bool,
}

/// Facts about the agent for the sinks.
#[derive(Clone)]
pub(crate) struct About {
    /// Converts the engine's times to wall-clock time.
    pub(crate) wall: Wall,
    /// When the agent started: the time with which the engine was created.
    pub(crate) started: BootTime,
    /// Why no eBPF program is loaded, on one line; `None` if any is loaded.
    pub(crate) unsupported: Option<String>,
    /// Time from the start of the process to the last attached program.
    pub(crate) attach_took: Option<Duration>,
    /// Queue for the observations of a command's own tasks.
    pub(crate) feed: Feed,
}

impl Judge {
    /// Returns facts about the agent.
    pub(crate) fn about(&self) -> &About {
        &self.about
    }

    /// Takes the last conditions of an earlier agent. Must be called before [`Self::run`].
    pub(crate) fn remember(&mut self, remembered: Remembered, sinks: &mut [&mut dyn Sink]) {
        self.deliver(self.about.started, Observation::Remembered(remembered), sinks);
    }

    /// Sets the operation that shows whether the watcher is blocked.
    pub(crate) fn follow(&mut self, watcher: Arc<Operation>) {
        self.watcher = Some(watcher);
    }

    /// Returns the current report.
    pub(crate) fn report(&self) -> Report {
        self.engine.report()
    }

    /// Takes the last observation, after [`Self::run`].
    pub(crate) fn stop(&mut self, last: Seen, sinks: &mut [&mut dyn Sink]) {
        self.deliver(last.at, last.observation, sinks);
    }

    /// Processes observations until the watcher is dropped. Cancel safe.
    pub(crate) async fn run(&mut self, sinks: &mut [&mut dyn Sink]) {
        if !std::mem::replace(&mut self.has_sent_hooks, true) {
            for sink in sinks.iter_mut() {
                sink.hooks(&self.hooks);
            }
        }
        let mut turn = tokio::time::interval(self.turn);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let deadline = self.engine.next_deadline();
            tokio::select! {
                seen = self.seen.recv() => match seen {
                    Some(seen) => self.take(seen, sinks),
                    None => return,
                },
                due = turn.tick() => {
                    let late = Instant::now().duration_since(due);
                    for sink in sinks.iter_mut() {
                        sink.turn(clock::now(), late);
                    }
                    self.check_watcher(sinks);
                }
                () = clock::reached(deadline) => {
                    self.engine.tick(clock::now());
                    self.drain(clock::now(), false, sinks);
                }
            }
        }
    }

    /// Reports a gap while the watcher is blocked: nothing new is observed, and earlier observations are no longer a proof. The
    /// loss reported here makes the watcher read everything again when it continues.
    fn check_watcher(&mut self, sinks: &mut [&mut dyn Sink]) {
        let Some(line) = self.watcher.as_ref().map(|watcher| watcher.line()) else { return };
        if line.is_some() == self.is_blind {
            return;
        }
        self.is_blind = line.is_some();
        let (now, signal) = (clock::now(), WATCHER.to_owned());
        let Some(line) = line else {
            self.deliver(now, Observation::GapClosed { signal }, sinks);
            return;
        };
        let why = format!("{line}: nothing new is observed");
        self.deliver(now, Observation::Gap(Gap { signal: signal.clone(), why, blind: true }), sinks);
        for lost in Lost::of_any_event(&signal, 0) {
            self.deliver(now, Observation::Lost(lost), sinks);
        }
    }

    /// Takes all observations that are waiting.
    pub(crate) fn take_waiting(&mut self, sinks: &mut [&mut dyn Sink]) {
        while let Ok(seen) = self.seen.try_recv() {
            self.take(seen, sinks);
        }
    }

    fn take(&mut self, seen: Vec<Seen>, sinks: &mut [&mut dyn Sink]) {
        for Seen { at, observation } in seen {
            self.deliver(at, observation, sinks);
        }
    }

    /// Passes one observation to the engine and drains its effects, so that they are complete before the next observation.
    fn deliver(&mut self, at: BootTime, observation: Observation, sinks: &mut [&mut dyn Sink]) {
        let judged = at.max(self.engine.now());
        for sink in sinks.iter_mut() {
            sink.observation(at, &observation);
            sink.judged(judged, &observation);
        }
        // These have no effect, but change the report.
        let changes_report = matches!(
            observation,
            Observation::Gap(_) | Observation::GapClosed { .. } | Observation::Writes(_)
        );
        self.engine.observe(at, observation);
        self.drain(at, changes_report, sinks);
    }

    fn drain(&mut self, at: BootTime, mut changed: bool, sinks: &mut [&mut dyn Sink]) {
        while let Some(effect) = self.engine.poll_effect() {
            changed = true;
            for sink in sinks.iter_mut() {
                sink.effect(at, &effect);
            }
            match effect {
                // If the queue is full, a request to this address is about to be sent anyway.
                Effect::Ask(addr) => drop(self.wake.try_send(addr)),
                Effect::Reread(scope) => {
                    self.rereads.lock().unwrap_or_else(PoisonError::into_inner).insert(scope);
                }
                Effect::Verdict(_) | Effect::Condition(_) => {}
            }
        }
        if changed {
            let report = self.engine.report();
            for sink in sinks.iter_mut() {
                sink.report(at, &report);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use probe_engine::{CniConfig, ConfContent, ConfFile, Host, Reason, Role};

    use super::*;
    use crate::app::App;
    use crate::cli::{Cli, Command};
    use crate::settings::Settings;
    use crate::threads::Blocked;

    fn settings() -> Arc<Settings> {
        let command = Cli::try_parse_from(["probe", "check", "--no-ask"]).expect("is a command").command;
        let Command::Check(args) = command else { unreachable!("check was asked for") };
        Arc::new(args.node.settings().expect("have defaults"))
    }

    /// A sink that keeps the times of observations.
    #[derive(Default)]
    struct Times(Vec<BootTime>);

    impl Sink for Times {
        fn judged(&mut self, at: BootTime, _observation: &Observation) {
            self.0.push(at);
        }
    }

    #[tokio::test]
    async fn records_late_observation_with_time_of_judgement() {
        let (_app, mut judge) = App::simulated(settings(), Vec::new());
        let deadline = clock::now().plus(1_000_000_000);
        judge.engine.tick(deadline);
        let mut times = Times::default();
        let seen = |at| Seen { at, observation: Observation::SnapshotDone };
        let before = seen(deadline.minus(1));
        judge.take(vec![before, seen(deadline.plus(1))], &mut [&mut times]);
        assert_eq!(times.0, [deadline, deadline.plus(1)]);
    }

    #[tokio::test]
    async fn conditions_are_unknown_after_blocked_watcher_until_everything_is_reread() {
        let settings = settings();
        let content = ConfContent::Network { network: "pods".to_owned(), plugins: Vec::new() };
        let file = ConfFile { name: "10-pods.conflist".to_owned(), size: 1, content };
        let initial = vec![
            Observation::Host(Host { role: Role::Worker, ..Host::default() }),
            Observation::CniConfig(CniConfig { files: vec![file], ..CniConfig::default() }),
            Observation::SnapshotDone,
        ];
        let (mut app, mut judge) = App::simulated(settings, initial);
        app.flush().await;
        let watcher = Blocked::default().operation("the thread watch".to_owned());
        judge.follow(Arc::clone(&watcher));
        let network = |judge: &Judge| judge.report().conditions[0].reason;
        judge.take_waiting(&mut []);
        judge.check_watcher(&mut []);
        assert_eq!(network(&judge), Reason::NetworkReady);
        watcher.began(clock::now().minus(11_000_000_000));
        judge.check_watcher(&mut []);
        assert_eq!(judge.report().gaps[0].why, "the thread watch is blocked: nothing new is observed");
        judge.engine.tick(clock::now().plus(15_000_000_000));
        assert_eq!(network(&judge), Reason::ProbeDegraded);
        watcher.begins();
        judge.check_watcher(&mut []);
        assert_eq!(judge.report().gaps, []);
        assert_eq!(network(&judge), Reason::ProbeDegraded, "nothing has been read again yet");
        let wanted = std::mem::take(&mut *judge.rereads.lock().unwrap_or_else(PoisonError::into_inner));
        assert_eq!(wanted, [Scope::Sockets, Scope::Processes, Scope::Cni].into());
        for scope in wanted {
            judge.deliver(clock::now(), Observation::Reread { scope }, &mut []);
        }
        judge.engine.tick(clock::now().plus(60_000_000_000));
        assert_eq!(network(&judge), Reason::NetworkReady);
    }
}
