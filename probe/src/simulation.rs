//! Many agents in one process. Each has the real loop, engine, requests and writer. Its observations of the kernel and the host
//! are those of a healthy node, and it finds out about the API server by its own requests. `tests/e2e` uses it to measure the
//! load of a large cluster on its API server. No command of the program uses it.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use probe_engine::{
    ApiTarget, CniConfig, ConfContent, ConfFile, Host, Observation, Remembered, Role, TargetKind,
};
use tokio::runtime::Handle;

use crate::app::{self, App};
use crate::cli::{Cli, Command};
use crate::commands::run::write_conditions;
use crate::sinks::metrics::WriteMetrics;

/// Counters of the writes of all agents.
#[derive(Clone, Debug, Default)]
pub struct Writes(WriteMetrics);

impl Writes {
    /// Returns how many writes had this outcome: `ok`, `unreachable`, `throttled`, ….
    pub fn ended(&self, outcome: &'static str) -> u64 {
        self.0.count(outcome)
    }
}

/// Runs the agent of one node forever. Must run inside a `tokio` runtime, on a `LocalSet`.
pub async fn agent(node: &str, kubeconfig: &Path, api: SocketAddr, writes: Writes) -> Result<()> {
    let args = ["probe", "run", "--node-name", node, "--kubeconfig"].map(OsStr::new);
    let args = args.into_iter().chain([kubeconfig.as_os_str()]);
    let Command::Run(args) = Cli::try_parse_from(args)?.command else {
        anyhow::bail!("the arguments are not those of `probe run`");
    };
    let settings = Arc::new(args.node.settings()?);
    let (mut app, mut judge) = App::simulated(Arc::clone(&settings), healthy_worker(api));
    let here = Handle::current();
    let (mut conditions, _) =
        write_conditions(&here, judge.about(), &settings, writes.0, &Remembered::default());
    app::run((&mut app, &mut judge), &mut [&mut conditions], std::future::pending())
        .await
        .with_context(|| format!("run the agent of {node}"))
}

/// Returns the observations of a worker whose network is configured.
fn healthy_worker(api: SocketAddr) -> Vec<Observation> {
    let network = ConfContent::Network { network: "pods".to_owned(), plugins: vec!["bridge".to_owned()] };
    let file = ConfFile { name: "10-pods.conflist".to_owned(), size: 1, content: network };
    vec![
        Observation::Host(Host { role: Role::Worker, ..Host::default() }),
        Observation::ApiTarget(ApiTarget {
            addr: api,
            kind: TargetKind::Direct,
            source: "--kubeconfig".to_owned(),
            name: None,
            proxy: None,
        }),
        Observation::CniConfig(CniConfig {
            dir: "/etc/cni/net.d".to_owned(),
            files: vec![file],
            ..CniConfig::default()
        }),
        Observation::SnapshotDone,
    ]
}
