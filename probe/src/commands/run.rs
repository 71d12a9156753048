//! `probe run`: the agent.

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
use crate::lock::{self, NotTaken};
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

/// How long the last write may take: a usual one takes 5 ms, and a pod is killed 30 s after it was asked to end.
const LAST_WORD: Duration = Duration::from_secs(3);
/// How long the watcher may take for its last look.
const LAST_LOOK: Duration = Duration::from_secs(3);
/// How long the agent waits for what its journal remembers; a disk that responds takes milliseconds.
const MEMORY: Duration = Duration::from_secs(2);

/// See the module. What cannot be served is said once, shows in `/readyz`, and stops nothing else. This thread judges, and
/// waits for no other.
pub(crate) async fn run(args: RunArgs) -> Result<Exit> {
    let settings = Arc::new(args.node.settings()?);
    if let Err(error) = privileges::confine() {
        crate::warn(&format!("the agent keeps privileges that it does not use: {error:#}"));
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
        Err(NotTaken::Held(path)) => {
            crate::warn(&format!(
                "another agent runs on this host: it has locked {}; stop it, or give this one files of its own \
                 (--state-file, --journal, --socket)",
                path.display()
            ));
            return Ok(Exit::OtherFault);
        }
        Err(NotTaken::Failed(error)) => kept(&shared, "lock the state file", Err(error)),
    };
    let health = threads::start("health", &shared.blocked)?;
    health.spawn(http::serve(args.metrics_address, shared.clone()));
    health.spawn(http::watch_blocked(shared.clone()));
    let threads = Threads::start(&shared.blocked)?;
    let writer = threads.writer.clone();
    let (mut judge, watcher) = watch(Arc::clone(&settings), threads, &shared).await?;
    // A kubeconfig's programs are run on the host only.
    let runs_programs = !args.no_conditions && settings.host_root == Path::new("/");
    if let Err(error) = privileges::limit_calls(runs_programs) {
        crate::warn(&format!("the agent may make system calls that it does not need: {error:#}"));
    }
    let about = judge.about().clone();
    if let Some(why) = &about.unsupported {
        shared.fails(why, "the agent works with what can be seen without eBPF");
    }
    let files = Files { state: args.state_file, journal: args.journal, socket: args.socket };
    let (mut outlets, remembered) = Outlets::open(metrics, files, &settings, &about).await;
    if !args.no_conditions {
        outlets.write_conditions(&writer, &about, &settings, &remembered);
    }
    let took = about
        .attach_took
        .map_or("without eBPF".to_owned(), |took| format!("attached in {} ms", took.as_millis()));
    crate::warn(&format!("watching {}, {took}", settings.node));
    let mut sinks = outlets.sinks();
    judge.remember(remembered, &mut sinks);
    tokio::select! {
        () = &mut stop => {}
        // The watcher has gone: it says why below.
        () = judge.run(&mut sinks) => {}
    }
    drop(watcher.stop);
    // What was observed before the end counts.
    let ended = async {
        judge.run(&mut sinks).await;
        watcher.ended.await
    };
    if let Ok(Ok(watched)) = tokio::time::timeout(LAST_LOOK, ended).await {
        watched?;
    }

    // The last word: what stands in the files from here on is no longer looked after.
    let last = Seen { at: clock::now(), observation: Observation::Stopping };
    judge.stop(last, &mut sinks);
    outlets.finish().await;
    drop(lock);
    Ok(Exit::Ready)
}

/// Where the agent's files are.
struct Files {
    state: PathBuf,
    journal: PathBuf,
    socket: PathBuf,
}

/// Everything that the agent says something by.
struct Outlets {
    metrics: Metrics,
    journal: Option<Journal>,
    state: Option<StateFile>,
    socket: Option<Socket>,
    writing: Option<(Conditions, JoinHandle<()>)>,
}

