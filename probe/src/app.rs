//! The watcher: it collects the observations of all sources and passes them to the [`Judge`], which runs the engine. It draws no
//! conclusions itself.

mod background;
mod judge;
mod reread;
mod sources;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use probe_common::Hook;
use probe_engine::{BootTime, Config, Engine, Lost, Observation};
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

use background::BackgroundReads;
use judge::Rereads;
pub(crate) use judge::{About, Judge};

/// Capacity of the queue between the sources and the loop. The largest burst is the state of links at start: about three
/// observations a pod.
const QUEUE: usize = 1024;
/// Interval of reading the loss counters: 57 map look-ups, about 30 µs.
const LOSS_CHECK: Duration = Duration::from_millis(250);
/// Interval of reading the kernel's counters of skipped runs. Most skipped runs would not have had an event to report, and a
/// busy host with a fully preemptible kernel always has some: the state behind their hooks is then read again at this
/// interval.
const SKIPPED_RUNS_CHECK: Duration = Duration::from_secs(5);
/// How long draining the ring buffer may take: many times what a full one needs.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum number of observations in a message to the judge. A message wakes it, and it processes this many in well below a
/// millisecond.
const BATCH: usize = 128;
/// Interval at which the judge reports that it is running, and how late it was.
const TURN: Duration = Duration::from_millis(100);

/// The watcher, see the module.
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
    /// Endpoint of the container runtime, for calls over CRI.
    runtime: cri::Endpoints,
    /// Names of API servers to resolve.
    names: watch::Sender<Vec<Named>>,
    /// Configuration of the node's kubelet.
    kubelet: watch::Sender<Kubelet>,
    addresses_changed: mpsc::Receiver<()>,
    /// Reads that other threads do for this one.
    background: BackgroundReads,
    /// Observations that have not been sent to the judge yet.
    out: Vec<Seen>,
    judge: mpsc::Sender<Vec<Seen>>,
    rereads: Rereads,
    /// Whether the state at start must still be read.
    snapshot_due: bool,
    /// SIGHUP, if it is handled: everything is read again.
    hangup: Option<Signal>,
    /// Observations of one batch of the ring buffer. Empty between batches; a field only so that its memory is reused.
    observations: Vec<(BootTime, Observation)>,
    state: sources::State,
    tasks: tokio::task::JoinSet<()>,
    /// Interval of reading the loss counters.
    loss_check: Duration,
}

impl App {
    /// Loads the kernel programs and starts the sources. If no program can be loaded, the other sources are used: see
    /// [`About::unsupported`]. Nothing is read before [`Self::run`].
    ///
    /// # Errors
    /// As [`bpf::load`], except for [`Unsupported::Kernel`].
    pub(crate) fn start(settings: Arc<Settings>, threads: Threads) -> Result<(Self, Judge)> {
        let started = clock::now();
        let (mut kernel, unsupported) = match bpf::load(&settings, false) {
            Ok(kernel) => (Some(kernel), None),
            Err(error) => match error.downcast_ref::<Unsupported>() {
                Some(Unsupported::Kernel(why)) => (None, Some(why.clone())),
                _ => return Err(error),
            },
        };
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
        let reports_drops = |status: &HookStatus| status.hook == Hook::KfreeSkb && status.attached();
        let fallbacks = sources::Fallbacks {
            routes: !self.hooks.iter().any(HookStatus::reports_routes),
            drops: !self.hooks.iter().any(reports_drops),
        };
        let watched = self.targets.subscribe();
        let processes = self.state.processes();
        let node = (&mut self.tasks, &self.threads.node);
        sources::spawn(node, &self.settings, &self.feed, address_feed, watched, processes, fallbacks);
        let cri = cri::watch(
            Arc::clone(&self.settings),
            self.runtime.subscribe(),
            Arc::clone(self.state.happened()),
            self.feed.clone(),
        );
        self.tasks.spawn_on(cri, &self.threads.net);
        let (processes, runtime) = (self.state.processes().subscribe(), self.runtime.subscribe());
        self.tasks.spawn_on(pulse::watch(processes, runtime, self.feed.clone()), &self.threads.node);
        let (names, kubelet) = (self.names.subscribe(), self.kubelet.subscribe());
        let names = names::watch(Arc::clone(&self.settings), names, kubelet, self.feed.clone());
        self.tasks.spawn_on(names, &self.threads.net);
    }

