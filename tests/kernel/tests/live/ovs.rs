//! Open vSwitch: its daemons, with the userspace datapath everywhere and with the kernel's datapath on the machines of the
//! matrix. Requires root.

use anyhow::{Result, ensure};
use kernel_tests::{API, Namespace, Node, OpenVSwitch, Trace, spawn};
use serde_json::{Value, json};

fn subject_is(subject: &str) -> impl Fn(&Value) -> bool {
    move |line| {
        line["kind"] == "verdict"
            && line["verdict"]["reason"] == "OVSNotReady"
            && line["verdict"]["subject"] == subject
    }
}

/// Creates a node whose plugin needs `br-int`; returns it and the directory of OVS.
fn node() -> Result<(Node, std::path::PathBuf)> {
    let node = Node::new()?;
    node.helper_as("kube-ovn")?;
    let config = json!({"cniVersion": "0.4.0", "name": "ovn", "plugins": [{"type": "kube-ovn"}]});
    node.write_config("01-kube-ovn.conflist", config.to_string().as_bytes())?;
    let dir = node.dir().join("ovs");
    Ok((node, dir))
}

/// Reports each missing component by name: the database, the bridge, the switch, and a switch that does not apply changes.
#[test]
fn names_missing_component_of_open_vswitch() -> Result<()> {
    let (node, dir) = node()?;
    let _server = node.serve_api()?;
    let flag = dir.to_string_lossy().into_owned();
    let mut trace = Trace::start(&node, &["--apiserver", API, "--ovs-run-dir", &flag])?;
    trace.wait_for("the missing database", subject_is("ovsdb-server"))?;
    let mut ovs = OpenVSwitch::start(&node, &dir)?;
    trace.wait_for("the missing bridge", subject_is("br-int"))?;
    ovs.vsctl("add-br br-int -- set bridge br-int datapath_type=netdev")?;
    trace.wait_for_verdict("NetworkReady")?;
    // Only the database knows this port. The tool waits for the switch and then fails.
    let _ = ovs.vsctl("add-port br-int nosuch0");
    trace.wait_for("the failed port", |line| {
        line["kind"] == "ovs"
            && line["database"]["failed"][0]["name"] == "nosuch0"
            && line["database"]["failed"][0]["error"].as_str().is_some_and(|error| error.contains("nosuch0"))
    })?;
    ovs.kill_vswitchd()?;
    trace.wait_for("the missing switch", subject_is("ovs-vswitchd"))?;
    ovs.start_vswitchd()?;
    trace.wait_for_verdict("NetworkReady")?;
    ovs.signal_vswitchd(libc::SIGSTOP)?;
    ovs.vsctl("--no-wait del-port br-int nosuch0")?;
    // With --no-wait the switch has nothing to apply; this command makes it lag behind.
    ovs.spawn_vsctl("add-port br-int nosuch1")?;
    let (_, line) = trace.wait_for("the stalled switch", subject_is("ovs-vswitchd"))?;
    ensure!(line["verdict"]["message"].as_str().is_some_and(|message| message.contains("cur_cfg")), "{line}");
    ovs.signal_vswitchd(libc::SIGCONT)?;
    trace.wait_for_verdict("NetworkReady")?;
    Ok(())
}

/// Bridges, links and tunnels become ports of the datapath; upcalls to a dead switch are lost.
#[test]
#[ignore = "requires the openvswitch module; run on the machines of the matrix"]
fn tracks_ports_of_ovs_datapath() -> Result<()> {
    let (node, dir) = node()?;
    let _server = node.serve_api()?;
    let flag = dir.to_string_lossy().into_owned();
    let mut trace = Trace::start(&node, &["--apiserver", API, "--ovs-run-dir", &flag])?;
    let mut ovs = OpenVSwitch::start(&node, &dir)?;
    ovs.vsctl("add-br br-int")?;
    let port = |name: &'static str, kind: &'static str, up: bool| {
        move |line: &Value| {
            line["kind"] == "ovs_port"
                && line["name"] == name
                && line["port_kind"] == kind
                && line["up"] == up
        }
    };
    let has_datapath = |line: &Value| line["kind"] == "ovs" && line["datapaths"][0] == "ovs-system";
    trace.wait_for("the datapath", has_datapath)?;
    let pod = Namespace::new()?;
    node.netns.ip(&format!("link add pod0 type veth peer name eth0 netns {}", pod.name()))?;
    node.netns.ip("link set pod0 up")?;
    pod.ip("addr add 10.77.0.2/24 dev eth0")?;
    pod.ip("link set eth0 up")?;
    ovs.vsctl("add-port br-int pod0")?;
    trace.wait_for("the pod's port", port("pod0", "netdev", true))?;
    ovs.vsctl("add-port br-int tun0 -- set interface tun0 type=geneve options:remote_ip=10.99.0.1")?;
    let tunnel = |line: &Value| line["kind"] == "ovs_port" && line["name"] == "genev_sys_6081";
    trace.wait_for("the tunnel's port", tunnel)?;
    ovs.vsctl("del-port br-int tun0")?;
    ovs.kill_vswitchd()?;
    trace.wait_for("the missing switch", subject_is("ovs-vswitchd"))?;
    // Every packet to a new address is an upcall, which no process receives.
    let mut send = pod.command(node.helper_as("sender")?)?;
    send.args([
        "send",
        "10.77.0.2:0",
        "10.77.0.255:9",
        "--count",
        "400",
        "--every",
        "50",
        "--spread",
        "--broadcast",
    ]);
    let mut sender = spawn(&mut send)?;
    let lost = trace
        .wait_for("lost upcalls", |line| line["kind"] == "ovs_upcalls" && line["lost"].as_u64() > Some(0));
    sender.kill()?;
    sender.wait()?;
    lost?;
    Ok(())
}
