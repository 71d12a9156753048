//! Blocked files, sockets and programs must not block the rest of the agent, which reports what is blocked. Requires root.

use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kernel_tests::{API, Agent, Dial, HTTP_ADDRESS, Node, connect, poll, poll_for, run};
use serde_json::Value;

/// How long a verdict may take on a busy machine. The target is 100 ms for the trace, and a directory is read after 20 ms.
/// Operations that are blocked in these tests are blocked for longer.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(10);

/// Starts an agent with these files, and waits until it reports a healthy node.
fn agent(node: &Node, state: &Path, journal: &Path) -> Result<Agent> {
    let text = |path: &Path| path.to_str().map(str::to_owned).context("not UTF-8");
    let (state, journal) = (text(state)?, text(journal)?);
    let agent = Agent::start(node, &["--apiserver", API, "--state-file", &state, "--journal", &journal])?;
    agent.wait_for_verdict("NetworkReady", Duration::from_secs(20))?;
    Ok(agent)
}

/// Checks that verdicts still change in time.
fn check_verdicts_change(node: &Node, agent: &Agent) -> Result<()> {
    for _ in 0..3 {
        node.remove_config()?;
        agent.wait_for_verdict("CNIConfigMissing", VERDICT_TIMEOUT)?;
        node.install_config()?;
        agent.wait_for_verdict("NetworkReady", VERDICT_TIMEOUT)?;
    }
    agent.check_loop_latency(node)
}

/// Waits until `/readyz` returns 503 and a body with all of these phrases.
fn wait_until_unready(node: &Node, agent: &Agent, words: &[&str]) -> Result<()> {
    let mut last = None;
    // An operation counts as blocked after ten seconds.
    let waited = poll_for(Duration::from_secs(20), "the failure in /readyz", || {
        let (status, body) = agent.get(&node.netns, "/readyz").ok()?;
        let is_reported = status == 503 && words.iter().all(|words| body.contains(words));
        last = Some(body);
        is_reported.then_some(())
    });
    waited.with_context(|| format!("{words:?} is missing in {last:?}"))
}

/// Waits until `/readyz` returns 200.
fn wait_until_ready(node: &Node, agent: &Agent) -> Result<()> {
    let mut last = None;
    poll("a 200 from /readyz", || {
        last = agent.get(&node.netns, "/readyz").ok();
        last.as_ref().is_some_and(|(status, _)| *status == 200).then_some(())
    })
    .with_context(|| format!("{last:?}"))
}

/// Waits until the state file has a verdict with this reason.
fn wait_for_state(path: &Path, reason: &str) -> Result<()> {
    poll("the state file", || {
        let document: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        (document["verdict"]["reason"] == reason).then_some(())
    })
}

fn fifo(path: &Path) -> Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is live and NUL-terminated.
    ensure!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) } == 0, "create the FIFO {}", path.display());
    Ok(())
}

#[test]
fn rejects_fifo_in_place_of_file_without_blocking() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let dir = node.dir().join("files");
    fs::create_dir(&dir)?;
    let (state, journal) = (dir.join("state.json"), dir.join("journal.jsonl"));
    // Also for the file to which the new state is written, and for the older lines of the journal.
    let fifos = [&state, &dir.join("state.new"), &journal, &dir.join("journal.1.jsonl")].map(PathBuf::clone);
    for path in &fifos {
        fifo(path)?;
    }
    let agent = agent(&node, &state, &journal)?;
    check_verdicts_change(&node, &agent)?;
    let refused = |path: &Path| format!("{}: not a regular file", path.display());
    wait_until_unready(&node, &agent, &[&refused(&state), &refused(&journal)])?;
    ensure!(fs::symlink_metadata(&state)?.file_type().is_fifo(), "the FIFO was replaced");
    // It recovers when they are removed.
    for path in &fifos {
        let _ = fs::remove_file(path);
    }
    wait_until_ready(&node, &agent)?;
    wait_for_state(&state, "NetworkReady")?;
    let lines = fs::read_to_string(&journal)?;
    ensure!(lines.contains("CNIConfigMissing") && lines.contains("\"started\""), "{lines}");
    let (_, metrics) = agent.get(&node.netns, "/metrics")?;
    ensure!(metrics.contains("netready_sink_dropped_total{sink=\"journal\"} 0"), "{metrics}");
    Ok(())
}

