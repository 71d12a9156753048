//! `probe trace`: prints a live timeline.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use probe_engine::{Config, RecordingHeader};

use super::until_stopped;
use crate::app::{self, About, App, Judge, engine_config};
use crate::cli::{Output, TraceArgs, UsageError};
use crate::exit::Exit;
use crate::report::Context;
use crate::sinks::Sink;
use crate::sinks::layout::width;
use crate::sinks::record::Recorder;
use crate::sinks::topic::Filter;
use crate::sinks::trace::Timeline;
use crate::sinks::trace_json::JsonLines;
use crate::threads::Threads;

/// Runs the command until it is stopped.
pub(crate) async fn run(args: TraceArgs) -> Result<Exit> {
    let settings = args.node.settings()?;
    let node = settings.node.clone();
    let config = engine_config(&settings);
    let filter = Filter { only: args.only, pod: args.pod };
    let (mut app, mut judge) = App::start(Arc::new(settings), Threads::here())?;
    let about = judge.about().clone();
    if let Some(why) = &about.unsupported {
        crate::warn(&format!("{why}; showing only what can be observed without eBPF"));
    }
    let context = Context::here(&node, about.wall);
    let mut recorder =
        args.record.as_deref().map(|path| recorder(path, &about, &context, config)).transpose()?;
    let stop = until_stopped(args.watch)?;
    let broken = match args.output {
        Output::Text => {
            let mut timeline = Timeline::new(anstream::stdout(), about.wall, width(), filter);
            deliver((&mut app, &mut judge), &mut timeline, recorder.as_mut(), stop).await?;
            timeline.finish()
        }
        Output::Json => {
            let mut lines = JsonLines::new(std::io::stdout(), context, filter);
            deliver((&mut app, &mut judge), &mut lines, recorder.as_mut(), stop).await?;
            lines.broken
        }
    };
    if let Some(error) = recorder.and_then(|recorder| recorder.broken) {
        return Err(error).context("write the recording, which is incomplete");
    }
    match broken {
        Some(error) => Err(error).context("write the timeline"),
        None => Ok(Exit::Ready),
    }
}

async fn deliver(
    halves: (&mut App, &mut Judge),
    shown: &mut dyn Sink,
    recorder: Option<&mut Recorder>,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    match recorder {
        Some(recorder) => app::run(halves, &mut [shown, recorder], stop).await,
        None => app::run(halves, &mut [shown], stop).await,
    }
}

fn recorder(path: &Path, about: &About, context: &Context, config: Config) -> Result<Recorder> {
    let header = RecordingHeader {
        netready_recording: 1,
        node: context.node.clone(),
        boot_id: context.boot_id.clone(),
        started: about.started,
        config,
        composed: false,
        source: String::new(),
        wall_offset_ns: about.wall.offset_ns,
    };
    Recorder::create(path, &header)
        .map_err(|error| UsageError(format!("--record {}: {error}", path.display())).into())
}
