//! The agent: sources in, engine, sinks out. It never thinks: what to say is the engine's.

mod reread;
mod sources;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use probe_common::Hook;
use probe_engine::{Config, Effect, Engine, Mono, Observation, Remembered, Report};
use tokio::sync::{mpsc, watch};

use crate::bpf::{self, HookStatus, Kernel, Unsupported};
use crate::clock::{self, Wall};
use crate::enrich::{DropReasons, Enricher, Sandboxes};
use crate::feed::{Feed, Seen};
use crate::node::ask::{Asked, Targets};
use crate::node::names::{self, Named};
use crate::settings::Settings;
use crate::sinks::Sink;

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

/// See the module.
pub(crate) struct App {
    settings: Arc<Settings>,
    wall: Wall,
    engine: Engine,
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
    /// Names of API servers that are looked up.
    names: watch::Sender<Vec<Named>>,
    addresses_changed: mpsc::Receiver<()>,
    /// What was observed before the loop runs: the state at start.
    early: Vec<Seen>,
    /// Of one batch of the ring; empty between two, kept to reuse its memory.
    observations: Vec<(Mono, Observation)>,
    state: sources::State,
    tasks: tokio::task::JoinSet<()>,
    started: Mono,
    /// Between two looks at the loss counters.
    look: Duration,
}

