//! Real faults, one at a time, and the verdict that must follow. Requires root and the reference plugins.

use anyhow::{Context as _, Result, ensure};
use kernel_tests::{API, Cgroup, Check, Dial, Node, Sandbox, Server, Trace, patience};

const SERVICE: &str = "10.96.0.1:443";
const REJECT_SERVICE: &str = "ip daddr 10.96.0.1 reject with icmp type port-unreachable";

/// Runs a check without an agent; fails if it printed a warning.
fn verdict(node: &Node, seconds: u32, args: &[&str]) -> Result<Check> {
    let check = Check::run(node, seconds, args)?;
    ensure!(check.stderr.is_empty(), "standard error is not empty: {}", check.stderr);
    Ok(check)
}

fn expect(check: &Check, reason: &str, code: i32) -> Result<()> {
    ensure!(check.reason() == reason && check.code == code, "{}: {:#}", check.code, check.document);
    Ok(())
}

/// Returns whether a line is a connect of this node: other tests' namespaces exist on the same kernel.
fn of_the_node(line: &serde_json::Value) -> bool {
    line["kind"] == "connect" && line["host_netns"] == true
}

#[test]
fn healthy_node_is_ready() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let check = verdict(&node, 4 * patience(), &["--apiserver", API])?;
    expect(&check, "NetworkReady", 0)?;
    for condition in check.document["conditions"].as_array().into_iter().flatten() {
        ensure!(condition["status"] == "True", "{condition}");
    }
    Ok(())
}

#[test]
fn closed_port_on_other_host_means_api_server_refused() -> Result<()> {
    let (node, server) = Node::healthy()?;
    drop(server);
    expect(&verdict(&node, 2, &["--apiserver", API])?, "APIServerRefused", 3)
}

#[test]
fn control_plane_host_without_listener_means_api_server_down() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let args = ["--apiserver", "10.99.0.2:6443", "--role", "control-plane"];
    expect(&verdict(&node, 2, &args)?, "APIServerDown", 3)?;
    // The listener is missing in the initial state, so no connect is needed.
    expect(&verdict(&node, 1, &[&args[..], &["--no-ask"]].concat())?, "APIServerDown", 3)
}

#[test]
fn closed_loopback_port_on_worker_means_local_proxy_down() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    for addr in ["127.0.0.1:6443", "[::1]:6443"] {
        let args = ["--apiserver", addr, "--role", "worker"];
        expect(&verdict(&node, 2, &args)?, "APILocalProxyDown", 3)?;
    }
    Ok(())
}

#[test]
fn icmp_reject_of_service_means_no_endpoints() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    node.netns.filter("output", REJECT_SERVICE)?;
    expect(&verdict(&node, 3, &["--apiserver", "service=10.96.0.1"])?, "APIServiceNoEndpoints", 3)
}

/// The socket of a non-blocking connect is closed without an error; only its error queue has the ICMP message.
#[test]
fn nonblocking_connect_reports_icmp_reject_on_same_node() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    node.netns.filter("output", REJECT_SERVICE)?;
    let mut trace = Trace::start(&node, &["--apiserver", "service=10.96.0.1:443", "--no-ask"])?;
    let mut client = node.client("kubelet", &Dial { to: SERVICE, flags: &["--go", "--count", "3"] })?;
    ensure!(client.errno()? == libc::ECONNREFUSED);
    let (_, line) = trace.wait_for("the client's connect", of_the_node)?;
    ensure!(line["outcome"] == "refused_icmp" && line["role"] == "kubelet", "{line}");
    ensure!(line["icmp"]["icmp_type"] == 3 && line["icmp"]["code"] == 3, "{line}");
    ensure!(line.get("rst").is_none(), "{line}");
    trace.wait_for_verdict("APIServiceNoEndpoints")?;
    Ok(())
}

#[test]
fn icmp_reject_on_this_host_means_policy_denied() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    node.netns.filter("output", "tcp dport 6443 reject with icmp type port-unreachable")?;
    expect(&verdict(&node, 3, &["--apiserver", API])?, "APIPolicyDenied", 3)
}

