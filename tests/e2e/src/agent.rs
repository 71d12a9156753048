//! The agent on the node, and what it and the API server say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use kernel_tests::probe_binary;
use serde_json::Value;

use crate::cluster::{Cluster, NODE, Running, SERVICE, until};
use crate::place::with_us;

/// Where its times are told; milliseconds.
pub(crate) const STATE: &str = "/run/netready/state.json";
/// The same of the agent on the control plane's host.
const CONTROL_STATE: &str = "control-state.json";

/// A condition on the Node object.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// `True`, `False`, `Unknown`
    pub(crate) status: String,
    /// A name.
    pub(crate) reason: String,
    /// As it stands there: whole seconds since 1970.
    pub(crate) since_s: i64,
    /// From the change of the condition in the agent to the moment at which it was read on the Node object.
    pub(crate) took: Duration,
    /// The kubelet's own `Ready`, with its reason.
    pub(crate) ready: String,
}

/// Starts `probe run` on the node, as a unit of the host.
pub(crate) fn start(cluster: &Cluster) -> Result<Running> {
    let mut command = command(cluster)?;
    command.env_remove("KUBERNETES_SERVICE_HOST");
    Running::start(&mut command, &cluster.file("probe.log"))
}

/// The same as a pod has it: with an account of its own, and told of the Service address.
pub(crate) fn start_in_cluster(cluster: &Cluster) -> Result<Running> {
    let mut command = command(cluster)?;
    command.env("KUBERNETES_SERVICE_HOST", SERVICE).env("KUBERNETES_SERVICE_PORT", "443");
    Running::start(&mut command, &cluster.file("probe.log"))
}

/// One on the control plane's host, which is a node without a network: it sees what kube-apiserver itself does.
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
    Running::start(with_us(&mut command), &cluster.file("control-probe.log"))
}

/// What that one says.
pub(crate) fn control_state(cluster: &Cluster) -> Result<Value> {
    read_state(&cluster.file(CONTROL_STATE))
}

fn command(cluster: &Cluster) -> Result<Command> {
    let mut command = cluster.place.command(probe_binary()?)?;
    command.args(["run", "--node-name", NODE]);
    Ok(command)
}

/// Records a scene when `NETREADY_E2E_RECORD` names a directory: the trace of it for people, and what a replay needs.
pub(crate) fn record(cluster: &Cluster, scene: &str) -> Result<Option<Running>> {
    let Some(dir) = std::env::var_os("NETREADY_E2E_RECORD").map(PathBuf::from) else { return Ok(None) };
    fs::create_dir_all(&dir)?;
    let name = scene.to_lowercase().replace(' ', "-");
    trace(cluster, &dir.join(format!("{name}.jsonl")), &dir.join(format!("{name}.txt"))).map(Some)
}

/// Starts a trace for people beside the agent that also records what it is told.
pub(crate) fn trace(cluster: &Cluster, recording: &Path, text: &Path) -> Result<Running> {
    // A recording is never written over by the program itself.
    let _ = fs::remove_file(recording);
    let mut command = cluster.place.command(probe_binary()?)?;
    command.args(["trace", "--node-name", NODE, "--record"]).arg(recording);
    command.env_remove("KUBERNETES_SERVICE_HOST");
    let recorder = Running::start(&mut command, text)?;
    // What happens before it has read the state at start is no story any more.
    until("the recorder is ready", Duration::from_secs(20), || {
        let ready = fs::read_to_string(recording).is_ok_and(|text| text.contains("\"answer\""));
        Ok(ready.then_some(()))
    })?;
    Ok(recorder)
}

/// What the agent says on its own host.
pub(crate) fn state(cluster: &Cluster) -> Result<Value> {
    read_state(&cluster.place.path(STATE))
}

pub(crate) fn read_state(file: &Path) -> Result<Value> {
    let text = fs::read(file).context("read the agent's state file")?;
    serde_json::from_slice(&text).context("read the agent's state")
}

/// One of our conditions, of the agent or of the Node object.
fn row<'a>(conditions: &'a Value, name: &str) -> Option<&'a Value> {
    let ours = |row: &&Value| {
        row["type"].as_str().is_some_and(|kind| kind == name || kind.ends_with(&format!("/{name}")))
    };
    conditions.as_array()?.iter().find(ours)
}

/// What the Node object is to say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// Which one, without its domain.
    pub(crate) condition: &'a str,
    /// Its status.
    pub(crate) status: &'a str,
    /// Its reason.
    pub(crate) reason: &'a str,
    /// It must have changed at this time or later, in seconds since 1970.
    pub(crate) after_s: i64,
}

/// Waits until the Node object says so.
pub(crate) fn wait(cluster: &Cluster, wanted: Wanted<'_>, patience: Duration) -> Result<Seen> {
    let Wanted { condition, status, reason, after_s } = wanted;
    let started = Instant::now();
    let mut last = Value::Null;
    let result = until(&format!("the Node object says {condition} {status} {reason}"), patience, || {
        // The API server may be away.
        let Ok(node) = cluster.node() else { return Ok(None) };
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
        Ok(Some(Seen {
            status: status.to_owned(),
            reason: reason.to_owned(),
            since_s,
            took: now.duration_since(changed).try_into().unwrap_or_default(),
            ready,
        }))
    });
    result.with_context(|| {
        let said = state(cluster).map(|state| state["conditions"].to_string()).unwrap_or_default();
        format!("after {} s it says {last}; the agent says {said}", started.elapsed().as_secs())
    })
}

/// Whole seconds since 1970 of `2026-01-02T03:04:05Z`.
pub(crate) fn seconds(text: &Value) -> Result<i64> {
    Ok(timestamp(text)?.as_second())
}

fn timestamp(text: &Value) -> Result<Timestamp> {
    text.as_str().unwrap_or_default().parse().with_context(|| format!("{text} is no time"))
}
