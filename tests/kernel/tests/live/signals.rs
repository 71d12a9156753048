//! Process and namespace events, losses, recordings, and what an agent serves. Requires root.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kernel_tests::{
    API, Dial, Node, OTHER_API, Sandbox, Server, Trace, poll, probe_binary, probe_command, spawn,
};
use serde_json::Value;

#[test]
fn names_signal_and_sender_when_control_plane_process_is_killed() -> Result<()> {
    let node = Node::new()?;
    let mut trace = Trace::start(&node, &["--apiserver", "10.99.0.2:6443"])?;
    let server = Server::start_as(&node.netns, &node.bin_dir().join("kube-apiserver"), "10.99.0.2:6443")?;
    let pid = server.pid();
    trace.wait_for("its start", |line| line["kind"] == "process" && line["event"] == "started")?;
    trace
        .wait_for("the role of the host", |line| line["kind"] == "host" && line["role"] == "control-plane")?;
    drop(server);
    let (_, line) =
        trace.wait_for("its exit", |line| line["kind"] == "process" && line["event"] == "exited")?;
    ensure!(line["process"]["pid"] == pid && line["process"]["name"] == "kube-apiserver", "{line}");
    ensure!(line["exit"]["signal"] == 9 && line["sender"]["pid"] == std::process::id(), "{line}");
    // Before that it accepted connections and did not serve yet, which has the same reason with another message.
    trace.wait_for("the verdict", |line| {
        let message = line["verdict"]["message"].as_str().unwrap_or_default();
        line["verdict"]["reason"] == "APIServerDown" && message.contains("kube-apiserver was killed (SIGKILL")
    })?;
    Ok(())
}

#[test]
fn distinguishes_control_plane_crash_loop_from_stopped_process() -> Result<()> {
    let node = Node::new()?;
    node.install_config()?;
    let mut trace = Trace::start(&node, &["--apiserver", "10.99.0.2:6443", "--role", "control-plane"])?;
    for _ in 0..3 {
        drop(Server::start_as(&node.netns, &node.bin_dir().join("kube-apiserver"), "10.99.0.2:6443")?);
    }
    let verdict = trace.wait_for_verdict("ControlPlaneCrashLoop")?;
    let message = verdict.line["verdict"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("kube-apiserver") && message.contains("SIGKILL"), "{message}");
    Ok(())
}

#[test]
fn reports_creation_and_destruction_of_netns() -> Result<()> {
    let node = Node::new()?;
    let mut trace = Trace::start(&node, &["--apiserver", API])?;
    let sandbox = Sandbox::new("web-1")?;
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(sandbox.netns.path())?);
    trace.wait_for("its creation", |line| {
        line["kind"] == "netns" && line["inum"] == inode && line["up"] == true
    })?;
    drop(sandbox);
    trace.wait_for("its destruction", |line| {
        line["kind"] == "netns" && line["inum"] == inode && line["up"] == false
    })?;
    Ok(())
}

#[test]
fn escapes_control_characters_in_terminal_output() -> Result<()> {
    let node = Node::new()?;
    node.install_config()?;
    let evil = "ku\u{1b}[31mbe\u{7}";
    let mut trace = KillOnDrop(probe(&node, "trace", &["--apiserver", API])?);
    let mut output = trace.0.stdout.take().context("the output is not piped")?;
    let mut client = node.client(evil, &Dial { to: API, flags: &[] })?;
    client.errno()?;
    let mut text = String::new();
    // The client connects repeatedly, so there is always more to read.
    let mut read_until = |name: &str| {
        poll(name, || {
            let mut part = [0; 4096];
            let size = output.read(&mut part).ok()?;
            text.push_str(&String::from_utf8_lossy(&part[..size]));
            text.contains(name).then_some(())
        })
    };
    read_until("\\u{1b}[31m")?;
    let sandbox = Sandbox::new("web\u{1b}[32m")?;
    let mut config = node.plugin_config("10.244.0.0/24");
    config["ipam"]["ranges"][0][0]["subnet"] = "\u{1b}[33mx".into();
    sandbox.run(&node, "ADD", &config)?;
    node.write_config("00-\u{1b}[34m.conf", b"{\"type\": \"\\u001b[35m/\"}")?;
    read_until("\\u{1b}[34m")?;
    ensure!(text.chars().all(|c| !c.is_control() || c == '\n'), "{text:?}");
    Ok(())
}

