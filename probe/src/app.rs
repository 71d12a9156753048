//! The half of the agent that watches: sources in, observations out. It never thinks: what to say is the engine's, and
//! that is in the other half, [`Judge`].

mod judge;
mod looks;
mod reread;
mod sources;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use probe_common::Hook;
use probe_engine::{Config, Engine, Lost, Mono, Observation};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::bpf::{self, HookStatus, Kernel, Unsupported};
use crate::clock::{self, Wall};
use crate::enrich::{DropReasons, Enricher, Sandboxes};
use crate::feed::{Feed, RING_BUFFER, Seen};
use crate::node::ask::{Asked, Targets};
use crate::node::discovery::Kubelet;
use crate::node::names::{self, Named};
use crate::node::{cri, pulse};
use crate::settings::Settings;
use crate::sinks::Sink;
use crate::threads::Threads;

use judge::Rereads;
pub(crate) use judge::{About, Judge};

/// How many observations may wait between the sources and the loop. The largest burst is the state of links
/// at start: about three a pod.
const QUEUE: usize = 1024;
/// How often the loss counters are read: 57 look-ups in a map, about 30 µs.
const LOOK_FOR_LOSS: Duration = Duration::from_millis(250);
/// How often the kernel's counters of the runs that it left out are read. Most such runs would have had nothing to tell, and
/// a busy machine whose kernel can be interrupted everywhere has some at any time: what depends on their hooks is then
/// read again this often.
const LOOK_FOR_LEFT_OUT: Duration = Duration::from_secs(5);
/// How long the last look at the ring may take: many times what a full one needs.
const LEAVE: Duration = Duration::from_secs(1);
/// Most observations that the judge is given at once. A message wakes it, and so many take it well below a millisecond.
const BATCH: usize = 128;
/// How often the judge shows that it turns, and how late it was.
const TURN: Duration = Duration::from_millis(100);

/// See the module.
pub(crate) struct App {
    settings: Arc<Settings>,
    threads: Threads,
    enricher: Enricher,
    sandboxes: Sandboxes,
    kernel: Option<Kernel>,
    unsupported: Option<String>,
    hooks: Vec<HookStatus>,
    queue: mpsc::Receiver<Seen>,
    feed: Feed,
    asked: mpsc::Receiver<Asked>,
    wake: mpsc::Sender<SocketAddr>,
    targets: watch::Sender<Targets>,
    /// The container runtime that is called over CRI.
    runtime: cri::Endpoints,
    /// Names of API servers that are looked up.
    names: watch::Sender<Vec<Named>>,
    /// What the node's kubelet is configured for.
    kubelet: watch::Sender<Kubelet>,
    addresses_changed: mpsc::Receiver<()>,
    /// What the threads that read files have read for this one.
    looks: looks::Looks,
    /// What was observed and is not with the judge yet.
    out: Vec<Seen>,
    judge: mpsc::Sender<Vec<Seen>>,
    rereads: Rereads,
    /// Whether the state at start is still to be read.
    snapshot_due: bool,
    /// SIGHUP, where it means that everything is to be read again.
    hangup: Option<Signal>,
    /// Of one batch of the ring; empty between two, kept to reuse its memory.
    observations: Vec<(Mono, Observation)>,
    state: sources::State,
    tasks: tokio::task::JoinSet<()>,
    /// Between two looks at the loss counters.
    look: Duration,
}

impl App {
    /// Loads the kernel half and starts the sources. Where no program can be loaded the agent works with what else there
    /// is: see [`About::unsupported`]. Nothing is read before [`Self::run`].
    pub(crate) fn start(settings: Arc<Settings>, threads: Threads) -> Result<(Self, Judge)> {
        let started = clock::now();
        let (kernel, unsupported) = match bpf::load(&settings, false) {
            Ok(kernel) => (Some(kernel), None),
            Err(error) => match error.downcast_ref::<Unsupported>() {
                Some(Unsupported::Kernel(why)) => (None, Some(why.clone())),
                _ => return Err(error),
            },
        };
        let mut kernel = kernel;
        if let Some(kernel) = &mut kernel {
            crate::commands::kernel_log::follow(&mut kernel.programs);
        }
        let (address_feed, addresses_changed) = mpsc::channel(1);
        let (mut app, judge) =
            Self::with(settings, threads, (kernel, unsupported), addresses_changed, (started, TURN));
        app.snapshot_due = true;
        app.follow_sources(address_feed);
        Ok((app, judge))
    }