#[test]
fn icmp_reject_by_other_host_means_firewalled() -> Result<()> {
    for how in ["admin-prohibited", "port-unreachable", "host-prohibited"] {
        let (node, _server) = Node::healthy()?;
        node.peer.filter("input", &format!("tcp dport 6443 reject with icmp type {how}"))?;
        let check = verdict(&node, 3, &["--apiserver", API])?;
        expect(&check, "APIFirewalled", 3)?;
        let message = check.document["verdict"]["message"].as_str().unwrap_or_default();
        ensure!(message.contains("10.99.0.1"), "the sender is not named: {message}");
    }
    Ok(())
}

#[test]
fn unassigned_address_means_vip_unreachable() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    expect(&verdict(&node, 6, &["--apiserver", "10.99.0.77:6443"])?, "APIVIPUnreachable", 3)
}

/// Nothing on the node translates the Service's address, and the gateway has no route to it.
#[test]
fn untranslated_service_address_means_service_not_programmed() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let args = ["--apiserver", API, "--apiserver", "service=10.96.0.1"];
    expect(&verdict(&node, 8, &args)?, "APIServiceNotProgrammed", 3)
}

/// The load balancer drops connects from the servers behind it.
#[test]
fn load_balancer_dropping_its_own_backend_means_hairpin() -> Result<()> {
    let node = Node::new()?;
    node.install_config()?;
    let _server = Server::start(&node.netns, "10.99.0.2:6443", &[])?;
    node.peer.filter("input", "ip saddr 10.99.0.2 tcp dport 6443 drop")?;
    let args = ["--apiserver", API, "--apiserver", "10.99.0.2:6443", "--role", "control-plane"];
    expect(&verdict(&node, 8, &args)?, "APIHairpin", 3)
}

#[test]
fn reports_missing_route_in_all_forms() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    node.netns.ip("route del default")?;
    for form in ["", "unreachable", "prohibit", "blackhole"] {
        if !form.is_empty() {
            node.netns.ip(&format!("route add {form} 10.55.0.0/24"))?;
        }
        expect(&verdict(&node, 2, &["--apiserver", "10.55.0.1:6443"])?, "APIRouteMissing", 3)?;
        if !form.is_empty() {
            node.netns.ip("route del 10.55.0.0/24")?;
        }
    }
    Ok(())
}

#[test]
fn connect_denied_by_ebpf_means_bpf_denied() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let denied = Cgroup::denying_connects()?;
    let dir = denied.dir().to_string_lossy().into_owned();
    let mut trace = Trace::start(&node, &["--apiserver", API])?;
    trace.wait_for_verdict("NetworkReady")?;
    let mut client = node.client("kubelet", &Dial { to: API, flags: &["--cgroup", &dir] })?;
    ensure!(client.errno()? == libc::EPERM);
    let verdict = trace.wait_for_verdict("APIBPFDenied")?;
    ensure!(
        verdict.line["verdict"]["message"].as_str().is_some_and(|m| m.contains("kubelet")),
        "{}",
        verdict.line
    );
    Ok(())
}

#[test]
fn unanswered_syns_mean_timeout_even_if_client_gives_up() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    node.peer.filter("input", "tcp dport 6443 drop")?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let mut client =
        node.client("kubelet", &Dial { to: API, flags: &["--give-up", "2500", "--count", "1"] })?;
    ensure!(client.errno()? == -1);
    let (_, line) = trace.wait_for("the client's connect", of_the_node)?;
    ensure!(line["outcome"] == "gave_up" && line["retransmits"].as_u64() >= Some(1), "{line}");
    trace.wait_for_verdict("APITimeout")?;
    Ok(())
}

