//! Faults of the CNI configuration, of plugins and of what they need.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::agent;
use crate::cluster::{CONF_DIR, network, until};
use crate::stage::{NETWORK, Stage};
use crate::watch::Expected;

/// A fault of the network, which has one name from the beginning.
const fn fault(what: &'static str, root: &'static [&'static str]) -> Expected {
    Expected::new(what, &[NETWORK], root)
}

fn install(stage: &mut Stage<'_>) -> Result<()> {
    stage.cluster.install_network("10.244.0.0/24")
}

pub(super) fn removed(stage: &mut Stage<'_>) -> Result<()> {
    stage.hold(
        fault("CNI configuration removed", &["CNIConfigMissing"]).beside(&["CNIConfigDisplaced"]),
        |stage| stage.cluster.remove_network("10-pods.conflist"),
        install,
    )
}

pub(super) fn broken(stage: &mut Stage<'_>) -> Result<()> {
    let half = r#"{"cniVersion": "0.4.0", "name": "pods", "plug"#;
    stage.hold(
        fault("half a configuration", &["CNIConfigInvalid"]),
        |stage| stage.cluster.write_network("10-pods.conflist", half),
        install,
    )
}

/// A file that comes first by its name, before that of the network whose agent runs here.
pub(super) fn shadowed(stage: &mut Stage<'_>) -> Result<()> {
    stage.start_flanneld()?;
    let flannel = json!({"cniVersion": "0.4.0", "name": "flannel", "plugins": [{"type": "flannel"}]});
    stage.hold(
        fault("another's file before that of the agent", &["CNIConfigShadowed"]),
        |stage| stage.cluster.write_network("20-flannel.conflist", &flannel.to_string()),
        |stage| stage.cluster.remove_network("20-flannel.conflist"),
    )?;
    stage.flanneld.take().context("it runs")?.stop()
}

/// The runtime reads another directory than the usual one, and that is empty.
pub(super) fn elsewhere(stage: &mut Stage<'_>) -> Result<()> {
    const ELSEWHERE: &str = "/etc/cni/elsewhere.d";
    fs::create_dir_all(stage.cluster.place.path(ELSEWHERE))?;
    stage.hold(
        // The runtime is restarted for it, and may be seen while it is away.
        fault("the runtime reads another directory", &["RuntimeDown", "CNIConfigMissing"]).says(ELSEWHERE),
        |stage| stage.cluster.restart_runtime(ELSEWHERE),
        |stage| stage.cluster.restart_runtime(CONF_DIR),
    )
}

/// Directories in which the runtimes of k3s and MicroK8s read network configurations.
const OF_DISTRIBUTIONS: [&str; 2] =
    ["/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/snap/microk8s/current/args/cni-network"];

/// Lets the runtime read its network from the directories of other distributions.
pub(super) fn of_distributions(stage: &mut Stage<'_>) -> Result<()> {
    const FILE: &str = "10-pods.conflist";
    for dir in OF_DISTRIBUTIONS {
        let path = |dir| stage.cluster.place.path(dir);
        fs::create_dir_all(path(dir))?;
        fs::copy(path(CONF_DIR).join(FILE), path(dir).join(FILE))?;
        let watch = stage.watch();
        stage.cluster.restart_runtime(dir)?;
        until("the agent follows the runtime", Duration::from_secs(30), || {
            let state = agent::state(stage.cluster)?;
            let message = state["verdict"]["message"].as_str();
            Ok(message.is_some_and(|message| message.contains(dir)).then_some(()))
        })?;
        stage.cluster.remove_network(FILE)?;
        stage.a_pod_runs("elsewhere")?;
        stage.on_the_node_all_is_well()?;
        stage.cluster.install_network("10.244.0.0/24")?;
        stage.cluster.restart_runtime(CONF_DIR)?;
        stage.a_pod_runs("back")?;
        stage.on_the_node_all_is_well()?;
        watch.was_well()?;
    }
    Ok(())
}

fn portmap(stage: &Stage<'_>) -> PathBuf {
    stage.cluster.place.path("/opt/cni/bin/portmap")
}

pub(super) fn missing(stage: &mut Stage<'_>) -> Result<()> {
    let away = portmap(stage).with_file_name("portmap.away");
    stage.hold(
        fault("plugin removed", &["CNIBinaryMissing"]),
        |stage| Ok(fs::rename(portmap(stage), &away)?),
        |stage| Ok(fs::rename(&away, portmap(stage))?),
    )
}

pub(super) fn not_executable(stage: &mut Stage<'_>) -> Result<()> {
    let mode =
        |stage: &Stage<'_>, mode| Ok(fs::set_permissions(portmap(stage), Permissions::from_mode(mode))?);
    stage.hold(
        fault("plugin of mode 0644", &["CNIBinaryMissing"]).says("is not executable"),
        |stage| mode(stage, 0o644),
        |stage| mode(stage, 0o755),
    )
}

/// Puts another file in place of a plugin that every sandbox needs, and lets a pod ask for it.
fn replaced(stage: &mut Stage<'_>, expected: Expected, content: &[u8]) -> Result<()> {
    let original = fs::read(portmap(stage))?;
    stage.hold(
        expected,
        |stage| {
            stage.cluster.install_plugin("portmap", content)?;
            stage.pod("waits")
        },
        |stage| stage.cluster.install_plugin("portmap", &original),
    )?;
    stage.runs("waits")?;
    stage.without_pods(&["waits"])
}

pub(super) fn of_another_machine(stage: &mut Stage<'_>) -> Result<()> {
    let mut program = fs::read(portmap(stage))?;
    // e_machine of the ELF header: s390, which is big-endian and 31 bits wide on no machine of ours.
    program.get_mut(18..20).context("it is a program")?.copy_from_slice(&22_u16.to_le_bytes());
    replaced(stage, fault("plugin for another machine", &["CNIBinaryMissing"]), &program)
}

pub(super) fn without_interpreter(stage: &mut Stage<'_>) -> Result<()> {
    let script = b"#!/usr/bin/no-such-interpreter\n";
    replaced(stage, fault("plugin whose interpreter is missing", &["CNIBinaryMissing"]), script)
}

/// The runtime tries every ten seconds or so, and runs `loopback` beside it each time.
pub(super) fn plugin_fails(stage: &mut Stage<'_>) -> Result<()> {
    let script = b"#!/bin/sh\necho '{\"cniVersion\": \"0.4.0\", \"code\": 11, \"msg\": \"the backend is away\"}'\nexit 1\n";
    replaced(stage, fault("plugin fails", &["CNIPluginFailed"]).says("the backend is away"), script)
}

/// As an address that was configured differently before leaves it.
pub(super) fn conflict(stage: &mut Stage<'_>) -> Result<()> {
    let other = |bridge: &str| network("10.244.7.0/24").to_string().replace("cni0", bridge);
    stage.hold(
        fault("a bridge that has another address", &["LinkConflict"]).says("cni7"),
        |stage| {
            stage.cluster.place.netns.ip("link add cni7 type bridge\naddr add 10.244.70.1/24 dev cni7")?;
            stage.cluster.write_network("10-pods.conflist", &other("cni7"))?;
            stage.pod("waits")
        },
        |stage| stage.cluster.place.netns.ip("link del cni7"),
    )?;
    stage.runs("waits")?;
    stage.without_pods(&["waits"])?;
    install(stage)
}

pub(super) fn exhausted(stage: &mut Stage<'_>) -> Result<()> {
    let few = network("10.244.9.0/30").to_string().replace("\"pods\"", "\"few\"").replace("cni0", "cni9");
    stage.hold(
        fault("a second pod in a /30", &["IPAMExhausted"]),
        |stage| {
            stage.cluster.write_network("10-pods.conflist", &few)?;
            stage.pod("one")?;
            stage.runs("one")?;
            stage.pod("two")
        },
        |stage| {
            stage.without_pods(&["one", "two"])?;
            install(stage)?;
            // It takes a success to disprove it.
            stage.pod("three")?;
            stage.runs("three")
        },
    )?;
    stage.without_pods(&["three"])
}

/// As Multus does it: a plugin that waits for what the default network writes, and hands on to another plugin.
pub(super) fn meta_plugin(stage: &mut Stage<'_>) -> Result<()> {
    const MARKER: &str = "/run/default-network-is-ready";
    let mut delegate: Value = network("10.244.0.0/24")["plugins"][0].take();
    delegate["cniVersion"] = "0.4.0".into();
    delegate["name"] = "pods".into();
    let script = format!(
        "#!/bin/sh\ncat >/dev/null\nwhile [ \"$CNI_COMMAND\" = ADD ] && [ ! -e {MARKER} ]; do sleep 0.2; done\n\
         echo '{delegate}' | /opt/cni/bin/bridge\n"
    );
    stage.cluster.install_plugin("multus", script.as_bytes())?;
    let config =
        json!({"cniVersion": "0.4.0", "name": "meta", "type": "multus", "readinessindicatorfile": MARKER});
    stage.hold(
        fault("a network that waits for another", &["CNIDefaultNetworkNotReady"]),
        |stage| {
            stage.cluster.write_network("00-multus.conf", &config.to_string())?;
            stage.pod("waits")
        },
        |stage| Ok(fs::write(stage.cluster.place.path(MARKER), "")?),
    )?;
    stage.runs("waits")?;
    stage.cluster.remove_network_as("multus", "00-multus.conf")?;
    stage.on_the_node_all_is_well()?;
    stage.without_pods(&["waits"])
}

/// Nobody gives this cluster's nodes ranges, and the agent of the network takes its addresses from there.
pub(super) fn without_pod_cidr(stage: &mut Stage<'_>) -> Result<()> {
    // An agent that has just started is given two minutes, and the object is read within half a minute then.
    stage.hold(
        fault("node without a range of addresses", &["CNIConfigMissing", "PodCIDRNotAssigned"])
            .beside(&["CNIConfigMissing", "CNIConfigDisplaced"]),
        |stage| {
            stage.start_flanneld()?;
            stage.cluster.remove_network_as("flanneld", "10-pods.conflist")
        },
        install,
    )?;
    stage.flanneld.take().context("it runs")?.stop()
}
