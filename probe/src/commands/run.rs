//! `probe run`: runs the agent.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::future::OptionFuture;
use probe_engine::{Observation, Remembered};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::until_stopped;
use crate::app::{About, App, Judge};
use crate::cli::RunArgs;
use crate::clock;
use crate::exit::Exit;
use crate::feed::Seen;
use crate::kube;
use crate::lock::{self, LockError};
use crate::privileges;
use crate::report::Context;
use crate::settings::Settings;
use crate::sinks::conditions::Conditions;
use crate::sinks::journal::Journal;
use crate::sinks::metrics::{Metrics, Shared, WriteMetrics};
use crate::sinks::socket::Socket;
use crate::sinks::state::StateFile;
use crate::sinks::{Sink, http};
use crate::text::is_node_name;
use crate::threads::{self, Threads};

/// Timeout of the last write to the Node object. A write usually takes 5 ms, and a pod is killed 30 s after its SIGTERM.
const LAST_WRITE: Duration = Duration::from_secs(3);
/// How long the watcher may take to report its last observations.
const LAST_OBSERVATION: Duration = Duration::from_secs(3);
/// How long the agent waits for the contents of its journal. A disk that responds takes milliseconds.
const JOURNAL_READ: Duration = Duration::from_secs(2);

/// Runs the agent until it is stopped. An output that fails is logged once and reported by `/readyz`; the agent continues without
/// it. This thread runs the engine and never waits for another thread.
pub(crate) async fn run(args: RunArgs) -> Result<Exit> {
    let settings = Arc::new(args.node.settings()?);
    if let Err(error) = privileges::confine() {
        crate::warn(&format!("cannot drop unused privileges: {error:#}"));
    }
    let stop = until_stopped(None)?;
    tokio::pin!(stop);
    let metrics = Metrics::new();
    let shared = metrics.shared();
    let lock = tokio::select! {
        () = &mut stop => return Ok(Exit::Ready),
        lock = lock::take(&args.state_file) => lock,
    };
    let lock = match lock {
        Ok(file) => Some(file),
        Err(LockError::Held(path)) => {
            crate::warn(&format!(
                "another agent runs on this host and holds the lock {}: stop it, or start this one with other files \
                 (--state-file, --journal, --socket)",
                path.display()
            ));
            return Ok(Exit::OtherFault);
        }
        Err(LockError::Failed(error)) => kept(&shared, "lock the state file", Err(error)),
    };
    let health = threads::start("health", &shared.blocked)?;
    health.spawn(http::serve(args.metrics_address, shared.clone()));
    health.spawn(http::watch_blocked(shared.clone()));
    let threads = Threads::start(&shared.blocked)?;
    let writer = threads.writer.clone();
    let (mut judge, watcher) = watch(Arc::clone(&settings), threads, &shared).await?;
    // Programs that a kubeconfig names are run only on the host, not from inside a container.
    let runs_programs = !args.no_conditions && settings.host_root == Path::new("/");
    if let Err(error) = privileges::limit_calls(runs_programs) {
        crate::warn(&format!("cannot limit system calls: {error:#}"));
    }
    let about = judge.about().clone();
    if let Some(why) = &about.unsupported {
        shared.fails(why, "continuing without eBPF");
    }
    let files = Files { state: args.state_file, journal: args.journal, socket: args.socket };
    let (mut outputs, remembered) = Outputs::open(metrics, files, &settings, &about).await;
    if !args.no_conditions {
        outputs.write_conditions(&writer, &about, &settings, &remembered);
    }
    let took = about
        .attach_took
        .map_or("without eBPF".to_owned(), |took| format!("attached in {} ms", took.as_millis()));
    crate::warn(&format!("watching {}, {took}", settings.node));
    let mut sinks = outputs.sinks();
    judge.remember(remembered, &mut sinks);
    tokio::select! {
        () = &mut stop => {}
        // The watcher has stopped; its error is returned below.
        () = judge.run(&mut sinks) => {}
    }
    drop(watcher.stop);
    // Observations from before the stop count.
    let ended = async {
        judge.run(&mut sinks).await;
        watcher.ended.await
    };
    if let Ok(Ok(watched)) = tokio::time::timeout(LAST_OBSERVATION, ended).await {
        watched?;
    }

    // The outputs are not updated from here on, and their last report says so.
    let last = Seen { at: clock::now(), observation: Observation::Stopping };
    judge.stop(last, &mut sinks);
    outputs.finish().await;
    drop(lock);
    Ok(Exit::Ready)
}

/// Paths of the agent's files.
struct Files {
    state: PathBuf,
    journal: PathBuf,
    socket: PathBuf,
}

/// All outputs of the agent.
struct Outputs {
    metrics: Metrics,
    journal: Option<Journal>,
    state: Option<StateFile>,
    socket: Option<Socket>,
    writing: Option<(Conditions, JoinHandle<()>)>,
}

