//! The half of the agent that judges: observations in, verdicts out. Nothing here can block.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use probe_engine::{Effect, Engine, Gap, Lost, Mono, Observation, Remembered, Report, Scope};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::bpf::HookStatus;
use crate::clock::{self, Wall};
use crate::feed::{Feed, Seen, WATCHER};
use crate::sinks::Sink;
use crate::threads::Operation;

/// What the engine wants read again: asked for by the judge, done by the watcher.
pub(super) type Rereads = Arc<Mutex<BTreeSet<Scope>>>;

/// See the module.
pub(crate) struct Judge {
    pub(super) engine: Engine,
    /// What the watcher saw, in its order.
    pub(super) seen: mpsc::Receiver<Vec<Seen>>,
    pub(super) rereads: Rereads,
    /// Asks the addresses that it is given.
    pub(super) wake: mpsc::Sender<SocketAddr>,
    pub(super) hooks: Vec<HookStatus>,
    /// Between two turns.
    pub(super) turn: Duration,
    pub(super) about: About,
    /// Whether the sinks know of the hooks.
    pub(super) begun: bool,
    /// What the watcher does, where it has a thread of its own, and whether it was found blocked.
    pub(super) watcher: Option<Arc<Operation>>,
    pub(super) is_blind: bool,
}

/// What the sinks need to know of the agent.
#[derive(Clone)]
pub(crate) struct About {
    /// Turns the engine's times into wall time.
    pub(crate) wall: Wall,
    /// When the agent started: the time that the engine was made with.
    pub(crate) started: Mono,
    /// Why no eBPF program is loaded, on one line.
    pub(crate) unsupported: Option<String>,
    /// From the start of the process to the last attached program.
    pub(crate) attach_took: Option<Duration>,
    /// Where tasks of a command's own put what they observe.
    pub(crate) feed: Feed,
}

impl Judge {
    /// See there.
    pub(crate) fn about(&self) -> &About {
        &self.about
    }

    /// Takes what an earlier agent said last; before [`Self::run`].
    pub(crate) fn remember(&mut self, remembered: Remembered, sinks: &mut [&mut dyn Sink]) {
        self.deliver(self.about.started, Observation::Remembered(remembered), sinks);
    }

    /// Takes what shows whether the watcher is blocked.
    pub(crate) fn follow(&mut self, watcher: Arc<Operation>) {
        self.watcher = Some(watcher);
    }

    /// Everything that is known now.
    pub(crate) fn report(&self) -> Report {
        self.engine.report()
    }

    /// Takes the last observation, after [`Self::run`].
    pub(crate) fn stop(&mut self, last: Seen, sinks: &mut [&mut dyn Sink]) {
        self.deliver(last.at, last.observation, sinks);
    }

    /// Judges until the watcher has gone, and gives everything to the sinks. May be dropped at any time and called again.
    pub(crate) async fn run(&mut self, sinks: &mut [&mut dyn Sink]) {
        if !std::mem::replace(&mut self.begun, true) {
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
                    self.look_at_watcher(sinks);
                }
                () = clock::reached(deadline) => {
                    self.engine.tick(clock::now());
                    self.drain(clock::now(), false, sinks);
                }
            }
        }
    }

    /// While the watcher is blocked nothing new is seen, and what was seen before proves nothing any more. When it goes on
    /// it reads everything again, because it is asked to here.
    fn look_at_watcher(&mut self, sinks: &mut [&mut dyn Sink]) {
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
        let why = format!("{line}: nothing new is seen");
        self.deliver(now, Observation::Gap(Gap { signal: signal.clone(), why, blind: true }), sinks);
        for lost in Lost::of_any_event(&signal, 0) {
            self.deliver(now, Observation::Lost(lost), sinks);
        }
    }

    /// Takes what the watcher has seen until now.
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

    /// One mutation, then drained, before the next.
    fn deliver(&mut self, at: Mono, observation: Observation, sinks: &mut [&mut dyn Sink]) {
        let judged = at.max(self.engine.now());
        for sink in sinks.iter_mut() {
            sink.observation(at, &observation);
            sink.judged(judged, &observation);
        }
        // No effect follows from these, and the report is another one.
        let tells = matches!(
            observation,
            Observation::Gap(_) | Observation::GapClosed { .. } | Observation::Writes(_)
        );
        self.engine.observe(at, observation);
        self.drain(at, tells, sinks);
    }

    fn drain(&mut self, at: Mono, mut changed: bool, sinks: &mut [&mut dyn Sink]) {
        while let Some(effect) = self.engine.poll_effect() {
            changed = true;
            for sink in sinks.iter_mut() {
                sink.effect(at, &effect);
            }
            match effect {
                // A full queue means that this address is about to be asked anyway.
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

    /// The times of what it was given.
    #[derive(Default)]
    struct Times(Vec<Mono>);

    impl Sink for Times {
        fn judged(&mut self, at: Mono, _observation: &Observation) {
            self.0.push(at);
        }
    }

    #[tokio::test]
    async fn what_is_taken_after_a_deadline_is_recorded_with_the_time_at_which_it_was_judged() {
        let (_app, mut judge) = App::without_eyes(settings(), Vec::new());
        let deadline = clock::now().plus(1_000_000_000);
        judge.engine.tick(deadline);
        let mut times = Times::default();
        let seen = |at| Seen { at, observation: Observation::SnapshotDone };
        let before = seen(deadline.minus(1));
        judge.take(vec![before, seen(deadline.plus(1))], &mut [&mut times]);
        assert_eq!(times.0, [deadline, deadline.plus(1)]);
    }

    #[tokio::test]
    async fn what_a_blocked_watcher_saw_proves_nothing_until_it_has_read_everything_again() {
        let settings = settings();
        let content = ConfContent::Network { network: "pods".to_owned(), plugins: Vec::new() };
        let file = ConfFile { name: "10-pods.conflist".to_owned(), size: 1, content };
        let early = vec![
            Observation::Host(Host { role: Role::Worker, ..Host::default() }),
            Observation::CniConfig(CniConfig { files: vec![file], ..CniConfig::default() }),
            Observation::SnapshotDone,
        ];
        let (mut app, mut judge) = App::without_eyes(settings, early);
        app.flush().await;
        let watcher = Blocked::default().operation("the thread watch".to_owned());
        judge.follow(Arc::clone(&watcher));
        let network = |judge: &Judge| judge.report().conditions[0].reason;
        judge.take_waiting(&mut []);
        judge.look_at_watcher(&mut []);
        assert_eq!(network(&judge), Reason::NetworkReady);
        watcher.began(clock::now().minus(11_000_000_000));
        judge.look_at_watcher(&mut []);
        assert_eq!(judge.report().gaps[0].why, "the thread watch is blocked: nothing new is seen");
        judge.engine.tick(clock::now().plus(15_000_000_000));
        assert_eq!(network(&judge), Reason::ProbeDegraded);
        watcher.begins();
        judge.look_at_watcher(&mut []);
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
