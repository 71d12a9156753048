//! Names and roles for process ids.

use std::collections::BTreeMap;
use std::sync::Arc;

use probe_common::{Task, text};
use probe_engine::{Actor, ClientRole, ProcessClass};

use super::NAME_MAX;
use crate::node::processes::{client_role, executable};
use crate::node::provenance;
use crate::settings::Settings;
use crate::text::clean;

/// Most process ids whose names are kept; beyond that all are looked up anew.
const CACHED: usize = 4096;

/// Who did something.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// Process id and name.
    pub(crate) actor: Actor,
    /// Its class, if it is trusted.
    pub(crate) class: Option<ProcessClass>,
    /// Its role as a client of the API server.
    pub(crate) role: ClientRole,
}

/// What is known of processes.
pub(crate) struct Clients {
    settings: Arc<Settings>,
    /// By process ID, with the kernel's name and the user at that time: if they differ, it is another program.
    seen: BTreeMap<u32, ([u8; 16], u32, Client)>,
    /// Watched processes, for the report of their end, when `/proc` has forgotten them.
    watched: BTreeMap<u32, (Actor, ProcessClass)>,
}

impl Clients {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        Self { settings, seen: BTreeMap::new(), watched: BTreeMap::new() }
    }

    /// The task of a record. Looks into `/proc` once for each process.
    pub(super) fn find(&mut self, task: &Task) -> Client {
        if let Some((comm, uid, client)) = self.seen.get(&task.tgid)
            && (*comm, *uid) == (task.comm, task.uid)
        {
            return client.clone();
        }
        let name = executable(task.tgid).unwrap_or_else(|| clean(text(&task.comm), NAME_MAX));
        let watched = self.watched.get(&task.tgid).filter(|(actor, _)| actor.name == name);
        let (class, role) = match watched {
            Some((_, class)) => (Some(*class), client_role(*class)),
            None => provenance::of_task(&self.settings, task, &name),
        };
        let client = Client { actor: Actor { pid: task.tgid, name }, class, role };
        if self.seen.len() >= CACHED {
            self.seen.clear();
        }
        self.seen.insert(task.tgid, (task.comm, task.uid, client.clone()));
        client
    }

    /// Any process, by its id alone.
    pub(super) fn name_of(&self, pid: u32) -> Actor {
        if let Some((actor, _)) = self.watched.get(&pid) {
            return actor.clone();
        }
        Actor { pid, name: executable(pid).unwrap_or_default() }
    }

    /// Takes the execution of a watched name; `None` if the executable's real name is another one, and if the process is
    /// untrusted.
    pub(super) fn executed(&mut self, task: &Task, path: &[u8]) -> Option<(Actor, ProcessClass)> {
        self.seen.remove(&task.tgid);
        let base = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let name = executable(task.tgid).unwrap_or_else(|| clean(base, NAME_MAX));
        let class = provenance::class_of_task(&self.settings, task, &name)
            .or_else(|| provenance::class_of_task(&self.settings, task, &clean(base, NAME_MAX)))?;
        let actor = Actor { pid: task.tgid, name };
        self.found(actor.clone(), class);
        Some((actor, class))
    }

    /// A watched process that was there already.
    pub(crate) fn found(&mut self, actor: Actor, class: ProcessClass) {
        if self.watched.len() >= CACHED {
            self.watched.clear();
        }
        // It may have been untrusted until now.
        self.seen.remove(&actor.pid);
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