/// With this many sockets one in fifteen finds its slot in the kernel map occupied, and must be reported nevertheless. A
/// kernel that interrupts a running program for another task (Linux 7) skips that program for it, and counts the skipped
/// run.
#[test]
fn reports_every_one_of_many_concurrent_connects() -> Result<()> {
    const MANY: u64 = 900;
    let (node, _server) = Node::healthy()?;
    node.peer.filter("input", "tcp dport 6443 drop")?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let mut client = node.client("kubelet", &Dial { to: API, flags: &["--at-once", &MANY.to_string()] })?;
    ensure!(client.errno()? == -1);
    let mut seen = 0;
    while seen + trace.skipped_runs() < MANY {
        let end = trace.wait_for("the end of a connect, or a loss", |line| {
            line["kind"] == "lost" || of_the_node(line) && line["client"]["pid"] == client.pid()
        });
        let (_, line) = end.with_context(|| format!("{seen} seen, {} skipped", trace.skipped_runs()))?;
        seen += u64::from(line["kind"] == "connect");
    }
    ensure!(trace.lost() == 0, "{} lost", trace.lost());
    Ok(())
}

/// The kernel programs report only connects whose start they observed; sock_diag shows the others.
#[test]
fn reports_connect_started_before_probe() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    node.peer.filter("input", "tcp dport 6443 counter drop")?;
    let _client =
        node.client("kubelet", &Dial { to: API, flags: &["--give-up", "60000", "--count", "1"] })?;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let check = verdict(&node, 1, &["--apiserver", API, "--no-ask"])?;
        if check.reason() == "APITimeout" {
            return expect(&check, "APITimeout", 3);
        }
        ensure!(std::time::Instant::now() < deadline, "{:#}", check.document);
    }
}

#[test]
fn drop_on_this_host_means_policy_denied() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    node.netns.filter("output", "tcp dport 6443 drop")?;
    expect(&verdict(&node, 6, &["--apiserver", API])?, "APIPolicyDenied", 3)
}

/// Sockets of protocol 262 pass through the same states and must not be taken for TCP (262 & 0xff is 6).
#[test]
fn does_not_mistake_mptcp_sockets_for_tcp() -> Result<()> {
    let node = Node::new()?;
    node.install_config()?;
    let mut trace = Trace::start(&node, &["--apiserver", "10.99.0.2:6443", "--role", "control-plane"])?;
    trace.wait_for_verdict("APIServerDown")?;
    let server = Server::start(&node.netns, "10.99.0.2:6443", &["--mptcp"])?;
    trace.wait_for_verdict("NetworkReady")?;
    drop(server);
    trace.wait_for_verdict("APIServerDown")?;
    let ups = trace
        .seen
        .iter()
        .filter(|line| line["kind"] == "listener" && line["up"] == true && line["local"] == "10.99.0.2:6443");
    ensure!(ups.count() == 1, "one listener was reported more than once");
    Ok(())
}

#[test]
fn empty_directory_means_config_missing() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    node.remove_config()?;
    expect(&verdict(&node, 2, &["--apiserver", API])?, "CNIConfigMissing", 1)?;
    std::fs::remove_dir(node.conf_dir())?;
    expect(&verdict(&node, 2, &["--apiserver", API])?, "CNIConfigMissing", 1)
}

#[test]
fn broken_first_file_means_config_invalid() -> Result<()> {
    for bytes in [&b""[..], b"{\"cniVersion\": \"0.4.0\", \"na", &[0; 100], &vec![b'['; 1 << 20]] {
        let (node, _server) = Node::healthy()?;
        node.write_config("00-multus.conf", bytes)?;
        let check = verdict(&node, 2, &["--apiserver", API])?;
        expect(&check, "CNIConfigInvalid", 1)?;
        ensure!(
            check.document["verdict"]["subject"].as_str().is_some_and(|s| s.ends_with("/00-multus.conf"))
        );
    }
    Ok(())
}