/// A separate file system; thawed and unmounted when dropped.
struct Disk {
    dir: PathBuf,
}

impl Disk {
    /// Mounts a file system that can be frozen, on a loop device.
    fn ext4(node: &Node) -> Result<Self> {
        let image = node.dir().join("disk.img");
        fs::File::create(&image)?.set_len(16 << 20)?;
        run(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
        Self::mount(node, Command::new("mount").args(["-o", "loop"]).arg(&image))
    }

    /// Mounts a file system that can be filled completely.
    fn tmpfs(node: &Node) -> Result<Self> {
        Self::mount(node, Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "nrlab"]))
    }

    fn mount(node: &Node, mount: &mut Command) -> Result<Self> {
        let dir = node.dir().join("disk");
        fs::create_dir(&dir)?;
        run(mount.arg(&dir))?;
        Ok(Self { dir })
    }

    /// Freezes or thaws it with FIFREEZE or FITHAW, include/uapi/linux/fs.h.
    fn freeze(&self, frozen: bool) -> Result<()> {
        let request = if frozen { 0xc004_5877 } else { 0xc004_5878 };
        let dir = fs::File::open(&self.dir)?;
        // SAFETY: the descriptor is open; the request takes no argument.
        let result = unsafe { libc::ioctl(dir.as_raw_fd(), request, 0) };
        ensure!(result == 0, "freeze {}: {}", self.dir.display(), std::io::Error::last_os_error());
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.freeze(false);
        let _ = run(Command::new("umount").arg("-l").arg(&self.dir));
    }
}

#[test]
fn frozen_disk_blocks_only_its_own_files() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let disk = Disk::ext4(&node)?;
    let (state, journal) = (disk.dir.join("state.json"), disk.dir.join("journal.jsonl"));
    let agent = agent(&node, &state, &journal)?;
    wait_for_state(&state, "NetworkReady")?;
    disk.freeze(true)?;
    let checked = check_verdicts_change(&node, &agent).and_then(|()| {
        let blocked = [&state, &journal].map(|path| format!("{} is blocked", path.display()));
        wait_until_unready(&node, &agent, &[&blocked[0], &blocked[1]])?;
        let (status, _) = agent.get(&node.netns, "/livez")?;
        ensure!(status == 200, "liveness depends on the disk");
        node.remove_config()?;
        agent.wait_for_verdict("CNIConfigMissing", VERDICT_TIMEOUT)
    });
    // Thawed before anything fails: a process with an open file on a frozen disk cannot be killed.
    disk.freeze(false)?;
    checked?;
    wait_until_ready(&node, &agent)?;
    wait_for_state(&state, "CNIConfigMissing")?;
    let lines = fs::read_to_string(&journal)?;
    ensure!(lines.matches("CNIConfigMissing").count() >= 4, "lines are missing: {lines}");
    drop(agent);
    Ok(())
}

#[test]
fn reports_full_disk_and_retries_writes() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let disk = Disk::tmpfs(&node)?;
    let (state, journal) = (disk.dir.join("state.json"), disk.dir.join("journal.jsonl"));
    let agent = agent(&node, &state, &journal)?;
    wait_for_state(&state, "NetworkReady")?;
    let ballast = disk.dir.join("ballast");
    let full = std::io::copy(&mut fs::File::open("/dev/zero")?, &mut fs::File::create(&ballast)?);
    ensure!(full.is_err_and(|error| error.raw_os_error() == Some(libc::ENOSPC)));
    check_verdicts_change(&node, &agent)?;
    wait_until_unready(&node, &agent, &["write the state file", "No space left on device"])?;
    fs::remove_file(&ballast)?;
    wait_until_ready(&node, &agent)?;
    wait_for_state(&state, "NetworkReady")?;
    drop(agent);
    Ok(())
}