    fn follow_sources(&mut self, address_feed: mpsc::Sender<()>) {
        let sees_drops = |status: &HookStatus| status.hook == Hook::KfreeSkb && status.attached();
        let stands_in = sources::StandsIn {
            routes: !self.hooks.iter().any(HookStatus::sees_routes),
            drops: !self.hooks.iter().any(sees_drops),
        };
        let watched = self.targets.subscribe();
        let processes = self.state.processes();
        let node = (&mut self.tasks, &self.threads.node);
        sources::spawn(node, &self.settings, &self.feed, address_feed, watched, processes, stands_in);
        let asked = cri::watch(
            Arc::clone(&self.settings),
            self.runtime.subscribe(),
            Arc::clone(self.state.happened()),
            self.feed.clone(),
        );
        self.tasks.spawn_on(asked, &self.threads.net);
        let (processes, runtime) = (self.state.processes().subscribe(), self.runtime.subscribe());
        self.tasks.spawn_on(pulse::watch(processes, runtime, self.feed.clone()), &self.threads.node);
        let (names, kubelet) = (self.names.subscribe(), self.kubelet.subscribe());
        let names = names::watch(Arc::clone(&self.settings), names, kubelet, self.feed.clone());
        self.tasks.spawn_on(names, &self.threads.net);
    }

    /// One that sees what it is told and what it asks for itself.
    fn with(
        settings: Arc<Settings>,
        threads: Threads,
        (kernel, unsupported): (Option<Kernel>, Option<String>),
        addresses_changed: mpsc::Receiver<()>,
        (started, turn): (Mono, Duration),
    ) -> (Self, Judge) {
        let hooks = kernel.as_ref().map(|kernel| kernel.hooks.clone()).unwrap_or_default();
        let (feed, queue) = mpsc::channel(QUEUE);
        let (done, asked) = mpsc::channel(QUEUE);
        let (wake, woken) = mpsc::channel(QUEUE);
        let (to_judge, seen) = mpsc::channel(QUEUE / BATCH);
        let (targets, watched_targets) = watch::channel(Targets::new());
        let kubelet = watch::Sender::<Kubelet>::default();
        let mut tasks = tokio::task::JoinSet::new();
        if settings.ask {
            let kubelet = kubelet.subscribe();
            let asking = crate::node::ask::run(Arc::clone(&settings), kubelet, watched_targets, woken, done);
            tasks.spawn_on(asking, &threads.net);
        }
        let drops = drop_reasons(kernel.as_ref());
        let host_netns = sources::own_netns().unwrap_or(0);
        let enricher = Enricher::new(host_netns, drops, Arc::clone(&settings));
        let rereads = Rereads::default();
        let judge = Judge {
            engine: Engine::new(engine_config(&settings), started),
            seen,
            rereads: Arc::clone(&rereads),
            wake: wake.clone(),
            hooks: hooks.clone(),
            turn,
            about: About {
                wall: Wall::here(),
                started,
                unsupported: unsupported.clone(),
                attach_took: kernel.as_ref().map(|kernel| kernel.took),
                feed: feed.clone(),
            },
            begun: false,
            watcher: None,
            is_blind: false,
        };
        let app = Self {
            enricher,
            sandboxes: Sandboxes::default(),
            kernel,
            unsupported,
            hooks,
            queue,
            feed,
            asked,
            wake,
            targets,
            runtime: watch::Sender::default(),
            names: watch::Sender::default(),
            kubelet,
            addresses_changed,
            looks: looks::Looks::new(threads.node.clone()),
            threads,
            out: Vec::new(),
            judge: to_judge,
            rereads,
            snapshot_due: false,
            hangup: None,
            observations: Vec::new(),
            state: sources::State::default(),
            tasks,
            settings,
            look: LOOK_FOR_LOSS,
        };
        (app, judge)
    }

    /// One without a kernel half and without a host: `early` is all that it knows at start.
    pub(crate) fn without_eyes(settings: Arc<Settings>, early: Vec<Observation>) -> (Self, Judge) {
        // It has no counters, and thousands of its kind share a processor.
        const LOOK: Duration = Duration::from_secs(5);
        let started = clock::now();
        let addresses_changed = mpsc::channel(1).1;
        let (mut app, judge) =
            Self::with(settings, Threads::here(), (None, None), addresses_changed, (started, LOOK));
        app.look = LOOK;
        for observation in early {
            app.deliver(started, observation);
        }
        (app, judge)
    }

