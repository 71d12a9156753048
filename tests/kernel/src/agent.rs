//! A running `probe run`, and what it serves.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::netns::{Namespace, spawn};
use crate::node::Node;
use crate::probe::{patience, probe_command};

/// Where it serves its pages.
pub const PAGES: &str = "10.99.0.2:9719";
/// How long a page may take before it counts as withheld; the kubelet's probes wait one second.
const PAGE: Duration = Duration::from_secs(1);

/// An agent; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    /// Starts it on `node`. Its files are in the directory of the node where `args` does not name them, and it writes
    /// conditions only where `args` names a kubeconfig.
    pub fn start(node: &Node, args: &[&str]) -> Result<Self> {
        Self::start_command(node, args, Stdio::inherit())
    }

    /// The same with its standard error in the file `log`.
    pub fn start_with_log(node: &Node, args: &[&str], log: &Path) -> Result<Self> {
        Self::start_command(node, args, std::fs::File::create(log)?.into())
    }

    fn start_command(node: &Node, args: &[&str], log: Stdio) -> Result<Self> {
        let socket = node.dir().join("probe.sock");
        let mut command = probe_command(node, "run", args)?;
        command.args(["--metrics-address", PAGES, "--socket"]).arg(&socket).stderr(log);
        if !args.contains(&"--state-file") {
            command.arg("--state-file").arg(node.dir().join("state.json"));
        }
        Ok(Self { child: spawn(&mut command)?, socket })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its newest report; `None` before it serves one.
    pub fn report(&self) -> Option<Value> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(&answer).ok()
    }

    /// Waits until its verdict is `reason`, for as long as `limit` on a machine of its own; with the time that it took.
    pub fn wait_for_verdict(&self, reason: &str, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        let mut last = None;
        while begun.elapsed() < limit * patience() {
            last = self.report();
            if last.as_ref().is_some_and(|report| report["verdict"]["reason"] == reason) {
                return Ok(begun.elapsed());
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        bail!(
            "the verdict {reason} did not come in time; the last report: {}; the agent's threads: {}",
            last.unwrap_or_default(),
            self.threads()
        )
    }

    /// What each of its threads waits for.
    fn threads(&self) -> String {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        let read = |task: &Path, file: &str| std::fs::read_to_string(task.join(file)).unwrap_or_default();
        let of_task = |task: std::fs::DirEntry| {
            let task = task.path();
            let state = read(&task, "stat").rsplit(") ").next().and_then(|rest| rest.chars().next());
            format!("{} {} {}", read(&task, "comm").trim(), state.unwrap_or('?'), read(&task, "wchan"))
        };
        tasks.map(of_task).collect::<Vec<_>>().join(", ")
    }

    /// Fetches a page from `from`: status and body.
    pub fn page(&self, from: &Namespace, path: &str) -> Result<(u16, String)> {
        let mut stream = connect(from, PAGES)?;
        stream.set_read_timeout(Some(PAGE * patience()))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).with_context(|| format!("{path} was not answered in time"))?;
        let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no answer: {answer:?}"))?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.with_context(|| format!("no status: {head}"))?, body.to_owned()))
    }

    /// Of how many turns its judge was at most `le` late, a bound of the histogram, and of how many there were.
    pub fn turns(&self, node: &Node, le: &str) -> Result<(u64, u64)> {
        let (_, metrics) = self.page(&node.netns, "/metrics")?;
        let number = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.trim().parse().ok())
                .with_context(|| format!("no {name} in {metrics}"))
        };
        let timely = number(&format!("netready_loop_latency_seconds_bucket{{le=\"{le}\"}}"))?;
        Ok((timely, number("netready_loop_latency_seconds_count")?))
    }

    /// Fails where the judge was not on time: it turns ten times a second, and what blocks it for a second takes ten turns. An
    /// emulated machine stands still for longer than that when its host has more to do; there, verdicts must change in time.
    pub fn judge_is_on_time(&self, node: &Node) -> Result<()> {
        if patience() > 1 {
            return Ok(());
        }
        let (timely, all) = self.turns(node, "0.25")?;
        ensure!(all > 0 && timely * 100 >= all * 99, "{timely} of {all} turns in time");
        let (timely, all) = self.turns(node, "1.0")?;
        ensure!(timely == all, "{timely} of {all} turns within a second");
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connects from inside a namespace.
pub fn connect(from: &Namespace, to: &str) -> Result<TcpStream> {
    let file = std::fs::File::open(from.path())?;
    let to: SocketAddr = to.parse()?;
    let (sender, connected) = channel();
    std::thread::spawn(move || {
        // SAFETY: an open descriptor; only this thread changes.
        let entered = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } == 0;
        let entered = if entered { Ok(()) } else { Err(std::io::Error::last_os_error()) };
        sender.send(entered.and_then(|()| TcpStream::connect_timeout(&to, PAGE * patience())))
    });
    connected.recv()?.with_context(|| format!("connect to {to}"))
}
