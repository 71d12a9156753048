//! `probe replay`: feeds a recording to the engine, at recorded time.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;

use anyhow::Result;
use probe_engine::{BootTime, Engine, Line, RecordingHeader};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cli::{Output, ReplayArgs, UsageError};
use crate::clock::Wall;
use crate::exit::Exit;
use crate::report::{Context, Document};
use crate::sinks::Sink;
use crate::sinks::layout::width;
use crate::sinks::topic::Filter;
use crate::sinks::trace::Timeline;
use crate::sinks::trace_json::JsonLines;
use crate::text::clean;

/// Longest line that is read, in bytes. The texts of recorded observations are bounded; a recording that was written by hand may
/// have longer ones.
const LINE: u64 = 1 << 20;

/// Longest text that is kept, in bytes. Texts that the agent records are much shorter.
const TEXT: usize = 4096;

/// Runs the command.
pub(crate) fn run(args: &ReplayArgs) -> Result<Exit> {
    let shown = args.file.display().to_string();
    let mut input = open(&args.file)?;
    let usage = |number: usize, why: String| UsageError(format!("{shown}: line {number}: {why}"));
    let first = next_line(&mut input).map_err(|why| usage(1, why))?;
    let header: RecordingHeader = read(&first.unwrap_or_default())
        .map_err(|error| usage(1, format!("not the header of a recording: {error}")))?;
    if header.netready_recording != 1 {
        return Err(usage(1, format!("format {} is not supported", header.netready_recording)).into());
    }
    let wall = Wall { offset_ns: header.wall_offset_ns };
    let context = Context { node: header.node.clone(), boot_id: header.boot_id.clone(), wall };
    let mut timeline = Timeline::new(anstream::stdout(), wall, width(), Filter::default());
    let mut lines = JsonLines::new(std::io::stdout(), context.clone(), Filter::default());
    let sink: &mut dyn Sink = match args.output {
        Output::Text => &mut timeline,
        Output::Json => &mut lines,
    };
    let mut engine = Engine::new(header.config, header.started);
    let mut number = 1;
    while let Some(bytes) = next_line(&mut input).map_err(|why| usage(number + 1, why))? {
        number += 1;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let line: Line = read(&bytes).map_err(|error| usage(number, error.to_string()))?;
        let_time_pass(&mut engine, line.at, sink);
        sink.observation(line.at, &line.observation);
        engine.observe(line.at, line.observation);
        drain(&mut engine, line.at, sink);
    }
    match timeline.finish().or(lines.broken) {
        Some(error) => Err(error.into()),
        None => finish(args, &engine, &context),
    }
}

/// Parses one line of a recording. A recording is untrusted input: its texts are redacted and escaped again, as they were when
/// the agent observed them.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    serde_json::from_value(made_safe(serde_json::from_slice(bytes)?))
}

fn made_safe(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(clean(text.as_bytes(), TEXT)),
        Value::Array(values) => values.into_iter().map(made_safe).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (clean(name.as_bytes(), TEXT), made_safe(value))).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

fn finish(args: &ReplayArgs, engine: &Engine, context: &Context) -> Result<Exit> {
    if args.output == Output::Text {
        let document = Document::new(&engine.report(), context);
        anstream::print!("\n{}", super::check::text(&document, width())?);
    }
    Ok(Exit::Ready)
}

/// Lets the engine run at each of its deadlines before `until`.
fn let_time_pass(engine: &mut Engine, until: BootTime, sink: &mut dyn Sink) {
    while let Some(deadline) = engine.next_deadline().filter(|deadline| *deadline < until) {
        engine.tick(deadline);
        drain(engine, deadline, sink);
    }
}

fn drain(engine: &mut Engine, at: BootTime, sink: &mut dyn Sink) {
    while let Some(effect) = engine.poll_effect() {
        sink.effect(at, &effect);
    }
}

fn open(path: &Path) -> Result<Box<dyn BufRead>, UsageError> {
    if path == Path::new("-") {
        return Ok(Box::new(std::io::stdin().lock()));
    }
    let file =
        File::open(path).map_err(|error| UsageError(format!("cannot read {}: {error}", path.display())))?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(UsageError(format!("cannot read {}: is a directory", path.display())));
    }
    Ok(Box::new(BufReader::new(file)))
}

/// Returns the next line without its line feed; `None` at the end of the input.
fn next_line(input: &mut dyn BufRead) -> Result<Option<Vec<u8>>, String> {
    let mut bytes = Vec::new();
    let size = input.take(LINE + 1).read_until(b'\n', &mut bytes).map_err(|error| error.to_string())?;
    if size as u64 > LINE {
        return Err(format!("longer than {LINE} bytes"));
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok((size > 0).then_some(bytes))
}

#[cfg(test)]
mod tests;
