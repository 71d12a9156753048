//! The sources of the watcher, and the state that it keeps for comparison when something is read again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use probe_engine::{Gap, Host, Observation, Process, ProcessClass, ProcessEvent, Scope};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::feed::Feed;
use crate::node::ask::Targets;
use crate::node::pulse::Watched;
use crate::node::{self, processes};
use crate::settings::Settings;

/// Ports whose connects and listeners are reported at any address: the default of kube-apiserver. With it clients are observed
/// even if the API address of a node was not found.
pub(super) const PORTS: &[u16] = &[6443];

/// Which hooks need a fallback.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fallbacks {
    /// For the hook that reports removed routes.
    pub(super) routes: bool,
    /// For the hook that reports packets dropped by the reverse path filter.
    pub(super) drops: bool,
}

/// Starts the sources that run for the lifetime of the agent.
pub(super) fn spawn(
    (tasks, node): (&mut JoinSet<()>, &Handle),
    settings: &Arc<Settings>,
    feed: &Feed,
    addresses_changed: mpsc::Sender<()>,
    targets: watch::Receiver<Targets>,
    processes: &watch::Sender<Watched>,
    fallbacks: Fallbacks,
) {
    tasks.spawn_on(node::cni_config::watch(Arc::clone(settings), feed.clone()), node);
    tasks.spawn_on(node::conf_access::watch(Arc::clone(settings), feed.clone()), node);
    tasks.spawn_on(node::limits::watch(Arc::clone(settings), feed.clone(), fallbacks.drops), node);
    tasks.spawn_on(node::connections::watch(Arc::clone(settings), targets, feed.clone()), node);
    tasks.spawn_on(node::cni_dirs::watch(Arc::clone(settings), processes.subscribe(), feed.clone()), node);
    tasks.spawn_on(
        node::links::watch(Arc::clone(settings), feed.clone(), addresses_changed, fallbacks.routes),
        node,
    );
    tasks.spawn_on(node::ovs::watch(Arc::clone(settings), feed.clone()), node);
    tasks.spawn_on(node::namespaces::watch(Arc::clone(settings), feed.clone()), node);
}

/// Returns the inode number of the agent's network namespace.
pub(super) fn own_netns() -> Option<u32> {
    processes::netns_of("self")
}

/// Returns whether responses of the container runtime can depend on an observation.
fn concerns_runtime(observation: &Observation) -> bool {
    match observation {
        Observation::CniConfig(_) | Observation::SocketConnect(_) => true,
        Observation::CniEnd(end) => !end.exit.success(),
        Observation::Process(process) => process.class == ProcessClass::Runtime,
        _ => false,
    }
}

/// Why the node is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// A process started that may have changed its state.
    Changed,
    /// Everything was requested to be read again.
    Requested,
}

/// The last observations, for comparison when something is read again, and pending work.
#[derive(Debug, Default)]
pub(super) struct State {
    targets: Targets,
    listeners: BTreeSet<SocketAddr>,
    pub(super) host: Option<Host>,
    /// Whether the processes of the host cannot be read, see [`processes::hidden`].
    pub(super) hides_processes: bool,
    /// Whether a process has started that shows the role of the host.
    role_due: bool,
    /// Whether everything was requested to be read again.
    requested: bool,
    reread: BTreeSet<Scope>,
    gaps: Vec<Gap>,
    /// Running kubelets and container runtimes.
    processes: watch::Sender<Watched>,
    /// Notified of events on which responses of the container runtime can depend.
    happened: Arc<Notify>,
}

impl State {
    /// Records what is needed of an observation.
    pub(super) fn note(&mut self, observation: &Observation) {
        if concerns_runtime(observation) {
            self.happened.notify_one();
        }
        match observation {
            Observation::ApiTarget(target) => {
                self.targets.insert(target.addr, target.clone());
            }
            Observation::ApiTargetGone { addr } => {
                self.targets.remove(addr);
            }
            Observation::Listener(listener) if listener.host_netns => {
                if listener.up {
                    self.listeners.insert(listener.local);
                } else {
                    self.listeners.remove(&listener.local);
                }
            }
            Observation::Host(host) => self.host = Some(host.clone()),
            Observation::Process(process) => {
                let shows_role = matches!(
                    process.class,
                    ProcessClass::Kubelet
                        | ProcessClass::ApiServer
                        | ProcessClass::Etcd
                        | ProcessClass::Runtime
                );
                self.role_due |= shows_role && process.event == ProcessEvent::Started;
                self.watch_process(process);
            }
            _ => {}
        }
    }

    fn watch_process(&self, process: &Process) {
        if !matches!(process.class, ProcessClass::Kubelet | ProcessClass::Runtime) {
            return;
        }
        let Process { process, class, event } = process;
        self.processes.send_modify(|watched| {
            if matches!(event, ProcessEvent::Exited { .. }) {
                watched.remove(&process.pid);
            } else {
                watched.insert(process.pid, (process.clone(), *class));
            }
        });
    }

    /// Returns the notification of events on which responses of the container runtime can depend.
    pub(super) fn happened(&self) -> &Arc<Notify> {
        &self.happened
    }

    /// Returns the running kubelets and container runtimes.
    pub(super) fn processes(&self) -> &watch::Sender<Watched> {
        &self.processes
    }

    pub(super) fn targets(&self) -> &Targets {
        &self.targets
    }

    pub(super) fn listeners(&self) -> &BTreeSet<SocketAddr> {
        &self.listeners
    }

    /// Returns whether the node must be read again, and why.
    pub(super) fn node_due(&self) -> Option<Due> {
        if self.requested { Some(Due::Requested) } else { self.role_due.then_some(Due::Changed) }
    }

    /// Records that the node is being read.
    pub(super) fn started_node(&mut self) {
        (self.role_due, self.requested) = (false, false);
    }

    /// Requests that everything is read again with the next check for losses.
    pub(super) fn must_reread_all(&mut self) {
        self.requested = true;
        self.reread.extend([Scope::Sockets, Scope::Processes, Scope::Cni, Scope::Links]);
    }

    /// Requests that `scope` is read again with the next check for losses.
    pub(super) fn must_reread(&mut self, scope: Scope) {
        self.reread.insert(scope);
    }

    pub(super) fn take_rereads(&mut self) -> BTreeSet<Scope> {
        std::mem::take(&mut self.reread)
    }

    /// Adds a gap, which is reported with the next check for losses.
    pub(super) fn gap(&mut self, signal: &str, why: String) {
        self.gaps.push(Gap { signal: signal.to_owned(), why, blind: false });
    }

    pub(super) fn take_gaps(&mut self) -> Vec<Gap> {
        std::mem::take(&mut self.gaps)
    }
}
