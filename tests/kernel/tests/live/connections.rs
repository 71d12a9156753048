//! Events after the handshake, and those that no packet shows. Requires root.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use kernel_tests::{API, Cgroup, Dial, Node, Sandbox, Server, Trace, patience, probe_command};
use serde_json::{Value, json};

/// Creates a node with a valid configuration, and a server with these flags.
fn node_with(server: &[&str]) -> Result<(Node, Server)> {
    let node = Node::new()?;
    node.install_config()?;
    let server = Server::start(&node.peer, API, server)?;
    Ok((node, server))
}

/// Returns whether a line is of this kind and of the node's own namespace.
fn of_the_node(line: &Value, kind: &str) -> bool {
    line["kind"] == kind && line["host_netns"] == true
}

#[test]
fn connection_closed_before_response_means_api_server_reset() -> Result<()> {
    for how in ["--close", "--reset"] {
        let (node, server) = node_with(&[how])?;
        let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
        let mut kubelet = node.client("kubelet", &Dial { to: API, flags: &["--talk", "2000"] })?;
        ensure!(kubelet.errno()? != 0, "the server answered");
        let (_, line) = trace.wait_for("the connection", |line| of_the_node(line, "connection"))?;
        ensure!(line["by_peer"] == true && line["received"] == 0 && line["role"] == "kubelet", "{line}");
        trace.wait_for_verdict("APIServerReset")?;
        // A response ends the fault; a handshake alone would not.
        drop(server);
        let _server = node.serve_api()?;
        trace.wait_for_verdict("NetworkReady")?;
    }
    Ok(())
}

#[test]
fn acknowledged_bytes_without_response_mean_tls_stalled() -> Result<()> {
    let (node, _server) = node_with(&["--silent"])?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let flags = ["--talk", "60000", "--count", "1"];
    let _kubelet = node.client("kubelet", &Dial { to: API, flags: &flags })?;
    let is_it = |line: &Value| line["kind"] == "verdict" && line["verdict"]["reason"] == "APITLSStalled";
    trace.wait(Duration::from_secs(30) * patience(), "the verdict APITLSStalled", is_it)?;
    let silent =
        trace.seen.iter().rfind(|line| of_the_node(line, "connection")).expect("a connection was reported");
    ensure!(silent["acked"] == 5 && silent["received"] == 0, "{silent}");
    ensure!(silent["client"]["name"] == "kubelet", "{silent}");
    Ok(())
}

#[test]
fn reports_established_connection_without_acknowledgements() -> Result<()> {
    let (node, _server) = node_with(&["--echo"])?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let flags = ["--talk", "120000", "--pause", "2000"];
    let mut kubelet = node.client("kubelet", &Dial { to: API, flags: &flags })?;
    ensure!(kubelet.errno()? == 0);
    node.peer.filter("input", "tcp dport 6443 drop")?;
    let is_it =
        |line: &Value| line["kind"] == "verdict" && line["verdict"]["reason"] == "APIConnectionStalled";
    trace.wait(Duration::from_secs(45) * patience(), "the verdict APIConnectionStalled", is_it)?;
    node.peer.nft("delete table ip lab")?;
    // TCP doubles its retransmission timeout each time: the next segment may take as long as the outage lasted.
    let is_ready = |line: &Value| line["kind"] == "verdict" && line["verdict"]["reason"] == "NetworkReady";
    trace.wait(Duration::from_secs(45) * patience(), "the verdict NetworkReady", is_ready)?;
    Ok(())
}

/// A Service implementation in eBPF rewrites the address inside connect(2): both addresses are reported, and the outcome is
/// that of the requested one.
#[test]
fn address_rewritten_by_ebpf_keeps_its_name() -> Result<()> {
    let (node, _server) = node_with(&["--echo"])?;
    let service = "10.96.0.1:443";
    let named = format!("service={service}");
    let mut trace = Trace::start(&node, &["--apiserver", &named, "--no-ask"])?;
    let cgroup = Cgroup::rewriting_connects_to(API.parse()?)?;
    let dir = cgroup.dir().to_string_lossy().into_owned();
    let mut agent =
        node.client("cilium-agent", &Dial { to: service, flags: &["--cgroup", &dir, "--talk", "2000"] })?;
    ensure!(agent.errno()? == 0);
    let (_, line) = trace.wait_for("the connect", |line| of_the_node(line, "connect"))?;
    let gap = trace.gap("tcp.connect.asked");
    if gap.is_some() {
        ensure!(line["to"] == API, "{line}");
        return Ok(());
    }
    ensure!(line["to"] == service && line["via"] == API && line["outcome"] == "ok", "{line}");
    ensure!(line["role"] == "cni_agent", "{line}");
    trace.wait_for_verdict("NetworkReady")?;
    Ok(())
}

