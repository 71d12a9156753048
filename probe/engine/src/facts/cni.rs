//! CNI configuration and plugins.

use alloc::format;
use alloc::string::{String, ToString as _};

use super::Facts;
use crate::cnis;
use crate::errno::errno_words;
use crate::limits;
use crate::memory::Memory;
use crate::observation::{
    Access, Actor, AgentSocket, BootTime, CniConfig, CniEnd, CniError, CniStart, ConfAccess, ConfContent,
    Gap, NetlinkError, NetnsSeen, PluginFile, Pod, ProcessClass, Sandbox, Step, StepKind,
};
use crate::rules::winner;

/// Accesses to one configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accesses {
    pub(crate) changed: Option<(BootTime, Access, Actor)>,
    /// When the runtime last opened it.
    pub(crate) opened: Option<BootTime>,
}

/// Refused attempts to execute or to replace a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefusedFile {
    /// The newest attempt.
    pub(crate) file: PluginFile,
    pub(crate) since: BootTime,
    pub(crate) last: BootTime,
    pub(crate) times: u32,
}

/// The newest failed ADD of one plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PluginFailure {
    /// The plugin that reported the error: the deepest delegate that failed, or the plugin itself.
    pub(crate) speaker: String,
    pub(crate) error: Option<CniError>,
    pub(crate) code: u8,
    pub(crate) signal: u8,
    /// The first Unix socket of an agent that did not answer the plugin.
    pub(crate) socket: Option<AgentSocket>,
    /// The last request of the plugin that the kernel refused.
    pub(crate) refusal: Option<NetlinkError>,
    /// The path of the sandbox's network namespace, and what was found there.
    pub(crate) netns: (String, NetnsSeen),
    /// The pod for which it failed.
    pod: Option<Pod>,
    pub(crate) since: BootTime,
    /// When it expires unless it fails again.
    pub(crate) until: BootTime,
}

/// A plugin that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunningPlugin {
    pub(crate) start: CniStart,
    pub(crate) since: BootTime,
    /// How long it may run, nanoseconds.
    pub(crate) limit_ns: u64,
}

impl Memory for RunningPlugin {
    fn deadlines(&self, _now: BootTime, at: &mut dyn FnMut(BootTime)) {
        at(self.since.plus(limits::WAITS));
        at(self.since.plus(self.limit_ns));
    }
}

impl Memory for Accesses {
    fn deadlines(&self, _now: BootTime, at: &mut dyn FnMut(BootTime)) {
        self.changed.iter().for_each(|(changed, ..)| at(changed.plus(limits::LOAD)));
    }
}

impl Memory for PluginFailure {
    fn until(&self) -> Option<BootTime> {
        Some(self.until)
    }
}

impl Memory for RefusedFile {
    /// The runtime retries with the pod, an installer when its container restarts.
    fn until(&self) -> Option<BootTime> {
        let lifetime = if self.file.write { limits::CONNECT_FAILURE } else { limits::SANDBOX_RETRY };
        Some(self.last.plus(lifetime))
    }
}

impl Facts {
    pub(super) fn plugin_file(&mut self, at: BootTime, file: PluginFile) {
        let what = if file.write { "replace" } else { "execute" };
        let (who, errno) = (file.process.with_pid(), errno_words(file.errno));
        let text = format!("{who} cannot {what} the plugin {} ({errno})", file.plugin);
        self.line(at, "cni.binary", text);
        let known = self.files.get(&file.plugin);
        let (since, times) = known.map_or((at, 0), |known| (known.since, known.times));
        let plugin = file.plugin.clone();
        self.files.put(plugin, RefusedFile { file, since, last: at, times: times.saturating_add(1) });
    }

