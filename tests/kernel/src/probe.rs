//! The product, as a user runs it.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::node::Node;

/// The binary under test: `NETREADY_PROBE`, or what `cargo xtask build` made.
pub fn probe_binary() -> Result<PathBuf> {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/x86_64-unknown-linux-gnu/release/probe");
    let path = std::env::var_os("NETREADY_PROBE").map_or_else(|| PathBuf::from(built), PathBuf::from);
    if !path.is_file() {
        bail!("{} is not there: run `cargo xtask build`", path.display());
    }
    Ok(path)
}

/// Now, on the clock of the kernel's events (`CLOCK_BOOTTIME`), nanoseconds.
pub fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is live; the clock exists on every supported kernel.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// How much slower than a machine of its own this one is: `NETREADY_PATIENCE`, 1 when it is not set. Only
/// deadlines are stretched by it.
pub fn patience() -> u32 {
    std::env::var("NETREADY_PATIENCE").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

/// Asks until there is an answer, for ten seconds on a machine of its own.
pub fn poll<T>(what: &str, ask: impl FnMut() -> Option<T>) -> Result<T> {
    poll_for(Duration::from_secs(10), what, ask)
}

/// Asks until there is an answer, for this long on a machine of its own.
pub fn poll_for<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit * patience();
    while Instant::now() < deadline {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    bail!("{what} did not come in time")
}

/// `probe ARGS` on `node`, pointed at the node's directories.
pub fn probe_command(node: &Node, verb: &str, args: &[&str]) -> Result<Command> {
    let mut command = node.netns.command(probe_binary()?)?;
    command.arg(verb).arg("--cni-conf-dir").arg(node.conf_dir()).arg("--cni-bin-dir").arg(node.bin_dir());
    command.args(["--start-grace", "2s", "--node-name", "lab"]).args(args);
    if verb == "run" {
        // This host may be a node: its object and its journal are not ours.
        if !args.contains(&"--kubeconfig") {
            command.arg("--no-conditions");
        }
        if !args.contains(&"--journal") {
            command.arg("--journal").arg(node.dir().join("journal.jsonl"));
        }
        // Where the processor is emulated a handshake takes seconds: a server that needs them is not silent. Checks and
        // traces have tests of their own for how long they ask.
        command.arg("--ask-timeout").arg(format!("{}s", 4 * patience()));
    }
    command.env_remove("KUBERNETES_SERVICE_HOST").stderr(Stdio::piped());
    Ok(command)
}

/// Where the next trace keeps what it is told, for `tests/replay`: a file beside `NETREADY_RECORD`, when that is set, with
/// a number behind its name.
fn recording() -> Option<PathBuf> {
    static TRACES: AtomicUsize = AtomicUsize::new(0);
    let mut path = std::env::var_os("NETREADY_RECORD")?;
    path.push(format!("-{}.jsonl", TRACES.fetch_add(1, Ordering::Relaxed)));
    Some(path.into())
}

/// The answer of `probe check`.
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
    /// Runs `probe check -o json` on `node` without an agent, for `seconds`.
    pub fn run(node: &Node, seconds: u32, args: &[&str]) -> Result<Self> {
        // A check keeps nothing: a trace beside it does.
        let _beside = std::env::var_os("NETREADY_RECORD").map(|_| Trace::start(node, args)).transpose()?;
        let time = format!("{seconds}s");
        let mut command = probe_command(node, "check", &["-o", "json", "--no-agent", "--for", &time])?;
        let output = command.args(args).output().context("run probe check")?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let document = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("probe check printed no document; it said {stderr:?}"))?;
        Ok(Self { code: output.status.code().unwrap_or(-1), document, stderr })
    }

    /// The root's reason.
    pub fn reason(&self) -> &str {
        self.document["verdict"]["reason"].as_str().unwrap_or_default()
    }

    /// Reasons in `consequences` or `also`.
    pub fn reasons(&self, list: &str) -> Vec<&str> {
        let links = self.document[list].as_array().map(Vec::as_slice).unwrap_or_default();
        links.iter().filter_map(|link| link["reason"].as_str()).collect()
    }
}