#[test]
fn survives_hostile_config_files() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let path = node.conf_dir().join("00-first.conf");
    let fifo = std::ffi::CString::new(path.to_str().expect("UTF-8"))?;
    // SAFETY: the path is live and NUL-terminated.
    ensure!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o644) } == 0);
    expect(&verdict(&node, 2, &["--apiserver", API])?, "CNIConfigInvalid", 1)?;
    std::fs::remove_file(&path)?;
    std::os::unix::fs::symlink("/nowhere", &path)?;
    expect(&verdict(&node, 2, &["--apiserver", API])?, "CNIConfigInvalid", 1)?;
    std::fs::remove_file(&path)?;
    std::fs::create_dir(&path)?;
    expect(&verdict(&node, 2, &["--apiserver", API])?, "CNIConfigInvalid", 1)
}

#[test]
fn reports_missing_plugin_before_any_exec() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    for plugin in ["portmap", "host-local", "loopback"] {
        std::fs::rename(node.bin_dir().join(plugin), node.dir().join(plugin))?;
        let check = verdict(&node, 2, &["--apiserver", API])?;
        expect(&check, "CNIBinaryMissing", 1)?;
        ensure!(check.document["verdict"]["subject"] == plugin, "{:#}", check.document);
        std::fs::rename(node.dir().join(plugin), node.bin_dir().join(plugin))?;
    }
    Ok(())
}

#[test]
fn verdict_quotes_error_of_plugin() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, &["--apiserver", API])?;
    trace.wait_for_verdict("NetworkReady")?;
    let mut config = node.plugin_config("10.244.0.0/24");
    config["ipam"]["ranges"][0][0]["subnet"] = "not-a-subnet".into();
    let sandbox = Sandbox::new("web-1")?;
    ensure!(!sandbox.run(&node, "ADD", &config)?.status.success());
    let verdict = trace.wait_for_verdict("CNIPluginFailed")?;
    let message = verdict.line["verdict"]["message"].as_str().unwrap_or_default();
    if trace.gap("cni.stdout").is_some() {
        ensure!(message.contains("exited (code 1)"), "{message}");
    } else {
        ensure!(message.contains("code 999") && message.contains("not-a-subnet"), "{message}");
    }
    let (_, line) =
        trace.wait_for("the condition", |line| line["kind"] == "condition" && line["status"] == "False")?;
    ensure!(line["condition"] == "NodeNetworkReady", "{line}");
    // The next successful ADD ends the fault.
    let output = Sandbox::new("web-2")?.run(&node, "ADD", &node.plugin_config("10.244.0.0/24"))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    trace.wait_for_verdict("NetworkReady")?;
    ensure!(trace.lost() == 0, "events were lost");
    Ok(())
}

#[test]
fn distinguishes_exhausted_addresses_from_other_failures() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, &["--apiserver", API])?;
    trace.wait_for_verdict("NetworkReady")?;
    let config = node.plugin_config("10.244.9.0/30");
    let first = Sandbox::new("web-1")?;
    ensure!(first.run(&node, "ADD", &config)?.status.success());
    let second = Sandbox::new("web-2")?;
    ensure!(!second.run(&node, "ADD", &config)?.status.success());
    if trace.gap("cni.stdout").is_some() {
        trace.wait_for_verdict("CNIPluginFailed")?;
    } else {
        let verdict = trace.wait_for_verdict("IPAMExhausted")?;
        ensure!(verdict.line["verdict"]["subject"] == "host-local", "{}", verdict.line);
        let message = verdict.line["verdict"]["message"].as_str().unwrap_or_default();
        ensure!(message.contains("; full: "), "{message}");
    }
    let end = trace.seen.iter().rfind(|line| line["kind"] == "cni_end").expect("an operation was reported");
    ensure!(end["plugin"] == "bridge" && end["delegates"][0]["plugin"] == "host-local", "{end}");
    ensure!(end["pod"]["name"] == "web-2" && end["pod"]["namespace"] == "shop", "{end}");
    Ok(())
}

