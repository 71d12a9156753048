//! Links, routes and rules: requests that the kernel refuses, and processes that remove them. Requires root.

use std::process::Stdio;

use anyhow::{Result, ensure};
use kernel_tests::{API, Dial, Namespace, Node, Sandbox, Trace, spawn};
use serde_json::Value;

/// Every refusal has an errno; those that the kernel explains have its message as well.
#[test]
fn reports_refused_netlink_request_with_reason_and_process() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let without_errno = trace.gap("link.error.errno").is_some();
    let without_text = trace.gap("link.error.text").is_some();
    ensure!(node.netns.ip("route add 10.9.0.0/24 via 9.9.9.9").is_err());
    let (_, line) = trace.wait_for("the refused route", |line| {
        line["kind"] == "netlink_error" && line["process"]["name"] == "ip"
    })?;
    if !without_text {
        ensure!(line["text"] == "Nexthop has invalid gateway", "{line}");
    }
    if !without_errno {
        ensure!(line["errno"] == libc::ENETUNREACH && line["request"] == "newroute", "{line}");
        if !without_text {
            ensure!(line["object"] == "10.9.0.0/24", "{line}");
        }
        node.netns.ip("link add dup0 type dummy")?;
        ensure!(node.netns.ip("link add dup0 type dummy").is_err());
        let (_, line) = trace.wait_for("the refused link", |line| {
            line["kind"] == "netlink_error" && line["errno"] == libc::EEXIST
        })?;
        ensure!(line["request"] == "newlink" && (without_text || line["object"] == "dup0"), "{line}");
    }
    Ok(())
}

/// Two CNIs, one after the other: a link of the first has the port, or the VNI, that the second needs.
#[test]
#[ignore = "requires the vxlan module; run on the machines of the matrix"]
fn leftover_tunnel_of_other_cni_means_link_conflict() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    node.netns.ip("link add flannel.1 type vxlan id 1 dstport 8472")?;
    node.netns.ip("link set flannel.1 up")?;
    node.netns.ip("link add cilium_vxlan type vxlan external dstport 8472")?;
    let agent = node.dir().join("cilium-agent");
    std::fs::copy("/usr/sbin/ip", &agent)?;
    for (command, refusal, signal, words) in [
        ("link set cilium_vxlan up", "Address already in use", "link.error.errno", "the same port"),
        (
            "link add cilium_1 type vxlan id 1 dstport 8472",
            "with the specified VNI",
            "link.error.text",
            "the same VNI",
        ),
    ] {
        let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
        if trace.gap(signal).is_some() {
            continue;
        }
        let mut attempt = node.netns.command(&agent)?;
        attempt.args(command.split(' ')).stderr(Stdio::piped());
        let output = spawn(&mut attempt)?.wait_with_output()?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(complaint.contains(refusal), "{command}: {}, standard error {complaint:?}", output.status);
        let line = trace.wait_for_verdict("LinkConflict")?.line;
        let message = line["verdict"]["message"].as_str().unwrap_or_default();
        ensure!(message.contains(words) && message.contains("cilium-agent"), "{message}");
    }
    Ok(())
}

#[test]
fn names_process_that_removes_route_or_rule() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let without_object = trace.gap("link.error.text").is_some();
    node.netns.ip("rule add from 10.244.0.0/16 table 100")?;
    for (command, rule, object) in [
        ("rule del from 10.244.0.0/16 table 100", true, "10.244.0.0/16"),
        ("route del default", false, "default"),
    ] {
        node.netns.ip(command)?;
        let (_, line) = trace
            // The process may have exited before its name was looked up; its PID is always reported.
            .wait_for("the process that removed it", |line| {
                line["kind"] == "route_gone"
                    && line["rule"] == rule
                    && line["process"]["pid"].as_u64() > Some(0)
            })?;
        ensure!(without_object || line["object"] == object, "{line}");
    }
    Ok(())
}

/// A restarted network manager removes routes that it does not manage.
#[test]
fn names_process_that_removed_route_to_api_server() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, &["--apiserver", API])?;
    let named = trace.gap("link.error.text").is_none();
    let _kubelet = node.client("kubelet", &Dial { to: API, flags: &["--every", "300"] })?;
    trace.wait_for_verdict("NetworkReady")?;
    node.netns.ip("route del 10.99.0.0/24 dev eth0\nroute del default")?;
    let verdict = trace.wait_for_verdict("APIRouteMissing")?;
    let message = verdict.line["verdict"]["message"].as_str().unwrap_or_default();
    ensure!(!named || message.contains(" removed the route to 10.99.0.0/24"), "{message}");
    node.netns.ip("route add 10.99.0.0/24 dev eth0\nroute add default via 10.99.0.1")?;
    trace.wait_for_verdict("NetworkReady")?;
    Ok(())
}

/// A removed route to a link of a CNI is reported until it exists again, whoever restores it.
#[test]
fn reports_removed_pod_route_until_restored() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    node.netns.ip(
        "link add cali0 type veth peer name pod0\nlink set pod0 up\nlink set cali0 up\nroute add 10.244.1.0/24 dev cali0",
    )?;
    let mut trace = Trace::start(&node, &["--apiserver", API])?;
    trace.wait_for_verdict("NetworkReady")?;
    if trace.gap("link.error.text").is_some() || trace.gap("link.error.errno").is_some() {
        // The trace lacks the route or the process, so the removal is no fault and appears in the trace only.
        node.netns.ip("route del 10.244.1.0/24 dev cali0")?;
        trace.wait_for("the removal", |line| line["kind"] == "route_gone" && line["device"] == "cali0")?;
        return Ok(());
    }
    node.netns.ip("route del 10.244.1.0/24 dev cali0")?;
    let verdict = trace.wait_for_verdict("RoutesRemoved")?;
    ensure!(verdict.line["verdict"]["subject"] == "10.244.1.0/24", "{}", verdict.line);
    node.netns.ip("route add 10.244.1.0/24 dev cali0")?;
    trace.wait_for_verdict("NetworkReady")?;
    Ok(())
}

