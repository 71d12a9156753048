//! Long steps with their progress: what runs, the newest line of its output, and the elapsed time.

use std::io::{BufRead as _, BufReader, IsTerminal as _, Read};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// A step that succeeds within this time prints nothing.
const INSTANT: Duration = Duration::from_secs(2);
/// Time between two lines of progress where standard error is not a terminal.
const INTERVAL: Duration = Duration::from_mins(1);
/// Time between two updates of the line on a terminal.
const REFRESH: Duration = Duration::from_secs(1);
/// Columns of the line on a terminal; the narrowest usual terminal has 80.
const COLUMNS: usize = 79;

/// Runs `command`, shows its progress under the name `what`, and returns its output.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<Output> {
    follow(what, command, |_, _| Kind::Progress)
}

/// Runs cargo: as [`run`], but prints what the compiler reports, and fails when cargo does.
pub(crate) fn cargo(what: &str, command: &mut Command) -> Result<Output> {
    let output = follow(what, command, kind_of_cargo_line)?;
    if !output.status.success() {
        bail!("{what} failed: {}", output.status);
    }
    Ok(output)
}

/// Returns the last line of a failed step's standard error.
pub(crate) fn last_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no output").to_owned()
}

/// How a line of output is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Until the next one comes.
    Progress,
    /// As it is.
    Message,
    /// Not at all.
    Data,
}

/// Distinguishes cargo's lines of progress, whose verb ends in column 12, from the compiler's messages. What cargo or a program
/// that it runs writes to standard output is for the caller.
fn kind_of_cargo_line(stream: Stream, line: &str) -> Kind {
    let text = line.trim_start();
    let verb = text.split(' ').next().unwrap_or_default();
    if stream == Stream::Stdout || text.is_empty() {
        Kind::Data
    } else if verb.starts_with(|c: char| c.is_ascii_uppercase()) && line.len() - text.len() + verb.len() == 12
    {
        Kind::Progress
    } else {
        Kind::Message
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
}

fn follow(what: &str, command: &mut Command, kind: fn(Stream, &str) -> Kind) -> Result<Output> {
    let program = command.get_program().display().to_string();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {program}"))?;
    let (sender, lines) = channel();
    let stdout = child.stdout.take().context("standard output of the command")?;
    let stderr = child.stderr.take().context("standard error of the command")?;
    let readers =
        [read_lines(stdout, Stream::Stdout, sender.clone()), read_lines(stderr, Stream::Stderr, sender)];
    let mut progress = Progress::new(what);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match lines.recv_timeout(REFRESH) {
            Ok((stream, line)) => {
                let text = String::from_utf8_lossy(&line);
                match kind(stream, text.trim_end()) {
                    Kind::Progress => text.trim().clone_into(&mut progress.newest),
                    Kind::Message => progress.message(text.trim_end()),
                    Kind::Data => {}
                }
                let output = if stream == Stream::Stdout { &mut stdout } else { &mut stderr };
                output.extend_from_slice(&line);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        progress.show();
    }
    for reader in readers {
        let _ = reader.join();
    }
    let status = child.wait()?;
    progress.end(status.success());
    Ok(Output { status, stdout, stderr })
}

/// Starts a thread that sends every line of an output, with its line end.
fn read_lines(
    output: impl Read + Send + 'static,
    stream: Stream,
    sender: Sender<(Stream, Vec<u8>)>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            if sender.send((stream, std::mem::take(&mut line))).is_err() {
                return;
            }
        }
    })
}

/// The progress of one step on standard error.
struct Progress<'a> {
    what: &'a str,
    newest: String,
    started: Instant,
    shown: Option<Instant>,
    is_terminal: bool,
}

impl<'a> Progress<'a> {
    fn new(what: &'a str) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self { what, newest: String::new(), started: Instant::now(), shown: None, is_terminal }
    }

    /// Shows the state of the step if it is time to.
    fn show(&mut self) {
        let interval = if self.is_terminal { REFRESH } else { INTERVAL };
        let is_due = match self.shown {
            None => self.started.elapsed() >= INSTANT,
            Some(shown) => shown.elapsed() >= interval,
        };
        if !is_due {
            return;
        }
        self.shown = Some(Instant::now());
        let line = format!("{} ({} s) {}", self.what, self.started.elapsed().as_secs(), self.newest);
        let line = line.trim_end();
        if self.is_terminal {
            eprint!("\r\x1b[2K{}", line.chars().take(COLUMNS).collect::<String>());
        } else {
            eprintln!("{line}");
        }
    }

    fn message(&self, line: &str) {
        self.clear();
        eprintln!("{line}");
    }

    fn end(&self, is_success: bool) {
        self.clear();
        let seconds = self.started.elapsed().as_secs();
        match is_success {
            true if self.shown.is_none() => {}
            true => eprintln!("{}: done in {seconds} s", self.what),
            false => eprintln!("{}: failed after {seconds} s", self.what),
        }
    }

    fn clear(&self) {
        if self.is_terminal && self.shown.is_some() {
            eprint!("\r\x1b[2K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_of_cargo_is_distinguished_from_messages() {
        let kind = |line| kind_of_cargo_line(Stream::Stderr, line);
        for line in
            ["   Compiling libc v0.2.180", "    Finished `dev` profile", "  Downloaded 3 crates (1.2 MB)"]
        {
            assert_eq!(kind(line), Kind::Progress, "{line}");
        }
        for line in
            ["warning: unused variable: `x`", "  --> src/main.rs:1:1", "error[E0425]: cannot find value"]
        {
            assert_eq!(kind(line), Kind::Message, "{line}");
        }
        assert_eq!(kind_of_cargo_line(Stream::Stdout, "faults::missing: test"), Kind::Data);
    }

    #[test]
    fn output_and_errors_are_returned_separately() {
        let mut sh = Command::new("sh");
        let output = run("echo", sh.args(["-c", "echo out; echo err >&2; exit 3"])).expect("sh runs");
        assert_eq!(output.stdout, b"out\n");
        assert_eq!(last_line(&output), "err");
        assert_eq!(output.status.code(), Some(3));
    }
}