/// A verdict as the trace printed it.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The root's reason.
    pub reason: String,
    /// The whole line.
    pub line: Value,
    /// When the event behind it was seen; clock as in [`now_ns`].
    pub at_ns: u64,
    /// When its line arrived here; same clock.
    pub arrived_ns: u64,
}

/// A running `probe trace -o json`; ended when dropped.
pub struct Trace {
    child: Child,
    lines: Receiver<(u64, String)>,
    /// Everything that it printed so far.
    pub seen: Vec<Value>,
}

impl Trace {
    /// Starts it on `node` and waits until it has read the state at start.
    pub fn start(node: &Node, args: &[&str]) -> Result<Self> {
        let mut command = probe_command(node, "trace", &["-o", "json"])?;
        command.args(args);
        Self::start_command(command)
    }

    /// The same of a `probe trace -o json` that was prepared by [`probe_command`].
    pub fn start_command(mut command: Command) -> Result<Self> {
        if let Some(recording) = recording() {
            command.arg("--record").arg(recording);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().context("start probe trace")?;
        let output = child.stdout.take().context("the trace has an output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send((now_ns(), line)).is_err() {
                    return;
                }
            }
        });
        let mut trace = Self { child, lines, seen: Vec::new() };
        trace.wait_for("the state at start", |line| line["kind"] == "snapshot_done")?;
        Ok(trace)
    }

    /// Waits for a line.
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<(u64, Value)> {
        self.wait(Duration::from_secs(20) * patience(), what, wanted)
    }

    /// Waits for a line, so long.
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
                        serde_json::from_str(&line).with_context(|| format!("no JSON: {line}"))?;
                    self.seen.push(value.clone());
                    if wanted(&value) {
                        return Ok((arrived, value));
                    }
                }
                Err(error) => {
                    let why = match error {
                        RecvTimeoutError::Timeout => "did not come in time",
                        RecvTimeoutError::Disconnected => "did not come before the trace ended",
                    };
                    // Tests that run beside this one make namespaces all the time.
                    let tells = |line: &&Value| line["kind"] != "netns" && line["kind"] != "netns_name";
                    let last: Vec<_> =
                        self.seen.iter().rev().filter(tells).take(20).map(Value::to_string).collect();
                    let verdicts = self.seen.iter().filter(|line| line["kind"] == "verdict");
                    let verdicts = verdicts.map(|line| {
                        let verdict = &line["verdict"];
                        format!("{} {}: {}\n", line["at"], verdict["reason"], verdict["message"])
                    });
                    let verdicts: String = verdicts.rev().take(20).collect();
                    let (lost, left_out) = (self.lost(), self.left_out());
                    bail!(
                        "{what} {why}; {lost} events were lost and {left_out} runs left out; the last verdicts, newest \
                         first:\n{verdicts}the last lines:\n{}",
                        last.into_iter().rev().collect::<Vec<_>>().join("\n")
                    );
                }
            }
        }
    }

    /// Waits until the verdict is `reason`.
    pub fn wait_for_verdict(&mut self, reason: &str) -> Result<Verdict> {
        let is_it = |line: &Value| line["kind"] == "verdict" && line["verdict"]["reason"] == reason;
        let (arrived_ns, line) = self.wait_for(&format!("the verdict {reason}"), is_it)?;
        let at_ns = line["atNs"].as_u64().unwrap_or_default();
        Ok(Verdict { reason: reason.to_owned(), line, at_ns, arrived_ns })
    }

    /// Why a signal is not available here, when it is not: what the state at start said.
    pub fn gap(&self, signal: &str) -> Option<&str> {
        let gap = self.seen.iter().find(|line| line["kind"] == "gap" && line["signal"] == signal)?;
        gap["why"].as_str()
    }

    /// Events that the kernel half lost, as far as it has told.
    pub fn lost(&self) -> u64 {
        self.losses(false)
    }

    /// Runs of the kernel half's programs that the kernel left out, as far as it has told.
    pub fn left_out(&self) -> u64 {
        self.losses(true)
    }

    fn losses(&self, left_out: bool) -> u64 {
        let told = |line: &&Value| line["kind"] == "lost" && (line["left_out"] == true) == left_out;
        self.seen.iter().filter(told).filter_map(|line| line["count"].as_u64()).sum()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
