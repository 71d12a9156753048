//! Faults of the node's own programs.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kernel_tests::run;

use crate::agent::{self, Wanted};
use crate::cluster::{CONF_DIR, Cluster, NODE, Running, until};
use crate::image;
use crate::place::LAYERS;
use crate::stage::{NETWORK, PROOF, REACHABLE, Stage, good, now_s};
use crate::watch::Expected;

const fn fault(what: &'static str, root: &'static [&'static str]) -> Expected {
    Expected::new(what, &[NETWORK], root)
}

/// What it left of its pods' namespaces are files: the new one cleans up, and makes the pods anew.
pub(super) fn runtime_killed(stage: &mut Stage<'_>) -> Result<()> {
    stage.pod("kept")?;
    stage.runs("kept")?;
    stage.hold(
        fault("containerd killed", &["RuntimeDown"]),
        |stage| {
            drop(stage.cluster.runtime.take());
            Ok(())
        },
        |stage| {
            stage.cluster.forget_namespaces()?;
            stage.cluster.start_runtime()
        },
    )?;
    stage.a_pod_runs("next")?;
    stage.without_pods(&["kept"])
}

/// Stops a process without ending it, and lets it go on.
fn frozen(
    stage: &mut Stage<'_>,
    expected: Expected,
    program: fn(&Cluster) -> Option<&Running>,
) -> Result<()> {
    let signal = |stage: &Stage<'_>, signal| {
        program(stage.cluster).context("it runs")?.signal(signal);
        Ok(())
    };
    stage.hold(
        expected.says("does not respond"),
        |stage| signal(stage, libc::SIGSTOP),
        |stage| signal(stage, libc::SIGCONT),
    )
}

pub(super) fn runtime_frozen(stage: &mut Stage<'_>) -> Result<()> {
    frozen(stage, fault("containerd frozen", &["RuntimeDown"]), |cluster| cluster.runtime.as_ref())
}

pub(super) fn without_cri(stage: &mut Stage<'_>) -> Result<()> {
    stage.hold(
        // While containerd restarts, its socket is missing.
        fault("containerd without CRI", &["RuntimeDown"]).steady_after(10).says("disables it"),
        |stage| stage.cluster.restart_runtime_without_cri(),
        |stage| stage.cluster.restart_runtime(CONF_DIR),
    )
}

pub(super) fn kubelet_frozen(stage: &mut Stage<'_>) -> Result<()> {
    frozen(stage, fault("kubelet frozen", &["KubeletDown"]), |cluster| cluster.kubelet.as_ref())
}

pub(super) fn kubelet_stopped(stage: &mut Stage<'_>) -> Result<()> {
    stage.hold(
        fault("kubelet stopped", &["KubeletDown"]),
        |stage| stage.cluster.kubelet.take().context("it runs")?.stop(),
        |stage| stage.cluster.start_kubelet(),
    )
}

/// The runtime makes the network of each sandbox and finds no image to run in it. containerd 1 looks for the image before
/// it makes anything: nothing that the kernel shows is wrong with the node, and nothing may be reported.
pub(super) fn image_gone(stage: &mut Stage<'_>) -> Result<()> {
    let what = "the sandbox's image is gone";
    let expected = if stage.cluster.dialect.makes_networks_first() {
        fault(what, &["SandboxImageUnavailable"])
    } else {
        Expected::new(what, &[], &[])
    };
    stage.hold(
        expected,
        |stage| {
            stage.cluster.images(&["rm", image::NAME])?;
            stage.pod("waits")
        },
        |stage| stage.cluster.import_image(),
    )?;
    stage.runs("waits")?;
    stage.without_pods(&["waits"])
}

pub(super) fn disk_full(stage: &mut Stage<'_>) -> Result<()> {
    let filling = stage.cluster.place.path(LAYERS).join("filling");
    stage.hold(
        fault("the disk of containerd is full", &["RuntimeLimitExceeded"])
            .says(LAYERS)
            .beside(&["SandboxImageUnavailable"]),
        |stage| {
            let mut fill = stage.cluster.place.command("sh")?;
            let words = format!("cat /dev/zero > {LAYERS}/filling 2>/dev/null; test -s {LAYERS}/filling");
            run(fill.args(["-c", &words]))?;
            stage.pod("waits")
        },
        |_| Ok(std::fs::remove_file(&filling)?),
    )?;
    stage.runs("waits")?;
    stage.without_pods(&["waits"])
}

/// Its datapath is in the process: nothing of it is left.
pub(super) fn switch_killed(stage: &mut Stage<'_>) -> Result<()> {
    stage.hold(
        fault("ovs-vswitchd killed", &["OVSNotReady"]),
        |stage| {
            drop(stage.cluster.switch.take());
            Ok(())
        },
        |stage| stage.cluster.start_switch(),
    )
}

pub(super) fn deleted(stage: &mut Stage<'_>) -> Result<()> {
    let watch = stage.watch();
    stage.cluster.kubelet.take().context("it runs")?.stop()?;
    let old = stage.cluster.node()?["metadata"]["uid"].clone();
    stage.cluster.kubectl(&["delete", "node", NODE])?;
    stage.cluster.start_kubelet()?;
    until("the node is registered anew", Duration::from_mins(1), || {
        Ok(stage.cluster.node().ok().filter(|node| node["metadata"]["uid"] != old))
    })?;
    // A heartbeat would be minutes away.
    stage.expect("node deleted and registered anew", good(REACHABLE), Duration::from_secs(30))?;
    stage.on_the_node_all_is_well()?;
    watch.was_well()
}

pub(super) fn restarted(stage: &mut Stage<'_>) -> Result<()> {
    let before = agent::wait(stage.cluster, good(NETWORK), PROOF)?;
    // A condition does not change twice within ten seconds, not even for this.
    until("it may change", PROOF, || Ok((now_s() > before.since_s + 10).then_some(())))?;
    stage.agent.take().context("it runs")?.stop()?;
    let stopping = Wanted { condition: NETWORK, status: "Unknown", reason: "AgentStopping", after_s: 0 };
    agent::wait(stage.cluster, stopping, PROOF)?;
    stage.agent = Some(agent::start(stage.cluster)?);
    let seen = until("the new agent says that all is well", PROOF, || {
        let state = agent::state(stage.cluster)?;
        Ok((state["verdict"]["reason"] == "NetworkReady").then_some(state))
    })?;
    let since = agent::seconds(&seen["conditions"][0]["lastTransitionTime"])?;
    ensure!(since == before.since_s, "it was True since {}, and a new agent says {since}", before.since_s);
    let after = agent::wait(stage.cluster, good(NETWORK), PROOF)?;
    if after.since_s != before.since_s {
        bail!("a restart of the agent moved the time from {} to {}", before.since_s, after.since_s);
    }
    Ok(())
}
