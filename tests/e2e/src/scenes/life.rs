//! The life of a node on which nothing is wrong.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::agent;
use crate::cluster::until;
use crate::stage::Stage;

/// How long it is watched.
const LIFE: Duration = Duration::from_mins(10);
/// Between two restarts in order, of the kubelet, the runtime and the network's agent in turn.
const RESTARTS: Duration = Duration::from_secs(25);

/// How long a restarted kubelet is watched.
const WHILE: Duration = Duration::from_mins(1);

/// A plugin that is linked with glibc looks up a user and speaks to the system's log, whose daemons are not here.
const GLIBC: &str = "#!/usr/bin/perl
use Sys::Syslog;
getpwnam('nobody');
eval { openlog('portmap', 'ndelay', 'daemon') };
exec '/opt/cni/bin/portmap';
";

/// Pods of the same name are made and deleted, and everything restarts in order.
pub(super) fn healthy(stage: &mut Stage<'_>) -> Result<()> {
    foreign_conditions_stay(stage)?;
    let plain = crate::cluster::network("10.244.0.0/24");
    let mut config = plain.clone();
    config["plugins"].as_array_mut().context("it is a list")?.push(serde_json::json!({"type": "looks-up"}));
    stage.cluster.install_plugin("looks-up", GLIBC.as_bytes())?;
    stage.cluster.write_network("10-pods.conflist", &config.to_string())?;
    let watch = stage.watch();
    let started = Instant::now();
    let (mut pods, mut restarts) = (0_u32, 0_u32);
    while watch.lasts() < LIFE {
        stage.a_pod_runs("web-0")?;
        pods += 1;
        if started.elapsed() < RESTARTS * (restarts + 1) {
            continue;
        }
        match restarts % 3 {
            0 => {
                stage.cluster.kubelet.take().context("it runs")?.stop()?;
                stage.cluster.start_kubelet()?;
            }
            1 => {
                stage.cluster.runtime.take().context("it runs")?.stop()?;
                stage.cluster.start_runtime()?;
            }
            _ => {
                drop(stage.flanneld.take());
                stage.start_flanneld()?;
            }
        }
        restarts += 1;
        watch.was_well()?;
    }
    watch.was_well()?;
    println!("{pods} pods and {restarts} restarts in {} s, and no condition was False", LIFE.as_secs());
    drop(stage.flanneld.take());
    stage.cluster.install_network("10.244.0.0/24")?;
    stage.on_the_node_all_is_well()
}

/// When it starts, cAdvisor inside the kubelet dials the sockets of every runtime that it knows. Only the configured one is
/// the node's.
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
    // Longer than a runtime that does not serve takes to be reported.
    until("it has run for a while", WHILE * 2, || Ok((watch.lasts() >= WHILE).then_some(())))?;
    watch.was_well()?;
    watch.never_said("RuntimeDown")?;
    trace.stop()?;
    stage.on_the_node_all_is_well()
}

fn foreign_conditions_stay(stage: &Stage<'_>) -> Result<()> {
    let node = stage.cluster.node()?;
    let rows = node["status"]["conditions"].as_array().into_iter().flatten();
    let kinds: Vec<_> = rows.map(|row| row["type"].clone()).collect();
    for foreign in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        ensure!(kinds.iter().any(|kind| kind == foreign), "{foreign} is gone from {kinds:?}");
    }
    ensure!(kinds.len() == 6, "{kinds:?}");
    Ok(())
}