/// The leases of sandboxes that were never torn down remain.
#[test]
fn reports_leases_of_removed_sandboxes_as_leak() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let leases = node.dir().join("leases/pods");
    std::fs::create_dir(&leases)?;
    for host in 2..255 {
        std::fs::write(leases.join(format!("10.244.0.{host}")), format!("gone{host}\r\neth0"))?;
    }
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    if !trace.seen.iter().any(|line| line["kind"] == "leases") {
        trace.wait_for("the leases", |line| line["kind"] == "leases")?;
    }
    let config = node.plugin_config("10.244.0.0/24");
    ensure!(!Sandbox::new("web-1")?.run(&node, "ADD", &config)?.status.success());
    if trace.gap("cni.stdout").is_some() {
        return Ok(());
    }
    let verdict = trace.wait_for_verdict("IPAMExhausted")?;
    let message = verdict.line["verdict"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("; leak: ") && message.contains("leases/pods"), "{message}");
    Ok(())
}

#[test]
fn failed_del_is_not_a_fault() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, &["--apiserver", API])?;
    trace.wait_for_verdict("NetworkReady")?;
    let mut config = node.plugin_config("10.244.0.0/24");
    config["ipam"]["ranges"][0][0]["subnet"] = "not-a-subnet".into();
    ensure!(!Sandbox::new("web-1")?.run(&node, "DEL", &config)?.status.success());
    trace.wait_for("the exit of the DEL", |line| line["kind"] == "cni_end" && line["command"] == "DEL")?;
    let check = verdict(&node, 1, &["--apiserver", API])?;
    expect(&check, "NetworkReady", 0)?;
    ensure!(!trace.seen.iter().any(|line| line["kind"] == "verdict" && line["verdict"]["status"] == "False"));
    Ok(())
}

#[test]
fn missing_configuration_is_consequence_of_api_failure() -> Result<()> {
    let (node, server) = Node::healthy()?;
    drop(server);
    node.remove_config()?;
    // Conditions change five seconds after the initial state was read at the earliest.
    let check = verdict(&node, 7 * patience(), &["--apiserver", API])?;
    expect(&check, "APIServerRefused", 3)?;
    ensure!(check.reasons("consequences") == ["CNIConfigMissing"] && check.reasons("also").is_empty());
    let network = &check.document["conditions"][0];
    ensure!(network["status"] == "False" && network["reason"] == "CNIConfigMissing", "{network}");
    ensure!(network["message"].as_str().is_some_and(|m| m.contains("because APIServer")), "{network}");
    Ok(())
}

#[test]
fn broken_config_file_is_independent_of_api_failure() -> Result<()> {
    let (node, server) = Node::healthy()?;
    drop(server);
    node.write_config("00-broken.conf", b"{")?;
    let check = verdict(&node, 2, &["--apiserver", API])?;
    expect(&check, "APIServerRefused", 3)?;
    ensure!(check.reasons("also") == ["CNIConfigInvalid"] && check.reasons("consequences").is_empty());
    Ok(())
}

#[test]
fn verdict_recovers_after_each_repair() -> Result<()> {
    let (node, server) = Node::healthy()?;
    let mut trace = Trace::start(&node, &["--apiserver", API])?;
    trace.wait_for_verdict("NetworkReady")?;
    node.remove_config()?;
    trace.wait_for_verdict("CNIConfigMissing")?;
    node.install_config()?;
    trace.wait_for_verdict("NetworkReady")?;
    drop(server);
    let mut kubelet = node.client("kubelet", &Dial { to: API, flags: &[] })?;
    ensure!(kubelet.errno()? == libc::ECONNREFUSED);
    trace.wait_for_verdict("APIServerRefused")?;
    let _server = node.serve_api()?;
    trace.wait_for_verdict("NetworkReady")?;
    std::fs::rename(node.conf_dir(), node.dir().join("moved"))?;
    trace.wait_for_verdict("CNIConfigMissing")?;
    std::fs::rename(node.dir().join("moved"), node.conf_dir())?;
    trace.wait_for_verdict("NetworkReady")?;
    ensure!(trace.lost() == 0, "events were lost");
    Ok(())
}

#[test]
fn etcd_host_is_not_judged() -> Result<()> {
    let node = Node::new()?;
    expect(&verdict(&node, 1, &["--role", "etcd", "--apiserver", API])?, "NotApplicable", 6)
}
