//! The product, run as a user runs it.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::node::Node;

/// Returns the binary under test: `NETREADY_PROBE`, or the one that `cargo xtask build` built.
pub fn probe_binary() -> Result<PathBuf> {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/x86_64-unknown-linux-gnu/release/probe");
    let path = std::env::var_os("NETREADY_PROBE").map_or_else(|| PathBuf::from(built), PathBuf::from);
    if !path.is_file() {
        bail!("{} does not exist: run `cargo xtask build`", path.display());
    }
    Ok(path)
}

/// Returns the time on the clock of the kernel's events (`CLOCK_BOOTTIME`), in nanoseconds.
pub fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is live; the clock exists on every supported kernel.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Returns the factor by which deadlines are stretched on slow machines: `NETREADY_PATIENCE`, 1 when it is not set.
pub fn patience() -> u32 {
    std::env::var("NETREADY_PATIENCE").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

/// Calls `attempt` until it returns a value, for ten seconds times [`patience`].
pub fn poll<T>(what: &str, attempt: impl FnMut() -> Option<T>) -> Result<T> {
    poll_for(Duration::from_secs(10), what, attempt)
}

/// Calls `attempt` until it returns a value, for `limit` times [`patience`].
pub fn poll_for<T>(limit: Duration, what: &str, mut attempt: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit * patience();
    while Instant::now() < deadline {
        if let Some(value) = attempt() {
            return Ok(value);
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    bail!("timed out waiting for {what}")
}

/// Returns `probe VERB ARGS` for `node`, with the node's directories.
pub fn probe_command(node: &Node, verb: &str, args: &[&str]) -> Result<Command> {
    let mut command = node.netns.command(probe_binary()?)?;
    command.arg(verb).arg("--cni-conf-dir").arg(node.conf_dir()).arg("--cni-bin-dir").arg(node.bin_dir());
    command.args(["--start-grace", "2s", "--node-name", "lab"]).args(args);
    if verb == "run" {
        // This host may itself be a node: its Node object and its journal must not change.
        if !args.contains(&"--kubeconfig") {
            command.arg("--no-conditions");
        }
        if !args.contains(&"--journal") {
            command.arg("--journal").arg(node.dir().join("journal.jsonl"));
        }
        // On an emulated processor a handshake takes seconds, so a slow server is not an unresponsive one. Checks and traces
        // have their own tests of the timeout.
        command.arg("--ask-timeout").arg(format!("{}s", 4 * patience()));
    }
    command.env_remove("KUBERNETES_SERVICE_HOST").stderr(Stdio::piped());
    Ok(command)
}

/// Returns where the next trace records its observations, for `tests/replay`: the value of `NETREADY_RECORD` with a
/// number appended; `None` when it is not set.
fn recording() -> Option<PathBuf> {
    static TRACES: AtomicUsize = AtomicUsize::new(0);
    let mut path = std::env::var_os("NETREADY_RECORD")?;
    path.push(format!("-{}.jsonl", TRACES.fetch_add(1, Ordering::Relaxed)));
    Some(path.into())
}

/// The result of a `probe check`.
#[derive(Clone, Debug)]
pub struct Check {
    /// Its exit code.
    pub code: i32,
    /// The document on its standard output.
    pub document: Value,
    /// Its standard error.
    pub stderr: String,
}

impl Check {
    /// Runs `probe check -o json` on `node` for `seconds`, without an agent.
    pub fn run(node: &Node, seconds: u32, args: &[&str]) -> Result<Self> {
        // A check records nothing, so a trace runs at the same time.
        let _recorder = std::env::var_os("NETREADY_RECORD").map(|_| Trace::start(node, args)).transpose()?;
        let time = format!("{seconds}s");
        let mut command = probe_command(node, "check", &["-o", "json", "--no-agent", "--for", &time])?;
        let output = command.args(args).output().context("run probe check")?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let document = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("probe check printed no document; its standard error: {stderr:?}"))?;
        Ok(Self { code: output.status.code().unwrap_or(-1), document, stderr })
    }

    /// Returns the reason of the root cause.
    pub fn reason(&self) -> &str {
        self.document["verdict"]["reason"].as_str().unwrap_or_default()
    }

    /// Returns the reasons in `consequences` or `also`.
    pub fn reasons(&self, list: &str) -> Vec<&str> {
        let links = self.document[list].as_array().map(Vec::as_slice).unwrap_or_default();
        links.iter().filter_map(|link| link["reason"].as_str()).collect()
    }
}

/// A verdict as a trace printed it.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Reason of the root cause.
    pub reason: String,
    /// The whole line.
    pub line: Value,
    /// Time of the event behind it; clock as in [`now_ns`].
    pub at_ns: u64,
    /// Time at which its line was read here; same clock.
    pub arrived_ns: u64,
}

/// A running `probe trace -o json`; killed when dropped.
pub struct Trace {
    child: Child,
    lines: Receiver<(u64, String)>,
    /// Every line that was read so far.
    pub seen: Vec<Value>,
}

impl Trace {
    /// Starts it on `node` and waits until it has read the initial state.
    pub fn start(node: &Node, args: &[&str]) -> Result<Self> {
        let mut command = probe_command(node, "trace", &["-o", "json"])?;
        command.args(args);
        Self::start_command(command)
    }

    /// As [`Self::start`], with a `probe trace -o json` that was prepared by [`probe_command`].
    pub fn start_command(mut command: Command) -> Result<Self> {
        if let Some(recording) = recording() {
            command.arg("--record").arg(recording);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().context("start probe trace")?;
        let output = child.stdout.take().context("the trace's output is not piped")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send((now_ns(), line)).is_err() {
                    return;
                }
            }
        });
        let mut trace = Self { child, lines, seen: Vec::new() };
        trace.wait_for("the initial state", |line| line["kind"] == "snapshot_done")?;
        Ok(trace)
    }

    /// Waits for a matching line, for 20 s times [`patience`], and returns the time at which it was read ([`now_ns`]).
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<(u64, Value)> {
        self.wait(Duration::from_secs(20) * patience(), what, wanted)
    }

    /// As [`Self::wait_for`], for `patience`.
    pub fn wait(
        &mut self,
        patience: Duration,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<(u64, Value)> {
        let deadline = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((arrived, line)) => {
                    let value: Value =
                        serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
                    self.seen.push(value.clone());
                    if wanted(&value) {
                        return Ok((arrived, value));
                    }
                }
                Err(error) => {
                    let why = match error {
                        RecvTimeoutError::Timeout => "timed out",
                        RecvTimeoutError::Disconnected => "the trace exited",
                    };
                    // Concurrent tests create namespaces all the time.
                    let is_relevant = |line: &&Value| line["kind"] != "netns" && line["kind"] != "netns_name";
                    let last: Vec<_> =
                        self.seen.iter().rev().filter(is_relevant).take(20).map(Value::to_string).collect();
                    let verdicts = self.seen.iter().filter(|line| line["kind"] == "verdict");
                    let verdicts = verdicts.map(|line| {
                        let verdict = &line["verdict"];
                        format!("{} {}: {}\n", line["at"], verdict["reason"], verdict["message"])
                    });
                    let verdicts: String = verdicts.rev().take(20).collect();
                    let (lost, skipped) = (self.lost(), self.skipped_runs());
                    bail!(
                        "{why} while waiting for {what}; {lost} lost events and {skipped} skipped runs; the last verdicts, \
     newest first:\n{verdicts}the last lines:\n{}",
                        last.into_iter().rev().collect::<Vec<_>>().join("\n")
                    );
                }
            }
        }
    }

    /// Waits for a verdict with this reason.
    pub fn wait_for_verdict(&mut self, reason: &str) -> Result<Verdict> {
        let is_it = |line: &Value| line["kind"] == "verdict" && line["verdict"]["reason"] == reason;
        let (arrived_ns, line) = self.wait_for(&format!("the verdict {reason}"), is_it)?;
        let at_ns = line["atNs"].as_u64().unwrap_or_default();
        Ok(Verdict { reason: reason.to_owned(), line, at_ns, arrived_ns })
    }

    /// Returns why a signal is not available; `None` if no gap of it was reported so far.
    pub fn gap(&self, signal: &str) -> Option<&str> {
        let gap = self.seen.iter().find(|line| line["kind"] == "gap" && line["signal"] == signal)?;
        gap["why"].as_str()
    }

    /// Returns the number of events that the kernel programs have reported as lost so far.
    pub fn lost(&self) -> u64 {
        self.losses(false)
    }

    /// Returns the number of runs of the kernel programs that were reported as skipped so far.
    pub fn skipped_runs(&self) -> u64 {
        self.losses(true)
    }

    fn losses(&self, skipped: bool) -> u64 {
        let is_loss = |line: &&Value| line["kind"] == "lost" && (line["left_out"] == true) == skipped;
        self.seen.iter().filter(is_loss).filter_map(|line| line["count"].as_u64()).sum()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