impl Outputs {
    /// Starts the threads that write files. Also returns what an earlier agent reported.
    async fn open(metrics: Metrics, files: Files, settings: &Settings, about: &About) -> (Self, Remembered) {
        let shared = metrics.shared();
        let context = Context::here(&settings.node, about.wall);
        let dropped = metrics.dropped("journal");
        let journal = Journal::start(files.journal, context.clone(), about.started, &shared, dropped);
        let (journal, remembered) = kept(&shared, "write the journal", journal).unzip();
        let remembered = remember(remembered).await;
        let state = StateFile::start(files.state, context.clone(), &shared);
        let state = kept(&shared, "write the state file", state);
        let socket = Socket::serve(files.socket, context, &shared);
        let socket = kept(&shared, "serve on a socket", socket);
        (Self { metrics, journal, state, socket, writing: None }, remembered)
    }

    /// Starts writing the conditions to the Node object.
    fn write_conditions(
        &mut self,
        thread: &Handle,
        about: &About,
        settings: &Arc<Settings>,
        remembered: &Remembered,
    ) {
        let node = &settings.node;
        if !is_node_name(node) {
            let what = format!("write the conditions of {node:?}");
            self.metrics.shared().fails(&what, "not a valid node name; see --node-name");
            return;
        }
        let (conditions, written) =
            write_conditions(thread, about, settings, self.metrics.writes(), remembered);
        self.writing = Some((conditions.counting(self.metrics.dropped("node")), written));
    }

    fn sinks(&mut self) -> Vec<&mut dyn Sink> {
        let mut sinks: Vec<&mut dyn Sink> = vec![&mut self.metrics];
        sinks.extend(self.state.as_mut().map(|state| state as &mut dyn Sink));
        sinks.extend(self.socket.as_mut().map(|socket| socket as &mut dyn Sink));
        sinks.extend(self.journal.as_mut().map(|journal| journal as &mut dyn Sink));
        sinks.extend(self.writing.as_mut().map(|(conditions, _)| conditions as &mut dyn Sink));
        sinks
    }

    /// Waits for the last writes, each with a timeout.
    async fn finish(self) {
        let written = async {
            if let Some((conditions, writer)) = self.writing {
                drop(conditions);
                // After a timeout the Node object keeps the conditions that were written last.
                let _ = tokio::time::timeout(LAST_WRITE, writer).await;
            }
        };
        let (state, journal) = (self.state.map(StateFile::finish), self.journal.map(Journal::finish));
        let files = async {
            // Each has its own thread, so that no write waits for another.
            let (state, journal) = (OptionFuture::from(state), OptionFuture::from(journal));
            tokio::join!(state, journal, OptionFuture::from(self.socket.map(Socket::finish)))
        };
        tokio::join!(written, files);
    }
}

/// The watcher, on its own thread.
struct Watcher {
    /// Dropping it stops the watcher.
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<Result<()>>,
}

/// Starts the watcher on a thread of its own.
async fn watch(settings: Arc<Settings>, threads: Threads, shared: &Shared) -> Result<(Judge, Watcher)> {
    let (sender, started) = oneshot::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let ended = threads::run("watch", &shared.blocked, move |operation| async move {
        let (mut app, mut judge) = match App::start(settings, threads) {
            Ok(halves) => halves,
            Err(error) => {
                let _ = sender.send(Err(error));
                return Ok(());
            }
        };
        judge.follow(operation);
        // Without a judge the program is about to exit.
        let _ = sender.send(Ok(judge));
        let stopped = async { drop(stopped.await) };
        app.reread_on_hangup()?;
        app.run(stopped).await
    })?;
    let judge = started.await.context("start to watch")??;
    Ok((judge, Watcher { stop, ended }))
}

/// Returns the contents of the journal; nothing if reading takes longer than [`JOURNAL_READ`].
async fn remember(remembered: Option<oneshot::Receiver<Remembered>>) -> Remembered {
    let Some(remembered) = remembered else { return Remembered::default() };
    if let Ok(remembered) = tokio::time::timeout(JOURNAL_READ, remembered).await {
        return remembered.unwrap_or_default();
    }
    crate::warn("cannot read the journal in time: continuing without the history of an earlier agent");
    Remembered::default()
}

/// Starts the writer of the Node object. Returns the sink that feeds it, and its task, which ends after the sink is dropped.
pub(crate) fn write_conditions(
    thread: &Handle,
    about: &About,
    settings: &Arc<Settings>,
    metrics: WriteMetrics,
    remembered: &Remembered,
) -> (Conditions, JoinHandle<()>) {
    /// Conditions change at most every few seconds; a write may take half a minute.
    const QUEUE: usize = 64;
    let (news, changes) = mpsc::channel(QUEUE);
    let resumed = !remembered.conditions.is_empty();
    let writer = kube::run(Arc::clone(settings), about.wall, resumed, metrics, changes, about.feed.clone());
    (Conditions::new(news, remembered), thread.spawn(writer))
}

fn kept<T>(shared: &Shared, what: &str, made: std::io::Result<T>) -> Option<T> {
    match made {
        Ok(made) => Some(made),
        Err(error) => {
            shared.fails(what, &format!("{error}; continuing without it"));
            None
        }
    }
}
