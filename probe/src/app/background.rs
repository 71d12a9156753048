//! Reads from disk for the watcher, on other threads, so that the watcher is not blocked meanwhile.

use std::sync::Arc;
use std::time::Duration;

use probe_engine::{CniConfig, Host};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::sources::Due;
use crate::node::ask::Targets;
use crate::node::discovery::Discovery;
use crate::node::{cni_config, processes, role, targets};
use crate::settings::Settings;

/// How long the agent waits for the CNI configuration at start.
const PATIENCE: Duration = Duration::from_secs(10);

/// The result of a read.
pub(super) enum Read {
    Node(Box<NodeRead>),
    Cni(Box<CniConfig>),
}

/// What the node uses, and its role.
pub(super) struct NodeRead {
    pub(super) due: Due,
    /// Result of [`processes::hidden`].
    pub(super) hidden: Option<String>,
    pub(super) discovery: Discovery,
    /// Result of [`discover`].
    pub(super) moved_logs: bool,
    pub(super) servers: targets::Servers,
    /// The host, without its addresses.
    pub(super) host: Host,
}

/// Discovers what the node uses from its running processes. Also returns whether the directory of the pod logs has changed: it
/// shows which pods are in kube-system, and thereby which processes are components of the node.
pub(super) fn discover(settings: &Settings, processes: &[processes::Found]) -> (Discovery, bool) {
    let logs = settings.pod_logs.value();
    let discovery = Discovery::followed(settings, processes);
    let moved_logs = settings.pod_logs.value() != logs;
    (discovery, moved_logs)
}

/// Starts reads and returns their results. At most one read of each kind is in progress.
pub(super) struct BackgroundReads {
    threads: Handle,
    done: mpsc::Sender<Read>,
    results: mpsc::Receiver<Read>,
    reads_node: bool,
    reads_cni: bool,
}

impl BackgroundReads {
    pub(super) fn new(threads: Handle) -> Self {
        let (done, results) = mpsc::channel(2);
        Self { threads, done, results, reads_node: false, reads_cni: false }
    }

    /// Waits for the next result; never returns `None`. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Read> {
        let read = self.results.recv().await?;
        match read {
            Read::Node(_) => self.reads_node = false,
            Read::Cni(_) => self.reads_cni = false,
        }
        Some(read)
    }

    /// Starts to read what the node uses, and its role. Returns false if that is in progress already.
    pub(super) fn start_node(&mut self, settings: &Arc<Settings>, known: &Targets, due: Due) -> bool {
        if std::mem::replace(&mut self.reads_node, true) {
            return false;
        }
        let (settings, done) = (Arc::clone(settings), self.done.clone());
        let has_targets = !known.is_empty();
        self.threads.spawn_blocking(move || {
            let processes = processes::scan(&settings);
            let (discovery, moved_logs) = discover(&settings, &processes);
            let servers = targets::find(&settings, &discovery);
            let has_targets = has_targets || discovery.kubelet_is_running && !servers.targets.is_empty();
            let hidden = processes::hidden();
            let known = role::Known { targets: has_targets, hides_processes: hidden.is_some() };
            let host = role::find(&settings, &processes, &discovery, known);
            let read = NodeRead { due, hidden, discovery, moved_logs, servers, host };
            // Sending fails if the program is about to exit.
            let _ = done.blocking_send(Read::Node(Box::new(read)));
        });
        true
    }

    /// Starts to read the CNI configuration. Returns false if that is in progress already.
    pub(super) fn start_cni_config(&mut self, settings: &Arc<Settings>) -> bool {
        if std::mem::replace(&mut self.reads_cni, true) {
            return false;
        }
        let (settings, done) = (Arc::clone(settings), self.done.clone());
        self.threads.spawn_blocking(move || {
            let _ = done.blocking_send(Read::Cni(Box::new(cni_config::read(&settings))));
        });
        true
    }

    /// Reads the CNI configuration at start, and waits for it.
    pub(super) async fn cni_config(&self, settings: &Arc<Settings>) -> CniConfig {
        let shared = Arc::clone(settings);
        let read = self.threads.spawn_blocking(move || cni_config::read(&shared));
        match tokio::time::timeout(PATIENCE, read).await {
            Ok(Ok(config)) => config,
            _ => cni_config::unread(
                settings,
                &format!("its disk did not respond within {} s", PATIENCE.as_secs()),
            ),
        }
    }
}