#[test]
fn names_unreachable_agent_of_plugin_and_errno() -> Result<()> {
    let (node, _server) = node_with(&["--echo"])?;
    node.helper_as("kube-ovn")?;
    let socket = node.dir().join("kube-ovn-daemon.sock");
    let config = json!({"cniVersion": "0.4.0", "name": "ovn", "type": "kube-ovn", "socket": socket});
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    // The socket does not exist; it exists and nothing listens; a listener accepts.
    for (errno, prepare) in [(libc::ENOENT, false), (libc::ECONNREFUSED, true)] {
        if prepare {
            drop(UnixListener::bind(&socket)?);
        }
        let output = Sandbox::new("web-1")?.run(&node, "ADD", &config)?;
        ensure!(!output.status.success());
        let (_, end) = trace.wait_for("its exit", |line| line["kind"] == "cni_end")?;
        ensure!(end["sockets"][0]["errno"] == errno, "{end}");
        ensure!(end["sockets"][0]["path"].as_str() == socket.to_str(), "{end}");
        if trace.gap("cni.stdout").is_none() {
            ensure!(end["error"]["code"] == 11, "{end}");
        }
    }
    let verdict = trace.wait_for_verdict("CNIAgentNotReady")?;
    ensure!(verdict.line["verdict"]["subject"] == "kube-ovn-cni", "{}", verdict.line);
    std::fs::remove_file(&socket)?;
    let _agent = UnixListener::bind(&socket)?;
    ensure!(Sandbox::new("web-2")?.run(&node, "ADD", &config)?.status.success());
    let (_, end) = trace.wait_for("its exit", |line| line["kind"] == "cni_end")?;
    ensure!(end["sockets"][0]["errno"] == 0 && end["exit"]["code"] == 0, "{end}");
    Ok(())
}

/// C libraries flush with writev(2), and the output may be written in two pieces.
#[test]
fn captures_complete_plugin_output_from_writev() -> Result<()> {
    let (node, _server) = node_with(&["--echo"])?;
    node.helper_as("shell-plugin")?;
    let config = json!({
        "cniVersion": "0.4.0", "name": "w", "type": "shell-plugin", "socket": "/nowhere/x.sock", "writev": true
    });
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    ensure!(!Sandbox::new("web-1")?.run(&node, "ADD", &config)?.status.success());
    let (_, end) = trace.wait_for("its exit", |line| line["kind"] == "cni_end")?;
    if trace.gap("cni.stdout").is_some() || trace.gap("cni.stdout.writev").is_some() {
        ensure!(end["exit"]["code"] == 1, "{end}");
        return Ok(());
    }
    ensure!(end["error"]["code"] == 11, "{end}");
    Ok(())
}

#[test]
fn detects_stopped_runtime_from_kubelet_connects() -> Result<()> {
    let (node, _server) = node_with(&["--echo"])?;
    let socket = node.dir().join("containerd.sock");
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let path = socket.to_string_lossy().into_owned();
    let mut kubelet = node.client("kubelet", &Dial { to: &path, flags: &["--every", "300"] })?;
    ensure!(kubelet.errno()? == libc::ENOENT);
    let verdict = trace.wait_for_verdict("RuntimeDown")?;
    ensure!(
        verdict.line["verdict"]["message"].as_str().is_some_and(|m| m.contains("does not exist (ENOENT)")),
        "{}",
        verdict.line
    );
    let _runtime = UnixListener::bind(&socket)?;
    trace.wait_for("the recovery", |line| {
        line["kind"] == "verdict" && line["verdict"]["reason"] != "RuntimeDown"
    })?;
    Ok(())
}