#[test]
fn counts_lost_events_and_reports_probe_degraded() -> Result<()> {
    let node = Node::new()?;
    node.install_config()?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--ring-bytes", "4096"])?;
    trace.wait_for_verdict("APIServerRefused")?;
    // 4096 bytes hold about thirty records; these clients connect without a pause until they are killed. They connect to
    // the API server's port at another address, because a server under this flood would not be healthy.
    let _other_api = Server::start(&node.netns, OTHER_API, &["--close"])?;
    let mut clients = Vec::new();
    for name in ["one-client", "other-client"] {
        let mut client = node.netns.command(node.helper_as(name)?)?;
        client.args(["dial", OTHER_API, "--every", "0"]).stdout(Stdio::null());
        clients.push(KillOnDrop(spawn(&mut client)?));
    }
    trace.wait_for("a counted loss", |line| line["kind"] == "lost" && line["count"].as_u64() > Some(0))?;
    trace.wait_for("the reread state", |line| line["kind"] == "reread" && line["scope"] == "sockets")?;
    let _server = node.serve_api()?;
    // Reading the state again does not make up for continuous losses.
    let verdict = trace.wait_for_verdict("ProbeDegraded")?;
    ensure!(verdict.line["verdict"]["message"].to_string().contains("keep being lost"), "{}", verdict.line);
    drop(clients);
    trace.wait_for_verdict("NetworkReady")?;
    Ok(())
}

/// Both clients run on one processor: while a task is interrupted inside a program, the kernel skips that program for all
/// other tasks (functions since Linux 5.11, tracepoints since 7).
#[test]
fn reports_runs_skipped_by_kernel() -> Result<()> {
    const CONNECTS: [(&str, u64, &[&str]); 2] =
        [("kube-proxy", 1000, &["--every", "0"]), ("other-client", 300, &["--every", "1", "--real-time"])];
    let node = Node::new()?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    trace.wait_for_verdict("CNIConfigMissing")?;
    let mut clients = Vec::new();
    for (name, count, flags) in CONNECTS {
        let count = count.to_string();
        let flags = [flags, &["--first-cpu", "--count", &count]].concat();
        clients.push(node.client(name, &Dial { to: API, flags: &flags })?);
    }
    let mut seen = 0;
    while seen + trace.skipped_runs() < CONNECTS.iter().map(|(_, count, _)| count).sum() {
        let next = trace.wait_for("a connect, or a loss", |line| {
            line["kind"] == "lost" || line["kind"] == "connect" && line["host_netns"] == true
        });
        let (_, line) = next.with_context(|| format!("{seen} seen, {} skipped", trace.skipped_runs()))?;
        // The outcome is right even if the program at the reset was skipped.
        ensure!(line["kind"] == "lost" || line["outcome"] == "refused_remote", "{line}");
        seen += u64::from(line["kind"] == "connect");
    }
    Ok(())
}

