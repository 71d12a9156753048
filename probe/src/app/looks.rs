//! What is read from disk for the watcher, on other threads: it goes on watching meanwhile.

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

/// How long the agent waits for the configuration at its start.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was read.
pub(super) enum Look {
    Node(Box<NodeLook>),
    Cni(Box<CniConfig>),
}

/// What the node uses and is for.
pub(super) struct NodeLook {
    pub(super) due: Due,
    /// As [`processes::hidden`] returns it.
    pub(super) hidden: Option<String>,
    pub(super) discovery: Discovery,
    /// As [`discover`] returns it.
    pub(super) moved_logs: bool,
    pub(super) servers: targets::Servers,
    /// Without its addresses.
    pub(super) host: Host,
}

/// Discovers what the node uses from the processes that run. Returns also whether the pod logs are elsewhere than was known:
/// their directory shows which pods are in kube-system, and so which processes count.
pub(super) fn discover(settings: &Settings, processes: &[processes::Found]) -> (Discovery, bool) {
    let logs = settings.pod_logs.value();
    let discovery = Discovery::followed(settings, processes);
    let moved_logs = settings.pod_logs.value() != logs;
    (discovery, moved_logs)
}

/// At most one of each kind is under way.
pub(super) struct Looks {
    threads: Handle,
    done: mpsc::Sender<Look>,
    read: mpsc::Receiver<Look>,
    reads_node: bool,
    reads_cni: bool,
}

impl Looks {
    pub(super) fn new(threads: Handle) -> Self {
        let (done, read) = mpsc::channel(2);
        Self { threads, done, read, reads_node: false, reads_cni: false }
    }

    /// The next one that has been read; never `None`. May be dropped at any time and called again.
    pub(super) async fn next(&mut self) -> Option<Look> {
        let look = self.read.recv().await?;
        match look {
            Look::Node(_) => self.reads_node = false,
            Look::Cni(_) => self.reads_cni = false,
        }
        Some(look)
    }

    /// Starts to read what the node uses and is for; false while that is under way already.
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
            let has_targets = has_targets || discovery.kubelet_runs && !servers.targets.is_empty();
            let hidden = processes::hidden();
            let known = role::Known { targets: has_targets, hides_processes: hidden.is_some() };
            let host = role::find(&settings, &processes, &discovery, known);
            // The program may be about to exit.
            let look = NodeLook { due, hidden, discovery, moved_logs, servers, host };
            let _ = done.blocking_send(Look::Node(Box::new(look)));
        });
        true
    }

    /// Starts to read the CNI configuration; false while that is under way already.
    pub(super) fn start_cni_config(&mut self, settings: &Arc<Settings>) -> bool {
        if std::mem::replace(&mut self.reads_cni, true) {
            return false;
        }
        let (settings, done) = (Arc::clone(settings), self.done.clone());
        self.threads.spawn_blocking(move || {
            let _ = done.blocking_send(Look::Cni(Box::new(cni_config::read(&settings))));
        });
        true
    }

    /// Reads the CNI configuration for the state at start.
    pub(super) async fn cni_config(&self, settings: &Arc<Settings>) -> CniConfig {
        let shared = Arc::clone(settings);
        let read = self.threads.spawn_blocking(move || cni_config::read(&shared));
        match tokio::time::timeout(PATIENCE, read).await {
            Ok(Ok(config)) => config,
            _ => {
                cni_config::unread(settings, &format!("no answer from its disk for {} s", PATIENCE.as_secs()))
            }
        }
    }
}
