//! A running `probe run`, and the pages that it serves.

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

/// The address of its metrics and health endpoints.
pub const HTTP_ADDRESS: &str = "10.99.0.2:9719";
/// How long a response may take before the request counts as failed; the kubelet's probes wait one second.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// A running agent; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    /// Starts it on `node`. Files that `args` does not name are in the node's directory, and it writes conditions only
    /// if `args` names a kubeconfig.
    pub fn start(node: &Node, args: &[&str]) -> Result<Self> {
        Self::start_command(node, args, Stdio::inherit())
    }

    /// As [`Self::start`], with its standard error in the file `log`.
    pub fn start_with_log(node: &Node, args: &[&str], log: &Path) -> Result<Self> {
        Self::start_command(node, args, std::fs::File::create(log)?.into())
    }

    fn start_command(node: &Node, args: &[&str], log: Stdio) -> Result<Self> {
        let socket = node.dir().join("probe.sock");
        let mut command = probe_command(node, "run", args)?;
        command.args(["--metrics-address", HTTP_ADDRESS, "--socket"]).arg(&socket).stderr(log);
        if !args.contains(&"--state-file") {
            command.arg("--state-file").arg(node.dir().join("state.json"));
        }
        Ok(Self { child: spawn(&mut command)?, socket })
    }

    /// Returns its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns its newest report; `None` before it serves one.
    pub fn report(&self) -> Option<Value> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let mut response = String::new();
        stream.read_to_string(&mut response).ok()?;
        serde_json::from_str(&response).ok()
    }

    /// Waits until its verdict is `reason`, for `limit` times [`patience`], and returns the time that it took.
    pub fn wait_for_verdict(&self, reason: &str, limit: Duration) -> Result<Duration> {
        let started = Instant::now();
        let mut last = None;
        while started.elapsed() < limit * patience() {
            last = self.report();
            if last.as_ref().is_some_and(|report| report["verdict"]["reason"] == reason) {
                return Ok(started.elapsed());
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        bail!(
            "timed out waiting for the verdict {reason}; the last report: {}; the agent's threads: {}",
            last.unwrap_or_default(),
            self.threads()
        )
    }

    /// Returns name, state and wait channel of each of its threads.
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

    /// Sends a GET request from the namespace `from`, and returns status and body.
    pub fn get(&self, from: &Namespace, path: &str) -> Result<(u16, String)> {
        let mut stream = connect(from, HTTP_ADDRESS)?;
        stream.set_read_timeout(Some(REQUEST_TIMEOUT * patience()))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n")?;
        let mut response = String::new();
        stream
            .read_to_string(&mut response)
            .with_context(|| format!("{path}: no complete response in time"))?;
        let (head, body) =
            response.split_once("\r\n\r\n").with_context(|| format!("no response: {response:?}"))?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.with_context(|| format!("no status in {head}"))?, body.to_owned()))
    }

    /// Returns how many iterations of the engine's loop were at most `le` seconds late, which must be a bound of the
    /// histogram, and the number of all iterations.
    pub fn loop_latency(&self, node: &Node, le: &str) -> Result<(u64, u64)> {
        let (_, metrics) = self.get(&node.netns, "/metrics")?;
        let number = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.trim().parse().ok())
                .with_context(|| format!("{name} is missing in {metrics}"))
        };
        let timely = number(&format!("netready_loop_latency_seconds_bucket{{le=\"{le}\"}}"))?;
        Ok((timely, number("netready_loop_latency_seconds_count")?))
    }

    /// Fails if the engine's loop was late. It runs ten times a second, so whatever blocks it for a second delays ten
    /// iterations. An emulated machine may stall for longer than that when its host is busy: there, only the deadlines
    /// of verdicts apply.
    pub fn check_loop_latency(&self, node: &Node) -> Result<()> {
        if patience() > 1 {
            return Ok(());
        }
        let (timely, all) = self.loop_latency(node, "0.25")?;
        ensure!(all > 0 && timely * 100 >= all * 99, "{timely} of {all} iterations in time");
        let (timely, all) = self.loop_latency(node, "1.0")?;
        ensure!(timely == all, "{timely} of {all} iterations within a second");
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
        // SAFETY: the descriptor is open; setns(2) changes this thread only.
        let entered = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } == 0;
        let entered = if entered { Ok(()) } else { Err(std::io::Error::last_os_error()) };
        sender.send(entered.and_then(|()| TcpStream::connect_timeout(&to, REQUEST_TIMEOUT * patience())))
    });
    connected.recv()?.with_context(|| format!("connect to {to}"))
}