    /// From now on SIGHUP has everything read again, and does not end the process. On the runtime that watches.
    pub(crate) fn reread_on_hangup(&mut self) -> Result<()> {
        self.hangup = Some(signal(SignalKind::hangup()).context("watch for SIGHUP")?);
        Ok(())
    }

    /// Watches until `until` resolves; the judge has been given everything then.
    ///
    /// # Errors
    /// When the ring buffer cannot be read any more.
    pub(crate) async fn run(&mut self, until: impl Future<Output = ()>) -> Result<()> {
        if std::mem::take(&mut self.snapshot_due) {
            self.snapshot().await?;
        }
        self.flush().await;
        tokio::pin!(until);
        let mut look = tokio::time::interval(self.look);
        let mut look_for_left_out = tokio::time::interval(LOOK_FOR_LEFT_OUT);
        loop {
            tokio::select! {
                () = &mut until => {
                    self.take_waiting().await;
                    self.tell_left_out();
                    self.look_for_loss().await?;
                    self.flush().await;
                    return Ok(());
                }
                ready = wait(&mut self.kernel) => {
                    ready?;
                    let _more = self.take_events();
                }
                Some(seen) = self.queue.recv() => self.deliver(seen.at, seen.observation),
                Some(asked) = self.asked.recv() => self.take_answer(asked),
                Some(look) = self.looks.next() => self.take_look(look),
                Some(()) = self.addresses_changed.recv() => self.look_at_addresses().await,
                () = hung_up(&mut self.hangup) => self.state.must_reread_all(),
                _ = look.tick() => {
                    self.look_for_loss().await?;
                    self.look_at_node();
                }
                _ = look_for_left_out.tick() => self.tell_left_out(),
            }
            self.flush().await;
        }
    }

    /// What was observed before the end counts, also when a busy machine left no time for it until now.
    async fn take_waiting(&mut self) {
        self.take_all_events().await;
        while let Ok(seen) = self.queue.try_recv() {
            self.deliver(seen.at, seen.observation);
        }
        while let Ok(asked) = self.asked.try_recv() {
            self.take_answer(asked);
        }
    }

    /// Everything that the kernel half saw until now.
    async fn take_all_events(&mut self) {
        // A flood goes on meanwhile, and may be faster than this.
        let end = clock::now().plus(nanos(LEAVE));
        while self.take_events() && clock::now() < end {
            self.flush().await;
        }
    }

    /// One batch of what the kernel half saw: what else there is to do has its turn between two. True when there may
    /// be more.
    fn take_events(&mut self) -> bool {
        let Some(kernel) = &mut self.kernel else { return false };
        let mut observations = std::mem::take(&mut self.observations);
        let enricher = &mut self.enricher;
        let more = kernel.reader.take_batch(|event| {
            enricher.event(event, |at, observation| observations.push((at, observation)));
        });
        let undecodable = kernel.reader.take_undecodable();
        for (at, observation) in observations.drain(..) {
            self.deliver(at, observation);
        }
        self.observations = observations;
        if undecodable > 0 {
            for lost in Lost::of_any_event(RING_BUFFER, undecodable) {
                self.deliver(clock::now(), Observation::Lost(lost));
            }
        }
        self.identify();
        more
    }

    /// Passes on to the kernel programs which processes with watched names are components of the node.
    fn identify(&mut self) {
        let Some(kernel) = &mut self.kernel else { return };
        for (pid, executed_ns, is_trusted) in self.enricher.take_identified() {
            if let Err(error) = kernel.watch.identify(pid, executed_ns, is_trusted) {
                self.state.gap("process.exit", format!("{error:#}"));
            }
        }
    }

    /// Takes an observation: it is with the judge after the next [`Self::flush`].
    fn deliver(&mut self, at: Mono, observation: Observation) {
        self.state.note(&observation);
        self.sandboxes.note(at, &observation);
        let is_target = matches!(observation, Observation::ApiTarget(_) | Observation::ApiTargetGone { .. });
        self.out.push(Seen { at, observation });
        if is_target {
            self.watch_targets();
        }
    }