/// The agent's own requests: one row for each way in which a server can respond or fail.
#[test]
fn active_checks_distinguish_failures_of_api_server() -> Result<()> {
    let rows = [
        (&["--status", "500"][..], "APIServerUnhealthy", "failing checks: etcd"),
        (&["--expired"], "APITLSFailed", "expired 60 min ago"),
        (&["--silent"], "APITLSStalled", "sends nothing"),
        (&["--close"], "APIServerReset", "before a response"),
        (&["--echo"], "APITLSFailed", "TLS handshake"),
        (&["--status", "401"], "NetworkReady", "accepts connections"),
    ];
    for (server, reason, words) in rows {
        let (node, _server) = node_with(server)?;
        let mut trace = Trace::start(&node, &["--apiserver", API, "--ask-timeout", "2s"])?;
        trace.wait_for("the result of a request", |line| line["kind"] == "answer")?;
        let verdict = match trace.seen.iter().rfind(|line| line["kind"] == "verdict") {
            Some(line) if line["verdict"]["reason"] == reason => line.clone(),
            _ => trace.wait_for_verdict(reason)?.line,
        };
        let message = verdict["verdict"]["message"].as_str().unwrap_or_default();
        ensure!(message.contains(words), "{server:?}: {message}");
    }
    Ok(())
}

/// A server in trouble whose listener still works: it responds to the agent, and not to the node's clients.
#[test]
fn client_requests_without_response_mean_api_server_unhealthy() -> Result<()> {
    let (node, _server) = node_with(&["--echo-once"])?;
    let mut trace = Trace::start(&node, &["--apiserver", API])?;
    let client = node.client("kubelet", &Dial { to: API, flags: &["--pause", "5000", "--bytes", "600"] })?;
    let verdict = trace.wait_for_verdict("APIServerUnhealthy")?;
    let message = verdict.line["verdict"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("kubelet has received no timely response"), "{message}");
    let is_ok = |line: &&Value| line["kind"] == "answer" && line["status"] == 200;
    ensure!(trace.seen.iter().any(|line| is_ok(&line)), "no successful request of the agent");
    drop(client);
    let _next = node.client("kubelet", &Dial { to: API, flags: &["--every", "1000"] })?;
    trace.wait_for_verdict("NetworkReady").map(|_| ())
}

/// An incomplete response counts as no response.
#[test]
fn reset_after_one_byte_means_api_server_reset() -> Result<()> {
    let (node, _server) = node_with(&["--reset", "--byte"])?;
    let _client = node.client("kubelet", &Dial { to: API, flags: &["--talk", "1000", "--every", "500"] })?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    trace.wait_for_verdict("APIServerReset").map(|_| ())
}

/// A name with two addresses: packets to one of them are dropped, and clients connect to the other one.
#[test]
fn one_unreachable_address_of_two_is_degraded() -> Result<()> {
    const OTHER: &str = "[fd99::1]:6443";
    let (node, _server) = Node::healthy()?;
    let _other = Server::start(&node.peer, OTHER, &[])?;
    let hosts = node.dir().join("hosts");
    std::fs::write(&hosts, "10.99.0.1 api.nrlab.test\nfd99::1 api.nrlab.test\n")?;
    let hosts = CString::new(hosts.as_os_str().as_bytes())?;
    let mut command = probe_command(&node, "trace", &["-o", "json", "--apiserver", "api.nrlab.test:6443"])?;
    let replace_hosts = move || {
        let (root, none) = (c"/", std::ptr::null());
        // SAFETY: the calls are async-signal-safe; every string is live and NUL-terminated.
        let done = unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(none, root.as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) == 0
                && libc::mount(hosts.as_ptr(), c"/etc/hosts".as_ptr(), none, libc::MS_BIND, none.cast()) == 0
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: as above.
    unsafe { command.pre_exec(replace_hosts) };
    let mut trace = Trace::start_command(command)?;
    let _clients = [API, OTHER].map(|to| node.client("kubelet", &Dial { to, flags: &["--give-up", "2000"] }));
    trace.wait_for_verdict("NetworkReady")?;
    node.peer.nft(
        "add table ip6 lab; add chain ip6 lab input { type filter hook input priority 0; }; \
         add rule ip6 lab input tcp dport 6443 drop",
    )?;
    let (_, line) = trace.wait_for("the degraded address", |line| {
        line["kind"] == "verdict" && line["also"][0]["reason"] == "APITimeout"
    })?;
    ensure!(line["also"][0]["subject"] == OTHER, "{line}");
    ensure!(line["verdict"]["reason"] == "NetworkReady", "{line}");
    let is_false = |line: &&Value| line["kind"] == "condition" && line["status"] == "False";
    let wrong = trace.seen.iter().find(is_false);
    ensure!(wrong.is_none(), "{wrong:?}");
    node.peer.nft("delete table ip6 lab")?;
    trace.wait_for("the recovery", |line| line["kind"] == "verdict" && line["also"][0].is_null())?;
    Ok(())
}