    pub(super) fn configuration(&mut self, at: BootTime, config: CniConfig) {
        if let Some(why) = config.denied {
            self.gap(Gap { signal: Gap::CNI_CONFIG_DENIED.to_string(), why, blind: true });
            self.config = None;
            return;
        }
        self.gaps.remove(Gap::CNI_CONFIG_DENIED);
        for file in &config.files {
            let ConfContent::Network { plugins, .. } = &file.content else { continue };
            if let Some(cni) = cnis::of_config(&file.name, plugins) {
                self.owners.put(file.name.clone(), cni);
            }
        }
        let had_files = self.config.as_ref().is_some_and(|(known, _)| !known.files.is_empty());
        if !config.files.is_empty() {
            self.config_vanished = None;
        } else if had_files {
            self.config_vanished = Some(at);
        }
        // Plugins that could not be executed may have been repaired.
        let known = self.config.as_ref().map(|(known, _)| &known.unusable_plugins);
        for repaired in known.into_iter().flatten().filter(|known| !config.unusable_plugins.contains(known)) {
            self.files.retain(|plugin, refused| refused.file.write || *plugin != repaired.plugin);
        }
        self.contradicted = None;
        if self.config.as_ref().is_some_and(|(known, _)| known.dir != config.dir) {
            // They concern files of the same names in another directory.
            self.accesses.clear();
            self.config_vanished = None;
        }
        self.config = Some((config, at));
    }

