//! Faults of the node's own components.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kernel_tests::run;

use crate::agent::{self, ExpectedCondition};
use crate::cluster::{CONF_DIR, Cluster, NODE, Running, until};
use crate::image;
use crate::node_host::LAYERS;
use crate::stage::{NETWORK, PROOF, REACHABLE, Stage, healthy_condition, now_s};
use crate::watch::Expected;

const fn fault(what: &'static str, root: &'static [&'static str]) -> Expected {
    Expected::new(what, &[NETWORK], root)
}

/// Namespaces of its pods are unmounted and only their files remain: the new runtime cleans up and recreates the pods.
pub(super) fn runtime_killed(stage: &mut Stage<'_>) -> Result<()> {
    stage.create_pod("kept")?;
    stage.wait_until_pod_runs("kept")?;
    stage.hold(
        fault("containerd killed", &["RuntimeDown"]),
        |stage| {
            drop(stage.cluster.runtime.take());
            Ok(())
        },
        |stage| {
            stage.cluster.unmount_pod_namespaces()?;
            stage.cluster.start_runtime()
        },
    )?;
    stage.run_pod_once("next")?;
    stage.delete_pods(&["kept"])
}

/// Stops a process with SIGSTOP, and continues it.
fn frozen(
    stage: &mut Stage<'_>,
    expected: Expected,
    program: fn(&Cluster) -> Option<&Running>,
) -> Result<()> {
    let signal = |stage: &Stage<'_>, signal| {
        program(stage.cluster).context("not running")?.signal(signal);
        Ok(())
    };
    stage.hold(
        expected.message_contains("does not respond"),
        |stage| signal(stage, libc::SIGSTOP),
        |stage| signal(stage, libc::SIGCONT),
    )
}

pub(super) fn runtime_frozen(stage: &mut Stage<'_>) -> Result<()> {
    frozen(stage, fault("containerd frozen", &["RuntimeDown"]), |cluster| cluster.runtime.as_ref())
}

pub(super) fn without_cri(stage: &mut Stage<'_>) -> Result<()> {
    stage.hold(
        // The socket is missing while containerd restarts.
        fault("containerd without CRI", &["RuntimeDown"]).steady_after(10).message_contains("disables it"),
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
        |stage| stage.cluster.kubelet.take().context("not running")?.stop(),
        |stage| stage.cluster.start_kubelet(),
    )
}

/// The runtime sets up the network of each sandbox and then finds no image for it. containerd 1 looks for the image first, so
/// no fault is visible to the kernel, and none may be reported.
pub(super) fn image_gone(stage: &mut Stage<'_>) -> Result<()> {
    let what = "sandbox image removed";
    let expected = if stage.cluster.dialect.makes_networks_first() {
        fault(what, &["SandboxImageUnavailable"])
    } else {
        Expected::new(what, &[], &[])
    };
    stage.hold(
        expected,
        |stage| {
            stage.cluster.images(&["rm", image::NAME])?;
            stage.create_pod("waits")
        },
        |stage| stage.cluster.import_image(),
    )?;
    stage.wait_until_pod_runs("waits")?;
    stage.delete_pods(&["waits"])
}

pub(super) fn disk_full(stage: &mut Stage<'_>) -> Result<()> {
    let filling = stage.cluster.host.path(LAYERS).join("filling");
    stage.hold(
        fault("disk of containerd full", &["RuntimeLimitExceeded"])
            .message_contains(LAYERS)
            .allowing(&["SandboxImageUnavailable"]),
        |stage| {
            let mut fill = stage.cluster.host.command("sh")?;
            let words = format!("cat /dev/zero > {LAYERS}/filling 2>/dev/null; test -s {LAYERS}/filling");
            run(fill.args(["-c", &words]))?;
            stage.create_pod("waits")
        },
        |_| Ok(std::fs::remove_file(&filling)?),
    )?;
    stage.wait_until_pod_runs("waits")?;
    stage.delete_pods(&["waits"])
}

/// The userspace datapath is part of the process, so nothing of it remains.
pub(super) fn switch_killed(stage: &mut Stage<'_>) -> Result<()> {
    stage.hold(
        fault("ovs-vswitchd killed", &["OVSNotReady"]),
        |stage| {
            drop(stage.cluster.vswitchd.take());
            Ok(())
        },
        |stage| stage.cluster.start_vswitchd(),
    )
}

pub(super) fn deleted(stage: &mut Stage<'_>) -> Result<()> {
    let watch = stage.watch();
    stage.cluster.kubelet.take().context("not running")?.stop()?;
    let old = stage.cluster.node_object()?["metadata"]["uid"].clone();
    stage.cluster.kubectl(&["delete", "node", NODE])?;
    stage.cluster.start_kubelet()?;
    until("the node is registered again", Duration::from_mins(1), || {
        Ok(stage.cluster.node_object().ok().filter(|node| node["metadata"]["uid"] != old))
    })?;
    // The next heartbeat would be minutes later.
    stage.expect_condition(
        "node deleted and registered again",
        healthy_condition(REACHABLE),
        Duration::from_secs(30),
    )?;
    stage.wait_until_healthy()?;
    watch.check_no_condition_was_false()
}

pub(super) fn restarted(stage: &mut Stage<'_>) -> Result<()> {
    let before = agent::wait(stage.cluster, healthy_condition(NETWORK), PROOF)?;
    // A condition changes at most once in ten seconds, also for a stopping agent.
    until("the condition may change", PROOF, || Ok((now_s() > before.since_s + 10).then_some(())))?;
    stage.agent.take().context("not running")?.stop()?;
    let stopping =
        ExpectedCondition { condition: NETWORK, status: "Unknown", reason: "AgentStopping", after_s: 0 };
    agent::wait(stage.cluster, stopping, PROOF)?;
    stage.agent = Some(agent::start(stage.cluster)?);
    let seen = until("the new agent reports a healthy node", PROOF, || {
        let state = agent::state(stage.cluster)?;
        Ok((state["verdict"]["reason"] == "NetworkReady").then_some(state))
    })?;
    let since = agent::seconds(&seen["conditions"][0]["lastTransitionTime"])?;
    ensure!(since == before.since_s, "True since {}, and the new agent has {since}", before.since_s);
    let after = agent::wait(stage.cluster, healthy_condition(NETWORK), PROOF)?;
    if after.since_s != before.since_s {
        bail!("a restart of the agent changed the time from {} to {}", before.since_s, after.since_s);
    }
    Ok(())
}