    /// Gives the judge what was observed, in its order. Waits where the judge is behind; the ring buffer holds what
    /// happens meanwhile, and counts what it cannot hold.
    async fn flush(&mut self) {
        let mut out = std::mem::take(&mut self.out).into_iter();
        while out.len() > 0 {
            // Without a judge this half is about to be stopped, too.
            let _ = self.judge.send(out.by_ref().take(BATCH).collect()).await;
        }
    }

    /// Addresses whose connects the kernel half reports and that are asked.
    fn watch_targets(&mut self) {
        let targets = self.state.targets().clone();
        let addresses: Vec<_> = targets.keys().copied().collect();
        if let Some(kernel) = &mut self.kernel
            && let Err(error) = kernel.watch.set_targets(&addresses, sources::PORTS)
        {
            self.state.gap("tcp.connect", format!("{error:#}"));
        }
        self.targets.send_if_modified(|current| {
            let new = *current != targets;
            current.clone_from(&targets);
            new
        });
    }
}

/// Runs both halves on the current thread until `until` resolves.
///
/// # Errors
/// As [`App::run`].
pub(crate) async fn run(
    (app, judge): (&mut App, &mut Judge),
    sinks: &mut [&mut dyn Sink],
    until: impl Future<Output = ()>,
) -> Result<()> {
    let watched = tokio::select! {
        watched = app.run(until) => watched,
        () = judge.run(sinks) => Ok(()),
    };
    judge.take_waiting(sinks);
    watched
}

fn drop_reasons(kernel: Option<&Kernel>) -> DropReasons {
    let Some(kernel) = kernel else { return DropReasons::default() };
    let attached = |wanted| kernel.hooks.iter().any(|status| status.hook == wanted && status.attached());
    DropReasons {
        names: kernel.drop_reasons.clone(),
        by_silence: !attached(Hook::KfreeSkb) && attached(Hook::TcpRetransmitSkb),
    }
}

/// Waits for SIGHUP; for ever where it has its usual meaning.
async fn hung_up(hangup: &mut Option<Signal>) {
    match hangup {
        Some(hangup) => _ = hangup.recv().await,
        None => std::future::pending().await,
    }
}

/// Waits for the ring buffer; for ever without a kernel half.
async fn wait(kernel: &mut Option<Kernel>) -> Result<()> {
    match kernel {
        Some(kernel) => kernel.reader.wait().await,
        None => std::future::pending().await,
    }
}

/// The engine's times, from the settings.
pub(crate) fn engine_config(settings: &Settings) -> Config {
    Config {
        start_grace_ns: nanos(settings.start_grace),
        fail_hold_ns: nanos(settings.fail_hold),
        plugin_limit_ns: settings.plugin_limit.map(nanos),
        ..Config::default()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use probe_engine::{Route, Scope};

    use super::*;
    use crate::cli::{Cli, Command};

    #[derive(Default)]
    struct Told(Vec<Observation>);

    impl Sink for Told {
        fn observation(&mut self, _at: Mono, observation: &Observation) {
            self.0.push(observation.clone());
        }
    }

    #[tokio::test]
    async fn what_waits_when_the_time_is_over_is_told() {
        let command = Cli::try_parse_from(["probe", "check", "--no-ask"]).expect("is a command").command;
        let Command::Check(args) = command else { unreachable!("check was asked for") };
        let settings = Arc::new(args.node.settings().expect("have defaults"));
        // Which of two things that are due comes first is left to chance: one try may pass by luck.
        for _ in 0..32 {
            let (mut app, mut judge) = App::without_eyes(Arc::clone(&settings), Vec::new());
            let (answers, asked) = mpsc::channel(1);
            app.asked = asked;
            let at = clock::now();
            let reread = Observation::Reread { scope: Scope::Sockets };
            app.feed.try_send(Seen { at, observation: reread.clone() }).expect("the queue has room");
            let route = Route { to: [10, 0, 0, 1].into(), errno: 0 };
            let asked = Asked {
                at,
                to: ([10, 0, 0, 1], 6443).into(),
                took_ns: 1,
                result: Ok(()),
                neighbour_failed: false,
                icmp: None,
                route: route.clone(),
                answer: None,
            };
            answers.try_send(asked).expect("the queue has room");
            let mut told = Told::default();
            let halves = (&mut app, &mut judge);
            run(halves, &mut [&mut told], std::future::ready(())).await.expect("ends in peace");
            assert!(told.0.contains(&reread), "{:?}", told.0);
            assert!(told.0.contains(&Observation::Route(route)), "{:?}", told.0);
        }
    }
}
