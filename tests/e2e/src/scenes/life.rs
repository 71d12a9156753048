//! The life of a healthy node.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::agent;
use crate::cluster::until;
use crate::stage::Stage;

/// How long the node is observed.
const LIFE: Duration = Duration::from_mins(10);
/// Interval of the orderly restarts of the kubelet, the runtime and the network's agent, in turn.
const RESTART_INTERVAL: Duration = Duration::from_secs(25);

/// How long a restarted kubelet is observed.
const AFTER_RESTART: Duration = Duration::from_mins(1);

/// A plugin that looks up a user and writes to syslog as one linked with glibc does; neither daemon runs here.
const GLIBC: &str = "#!/usr/bin/perl
use Sys::Syslog;
getpwnam('nobody');
eval { openlog('portmap', 'ndelay', 'daemon') };
exec '/opt/cni/bin/portmap';
";

/// Pods with the same name are created and deleted while components restart in an orderly way.
pub(super) fn healthy(stage: &mut Stage<'_>) -> Result<()> {
    check_foreign_conditions(stage)?;
    let plain = crate::cluster::network("10.244.0.0/24");
    let mut config = plain.clone();
    config["plugins"]
        .as_array_mut()
        .context("`plugins` is not a list")?
        .push(serde_json::json!({"type": "looks-up"}));
    stage.cluster.install_plugin("looks-up", GLIBC.as_bytes())?;
    stage.cluster.write_network("10-pods.conflist", &config.to_string())?;
    let watch = stage.watch();
    let started = Instant::now();
    let (mut pods, mut restarts) = (0_u32, 0_u32);
    while watch.elapsed() < LIFE {
        stage.run_pod_once("web-0")?;
        pods += 1;
        if started.elapsed() < RESTART_INTERVAL * (restarts + 1) {
            continue;
        }
        match restarts % 3 {
            0 => {
                stage.cluster.kubelet.take().context("not running")?.stop()?;
                stage.cluster.start_kubelet()?;
            }
            1 => {
                stage.cluster.runtime.take().context("not running")?.stop()?;
                stage.cluster.start_runtime()?;
            }
            _ => {
                drop(stage.flanneld.take());
                stage.start_flanneld()?;
            }
        }
        restarts += 1;
        watch.check_no_condition_was_false()?;
    }
    watch.check_no_condition_was_false()?;
    println!("{pods} pods and {restarts} restarts in {} s, and no condition was False", LIFE.as_secs());
    drop(stage.flanneld.take());
    stage.cluster.install_network("10.244.0.0/24")?;
    stage.wait_until_healthy()
}

/// At its start, cAdvisor in the kubelet dials the sockets of all runtimes that it supports. Only the configured one is the
/// node's runtime.
pub(super) fn one_runtime(stage: &mut Stage<'_>) -> Result<()> {
    let recording = stage.cluster.file("one-runtime.jsonl");
    let trace = agent::trace(stage.cluster, &recording, &stage.cluster.file("one-runtime.txt"))?;
    let watch = stage.watch();
    stage.cluster.restart_kubelet()?;
    let dialled = |line: &str| -> Option<Value> {
        let line: Value = serde_json::from_str(line).ok()?;
        let is_it = line["kind"] == "socket_connect" && line["class"] == "kubelet";
        let path = line["path"].as_str()?;
        (is_it && path.ends_with("/crio.sock") && line["errno"] == libc::ENOENT).then_some(line)
    };
    until("the kubelet dials CRI-O's socket", Duration::from_mins(1), || {
        Ok(fs::read_to_string(&recording)?.lines().find_map(dialled))
    })?;
    // This is longer than the time after which a runtime that does not serve is reported.
    until("the kubelet has run for a while", AFTER_RESTART * 2, || {
        Ok((watch.elapsed() >= AFTER_RESTART).then_some(()))
    })?;
    watch.check_no_condition_was_false()?;
    watch.check_never_reported("RuntimeDown")?;
    trace.stop()?;
    stage.wait_until_healthy()
}

/// Fails unless the Node object has the kubelet's four conditions and our two.
fn check_foreign_conditions(stage: &Stage<'_>) -> Result<()> {
    let node = stage.cluster.node_object()?;
    let rows = node["status"]["conditions"].as_array().into_iter().flatten();
    let kinds: Vec<_> = rows.map(|row| row["type"].clone()).collect();
    for foreign in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        ensure!(kinds.iter().any(|kind| kind == foreign), "{foreign} is missing in {kinds:?}");
    }
    ensure!(kinds.len() == 6, "{kinds:?}");
    Ok(())
}
