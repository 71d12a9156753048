//! `probe run`: the agent.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Result;
use probe_engine::{Observation, Remembered};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::until_stopped;
use crate::app::App;
use crate::cli::RunArgs;
use crate::clock;
use crate::exit::Exit;
use crate::feed::Seen;
use crate::kube;
use crate::report::Context;
use crate::settings::Settings;
use crate::sinks::conditions::Conditions;
use crate::sinks::journal::{self, Journal};
use crate::sinks::metrics::{Metrics, Shared, WriteMetrics};
use crate::sinks::socket::Socket;
use crate::sinks::state::StateFile;
use crate::sinks::{Sink, http};

/// How long the last write may take: a usual one takes 5 ms, and a pod is killed 30 s after it was asked to end.
const LAST_WORD: Duration = Duration::from_secs(3);

/// See the module. What cannot be served is said once, shows in `/readyz`, and stops nothing else.
pub(crate) async fn run(args: RunArgs) -> Result<Exit> {
    let settings = Arc::new(args.node.settings()?);
    let node = settings.node.clone();
    let mut metrics = Metrics::new();
    let shared = metrics.shared();
    let mut app = App::start(Arc::clone(&settings)).await?;
    if let Some(why) = app.unsupported() {
        wrong(&shared, format!("{why}; the agent works with what can be seen without eBPF"));
    }
    let context = Context::here(&node, app.wall());
    match TcpListener::bind(args.metrics_address).await {
        Ok(listener) => drop(tokio::spawn(http::serve(listener, shared.clone()))),
        Err(error) => {
            wrong(
                &shared,
                format!("serve metrics on {}: {error}; they are not served", args.metrics_address),
            );
        }
    }
    // Before this agent writes to it.
    let remembered = journal::remembered(&args.journal, &context.boot_id);
    let opened = Journal::open(args.journal.clone(), context.clone(), app.started());
    let mut journal = kept(&shared, "keep the journal", &args.journal, opened);
    let mut writing = None;
    if !args.no_conditions {
        if kube::is_node_name(&node) {
            writing = Some(write_conditions(&app, &settings, metrics.writes(), &remembered));
        } else {
            wrong(
                &shared,
                format!("{node:?} is no name of a node: its conditions are not written; see --node-name"),
            );
        }
    }
    app.remember(remembered);
    let state = StateFile::create(args.state_file.clone(), context.clone());
    let mut state = kept(&shared, "write the state file", &args.state_file, state);
    let socket = Socket::serve(&args.socket, context);
    let mut socket = kept(&shared, "serve on", &args.socket, socket);

    let took = app
        .attach_took()
        .map_or("without eBPF".to_owned(), |took| format!("attached in {} ms", took.as_millis()));
    crate::warn(&format!("watching {node}, {took}"));
    let mut sinks: Vec<&mut dyn Sink> = vec![&mut metrics];
    sinks.extend(state.as_mut().map(|state| state as &mut dyn Sink));
    sinks.extend(socket.as_mut().map(|socket| socket as &mut dyn Sink));
    sinks.extend(journal.as_mut().map(|journal| journal as &mut dyn Sink));
    sinks.extend(writing.as_mut().map(|(conditions, _)| conditions as &mut dyn Sink));
    app.run(&mut sinks, until_stopped(None)?).await?;

    // The last word: what stands in the files from here on is no longer looked after.
    let last = Seen { at: clock::now(), observation: Observation::Stopping };
    app.stop(last, &mut sinks);
    if let Some((conditions, writer)) = writing {
        drop(conditions);
        // Too late is as good as never: the object then says what was true last.
        let _ = tokio::time::timeout(LAST_WORD, writer).await;
    }
    Ok(Exit::Ready)
}

/// Starts the writer of the Node object; answers with what tells it. It ends some time after that is dropped.
pub(crate) fn write_conditions(
    app: &App,
    settings: &Arc<Settings>,
    metrics: WriteMetrics,
    remembered: &Remembered,
) -> (Conditions, JoinHandle<()>) {
    /// Changes of conditions come seconds apart; a write may take half a minute.
    const QUEUE: usize = 64;
    let (news, told) = mpsc::channel(QUEUE);
    let resumed = !remembered.conditions.is_empty();
    let writer = kube::run(Arc::clone(settings), app.wall(), resumed, metrics, told, app.feed());
    (Conditions::new(news, remembered), tokio::spawn(writer))
}

fn wrong(shared: &Shared, why: String) {
    crate::warn(&why);
    shared.ready.lock().unwrap_or_else(PoisonError::into_inner).wrong.push(why);
}

fn kept<T>(shared: &Shared, what: &str, path: &std::path::Path, made: std::io::Result<T>) -> Option<T> {
    match made {
        Ok(made) => Some(made),
        Err(error) => {
            wrong(shared, format!("{what} {}: {error}; the agent goes on without it", path.display()));
            None
        }
    }
}
