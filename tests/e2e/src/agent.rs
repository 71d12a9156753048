//! The agent on the node, and the conditions that it and the API server report.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use kernel_tests::probe_binary;
use serde_json::Value;

use crate::cluster::{Cluster, NODE, Running, SERVICE, until};
use crate::node_host::kill_with_parent;

/// State file of the agent on the node, whose times are in milliseconds.
pub(crate) const STATE: &str = "/run/netready/state.json";
/// State file of the agent on the control plane's host.
const CONTROL_STATE: &str = "control-state.json";

/// A condition that was read from the Node object.
#[derive(Clone, Debug)]
pub(crate) struct ObservedCondition {
    /// `True`, `False`, `Unknown`
    pub(crate) status: String,
    /// Reason of the condition.
    pub(crate) reason: String,
    /// Its `lastTransitionTime`, in whole seconds since 1970.
    pub(crate) since_s: i64,
    /// Time from the change of the condition in the agent until it was read from the Node object.
    pub(crate) took: Duration,
    /// Status and reason of the kubelet's own condition `Ready`.
    pub(crate) ready: String,
}

/// Starts `probe run` on the node, as a unit of the host.
pub(crate) fn start(cluster: &Cluster) -> Result<Running> {
    let mut command = command(cluster)?;
    command.env_remove("KUBERNETES_SERVICE_HOST");
    Running::start(&mut command, &cluster.file("probe.log"))
}

/// Starts `probe run` as in a pod: with its own service account, and the Service address in its environment.
pub(crate) fn start_in_cluster(cluster: &Cluster) -> Result<Running> {
    let mut command = command(cluster)?;
    command.env("KUBERNETES_SERVICE_HOST", SERVICE).env("KUBERNETES_SERVICE_PORT", "443");
    Running::start(&mut command, &cluster.file("probe.log"))
}

/// Starts `probe run` on the control plane's host, which is a node without a network, where it observes kube-apiserver's own
/// connections.
pub(crate) fn start_on_control(cluster: &Cluster) -> Result<Running> {
    let mut command = cluster.control.command(probe_binary()?)?;
    command.args(["run", "--node-name", "control", "--role", "control-plane"]);
    fs::create_dir_all(cluster.file("control-net.d"))?;
    let files = [
        ("--kubeconfig", "admin.conf"),
        ("--cni-conf-dir", "control-net.d"),
        ("--state-file", CONTROL_STATE),
        ("--journal", "control-journal.jsonl"),
        ("--socket", "control.sock"),
    ];
    for (flag, name) in files {
        command.arg(flag).arg(cluster.file(name));
    }
    Running::start(kill_with_parent(&mut command), &cluster.file("control-probe.log"))
}

/// Returns the state of the agent on the control plane's host.
pub(crate) fn control_state(cluster: &Cluster) -> Result<Value> {
    read_state(&cluster.file(CONTROL_STATE))
}

fn command(cluster: &Cluster) -> Result<Command> {
    let mut command = cluster.host.command(probe_binary()?)?;
    command.args(["run", "--node-name", NODE]);
    Ok(command)
}

/// Records a scene if `NETREADY_E2E_RECORD` names a directory: its trace as text, and a recording for replays.
pub(crate) fn record(cluster: &Cluster, scene: &str) -> Result<Option<Running>> {
    let Some(dir) = std::env::var_os("NETREADY_E2E_RECORD").map(PathBuf::from) else { return Ok(None) };
    fs::create_dir_all(&dir)?;
    let name = scene.to_lowercase().replace(' ', "-");
    trace(cluster, &dir.join(format!("{name}.jsonl")), &dir.join(format!("{name}.txt"))).map(Some)
}