    /// Creates a watcher without sources, apart from its own requests, and its judge.
    fn with(
        settings: Arc<Settings>,
        threads: Threads,
        (kernel, unsupported): (Option<Kernel>, Option<String>),
        addresses_changed: mpsc::Receiver<()>,
        (started, turn): (BootTime, Duration),
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
            has_sent_hooks: false,
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
            background: BackgroundReads::new(threads.node.clone()),
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
            loss_check: LOSS_CHECK,
        };
        (app, judge)
    }

    /// Creates a watcher without kernel programs and without a host, and its judge. `initial` are its observations at start.
    pub(crate) fn simulated(settings: Arc<Settings>, initial: Vec<Observation>) -> (Self, Judge) {
        // There are no counters to read, and thousands of simulated agents share a processor.
        const INTERVAL: Duration = Duration::from_secs(5);
        let started = clock::now();
        let addresses_changed = mpsc::channel(1).1;
        let (mut app, judge) =
            Self::with(settings, Threads::here(), (None, None), addresses_changed, (started, INTERVAL));
        app.loss_check = INTERVAL;
        for observation in initial {
            app.deliver(started, observation);
        }
        (app, judge)
    }

    /// Handles SIGHUP from now on: everything is read again, and the process is not terminated. Must be called on the watcher's
    /// runtime.
    pub(crate) fn reread_on_hangup(&mut self) -> Result<()> {
        self.hangup = Some(signal(SignalKind::hangup()).context("handle SIGHUP")?);
        Ok(())
    }

    /// Watches until `until` resolves, and then sends all remaining observations to the judge.
    ///
    /// # Errors
    /// If the ring buffer or the loss counters cannot be read.
    pub(crate) async fn run(&mut self, until: impl Future<Output = ()>) -> Result<()> {
        if std::mem::take(&mut self.snapshot_due) {
            self.snapshot().await?;
        }
        self.flush().await;
        tokio::pin!(until);
        let mut loss_check = tokio::time::interval(self.loss_check);
        let mut skipped_runs_check = tokio::time::interval(SKIPPED_RUNS_CHECK);
        loop {
            tokio::select! {
                () = &mut until => {
                    self.take_waiting().await;
                    self.report_skipped_runs();
                    self.check_for_losses().await?;
                    self.flush().await;
                    return Ok(());
                }
                ready = wait_for_events(&mut self.kernel) => {
                    ready?;
                    let _more = self.take_events();
                }
                Some(seen) = self.queue.recv() => self.deliver(seen.at, seen.observation),
                Some(asked) = self.asked.recv() => self.take_answer(asked),
                Some(read) = self.background.next() => self.take_read(read),
                Some(()) = self.addresses_changed.recv() => self.reread_addresses().await,
                () = hung_up(&mut self.hangup) => self.state.must_reread_all(),
                _ = loss_check.tick() => {
                    self.check_for_losses().await?;
                    self.reread_node_if_due();
                }
                _ = skipped_runs_check.tick() => self.report_skipped_runs(),
            }
            self.flush().await;
        }
    }

    /// Takes everything that was observed until now: on a busy host observations may have waited.
    async fn take_waiting(&mut self) {
        self.take_all_events().await;
        while let Ok(seen) = self.queue.try_recv() {
            self.deliver(seen.at, seen.observation);
        }
        while let Ok(asked) = self.asked.try_recv() {
            self.take_answer(asked);
        }
    }

    /// Takes all events that the kernel programs have recorded until now.
    async fn take_all_events(&mut self) {
        // The limit is needed because events may arrive faster than they are read.
        let deadline = clock::now().plus(nanos(DRAIN_TIMEOUT));
        while self.take_events() && clock::now() < deadline {
            self.flush().await;
        }
    }

    /// Takes one batch of events from the kernel programs, so that other work is done between batches. Returns whether there may
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

    /// Reports to the kernel programs which processes with watched names are components of the node.
    fn identify(&mut self) {
        let Some(kernel) = &mut self.kernel else { return };
        for (pid, executed_ns, is_trusted) in self.enricher.take_identified() {
            if let Err(error) = kernel.watch.identify(pid, executed_ns, is_trusted) {
                self.state.gap("process.exit", format!("{error:#}"));
            }
        }
    }

    /// Queues an observation for the judge; the next [`Self::flush`] sends it.
    fn deliver(&mut self, at: BootTime, observation: Observation) {
        self.state.note(&observation);
        self.sandboxes.note(at, &observation);
        let is_target = matches!(observation, Observation::ApiTarget(_) | Observation::ApiTargetGone { .. });
        self.out.push(Seen { at, observation });
        if is_target {
            self.watch_targets();
        }
    }

    /// Sends the queued observations to the judge, in their order. Waits if its queue is full; meanwhile events accumulate in the
    /// ring buffer, which counts those that do not fit.
    async fn flush(&mut self) {
        let mut out = std::mem::take(&mut self.out).into_iter();
        while out.len() > 0 {
            // Sending fails only if the judge was dropped, and then the watcher is about to be stopped.
            let _ = self.judge.send(out.by_ref().take(BATCH).collect()).await;
        }
    }

    /// Updates the addresses whose connects the kernel programs report and to which requests are sent.
    fn watch_targets(&mut self) {
        let targets = self.state.targets().clone();
        let addresses: Vec<_> = targets.keys().copied().collect();
        if let Some(kernel) = &mut self.kernel
            && let Err(error) = kernel.watch.set_targets(&addresses, sources::PORTS)
        {
            self.state.gap("tcp.connect", format!("{error:#}"));
        }
        self.targets.send_if_modified(|current| {
            let changed = *current != targets;
            current.clone_from(&targets);
            changed
        });
    }
}

