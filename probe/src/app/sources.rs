//! What the loop listens to, and what it remembers of it for when state must be read again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use probe_engine::{Gap, Host, Observation, Process, ProcessClass, ProcessEvent, Scope};
use tokio::sync::{mpsc, watch};
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
    tasks: &mut JoinSet<()>,
    settings: &Arc<Settings>,
    feed: &Feed,
    addresses_changed: mpsc::Sender<()>,
    targets: watch::Receiver<Targets>,
    processes: &watch::Sender<Watched>,
    stands_in: StandsIn,
) {
    tasks.spawn(node::cni_config::watch(Arc::clone(settings), feed.clone()));
    tasks.spawn(node::conf_access::watch(Arc::clone(settings), feed.clone()));
    tasks.spawn(node::limits::watch(Arc::clone(settings), feed.clone(), stands_in.drops));
    tasks.spawn(node::connections::watch(targets, feed.clone()));
    tasks.spawn(node::pulse::watch(processes.subscribe(), feed.clone()));
    tasks.spawn(node::cni_dirs::watch(Arc::clone(settings), processes.subscribe(), feed.clone()));
    tasks.spawn(node::links::watch(Arc::clone(settings), feed.clone(), addresses_changed, stands_in.routes));
    tasks.spawn(node::ovs::watch(Arc::clone(settings), feed.clone()));
    tasks.spawn(node::namespaces::watch(Arc::clone(settings), feed.clone()));
}

/// Inode number of the agent's own network namespace.
pub(super) fn own_netns() -> Option<u32> {
    processes::netns_of("self")
}

/// What was observed last, where a re-read has to be compared with it.
#[derive(Debug, Default)]
pub(super) struct State {
    targets: Targets,
    listeners: BTreeSet<SocketAddr>,
    pub(super) host: Option<Host>,
    /// A process started that shows what the host is for.
    role_due: bool,
    reread: BTreeSet<Scope>,
    gaps: Vec<Gap>,
    /// Kubelets and runtimes that run.
    processes: watch::Sender<Watched>,
}

impl State {
    /// Keeps what is needed of an observation on its way to the engine.
    pub(super) fn note(&mut self, observation: &Observation) {
        match observation {
            Observation::ApiTarget(target) => {
                self.targets.insert(target.addr, target.name.clone());
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

    /// Was the host's role to be looked at again? Not any more.
    pub(super) fn take_role_due(&mut self) -> bool {
        std::mem::take(&mut self.role_due)
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