#[test]
fn recording_replays_to_same_verdicts() -> Result<()> {
    let node = Node::new()?;
    node.install_config()?;
    let server = node.serve_api()?;
    let recording = node.dir().join("recording.jsonl");
    let path = recording.to_str().context("not UTF-8")?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--record", path])?;
    trace.wait_for_verdict("NetworkReady")?;
    drop(server);
    node.remove_config()?;
    let mut kubelet = node.client("kubelet", &Dial { to: API, flags: &[] })?;
    kubelet.errno()?;
    trace.wait_for_verdict("APIServerRefused")?;
    let live = verdicts(&trace.seen);
    drop(trace);
    let output = Command::new(probe_binary()?).args(["replay", "-o", "json", path]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<Value> =
        output.stdout.split(|b| *b == b'\n').filter_map(|l| serde_json::from_slice(l).ok()).collect();
    let replayed = verdicts(&lines);
    ensure!(replayed.starts_with(&live), "live {live:?}, replayed {replayed:?}");
    Ok(())
}

fn verdicts(lines: &[Value]) -> Vec<String> {
    let verdicts = lines.iter().filter(|line| line["kind"] == "verdict");
    verdicts.filter_map(|line| Some(line["verdict"]["reason"].as_str()?.to_owned())).collect()
}

#[test]
fn agent_serves_socket_endpoints_and_state_file() -> Result<()> {
    let node = Node::new()?;
    node.install_config()?;
    let _server = node.serve_api()?;
    let state = node.dir().join("state/state.json");
    let socket = node.dir().join("probe.sock");
    let mut agent = KillOnDrop(probe(
        &node,
        "run",
        &[
            "--apiserver",
            API,
            "--metrics-address",
            "10.99.0.2:9719",
            "--state-file",
            state.to_str().context("not UTF-8")?,
            "--socket",
            socket.to_str().context("not UTF-8")?,
        ],
    )?);
    poll("the state file", || {
        let document: Value = serde_json::from_slice(&std::fs::read(&state).ok()?).ok()?;
        (document["verdict"]["reason"] == "NetworkReady" && document["schemaVersion"] == 1).then_some(())
    })?;
    let mut report = String::new();
    UnixStream::connect(&socket)?.read_to_string(&mut report)?;
    let document: Value = serde_json::from_str(&report)?;
    ensure!(document["verdict"]["status"] == "True", "{document}");
    let check =
        Command::new(probe_binary()?).args(["check", "-o", "json", "--socket"]).arg(&socket).output()?;
    ensure!(check.status.code() == Some(0), "{}", String::from_utf8_lossy(&check.stderr));

    // The pages are fetched from the other host.
    let mut fetch = node.peer.command("curl")?;
    fetch.args(["-sS", "-w", "%{http_code} ", "http://10.99.0.2:9719/livez", "http://10.99.0.2:9719/readyz"]);
    let pages = String::from_utf8(fetch.output()?.stdout)?;
    ensure!(pages.matches("ok\n200").count() == 2, "{pages}");
    let mut fetch = node.peer.command("curl")?;
    let metrics = String::from_utf8(fetch.args(["-sS", "http://10.99.0.2:9719/metrics"]).output()?.stdout)?;
    for line in [
        "netready_condition{type=\"NodeNetworkReady\",status=\"True\"} 1",
        "netready_verdict{reason=\"NetworkReady\",side=\"none\"} 1",
        "netready_hook_attached{hook=\"inet_sock_set_state\"} 1",
        "netready_events_lost_total{hook=\"mark_victim\"} 0",
        "netready_cni_config_files{state=\"valid\"} 1",
        "# EOF",
    ] {
        ensure!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
    let series = metrics.lines().filter(|line| !line.starts_with('#')).count();
    ensure!(series <= 300, "{series} series");

    // SAFETY: no memory is involved; the process is our child and was not waited for.
    unsafe { libc::kill(i32::try_from(agent.0.id())?, libc::SIGTERM) };
    ensure!(agent.0.wait()?.code() == Some(0), "the agent exited with an error");
    ensure!(!socket.exists(), "the socket was not removed");
    let last: Value = serde_json::from_slice(&std::fs::read(&state)?)?;
    ensure!(last["verdict"]["reason"] == "AgentStopping", "{last}");
    Ok(())
}

#[test]
fn logs_unavailable_outputs_once_and_continues() -> Result<()> {
    let node = Node::new()?;
    node.install_config()?;
    let _taken = Server::start(&node.netns, "10.99.0.2:9719", &[])?;
    let socket = node.dir().join("probe.sock");
    let args = [
        "--metrics-address",
        "10.99.0.2:9719",
        "--apiserver",
        API,
        "--state-file",
        "/proc/netready/state.json",
        "--socket",
    ];
    let args = [&args[..], &[socket.to_str().context("not UTF-8")?]].concat();
    let mut agent = KillOnDrop(probe(&node, "run", &args)?);
    poll("the verdict on the socket", || {
        let mut report = String::new();
        UnixStream::connect(&socket).ok()?.read_to_string(&mut report).ok()?;
        let report = serde_json::from_str::<Value>(&report).ok()?;
        (report["verdict"]["reason"] == "APIServerRefused").then_some(())
    })?;
    agent.0.kill()?;
    let mut log = String::new();
    agent.0.stderr.take().context("the output is not piped")?.read_to_string(&mut log)?;
    for word in ["serve metrics on 10.99.0.2:9719", "write the state file /proc/netready/state.json"] {
        ensure!(log.matches(word).count() == 1, "{log}");
    }
    Ok(())
}

#[test]
fn names_missing_capabilities_without_root() -> Result<()> {
    // Every user must be able to read the binary, so this is a copy.
    let dir = tempfile::TempDir::new()?;
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let copy = dir.path().join("probe");
    std::fs::copy(probe_binary()?, &copy)?;
    let mut command = Command::new(&copy);
    command.args(["check", "--for", "1s", "--no-agent", "--no-ask"]);
    std::os::unix::process::CommandExt::uid(&mut command, 65534);
    let output = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?.wait_with_output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(77), "{output:?}");
    ensure!(complaint.contains("CAP_BPF") && complaint.lines().count() == 1, "{complaint}");
    Ok(())
}

/// It keeps its sockets, so nothing but its state shows that it is stopped.
#[test]
fn stopped_kubelet_is_down_until_continued() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let kubelet = node.client("kubelet", &Dial { to: API, flags: &["--every", "100"] })?;
    let mut trace = Trace::start(&node, &["--apiserver", API])?;
    // SAFETY: no memory is involved; this test started the process.
    let send = |signal| unsafe { libc::kill(kubelet.pid().cast_signed(), signal) };
    send(libc::SIGSTOP);
    let verdict = trace.wait_for_verdict("KubeletDown")?;
    let message = verdict.line["verdict"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("does not respond") && message.contains("SIGSTOP"), "{message}");
    send(libc::SIGCONT);
    trace.wait_for_verdict("NetworkReady").map(|_| ())
}