impl Outlets {
    /// Starts the threads of the files, and returns what an earlier agent said.
    async fn open(metrics: Metrics, files: Files, settings: &Settings, about: &About) -> (Self, Remembered) {
        let shared = metrics.shared();
        let context = Context::here(&settings.node, about.wall);
        let dropped = metrics.dropped("journal");
        let journal = Journal::start(files.journal, context.clone(), about.started, &shared, dropped);
        let (journal, remembered) = kept(&shared, "keep the journal", journal).unzip();
        let remembered = remember(remembered).await;
        let state = StateFile::start(files.state, context.clone(), &shared);
        let state = kept(&shared, "write the state file", state);
        let socket = Socket::serve(files.socket, context, &shared);
        let socket = kept(&shared, "serve on a socket", socket);
        (Self { metrics, journal, state, socket, writing: None }, remembered)
    }

    /// Starts to write the conditions to the Node object.
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
            self.metrics.shared().fails(&what, "that is not the name of a node; see --node-name");
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

    /// Waits a while for what was said last.
    async fn finish(self) {
        let written = async {
            if let Some((conditions, writer)) = self.writing {
                drop(conditions);
                // Too late is as good as never: the object then says what was true last.
                let _ = tokio::time::timeout(LAST_WORD, writer).await;
            }
        };
        let (state, journal) = (self.state.map(StateFile::finish), self.journal.map(Journal::finish));
        let files = async {
            // Each on its own thread: what one of them still writes does not wait for the other.
            let (state, journal) = (OptionFuture::from(state), OptionFuture::from(journal));
            tokio::join!(state, journal, OptionFuture::from(self.socket.map(Socket::finish)))
        };
        tokio::join!(written, files);
    }
}

/// The watcher, on its own thread.
struct Watcher {
    /// Dropped, it ends the watcher.
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<Result<()>>,
}

/// Starts the watcher on a thread of its own.
async fn watch(settings: Arc<Settings>, threads: Threads, shared: &Shared) -> Result<(Judge, Watcher)> {
    let (tell, started) = oneshot::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let ended = threads::run("watch", &shared.blocked, move |operation| async move {
        let (mut app, mut judge) = match App::start(settings, threads) {
            Ok(halves) => halves,
            Err(error) => {
                let _ = tell.send(Err(error));
                return Ok(());
            }
        };
        judge.follow(operation);
        // Without a judge the program is about to exit.
        let _ = tell.send(Ok(judge));
        let stopped = async { drop(stopped.await) };
        app.reread_on_hangup()?;
        app.run(stopped).await
    })?;
    let judge = started.await.context("start to watch")??;
    Ok((judge, Watcher { stop, ended }))
}

/// What the journal remembers; nothing when that takes too long.
async fn remember(remembered: Option<oneshot::Receiver<Remembered>>) -> Remembered {
    let Some(remembered) = remembered else { return Remembered::default() };
    if let Ok(remembered) = tokio::time::timeout(MEMORY, remembered).await {
        return remembered.unwrap_or_default();
    }
    crate::warn("the journal cannot be read in time: what an earlier agent said is not known");
    Remembered::default()
}

/// Starts the writer of the Node object; answers with what tells it. It ends some time after that is dropped.
pub(crate) fn write_conditions(
    thread: &Handle,
    about: &About,
    settings: &Arc<Settings>,
    metrics: WriteMetrics,
    remembered: &Remembered,
) -> (Conditions, JoinHandle<()>) {
    /// Changes of conditions come seconds apart; a write may take half a minute.
    const QUEUE: usize = 64;
    let (news, told) = mpsc::channel(QUEUE);
    let resumed = !remembered.conditions.is_empty();
    let writer = kube::run(Arc::clone(settings), about.wall, resumed, metrics, told, about.feed.clone());
    (Conditions::new(news, remembered), thread.spawn(writer))
}

fn kept<T>(shared: &Shared, what: &str, made: std::io::Result<T>) -> Option<T> {
    match made {
        Ok(made) => Some(made),
        Err(error) => {
            shared.fails(what, &format!("{error}; the agent goes on without it"));
            None
        }
    }
}
