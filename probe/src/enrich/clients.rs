//! Names and roles for process ids.

use std::collections::BTreeMap;

use probe_common::{Task, text};
use probe_engine::{Actor, ClientRole, ProcessClass};

use super::NAME_MAX;
use crate::node::processes::{self, executable};
use crate::text::clean;

/// Most process ids whose names are kept; beyond that all are looked up anew.
const CACHED: usize = 4096;

/// Who did something.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// Process id and name.
    pub(crate) actor: Actor,
    /// What it is.
    pub(crate) role: ClientRole,
}

/// What is known of processes.
pub(crate) struct Clients {
    own_pid: u32,
    /// By process id, with the kernel's name at that time: a changed name means another program.
    seen: BTreeMap<u32, ([u8; 16], Client)>,
    /// Watched processes, for the report of their end, when `/proc` has forgotten them.
    watched: BTreeMap<u32, (Actor, ProcessClass)>,
}

impl Clients {
    pub(super) fn new(own_pid: u32) -> Self {
        Self { own_pid, seen: BTreeMap::new(), watched: BTreeMap::new() }
    }

    /// The task of a record. Looks into `/proc` once for each process.
    pub(super) fn find(&mut self, task: &Task) -> Client {
        if let Some((comm, client)) = self.seen.get(&task.tgid)
            && *comm == task.comm
        {
            return client.clone();
        }
        let name = executable(task.tgid).unwrap_or_else(|| clean(text(&task.comm), NAME_MAX));
        let role = if task.tgid == self.own_pid {
            ClientRole::Probe
        } else {
            processes::classify(&name).map_or(ClientRole::Other, processes::client_role)
        };
        let client = Client { actor: Actor { pid: task.tgid, name }, role };
        if self.seen.len() >= CACHED {
            self.seen.clear();
        }
        self.seen.insert(task.tgid, (task.comm, client.clone()));
        client
    }

    /// Any process, by its id alone.
    pub(super) fn name_of(&self, pid: u32) -> Actor {
        if let Some((actor, _)) = self.watched.get(&pid) {
            return actor.clone();
        }
        Actor { pid, name: executable(pid).unwrap_or_default() }
    }

    /// A watched name was executed; `None` when the executable's real name is another one.
    pub(super) fn executed(&mut self, task: &Task, path: &[u8]) -> Option<(Actor, ProcessClass)> {
        self.seen.remove(&task.tgid);
        let base = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let name = executable(task.tgid).unwrap_or_else(|| clean(base, NAME_MAX));
        let class = processes::classify(&name).or_else(|| processes::classify(&clean(base, NAME_MAX)))?;
        let actor = Actor { pid: task.tgid, name };
        self.found(actor.clone(), class);
        Some((actor, class))
    }

    /// A watched process that was there already.
    pub(crate) fn found(&mut self, actor: Actor, class: ProcessClass) {
        if self.watched.len() >= CACHED {
            self.watched.clear();
        }
        self.watched.insert(actor.pid, (actor, class));
    }

    /// A watched process by its id.
    pub(super) fn watched_by(&self, pid: u32) -> Option<(Actor, ProcessClass)> {
        self.watched.get(&pid).cloned()
    }

    /// The watched processes that are thought to be alive.
    pub(crate) fn watched(&self) -> impl Iterator<Item = &(Actor, ProcessClass)> {
        self.watched.values()
    }

    /// A watched process ended.
    pub(crate) fn exited(&mut self, pid: u32) -> Option<(Actor, ProcessClass)> {
        self.seen.remove(&pid);
        self.watched.remove(&pid)
    }
}