/// Starts a trace beside the agent, with text output in `text` and its observations in `recording`.
pub(crate) fn trace(cluster: &Cluster, recording: &Path, text: &Path) -> Result<Running> {
    // The program refuses to overwrite a recording.
    let _ = fs::remove_file(recording);
    let mut command = cluster.host.command(probe_binary()?)?;
    command.args(["trace", "--node-name", NODE, "--record"]).arg(recording);
    command.env_remove("KUBERNETES_SERVICE_HOST");
    let recorder = Running::start(&mut command, text)?;
    // Observations before the end of the initial state are not part of the scene.
    until("the recorder is ready", Duration::from_secs(20), || {
        let ready = fs::read_to_string(recording).is_ok_and(|text| text.contains("\"answer\""));
        Ok(ready.then_some(()))
    })?;
    Ok(recorder)
}

/// Returns the state of the agent on the node.
pub(crate) fn state(cluster: &Cluster) -> Result<Value> {
    read_state(&cluster.host.path(STATE))
}

pub(crate) fn read_state(file: &Path) -> Result<Value> {
    let text = fs::read(file).context("read the agent's state file")?;
    serde_json::from_slice(&text).context("read the agent's state")
}

/// Finds one of our conditions, in the agent's state or on the Node object.
fn row<'a>(conditions: &'a Value, name: &str) -> Option<&'a Value> {
    let ours = |row: &&Value| {
        row["type"].as_str().is_some_and(|kind| kind == name || kind.ends_with(&format!("/{name}")))
    };
    conditions.as_array()?.iter().find(ours)
}

/// A condition that the Node object must have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpectedCondition<'a> {
    /// Type of the condition, without its domain.
    pub(crate) condition: &'a str,
    /// Its status.
    pub(crate) status: &'a str,
    /// Its reason.
    pub(crate) reason: &'a str,
    /// The earliest time at which it may have changed, in seconds since 1970.
    pub(crate) after_s: i64,
}

/// Waits until the Node object has this condition.
pub(crate) fn wait(
    cluster: &Cluster,
    wanted: ExpectedCondition<'_>,
    patience: Duration,
) -> Result<ObservedCondition> {
    let ExpectedCondition { condition, status, reason, after_s } = wanted;
    let started = Instant::now();
    let mut last = Value::Null;
    let result = until(&format!("the Node object has {condition} {status} {reason}"), patience, || {
        // The API server may be unreachable.
        let Ok(node) = cluster.node_object() else { return Ok(None) };
        let now = Timestamp::now();
        let conditions = &node["status"]["conditions"];
        let Some(row) = row(conditions, condition) else { return Ok(None) };
        last = row.clone();
        if row["status"] != status || row["reason"] != reason {
            return Ok(None);
        }
        let since_s = seconds(&row["lastTransitionTime"])?;
        if since_s < after_s {
            return Ok(None);
        }
        let changed =
            self::row(&state(cluster)?["conditions"], condition).map(|row| row["lastTransitionTime"].clone());
        let changed = timestamp(&changed.unwrap_or_default())?;
        let ready = self::row(conditions, "Ready").map_or("none".to_owned(), |ready| {
            format!(
                "{} {}",
                ready["status"].as_str().unwrap_or_default(),
                ready["reason"].as_str().unwrap_or_default()
            )
        });
        Ok(Some(ObservedCondition {
            status: status.to_owned(),
            reason: reason.to_owned(),
            since_s,
            took: now.duration_since(changed).try_into().unwrap_or_default(),
            ready,
        }))
    });
    result.with_context(|| {
        let own = state(cluster).map(|state| state["conditions"].to_string()).unwrap_or_default();
        format!("after {} s the Node object has {last} and the agent {own}", started.elapsed().as_secs())
    })
}

/// Parses a time such as `2026-01-02T03:04:05Z`; returns whole seconds since 1970.
pub(crate) fn seconds(text: &Value) -> Result<i64> {
    Ok(timestamp(text)?.as_second())
}

fn timestamp(text: &Value) -> Result<Timestamp> {
    text.as_str().unwrap_or_default().parse().with_context(|| format!("{text} is not a time"))
}
