//! Configuration and plugins.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::Facts;
use crate::cnis;
use crate::errno::errno_words;
use crate::limits;
use crate::observation::{
    Access, Actor, AgentSocket, CniConfig, CniEnd, CniError, CniStart, ConfAccess, ConfContent, Gap, Mono,
    NetlinkError, NetnsSeen, PluginFile, Pod, ProcessClass, Sandbox, Step, StepKind,
};
use crate::rules::winner;

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
    /// The first Unix socket of an agent that did not answer it.
    pub(crate) socket: Option<AgentSocket>,
    /// The last thing that the kernel refused it.
    pub(crate) refusal: Option<NetlinkError>,
    /// The path of the sandbox' namespace, and what it was.
    pub(crate) netns: (String, NetnsSeen),
    /// The pod that it failed for.
    pod: Option<Pod>,
    pub(crate) since: Mono,
    /// When it counts no longer, if it does not fail again.
    pub(crate) until: Mono,
}

/// Sandboxes of one pod (one UID) that were removed soon after their network was set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GivenUp {
    /// How many in a row.
    pub(crate) times: u32,
    /// `CNI_CONTAINERID` of the newest of them.
    newest: String,
    /// The longest that one of them lived, nanoseconds.
    longest_ns: u64,
    /// Since when there is one that was not removed yet.
    lives: Option<Mono>,
    pub(crate) since: Mono,
    /// When the newest was removed.
    last: Mono,
}

impl RefusedFile {
    /// Returns when it expires unless it is repeated: the runtime retries with the pod, an installer when its container
    /// restarts.
    pub(super) fn until(&self) -> Mono {
        self.last.plus(if self.file.write { limits::CONNECT_FAILURE } else { limits::SANDBOX_RETRY })
    }
}

impl Facts {
    pub(super) fn plugin_file(&mut self, at: Mono, file: PluginFile) {
        let who = &file.process;
        let what = if file.write { "replace" } else { "execute" };
        let errno = errno_words(file.errno);
        let text = format!("{}[{}] cannot {what} {}: {errno}", who.name, who.pid, file.plugin);
        self.line(at, "cni.binary", text);
        let known = self.files.get(&file.plugin);
        if self.files.len() < limits::PLUGINS || known.is_some() {
            let (since, times) = known.map_or((at, 0), |known| (known.since, known.times));
            let plugin = file.plugin.clone();
            self.files.insert(plugin, RefusedFile { file, since, last: at, times: times.saturating_add(1) });
        }
    }

    pub(super) fn configuration(&mut self, at: Mono, config: CniConfig) {
        if let Some(why) = config.denied {
            self.gap(Gap { signal: Gap::CNI_CONFIG_DENIED.to_string(), why, blind: true });
            self.config = None;
            return;
        }
        self.gaps.remove(Gap::CNI_CONFIG_DENIED);
        for file in &config.files {
            let ConfContent::Network { plugins, .. } = &file.content else { continue };
            let known = self.owners.contains_key(&file.name);
            if let Some(cni) = cnis::of_config(&file.name, plugins)
                && (known || self.owners.len() < limits::FILES)
            {
                self.owners.insert(file.name.clone(), cni);
            }
        }
        let had_files = self.config.as_ref().is_some_and(|(known, _)| !known.files.is_empty());
        if !config.files.is_empty() {
            self.config_vanished = None;
        } else if had_files {
            self.config_vanished = Some(at);
        }
        // What could not be executed was repaired.
        let known = self.config.as_ref().map(|(known, _)| &known.unusable_plugins);
        for repaired in known.into_iter().flatten().filter(|known| !config.unusable_plugins.contains(known)) {
            self.files.retain(|plugin, refused| refused.file.write || *plugin != repaired.plugin);
        }
        self.contradicted = None;
        if self.config.as_ref().is_some_and(|(known, _)| known.dir != config.dir) {
            // What was done to files of the same names in another directory.
            self.accesses.clear();
            self.config_vanished = None;
        }
        self.config = Some((config, at));
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
        self.unsure.remove(&start.pid);
        if self.ran.len() < limits::PLUGINS || self.ran.contains_key(&start.plugin) {
            self.ran.insert(start.plugin.clone(), at);
        }
        if self.running.len() < limits::RUNNING || self.running.contains_key(&start.pid) {
            let since = at.minus(start.running_ns);
            self.running.insert(start.pid, (start, since));
        }
    }