#[test]
fn half_open_connections_do_not_block_liveness_probe() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let agent = Agent::start(&node, &["--apiserver", API])?;
    agent.wait_for_verdict("NetworkReady", Duration::from_secs(20))?;
    // More than the agent accepts, from another host and from this one, each with half a request.
    let mut silent = Vec::new();
    for from in [&node.peer, &node.netns] {
        for _ in 0..40 {
            let mut stream = connect(from, HTTP_ADDRESS)?;
            std::io::Write::write_all(&mut stream, b"GET /livez HTT")?;
            silent.push(stream);
        }
    }
    for from in [&node.netns, &node.peer] {
        let started = Instant::now();
        let (status, body) = agent.get(from, "/livez")?;
        ensure!(status == 200, "{body}");
        println!("/livez took {:?} beside {} half-open connections", started.elapsed(), silent.len());
    }
    agent.check_loop_latency(&node)
}

#[test]
fn kills_hanging_credential_program_without_blocking() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let (helper, kubeconfig) = (node.dir().join("helper"), node.dir().join("kubeconfig"));
    fs::write(&helper, "#!/bin/sh\necho $$ > \"${0%/*}/helper.pid\"\nexec /bin/busybox sleep 100000\n")?;
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755))?;
    fs::write(
        &kubeconfig,
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://{API}', insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: u, user: {{exec: {{apiVersion: client.authentication.k8s.io/v1, command: ./helper}}}}}}]\n"
        ),
    )?;
    let kubeconfig = kubeconfig.to_str().context("not UTF-8")?;
    let agent = Agent::start(&node, &["--apiserver", API, "--kubeconfig", kubeconfig])?;
    agent.wait_for_verdict("NetworkReady", Duration::from_secs(20))?;
    let pid = poll("the program", || {
        let pid = fs::read_to_string(node.dir().join("helper.pid")).ok()?;
        pid.trim().parse::<u32>().ok()
    })?;
    check_verdicts_change(&node, &agent)?;
    let problem = |report: &Value| report["conditionWrites"]["problem"].as_str().map(str::to_owned);
    let mut last = None;
    // The program is killed after ten seconds.
    let reported = poll_for(Duration::from_secs(20), "the reason why no conditions are written", || {
        last = problem(&agent.report()?);
        last.as_ref().is_some_and(|why| why.contains("was killed: no result within 10 s")).then_some(())
    });
    reported.with_context(|| format!("the last reason: {last:?}"))?;
    let runs = fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("100000"));
    ensure!(!runs, "the program is still running");
    agent.check_loop_latency(&node)
}

/// The files take seconds to read; meanwhile another fault must be reported without delay.
#[test]
fn many_large_config_files_do_not_delay_verdicts() -> Result<()> {
    let (node, server) = Node::healthy()?;
    let agent = Agent::start(&node, &["--apiserver", API])?;
    agent.wait_for_verdict("NetworkReady", Duration::from_secs(20))?;
    let padding = "x".repeat(1_000_000);
    let large = format!(
        r#"{{"cniVersion":"0.4.0","name":"large","plugins":[{{"type":"bridge","padding":"{padding}"}}]}}"#
    );
    // Hard links to one file take as long to read as separate files, and the machines of the matrix have little memory.
    let file = node.dir().join("large");
    fs::write(&file, large)?;
    for number in 0..300 {
        fs::hard_link(&file, node.conf_dir().join(format!("50-{number:03}.conflist")))?;
    }
    drop(server);
    let mut kubelet = node.client("kubelet", &Dial { to: API, flags: &["--every", "100"] })?;
    ensure!(kubelet.errno()? == libc::ECONNREFUSED);
    let took = agent.wait_for_verdict("APIServerRefused", VERDICT_TIMEOUT)?;
    println!("reported after {took:?}");
    agent.check_loop_latency(&node)
}