    pub(super) fn access(&mut self, at: BootTime, access: ConfAccess) {
        let ConfAccess { process, class, file, access } = access;
        let Some(known) = self.accesses.get_or_insert_with(file.clone(), Accesses::default) else { return };
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
            Access::RenamedFrom => "renamed",
            Access::RenamedTo => "renamed into place",
            Access::DirectoryReplaced => "removed or renamed the directory",
        };
        self.line(at, "cni.config", format!("{} {what} {file}", process.with_pid()));
    }

    /// Takes the start of a plugin. Returns whether it may change the judgement.
    pub(super) fn plugin_started(&mut self, at: BootTime, start: CniStart) -> bool {
        // One that runs for too long is reported by its deadline.
        let is_news =
            start.running_ns > 0 || self.running.contains_key(&start.pid) || self.is_suspect(&start.plugin);
        // It runs, so its file can be executed.
        self.files.retain(|plugin, refused| refused.file.write || *plugin != start.plugin);
        self.unsure.remove(&start.pid);
        self.ran.put(start.plugin.clone(), at);
        let (since, limit_ns) = (at.minus(start.running_ns), self.plugin_limit(&start.plugin));
        self.running.put(start.pid, RunningPlugin { start, since, limit_ns });
        is_news
    }

    /// Returns whether something shows that the plugin cannot run.
    fn is_suspect(&self, plugin: &str) -> bool {
        let of_config = self.config.as_ref().is_some_and(|(config, _)| {
            let unusable = config.unusable_plugins.iter().map(|unusable| &unusable.plugin);
            config.missing_plugins.iter().chain(unusable).any(|known| known == plugin)
        });
        of_config || self.files.contains_key(plugin)
    }

    /// Takes the exit of a plugin. Returns whether it may change the judgement.
    pub(super) fn plugin(&mut self, at: BootTime, end: &CniEnd) -> bool {
        let ran = self.running.remove(&end.start.pid);
        // The verdict may have said that it waits.
        let was_late = ran.is_some_and(|ran| at.since(ran.since) >= limits::WAITS);
        // The next attempt takes as long.
        let until = at.plus(limits::SANDBOX_RETRY).plus(end.took_ns);
        // Only a failed ADD is a fault: DEL fails and is repeated during normal clean-up. But while the DEL after a failed ADD
        // fails too, the kubelet may create no new sandbox for the pod: the pod is still being retried although no ADD shows it.
        if end.start.command != "ADD" {
            if end.start.pod.is_some() && !end.exit.success() {
                let of_pod = self.plugins.values_mut().filter(|known| known.pod == end.start.pod);
                of_pod.for_each(|known| known.until = known.until.max(until));
            }
            return was_late;
        }
        let name = &end.start.plugin;
        if end.exit.success() {
            let failed_before = self.plugins.remove(name).is_some();
            self.contradict(at, end);
            // Without a configuration no plugin should run.
            return was_late || failed_before || !self.has_network();
        }
        let spoken = end.delegates.iter().rev().find(|delegate| delegate.error.is_some());
        let error = spoken.and_then(|delegate| delegate.error.clone()).or_else(|| end.error.clone());
        // The C library and loggers try sockets that need not exist (nscd, syslog, D-Bus, systemd-resolved). A socket belongs
        // to the agent if the CNI is known to use it or the plugin's error names it.
        let is_agents = |path: &str| {
            let is_named = |error: &CniError| error.msg.contains(path) || error.details.contains(path);
            cnis::of_socket(path).is_some() || error.as_ref().is_some_and(is_named)
        };
        let failure = PluginFailure {
            speaker: spoken.map_or_else(|| name.clone(), |delegate| delegate.plugin.clone()),
            error: error.clone(),
            code: end.exit.code,
            signal: end.exit.signal,
            refusal: end.refusals.last().cloned(),
            netns: (end.start.netns.clone(), end.start.netns_seen),
            socket: end.sockets.iter().find(|socket| socket.errno != 0 && is_agents(&socket.path)).cloned(),
            since: self.plugins.get(name).map_or(at, |known| known.since),
            pod: end.start.pod.clone(),
            until,
        };
        let pod = end.start.pod.as_ref().map(|pod| format!(" for {pod}")).unwrap_or_default();
        let words =
            failure.error.as_ref().map_or_else(|| "no error object".to_string(), |error| error.msg.clone());
        self.line(
            at,
            "cni.exec",
            format!("{name}[{}] ADD{pod} {}: {words}", end.start.pid, end.exit.words()),
        );
        self.plugins.put(name.clone(), failure);
        true
    }

    fn has_network(&self) -> bool {
        self.config.as_ref().is_some_and(|(config, _)| winner(config, self.host.runtime).is_some())
    }

    /// Notes that the runtime reads another directory: it runs network plugins long after the configuration here was removed or
    /// became invalid.
    fn contradict(&mut self, at: BootTime, end: &CniEnd) {
        let Some((config, since)) = &self.config else { return };
        let began = at.minus(end.took_ns);
        let by_runtime = end.start.parent.is_runtime() && !cnis::is_loopback(&end.start.plugin);
        let none_here = winner(config, self.host.runtime).is_none();
        if by_runtime && none_here && began >= since.plus(limits::LOAD) {
            self.contradicted = Some(end.start.plugin.clone());
        }
    }

    /// Returns whether, as far as is known, every plugin of the network can be executed. One that cannot makes the ADD of the
    /// whole chain fail without an execution that would show it.
    fn whole_chain_runs(&self) -> bool {
        let refused = self.files.values().any(|refused| !refused.file.write);
        let config = self.config.as_ref().map(|(config, _)| config);
        let whole =
            |config: &CniConfig| config.missing_plugins.is_empty() && config.unusable_plugins.is_empty();
        !refused && config.is_none_or(whole)
    }

    /// Takes a sandbox whose setup or teardown has completed. A failed ADD of any plugin means that CNI failed, whatever else
    /// succeeded.
    pub(super) fn sandbox(&mut self, at: BootTime, sandbox: &Sandbox) {
        let Some(pod) = &sandbox.pod else { return };
        let adds = || sandbox.steps.iter().filter(|step: &&Step| step.step == StepKind::Add);
        if adds().any(|step| !step.ok) || !self.whole_chain_runs() {
            self.sandboxes.forget(pod);
            return;
        }
        // Every runtime runs `loopback` beside the network's plugins. By itself it is not a network.
        if adds().any(|step| !cnis::is_loopback(&step.what)) {
            self.sandboxes.take(at, pod, sandbox);
        }
    }

    /// Returns how long a plugin may run, nanoseconds.
    fn plugin_limit(&self, plugin: &str) -> u64 {
        self.plugin_limit_ns.unwrap_or_else(|| {
            let known = cnis::of_plugin(plugin).filter(|cni| cni.plugin_limit_s > 0);
            known.map_or(limits::PLUGIN_RUN, |cni| cni.plugin_limit_s * limits::SECOND)
        })
    }
}