    pub(super) fn plugin(&mut self, at: Mono, end: &CniEnd) {
        self.running.remove(&end.start.pid);
        // The next try takes as long.
        let until = at.plus(limits::SANDBOX_RETRY).plus(end.took_ns);
        // Only ADD says "not ready": DEL fails and is repeated in ordinary clean-up. But while the DEL after a failed ADD
        // fails too, the kubelet may make no new sandbox for the pod: it is still tried, and no ADD shows it.
        if end.start.command != "ADD" {
            if end.start.pod.is_some() && !end.exit.success() {
                let of_pod = self.plugins.values_mut().filter(|known| known.pod == end.start.pod);
                of_pod.for_each(|known| known.until = known.until.max(until));
            }
            return;
        }
        let name = &end.start.plugin;
        if end.exit.success() {
            self.plugins.remove(name);
            self.contradict(at, end);
            return;
        }
        let spoken = end.delegates.iter().rev().find(|delegate| delegate.error.is_some());
        let error = spoken.and_then(|delegate| delegate.error.clone()).or_else(|| end.error.clone());
        // The C library and loggers try sockets that need not be there (nscd, syslog, D-Bus, systemd-resolved): it is an
        // agent's when a CNI is known to use it, or when the plugin itself names it.
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
            format!("{name}[{}] ADD{pod} exit {}: {words}", end.start.pid, end.exit.code),
        );
        if self.plugins.len() < limits::PLUGINS || self.plugins.contains_key(name) {
            self.plugins.insert(name.clone(), failure);
        }
    }

    /// A runtime that runs the plugins of a network long after its configuration was gone, or broken, reads another one.
    fn contradict(&mut self, at: Mono, end: &CniEnd) {
        let Some((config, since)) = &self.config else { return };
        let began = at.minus(end.took_ns);
        let by_runtime = end.start.parent.is_runtime() && !cnis::is_loopback(&end.start.plugin);
        let none_here = winner(config, self.host.runtime).is_none();
        if by_runtime && none_here && began >= since.plus(limits::LOAD) {
            self.contradicted = Some(end.start.plugin.clone());
        }
    }

    /// Returns whether every plugin of the network can be executed, as far as is known. One that cannot makes the ADD of the
    /// whole chain fail without a run of its own that would show it.
    fn whole_chain_runs(&self) -> bool {
        let refused = self.files.values().any(|refused| !refused.file.write);
        let config = self.config.as_ref().map(|(config, _)| config);
        let whole =
            |config: &CniConfig| config.missing_plugins.is_empty() && config.unusable_plugins.is_empty();
        !refused && config.is_none_or(whole)
    }

    /// A sandbox whose network was set up and that was removed soon after: what failed came after CNI. A failed ADD of
    /// any plugin means that CNI failed, whatever else succeeded.
    pub(super) fn sandbox(&mut self, at: Mono, sandbox: Sandbox) {
        let Some(pod) = &sandbox.pod else { return };
        let adds = || sandbox.steps.iter().filter(|step: &&Step| step.step == StepKind::Add);
        if adds().any(|step| !step.ok) || !self.whole_chain_runs() {
            self.given_up.remove(pod);
            return;
        }
        // Every runtime runs `loopback` beside the network's plugins. By itself it is not a network.
        if !adds().any(|step| !cnis::is_loopback(&step.what)) {
            return;
        }
        if self.given_up.len() >= limits::FULL && !self.given_up.contains_key(pod) {
            return;
        }
        let known = self.given_up.entry(pod.clone()).or_insert_with(|| GivenUp {
            times: 0,
            newest: String::new(),
            longest_ns: 0,
            lives: None,
            since: at,
            last: at,
        });
        let removed = sandbox.steps.iter().any(|step| step.step == StepKind::Del && step.ok);
        if !removed {
            known.lives = Some(at);
        } else if known.newest != sandbox.container_id {
            known.lives = None;
            known.last = at;
            known.newest = sandbox.container_id;
            if sandbox.took_ns < limits::GIVEN_UP {
                known.times = known.times.saturating_add(1);
                known.longest_ns = known.longest_ns.max(sandbox.took_ns);
            } else {
                known.times = 0;
            }
        }
    }

    /// How long a sandbox must live to count as one that works: longer than any that was removed.
    fn sandbox_works_after(&self) -> u64 {
        let longest = self.given_up.values().map(|known| known.longest_ns).max().unwrap_or_default();
        limits::SANDBOX_WORKS.max(longest.saturating_add(limits::SANDBOX_WORKS / 2))
    }

    /// Since when the newest sandbox that works lives.
    fn newest_working(&self) -> Option<Mono> {
        let after = self.sandbox_works_after();
        let lives = self.given_up.values().filter_map(|known| known.lives);
        lives.filter(|since| self.now.since(*since) >= after).max()
    }

    /// Pods whose sandboxes are removed repeatedly, in no order that means anything. A sandbox that works, of any pod,
    /// ends the evidence of those before it, and so does a pod that is not tried again.
    pub(crate) fn sandboxes_given_up(&self) -> impl Iterator<Item = (&Pod, &GivenUp)> {
        let working = self.newest_working();
        self.given_up.iter().filter(move |(_, known)| self.sandbox_counts(known, working))
    }

    fn sandbox_counts(&self, known: &GivenUp, working: Option<Mono>) -> bool {
        let tried = known.lives.is_some() || self.now.since(known.last) < limits::SANDBOX_RETRY;
        tried && working.is_none_or(|working| known.last > working)
    }

    pub(super) fn expire_sandboxes(&mut self) {
        let working = self.newest_working();
        let counts: Vec<_> =
            self.given_up.values().map(|known| self.sandbox_counts(known, working)).collect();
        let mut counts = counts.into_iter();
        self.given_up.retain(|_, _| counts.next().unwrap_or_default());
    }

    pub(super) fn sandbox_deadlines(&self) -> impl Iterator<Item = Mono> {
        let after = self.sandbox_works_after();
        self.given_up.values().map(move |known| match known.lives {
            Some(since) => since.plus(after),
            None => known.last.plus(limits::SANDBOX_RETRY),
        })
    }

    /// How long a plugin may run.
    pub(crate) fn plugin_limit(&self, plugin: &str) -> u64 {
        self.plugin_limit_ns.unwrap_or_else(|| {
            let known = cnis::of_plugin(plugin).filter(|cni| cni.plugin_limit_s > 0);
            known.map_or(limits::PLUGIN_RUN, |cni| cni.plugin_limit_s * limits::SECOND)
        })
    }
}
