//! Names and roles of processes, by process ID.

use std::collections::BTreeMap;
use std::sync::Arc;

use probe_common::{Task, text};
use probe_engine::{Actor, ClientRole, ProcessClass};

use super::NAME_MAX;
use crate::node::processes::{client_role, executable};
use crate::node::provenance;
use crate::settings::Settings;
use crate::text::clean;

/// Maximum number of processes whose names are cached; beyond that the cache is cleared.
const CACHED: usize = 4096;

/// The process that did something.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// Process ID and name.
    pub(crate) actor: Actor,
    /// Its class, if it is trusted.
    pub(crate) class: Option<ProcessClass>,
    /// Its role as a client of the API server.
    pub(crate) role: ClientRole,
}

/// Known processes.
pub(crate) struct Clients {
    settings: Arc<Settings>,
    /// Cache by process ID, with the kernel's name of the process and its user at that time: if they differ, the process runs
    /// another program.
    cache: BTreeMap<u32, ([u8; 16], u32, Client)>,
    /// Watched processes, needed to report their exit, when they no longer exist in `/proc`.
    watched: BTreeMap<u32, (Actor, ProcessClass)>,
}

impl Clients {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        Self { settings, cache: BTreeMap::new(), watched: BTreeMap::new() }
    }

    /// Returns the process of a record. Reads `/proc` once for each process.
    pub(super) fn find(&mut self, task: &Task) -> Client {
        if let Some((comm, uid, client)) = self.cache.get(&task.tgid)
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
        if self.cache.len() >= CACHED {
            self.cache.clear();
        }
        self.cache.insert(task.tgid, (task.comm, task.uid, client.clone()));
        client
    }

    /// Returns the name of any process, by its ID.
    pub(super) fn name_of(&self, pid: u32) -> Actor {
        if let Some((actor, _)) = self.watched.get(&pid) {
            return actor.clone();
        }
        Actor { pid, name: executable(pid).unwrap_or_default() }
    }

    /// Takes the execution of a program under a watched name. Returns `None` if the executable has another name, or if the process
    /// is not trusted.
    pub(super) fn executed(&mut self, task: &Task, path: &[u8]) -> Option<(Actor, ProcessClass)> {
        self.cache.remove(&task.tgid);
        let base = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let name = executable(task.tgid).unwrap_or_else(|| clean(base, NAME_MAX));
        let class = provenance::class_of_task(&self.settings, task, &name)
            .or_else(|| provenance::class_of_task(&self.settings, task, &clean(base, NAME_MAX)))?;
        let actor = Actor { pid: task.tgid, name };
        self.found(actor.clone(), class);
        Some((actor, class))
    }

    /// Adds a watched process that was already running.
    pub(crate) fn found(&mut self, actor: Actor, class: ProcessClass) {
        if self.watched.len() >= CACHED {
            self.watched.clear();
        }
        // Its cached class is outdated if the process was not trusted until now.
        self.cache.remove(&actor.pid);
        self.watched.insert(actor.pid, (actor, class));
    }

    /// Returns a watched process by its ID.
    pub(super) fn watched_by(&self, pid: u32) -> Option<(Actor, ProcessClass)> {
        self.watched.get(&pid).cloned()
    }

    /// Returns the watched processes whose exit has not been reported.
    pub(crate) fn watched(&self) -> impl Iterator<Item = &(Actor, ProcessClass)> {
        self.watched.values()
    }

    /// Removes a process that has exited; returns it if it was watched.
    pub(crate) fn exited(&mut self, pid: u32) -> Option<(Actor, ProcessClass)> {
        self.cache.remove(&pid);
        self.watched.remove(&pid)
    }
}
