//! `probe run`: the agent.

use std::sync::{Arc, PoisonError};

use anyhow::Result;
use probe_engine::Observation;
use tokio::net::TcpListener;

use super::until_stopped;
use crate::app::App;
use crate::cli::RunArgs;
use crate::clock;
use crate::exit::Exit;
use crate::feed::Seen;
use crate::report::Context;
use crate::sinks::metrics::{Metrics, Shared};
use crate::sinks::socket::Socket;
use crate::sinks::state::StateFile;
use crate::sinks::{Sink, http};

/// See the module. What cannot be served is said once, shows in `/readyz`, and stops nothing else.
pub(crate) async fn run(args: RunArgs) -> Result<Exit> {
    let settings = args.node.settings()?;
    let node = settings.node.clone();
    let mut metrics = Metrics::new();
    let shared = metrics.shared();
    let mut app = App::start(Arc::new(settings)).await?;
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
    app.run(&mut sinks, until_stopped(None)?).await?;

    // The last word: what stands in the files from here on is no longer looked after.
    let last = Seen { at: clock::now(), observation: Observation::Stopping };
    app.stop(last, &mut sinks);
    Ok(Exit::Ready)
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
