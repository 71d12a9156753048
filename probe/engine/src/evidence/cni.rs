//! Configuration and plugins.

use alloc::format;
use alloc::string::{String, ToString as _};

use super::Facts;
use crate::limits;
use crate::observation::{
    Access, Actor, AgentSocket, CniEnd, CniError, CniStart, ConfAccess, Mono, NetlinkError, NetnsSeen,
    PluginFile, ProcessClass,
};

/// What was done to one configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accesses {
    pub(crate) changed: Option<(Mono, Access, Actor)>,
    /// By the runtime.
    pub(crate) opened: Option<Mono>,
}

/// Tries to execute or to replace a plugin that were refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefusedFile {
    /// The newest.
    pub(crate) file: PluginFile,
    pub(crate) since: Mono,
    pub(crate) last: Mono,
    pub(crate) times: u32,
}

/// The newest failed ADD of one plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PluginFailure {
    /// The plugin that spoke: the deepest delegate that failed, or the plugin itself.
    pub(crate) speaker: String,
    pub(crate) error: Option<CniError>,
    pub(crate) code: u8,
    pub(crate) signal: u8,
    /// The first Unix socket that did not answer it.
    pub(crate) socket: Option<AgentSocket>,
    /// The last thing that the kernel refused it.
    pub(crate) refusal: Option<NetlinkError>,
    /// The path of the sandbox' namespace, and what it was.
    pub(crate) netns: (String, NetnsSeen),
    pub(crate) since: Mono,
    pub(crate) last: Mono,
}

impl Facts {
    pub(super) fn plugin_file(&mut self, at: Mono, file: PluginFile) {
        let who = &file.process;
        let what = if file.write { "replace" } else { "execute" };
        let text = format!("{}[{}] cannot {what} {}: errno {}", who.name, who.pid, file.plugin, file.errno);
        self.line(at, "cni.binary", text);
        let known = self.files.get(&file.plugin);
        if self.files.len() < limits::PLUGINS || known.is_some() {
            let (since, times) = known.map_or((at, 0), |known| (known.since, known.times));
            let plugin = file.plugin.clone();
            self.files.insert(plugin, RefusedFile { file, since, last: at, times: times.saturating_add(1) });
        }
    }

    pub(super) fn access(&mut self, at: Mono, access: ConfAccess) {
        let ConfAccess { process, class, file, access } = access;
        if self.accesses.len() >= limits::FILES && !self.accesses.contains_key(&file) {
            return;
        }
        let known = self.accesses.entry(file.clone()).or_default();
        match access {
            Access::Opened => {
                if class == Some(ProcessClass::Runtime) {
                    known.opened = Some(at);
                }
                return;
            }
            _ => known.changed = Some((at, access, process.clone())),
        }
        let what = match access {
            Access::Opened | Access::Written => "wrote",
            Access::Created => "created",
            Access::Removed => "removed",
            Access::RenamedFrom => "renamed away",
            Access::RenamedTo => "renamed into place",
            Access::DirectoryReplaced => "replaced the directory",
        };
        self.line(at, "cni.config", format!("{}[{}] {what} {file}", process.name, process.pid));
    }

    pub(super) fn plugin_started(&mut self, at: Mono, start: CniStart) {
        // It runs: what could not be executed can be.
        self.files.retain(|plugin, refused| refused.file.write || *plugin != start.plugin);
        if self.running.len() < limits::RUNNING {
            self.running.insert(start.pid, (start, at));
        }
    }

    pub(super) fn plugin(&mut self, at: Mono, end: &CniEnd) {
        self.running.remove(&end.start.pid);
        // Only ADD says "not ready": DEL fails and is repeated in ordinary clean-up.
        if end.start.command != "ADD" {
            return;
        }
        let name = &end.start.plugin;
        if end.exit.success() {
            self.plugins.remove(name);
            return;
        }
        let spoken = end.delegates.iter().rev().find(|delegate| delegate.error.is_some());
        let failure = PluginFailure {
            speaker: spoken.map_or_else(|| name.clone(), |delegate| delegate.plugin.clone()),
            error: spoken.and_then(|delegate| delegate.error.clone()).or_else(|| end.error.clone()),
            code: end.exit.code,
            signal: end.exit.signal,
            refusal: end.refusals.last().cloned(),
            netns: (end.start.netns.clone(), end.start.netns_seen),
            socket: end.sockets.iter().find(|socket| socket.errno != 0).cloned(),
            since: self.plugins.get(name).map_or(at, |known| known.since),
            last: at,
        };
        let pod = end
            .start
            .pod
            .as_ref()
            .map(|pod| format!(" for {}/{}", pod.namespace, pod.name))
            .unwrap_or_default();
        let words =
            failure.error.as_ref().map_or_else(|| "no error object".to_string(), |error| error.msg.clone());
        self.line(
            at,
            "cni.exec",
            format!("{name}[{}] ADD{pod} exit {}: {words}", end.start.pid, end.exit.code),
        );
        if self.plugins.len() < limits::PLUGINS || self.plugins.contains_key(name) {
            self.plugins.insert(name.clone(), failure);
        }
    }

    /// How long a plugin may run.
    pub(crate) fn plugin_limit(&self, plugin: &str) -> u64 {
        self.plugin_limit_ns.unwrap_or_else(|| {
            let known = limits::PLUGIN_RUNS.iter().find(|(name, _)| *name == plugin);
            known.map_or(limits::PLUGIN_RUN, |(_, limit)| *limit)
        })
    }
}