/// Changes inside a pod's namespace are observed from outside once a link leads there.
#[test]
fn tracks_links_of_other_namespaces() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let pod = Namespace::new()?;
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(pod.path())?);
    node.netns.ip("link add pod0 type veth peer name pod1")?;
    node.netns.ip(&format!("link set pod1 netns {}", pod.name()))?;
    trace.wait_for("the move", |line| {
        line["kind"] == "link"
            && line["name"] == "pod1"
            && line["moved_to"] == inode
            && line["present"] == false
    })?;
    pod.ip("link set pod1 name eth0")?;
    pod.ip("link set eth0 up")?;
    trace.wait_for("the link inside", |line| {
        line["kind"] == "link" && line["name"] == "eth0" && line["netns"] == inode && line["up"] == true
    })?;
    let path = pod.path().to_string_lossy().into_owned();
    let name = |line: &Value, state: &str| {
        line["kind"] == "netns_name"
            && line["path"] == path
            && line["inum"] == inode
            && line["state"] == state
    };
    if !trace.seen.iter().any(|line| name(line, "bound")) {
        trace.wait_for("its name", |line| name(line, "bound"))?;
    }
    drop(pod);
    trace.wait_for("the removal of its name", |line| name(line, "unbound"))?;
    let removed = |line: &Value| line["kind"] == "link" && line["name"] == "pod0" && line["present"] == false;
    if !trace.seen.iter().any(removed) {
        trace.wait_for("the removal of the other end", removed)?;
    }
    Ok(())
}

/// A file that a runtime left behind in the directory of namespaces, as after a crash.
#[test]
fn reports_stale_netns_name() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let dir = node.dir().join("netns");
    std::fs::create_dir(&dir)?;
    let left = dir.join("cni-left-over");
    let file = std::fs::File::create(&left)?;
    file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_mins(1))?;
    let flag = dir.to_string_lossy().into_owned();
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask", "--netns-dir", &flag])?;
    let path = left.to_string_lossy().into_owned();
    let is_stale =
        |line: &Value| line["kind"] == "netns_name" && line["path"] == path && line["state"] == "stale";
    if !trace.seen.iter().any(is_stale) {
        trace.wait_for("the leftover file", is_stale)?;
    }
    std::fs::remove_file(&left)?;
    trace.wait_for("its removal", |line| line["kind"] == "netns_name" && line["state"] == "unbound")?;
    Ok(())
}

/// A pod's packet whose source address is routed to another link arrives on a link with a strict filter.
#[test]
fn reports_reverse_path_filter_drops_with_link() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let pod = Namespace::new()?;
    node.netns.ip(&format!("link add lxc1 type veth peer name eth0 netns {}", pod.name()))?;
    node.netns.ip("addr add 10.77.0.1/24 dev lxc1")?;
    node.netns.ip("link set lxc1 address 02:00:00:00:00:01 up")?;
    pod.ip("addr add 10.77.0.2/24 dev eth0")?;
    pod.ip("addr add 10.99.0.77/32 dev eth0")?;
    pod.ip("link set eth0 up")?;
    pod.ip("route add default via 10.77.0.1")?;
    // The filter applies to ARP as well.
    pod.ip("neigh add 10.77.0.1 lladdr 02:00:00:00:00:01 dev eth0")?;
    let mut sysctl = node.netns.command("sysctl")?;
    ensure!(sysctl.args(["-qw", "net.ipv4.conf.lxc1.rp_filter=1"]).status()?.success());
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    // This source belongs to the node's other link.
    let mut send = pod.command(node.helper_as("sender")?)?;
    send.args(["send", "10.99.0.77:0", "10.77.0.1:9999", "--count", "20"]);
    ensure!(spawn(&mut send)?.wait()?.success());
    if trace.gap("packet.drop").is_some() {
        // The kernel counts these drops without naming the link.
        let counted = |line: &Value| line["kind"] == "packets_dropped" && line["reason"] == "IP_RPFILTER";
        trace.wait_for("the count", counted)?;
        return Ok(());
    }
    let verdict = trace.wait_for_verdict("ReversePathFiltered")?;
    ensure!(verdict.line["verdict"]["subject"] == "lxc1", "{}", verdict.line);
    Ok(())
}

/// The plugin reports what the kernel refused: the datapath is at fault, not the plugin.
#[test]
fn distinguishes_refused_link_from_plugin_failure() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let mut config = node.plugin_config("10.244.0.0/24");
    config["mtu"] = 700_000.into();
    ensure!(!Sandbox::new("web-1")?.run(&node, "ADD", &config)?.status.success());
    let (_, end) = trace.wait_for("its exit", |line| line["kind"] == "cni_end")?;
    if trace.gap("link.error.errno").is_none() {
        ensure!(end["refusals"][0]["errno"].as_u64() > Some(0), "{end}");
        ensure!(end["refusals"][0]["request"] == "newlink", "{end}");
    }
    if trace.gap("cni.stdout").is_some() {
        trace.wait_for_verdict("CNIPluginFailed")?;
    } else {
        let verdict = trace.wait_for_verdict("LinkSetupFailed")?;
        let message = verdict.line["verdict"]["message"].as_str().unwrap_or_default();
        ensure!(message.contains("the kernel refused"), "{message}");
    }
    Ok(())
}
