//! Faults of the CNI configuration, of plugins and of their dependencies.

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

/// A fault of the network that is reported with the same reason from the beginning.
const fn fault(what: &'static str, root: &'static [&'static str]) -> Expected {
    Expected::new(what, &[NETWORK], root)
}

fn install(stage: &mut Stage<'_>) -> Result<()> {
    stage.cluster.install_network("10.244.0.0/24")
}

pub(super) fn removed(stage: &mut Stage<'_>) -> Result<()> {
    stage.hold(
        fault("CNI configuration removed", &["CNIConfigMissing"]).allowing(&["CNIConfigDisplaced"]),
        |stage| stage.cluster.remove_network("10-pods.conflist"),
        install,
    )
}

pub(super) fn broken(stage: &mut Stage<'_>) -> Result<()> {
    let half = r#"{"cniVersion": "0.4.0", "name": "pods", "plug"#;
    stage.hold(
        fault("truncated configuration", &["CNIConfigInvalid"]),
        |stage| stage.cluster.write_network("10-pods.conflist", half),
        install,
    )
}

/// The shadowing file precedes, by its name, the one of the network whose agent runs on the node.
pub(super) fn shadowed(stage: &mut Stage<'_>) -> Result<()> {
    stage.start_flanneld()?;
    let flannel = json!({"cniVersion": "0.4.0", "name": "flannel", "plugins": [{"type": "flannel"}]});
    stage.hold(
        fault("configuration of another CNI first", &["CNIConfigShadowed"]),
        |stage| stage.cluster.write_network("20-flannel.conflist", &flannel.to_string()),
        |stage| stage.cluster.remove_network("20-flannel.conflist"),
    )?;
    stage.flanneld.take().context("not running")?.stop()
}

/// The runtime reads an empty directory instead of the usual one.
pub(super) fn elsewhere(stage: &mut Stage<'_>) -> Result<()> {
    const OTHER_DIR: &str = "/etc/cni/elsewhere.d";
    fs::create_dir_all(stage.cluster.host.path(OTHER_DIR))?;
    stage.hold(
        // The runtime is restarted for this, and may be reported as down meanwhile.
        fault("runtime reads another directory", &["RuntimeDown", "CNIConfigMissing"])
            .message_contains(OTHER_DIR),
        |stage| stage.cluster.restart_runtime(OTHER_DIR),
        |stage| stage.cluster.restart_runtime(CONF_DIR),
    )
}

/// Directories from which the runtimes of k3s and MicroK8s read network configurations.
const DISTRIBUTION_DIRS: [&str; 2] =
    ["/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/snap/microk8s/current/args/cni-network"];

/// Moves the network configuration to the directories of other distributions.
pub(super) fn of_distributions(stage: &mut Stage<'_>) -> Result<()> {
    const FILE: &str = "10-pods.conflist";
    for dir in DISTRIBUTION_DIRS {
        let path = |dir| stage.cluster.host.path(dir);
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
        stage.run_pod_once("elsewhere")?;
        stage.wait_until_healthy()?;
        stage.cluster.install_network("10.244.0.0/24")?;
        stage.cluster.restart_runtime(CONF_DIR)?;
        stage.run_pod_once("back")?;
        stage.wait_until_healthy()?;
        watch.check_no_condition_was_false()?;
    }
    Ok(())
}

fn portmap(stage: &Stage<'_>) -> PathBuf {
    stage.cluster.host.path("/opt/cni/bin/portmap")
}

pub(super) fn missing(stage: &mut Stage<'_>) -> Result<()> {
    let moved = portmap(stage).with_file_name("portmap.away");
    stage.hold(
        fault("plugin removed", &["CNIBinaryMissing"]),
        |stage| Ok(fs::rename(portmap(stage), &moved)?),
        |stage| Ok(fs::rename(&moved, portmap(stage))?),
    )
}

pub(super) fn not_executable(stage: &mut Stage<'_>) -> Result<()> {
    let mode =
        |stage: &Stage<'_>, mode| Ok(fs::set_permissions(portmap(stage), Permissions::from_mode(mode))?);
    stage.hold(
        fault("plugin of mode 0644", &["CNIBinaryMissing"]).message_contains("is not executable"),
        |stage| mode(stage, 0o644),
        |stage| mode(stage, 0o755),
    )
}

/// Replaces a plugin that every sandbox needs by another file, and creates a pod that needs it.
fn replace_portmap(stage: &mut Stage<'_>, expected: Expected, content: &[u8]) -> Result<()> {
    let original = fs::read(portmap(stage))?;
    stage.hold(
        expected,
        |stage| {
            stage.cluster.install_plugin("portmap", content)?;
            stage.create_pod("waits")
        },
        |stage| stage.cluster.install_plugin("portmap", &original),
    )?;
    stage.wait_until_pod_runs("waits")?;
    stage.delete_pods(&["waits"])
}

pub(super) fn of_another_machine(stage: &mut Stage<'_>) -> Result<()> {
    let mut program = fs::read(portmap(stage))?;
    // e_machine of the ELF header is 22 (s390), which none of our machines is.
    program.get_mut(18..20).context("the plugin is not an ELF file")?.copy_from_slice(&22_u16.to_le_bytes());
    replace_portmap(stage, fault("plugin for another machine", &["CNIBinaryMissing"]), &program)
}

pub(super) fn without_interpreter(stage: &mut Stage<'_>) -> Result<()> {
    let script = b"#!/usr/bin/no-such-interpreter\n";
    replace_portmap(stage, fault("plugin whose interpreter is missing", &["CNIBinaryMissing"]), script)
}

/// The runtime retries about every ten seconds, and runs `loopback` as well each time.
pub(super) fn plugin_fails(stage: &mut Stage<'_>) -> Result<()> {
    let script = b"#!/bin/sh\necho '{\"cniVersion\": \"0.4.0\", \"code\": 11, \"msg\": \"the backend is away\"}'\nexit 1\n";
    replace_portmap(
        stage,
        fault("plugin fails", &["CNIPluginFailed"]).message_contains("the backend is away"),
        script,
    )
}

/// A bridge keeps an address from an earlier configuration.
pub(super) fn conflict(stage: &mut Stage<'_>) -> Result<()> {
    let other = |bridge: &str| network("10.244.7.0/24").to_string().replace("cni0", bridge);
    stage.hold(
        fault("bridge with another address", &["LinkConflict"]).message_contains("cni7"),
        |stage| {
            stage.cluster.host.netns.ip("link add cni7 type bridge\naddr add 10.244.70.1/24 dev cni7")?;
            stage.cluster.write_network("10-pods.conflist", &other("cni7"))?;
            stage.create_pod("waits")
        },
        |stage| stage.cluster.host.netns.ip("link del cni7"),
    )?;
    stage.wait_until_pod_runs("waits")?;
    stage.delete_pods(&["waits"])?;
    install(stage)
}

pub(super) fn exhausted(stage: &mut Stage<'_>) -> Result<()> {
    let few = network("10.244.9.0/30").to_string().replace("\"pods\"", "\"few\"").replace("cni0", "cni9");
    stage.hold(
        fault("a second pod in a /30", &["IPAMExhausted"]),
        |stage| {
            stage.cluster.write_network("10-pods.conflist", &few)?;
            stage.create_pod("one")?;
            stage.wait_until_pod_runs("one")?;
            stage.create_pod("two")
        },
        |stage| {
            stage.delete_pods(&["one", "two"])?;
            install(stage)?;
            // Only a successful ADD disproves the fault.
            stage.create_pod("three")?;
            stage.wait_until_pod_runs("three")
        },
    )?;
    stage.delete_pods(&["three"])
}

/// Like Multus: a plugin that waits for a file of the default network and then runs another plugin.
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
            stage.create_pod("waits")
        },
        |stage| Ok(fs::write(stage.cluster.host.path(MARKER), "")?),
    )?;
    stage.wait_until_pod_runs("waits")?;
    stage.cluster.remove_network_as("multus", "00-multus.conf")?;
    stage.wait_until_healthy()?;
    stage.delete_pods(&["waits"])
}

/// This cluster has no controller that assigns pod CIDRs, and the network's agent depends on them.
pub(super) fn without_pod_cidr(stage: &mut Stage<'_>) -> Result<()> {
    // A recently started agent has a grace period of two minutes; then the Node object is read within 30 s.
    stage.hold(
        fault("node without a pod CIDR", &["CNIConfigMissing", "PodCIDRNotAssigned"])
            .allowing(&["CNIConfigMissing", "CNIConfigDisplaced"]),
        |stage| {
            stage.start_flanneld()?;
            stage.cluster.remove_network_as("flanneld", "10-pods.conflist")
        },
        install,
    )?;
    stage.flanneld.take().context("not running")?.stop()
}
