//! A real node, its faults, and what the agent writes: `cargo xtask e2e`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod agent;
mod cluster;
mod image;
mod pki;
mod place;
mod scale;
mod scenes;

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context as _, Result};

use cluster::{Cluster, INTERRUPTED};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The first argument is the directory with kube-apiserver and kubelet; further ones choose scenes by a part of
/// their names. `--nodes N` measures what so many agents cost instead.
fn run() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let assets = args.next().context("name the directory with kube-apiserver and kubelet")?;
    if assets == "agents" {
        return scale::agents(args);
    }
    let assets = std::fs::canonicalize(&assets).with_context(|| format!("find {assets}"))?;
    let chosen: Vec<String> = args.collect();
    // The cluster ends with its owner, which learns of this at its next question.
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed)).context("watch for Ctrl-C")?;
    place::adopt_orphans();
    if let [option, nodes] = chosen.as_slice()
        && option == "--nodes"
    {
        return scale::measure(&assets, nodes.parse().context("--nodes: read how many")?);
    }
    let started = Instant::now();
    let mut cluster = Cluster::new(&assets)?;
    let result = scenes::play(&mut cluster, &chosen);
    if result.is_err() {
        for log in ["kube-apiserver", "containerd", "kubelet", "probe"] {
            eprintln!("── the end of {log}'s log\n{}", cluster.log(log));
        }
    }
    drop(cluster);
    println!("{} s in all", started.elapsed().as_secs());
    result
}