/// Docker beside another runtime is idle unless somebody uses it.
#[test]
fn ignores_stopped_runtime_not_used_by_kubelet() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let path = |name: &str| node.dir().join(name).display().to_string();
    let [other, endpoint] = [path("docker.sock"), path("containerd.sock")];
    let listen = |name, to| -> Result<_> {
        let mut runtime = node.client(name, &Dial { to, flags: &["--listen"] })?;
        ensure!(runtime.errno()? == 0, "{name} does not listen");
        Ok(runtime)
    };
    // Started in the order of their process IDs, in which the agent checks them.
    let docker = listen("dockerd", &other)?;
    let containerd = listen("containerd", &endpoint)?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--runtime-endpoint", &endpoint])?;
    // SAFETY: no memory is involved; this test started the process.
    let stop = |pid: u32| unsafe { libc::kill(pid.cast_signed(), libc::SIGSTOP) };
    stop(docker.pid());
    stop(containerd.pid());
    let (_, line) = trace.wait_for("the stopped process", |line| line["kind"] == "stuck")?;
    ensure!(line["process"]["pid"] == containerd.pid(), "{line}");
    Ok(())
}

/// Sends SIGTERM as `systemctl restart kubelet` does.
#[test]
fn three_kubelet_restarts_are_not_a_crash_loop() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, &["--apiserver", API])?;
    for _ in 0..3 {
        let mut kubelet = node.client("kubelet", &Dial { to: API, flags: &["--every", "100"] })?;
        kubelet.errno()?;
        // SAFETY: no memory is involved; this test started the process.
        unsafe { libc::kill(kubelet.pid().cast_signed(), libc::SIGTERM) };
        trace.wait_for("its exit", |line| {
            line["kind"] == "process" && line["event"] == "exited" && line["process"]["pid"] == kubelet.pid()
        })?;
    }
    let kubelet = node.client("kubelet", &Dial { to: API, flags: &["--every", "100"] })?;
    let works = |line: &Value| line["kind"] == "connect" && line["client"]["pid"] == kubelet.pid();
    trace.wait_for("a connect of the last one", works)?;
    let crashes = |line: &&Value| {
        line["verdict"]["message"].as_str().is_some_and(|message| message.contains("is crash-looping"))
    };
    let wrong = trace.seen.iter().find(crashes);
    ensure!(wrong.is_none(), "{wrong:?}");
    Ok(())
}

/// Starts `probe VERB` with text output.
fn probe(node: &Node, verb: &str, args: &[&str]) -> Result<Child> {
    let mut command = probe_command(node, verb, args)?;
    Ok(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// A process; killed when dropped.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Idle connections and an oversized request must not block the agent's endpoints.
#[test]
fn misbehaving_scrapers_do_not_block_others() -> Result<()> {
    let node = Node::new()?;
    let socket = node.dir().join("probe.sock");
    let state = node.dir().join("state.json");
    let _agent = KillOnDrop(probe(
        &node,
        "run",
        &[
            "--metrics-address",
            "10.99.0.2:9719",
            "--socket",
            socket.to_str().context("not UTF-8")?,
            "--state-file",
            state.to_str().context("not UTF-8")?,
        ],
    )?);
    let fetch = || {
        let mut curl = node.peer.command("curl").ok()?;
        let output = curl
            .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://10.99.0.2:9719/livez"])
            .output()
            .ok()?;
        (output.stdout == b"200").then_some(())
    };
    poll("the page", fetch)?;
    // Ten clients that send nothing and one that sends too much, from a thread inside the other host's namespace.
    let file = std::fs::File::open(node.peer.path())?;
    std::thread::spawn(move || -> Result<()> {
        // SAFETY: the descriptor is open; setns(2) changes this thread only.
        ensure!(unsafe { libc::setns(std::os::fd::AsRawFd::as_raw_fd(&file), libc::CLONE_NEWNET) } == 0);
        let silent: Vec<_> = (0..10).filter_map(|_| TcpStream::connect("10.99.0.2:9719").ok()).collect();
        ensure!(silent.len() == 10);
        let mut oversized = TcpStream::connect("10.99.0.2:9719")?;
        oversized.set_read_timeout(Some(Duration::from_secs(3)))?;
        let _ = oversized.write_all(&vec![b'x'; 100_000]);
        Ok(())
    })
    .join()
    .expect("the thread does not panic")?;
    poll("the page again", fetch)
}