/// Runs the watcher and the judge on the current thread until `until` resolves.
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

/// Waits for SIGHUP; forever if it is not handled.
async fn hung_up(hangup: &mut Option<Signal>) {
    match hangup {
        Some(hangup) => _ = hangup.recv().await,
        None => std::future::pending().await,
    }
}

/// Waits for events in the ring buffer; forever without kernel programs.
async fn wait_for_events(kernel: &mut Option<Kernel>) -> Result<()> {
    match kernel {
        Some(kernel) => kernel.reader.wait().await,
        None => std::future::pending().await,
    }
}

/// Returns the configuration of the engine.
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
    struct Recorded(Vec<Observation>);

    impl Sink for Recorded {
        fn observation(&mut self, _at: BootTime, observation: &Observation) {
            self.0.push(observation.clone());
        }
    }

    #[tokio::test]
    async fn delivers_queued_observations_before_stopping() {
        let command = Cli::try_parse_from(["probe", "check", "--no-ask"]).expect("is a command").command;
        let Command::Check(args) = command else { unreachable!("check was asked for") };
        let settings = Arc::new(args.node.settings().expect("have defaults"));
        // `select!` chooses among ready branches at random, so that a single attempt could pass by chance.
        for _ in 0..32 {
            let (mut app, mut judge) = App::simulated(Arc::clone(&settings), Vec::new());
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
            let mut recorded = Recorded::default();
            let agent = (&mut app, &mut judge);
            run(agent, &mut [&mut recorded], std::future::ready(())).await.expect("stops without an error");
            assert!(recorded.0.contains(&reread), "{:?}", recorded.0);
            assert!(recorded.0.contains(&Observation::Route(route)), "{:?}", recorded.0);
        }
    }
}