impl App {
    /// Loads the kernel half and reads the present state. Where no program can be loaded the agent works
    /// with what else there is: see [`Self::unsupported`].
    pub(crate) async fn start(settings: Arc<Settings>) -> Result<Self> {
        let started = clock::now();
        let (kernel, unsupported) = match bpf::load(settings.ring_bytes, settings.hooks, false) {
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
        let mut app = Self::with(settings, kernel, unsupported, addresses_changed, started);
        let sees_drops = |status: &HookStatus| status.hook == Hook::KfreeSkb && status.attached();
        let stands_in = sources::StandsIn {
            routes: !app.hooks.iter().any(HookStatus::sees_routes),
            drops: !app.hooks.iter().any(sees_drops),
        };
        let watched = app.targets.subscribe();
        let processes = app.state.processes();
        sources::spawn(&mut app.tasks, &app.settings, &app.feed, address_feed, watched, processes, stands_in);
        let names = app.names.subscribe();
        app.tasks.spawn(names::watch(Arc::clone(&app.settings), names, app.feed.clone()));
        app.snapshot().await?;
        Ok(app)
    }

    /// One that sees what it is told and what it asks for itself.
    fn with(
        settings: Arc<Settings>,
        kernel: Option<Kernel>,
        unsupported: Option<String>,
        addresses_changed: mpsc::Receiver<()>,
        started: Mono,
    ) -> Self {
        let hooks = kernel.as_ref().map(|kernel| kernel.hooks.clone()).unwrap_or_default();
        let config = engine_config(&settings);
        let (feed, queue) = mpsc::channel(QUEUE);
        let (done, asked) = mpsc::channel(QUEUE);
        let (wake, woken) = mpsc::channel(QUEUE);
        let (targets, watched_targets) = watch::channel(Targets::new());
        let mut tasks = tokio::task::JoinSet::new();
        if settings.ask {
            tasks.spawn(crate::node::ask::run(Arc::clone(&settings), watched_targets, woken, done));
        }
        let drops = drop_reasons(kernel.as_ref());
        let host_netns = sources::own_netns().unwrap_or(0);
        let enricher = Enricher::new(host_netns, std::process::id(), drops, Arc::clone(&settings));
        Self {
            wall: Wall::here(),
            engine: Engine::new(config, started),
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
            names: watch::Sender::default(),
            addresses_changed,
            early: Vec::new(),
            observations: Vec::new(),
            state: sources::State::default(),
            tasks,
            started,
            settings,
            look: LOOK_FOR_LOSS,
        }
    }

    /// One without a kernel half and without a host: `early` is all that it knows at start.
    pub(crate) fn without_eyes(settings: Arc<Settings>, early: Vec<Observation>) -> Self {
        let started = clock::now();
        let mut app = Self::with(settings, None, None, mpsc::channel(1).1, started);
        // It has no counters, and thousands of its kind share a processor.
        app.look = Duration::from_secs(5);
        for observation in early {
            app.state.note(&observation);
            app.early.push(Seen { at: started, observation });
        }
        app.watch_targets();
        app
    }

    /// Why there is no kernel half, on one line.
    pub(crate) fn unsupported(&self) -> Option<&str> {
        self.unsupported.as_deref()
    }

    /// Turns the engine's times into wall time.
    pub(crate) fn wall(&self) -> Wall {
        self.wall
    }

    /// When the agent started: the time that the engine was made with.
    pub(crate) fn started(&self) -> Mono {
        self.started
    }

    /// From the start of the process to the last attached program.
    pub(crate) fn attach_took(&self) -> Option<Duration> {
        self.kernel.as_ref().map(|kernel| kernel.took)
    }

    /// Where tasks of a command's own put what they observe.
    pub(crate) fn feed(&self) -> Feed {
        self.feed.clone()
    }

    /// What an earlier agent said last; before [`Self::run`].
    pub(crate) fn remember(&mut self, remembered: Remembered) {
        let observation = Observation::Remembered(remembered);
        self.early.insert(0, Seen { at: self.started, observation });
    }

    /// Everything that is known now.
    pub(crate) fn report(&self) -> Report {
        self.engine.report()
    }

    /// The last observation, after [`Self::run`].
    pub(crate) fn stop(&mut self, last: Seen, sinks: &mut [&mut dyn Sink]) {
        self.deliver(last.at, last.observation, sinks);
    }

    /// Runs until `until` resolves and gives everything to the sinks.
    ///
    /// # Errors
    /// When the ring buffer cannot be read any more.
    pub(crate) async fn run(
        &mut self,
        sinks: &mut [&mut dyn Sink],
        until: impl Future<Output = ()>,
    ) -> Result<()> {
        for sink in sinks.iter_mut() {
            sink.hooks(&self.hooks);
        }
        let early = std::mem::take(&mut self.early);
        for seen in early {
            self.deliver(seen.at, seen.observation, sinks);
        }
        tokio::pin!(until);
        let mut look = tokio::time::interval(self.look);
        let mut look_for_left_out = tokio::time::interval(LOOK_FOR_LEFT_OUT);
        loop {
            let deadline = self.engine.next_deadline();
            tokio::select! {
                () = &mut until => {
                    self.take_waiting(sinks);
                    self.tell_left_out(sinks);
                    return self.look_for_loss(sinks).await;
                }
                ready = wait(&mut self.kernel) => {
                    ready?;
                    let _more = self.take_events(sinks);
                }
                Some(seen) = self.queue.recv() => self.deliver(seen.at, seen.observation, sinks),
                Some(asked) = self.asked.recv() => self.take_answer(asked, sinks),
                Some(()) = self.addresses_changed.recv() => self.look_at_addresses(sinks).await,
                _ = look.tick() => {
                    for sink in sinks.iter_mut() {
                        sink.turn(clock::now());
                    }
                    self.look_for_loss(sinks).await?;
                    if self.state.take_role_due() {
                        self.look_at_node(sinks);
                    }
                }
                _ = look_for_left_out.tick() => self.tell_left_out(sinks),
                () = clock::reached(deadline) => {
                    self.engine.tick(clock::now());
                    self.drain(clock::now(), false, sinks);
                }
            }
        }
    }

    /// What was observed before the end counts, also when a busy machine left no time for it until now.
    fn take_waiting(&mut self, sinks: &mut [&mut dyn Sink]) {
        self.take_all_events(sinks);
        while let Ok(seen) = self.queue.try_recv() {
            self.deliver(seen.at, seen.observation, sinks);
        }
        while let Ok(asked) = self.asked.try_recv() {
            self.take_answer(asked, sinks);
        }
    }

    /// Everything that the kernel half saw until now.
    fn take_all_events(&mut self, sinks: &mut [&mut dyn Sink]) {
        // A flood goes on meanwhile, and may be faster than this.
        let end = clock::now().plus(nanos(LEAVE));
        while self.take_events(sinks) && clock::now() < end {}
    }

    /// One batch of what the kernel half saw: what else there is to do has its turn between two. True when there may
    /// be more.
    fn take_events(&mut self, sinks: &mut [&mut dyn Sink]) -> bool {
        let Some(kernel) = &mut self.kernel else { return false };
        let mut observations = std::mem::take(&mut self.observations);
        let enricher = &mut self.enricher;
        let more = kernel.reader.take_batch(|event| {
            enricher.event(event, |at, observation| observations.push((at, observation)));
        });
        for (at, observation) in observations.drain(..) {
            self.deliver(at, observation, sinks);
        }
        self.observations = observations;
        more
    }

    /// One mutation, then drained, before the next.
    fn deliver(&mut self, at: Mono, observation: Observation, sinks: &mut [&mut dyn Sink]) {
        self.state.note(&observation);
        self.sandboxes.note(at, &observation);
        for sink in sinks.iter_mut() {
            sink.observation(at, &observation);
        }
        // No effect follows from these, and the report is another one.
        let tells = matches!(
            observation,
            Observation::Gap(_) | Observation::GapClosed { .. } | Observation::Writes(_)
        );
        let is_target = matches!(observation, Observation::ApiTarget(_) | Observation::ApiTargetGone { .. });
        self.engine.observe(at, observation);
        self.drain(at, tells, sinks);
        if is_target {
            self.watch_targets();
        }
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
                Effect::Reread(scope) => self.state.must_reread(scope),
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

fn drop_reasons(kernel: Option<&Kernel>) -> DropReasons {
    let Some(kernel) = kernel else { return DropReasons::default() };
    let attached = |wanted| kernel.hooks.iter().any(|status| status.hook == wanted && status.attached());
    DropReasons {
        names: kernel.drop_reasons.clone(),
        by_silence: !attached(Hook::KfreeSkb) && attached(Hook::TcpRetransmitSkb),
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
            let mut app = App::without_eyes(Arc::clone(&settings), Vec::new());
            let (answers, asked) = mpsc::channel(1);
            app.asked = asked;
            let at = clock::now();
            let reread = Observation::Reread { scope: Scope::Sockets };
            app.feed().try_send(Seen { at, observation: reread.clone() }).expect("the queue has room");
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
            app.run(&mut [&mut told], std::future::ready(())).await.expect("ends in peace");
            assert!(told.0.contains(&reread), "{:?}", told.0);
            assert!(told.0.contains(&Observation::Route(route)), "{:?}", told.0);
        }
    }
}
