//! What the loop listens to, and what it remembers of it for when state must be read again.

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

/// Ports whose connects and listeners are reported at any address: kube-apiserver's default. A node whose
/// API address was not found shows its clients all the same.
pub(super) const PORTS: &[u16] = &[6443];

/// For which hooks something else must stand in.
#[derive(Clone, Copy, Debug)]
pub(super) struct StandsIn {
    /// Who takes routes away.
    pub(super) routes: bool,
    /// Packets that the reverse path filter drops.
    pub(super) drops: bool,
}

/// Starts the sources that run for ever.
pub(super) fn spawn(
    (tasks, node): (&mut JoinSet<()>, &Handle),
    settings: &Arc<Settings>,
    feed: &Feed,
    addresses_changed: mpsc::Sender<()>,
    targets: watch::Receiver<Targets>,
    processes: &watch::Sender<Watched>,
    stands_in: StandsIn,
) {
    tasks.spawn_on(node::cni_config::watch(Arc::clone(settings), feed.clone()), node);
    tasks.spawn_on(node::conf_access::watch(Arc::clone(settings), feed.clone()), node);
    tasks.spawn_on(node::limits::watch(Arc::clone(settings), feed.clone(), stands_in.drops), node);
    tasks.spawn_on(node::connections::watch(Arc::clone(settings), targets, feed.clone()), node);
    tasks.spawn_on(node::cni_dirs::watch(Arc::clone(settings), processes.subscribe(), feed.clone()), node);
    tasks.spawn_on(
        node::links::watch(Arc::clone(settings), feed.clone(), addresses_changed, stands_in.routes),
        node,
    );
    tasks.spawn_on(node::ovs::watch(Arc::clone(settings), feed.clone()), node);
    tasks.spawn_on(node::namespaces::watch(Arc::clone(settings), feed.clone()), node);
}

/// Inode number of the agent's own network namespace.
pub(super) fn own_netns() -> Option<u32> {
    processes::netns_of("self")
}

/// Returns whether the container runtime's answers can depend on this.
fn concerns_runtime(observation: &Observation) -> bool {
    match observation {
        Observation::CniConfig(_) | Observation::SocketConnect(_) => true,
        Observation::CniEnd(end) => !end.exit.success(),
        Observation::Process(process) => process.class == ProcessClass::Runtime,
        _ => false,
    }
}

/// Why the node is looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Changed,
    Asked,
}

/// What was observed last, where a re-read has to be compared with it.
#[derive(Debug, Default)]
pub(super) struct State {
    targets: Targets,
    listeners: BTreeSet<SocketAddr>,
    pub(super) host: Option<Host>,
    /// The processes of the host cannot be read: [`processes::hidden`].
    pub(super) hides_processes: bool,
    /// A process started that shows what the host is for.
    role_due: bool,
    /// Somebody asked for a look at everything.
    asked: bool,
    reread: BTreeSet<Scope>,
    gaps: Vec<Gap>,
    /// Kubelets and runtimes that run.
    processes: watch::Sender<Watched>,
    /// Notified of events that the container runtime's answers can depend on.
    happened: Arc<Notify>,
}

impl State {
    /// Keeps what is needed of an observation on its way to the engine.
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

    /// Returns what is notified of events that the container runtime's answers can depend on.
    pub(super) fn happened(&self) -> &Arc<Notify> {
        &self.happened
    }

    /// Kubelets and runtimes that run.
    pub(super) fn processes(&self) -> &watch::Sender<Watched> {
        &self.processes
    }

    pub(super) fn targets(&self) -> &Targets {
        &self.targets
    }

    pub(super) fn listeners(&self) -> &BTreeSet<SocketAddr> {
        &self.listeners
    }

    /// Returns whether the node is to be looked at again: because it may have changed, or because somebody asked for it.
    pub(super) fn is_look_due(&self) -> Option<Due> {
        if self.asked { Some(Due::Asked) } else { self.role_due.then_some(Due::Changed) }
    }

    /// The node is being looked at.
    pub(super) fn is_looked_at(&mut self) {
        (self.role_due, self.asked) = (false, false);
    }

    /// Everything must be read again as soon as the loop comes to it.
    pub(super) fn must_reread_all(&mut self) {
        self.asked = true;
        self.reread.extend([Scope::Sockets, Scope::Processes, Scope::Cni, Scope::Links]);
    }

    /// Something must be read again as soon as the loop comes to it.
    pub(super) fn must_reread(&mut self, scope: Scope) {
        self.reread.insert(scope);
    }

    pub(super) fn take_rereads(&mut self) -> BTreeSet<Scope> {
        std::mem::take(&mut self.reread)
    }

    /// A gap that shows at the next look.
    pub(super) fn gap(&mut self, signal: &str, why: String) {
        self.gaps.push(Gap { signal: signal.to_owned(), why, blind: false });
    }

    pub(super) fn take_gaps(&mut self) -> Vec<Gap> {
        std::mem::take(&mut self.gaps)
    }
}
