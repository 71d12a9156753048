//! Converts the kernel's records to observations: adds the names of processes, and assembles CNI operations. It adds what the
//! kernel programs do not know, and draws no conclusions.

mod clients;
mod cni;
mod connects;
mod environ;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod modules;
mod rtnetlink;
mod sandbox;

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use probe_common::{CniExec, Drops, Event, FileRefused, LimitHit, Rtnetlink, text};
use probe_engine::{
    Actor, BootTime, CniStart, DeniedBy, ExitStatus, Listener, ModuleMissing, Netns, Observation,
    PacketsDropped, PluginFile, Process, ProcessClass, ProcessEvent, SocketConnect,
};

use crate::node::{namespaces, processes, provenance};
use crate::settings::Settings;
use crate::text::clean;
use clients::Client;
pub(crate) use clients::Clients;
use cni::CniRuns;
use connects::EarlyErrors;
pub(crate) use environ::running_plugin;
use modules::Modules;
pub(crate) use sandbox::Sandboxes;

/// Returns what prevents root from executing the file at `path`; `None` if the file can no longer be examined.
fn denied_by(path: &Path) -> Option<DeniedBy> {
    if fs::metadata(path).ok()?.mode() & 0o111 == 0 {
        return Some(DeniedBy::Mode);
    }
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: all-zero bytes are a valid `statvfs`.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is NUL-terminated; `stat` is live and has the type that the call fills.
    let result = unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) };
    let noexec = stat.f_flag & libc::ST_NOEXEC != 0;
    (result == 0).then_some(if noexec { DeniedBy::Mount } else { DeniedBy::SecurityModule })
}

/// Maximum length of a name, bytes. Names of executables may have 255 (the kernel's `NAME_MAX`).
const NAME_MAX: usize = 64;
/// Maximum length of a path or another value of a CNI variable, bytes.
const VALUE_MAX: usize = 256;

/// How the kernel reports the packets that it drops.
#[derive(Clone, Debug, Default)]
pub(crate) struct DropReasons {
    /// Names of the drop reasons, by the kernel's numbers.
    pub(crate) names: BTreeMap<u32, String>,
    /// The kernel reports no reasons, and reports a retransmission only if the segment could be sent (before 5.17): a connect
    /// without a response and without a retransmission was dropped on this host.
    pub(crate) by_silence: bool,
}

/// Converter of records, with its state.
pub(crate) struct Enricher {
    /// The host's network namespace, which is the agent's own; 0 if it is not known.
    host_netns: u32,
    clients: Clients,
    cni: CniRuns,
    early: EarlyErrors,
    modules: Modules,
    drops: DropReasons,
    settings: Arc<Settings>,
    /// Processes that were executed under a watched name, when, and whether they are components of the node, since the last
    /// call of [`Enricher::take_identified`].
    identified: Vec<(u32, u64, bool)>,
}

impl Enricher {
    /// Creates a converter. `host_netns` and `drops` are those of this host.
    pub(crate) fn new(host_netns: u32, drops: DropReasons, settings: Arc<Settings>) -> Self {
        Self {
            host_netns,
            clients: Clients::new(Arc::clone(&settings)),
            cni: CniRuns::default(),
            early: EarlyErrors::default(),
            modules: Modules::default(),
            drops,
            settings,
            identified: Vec::new(),
        }
    }

    /// Returns which processes were executed under a watched name, when, and whether they are components of the node.
    pub(crate) fn take_identified(&mut self) -> Vec<(u32, u64, bool)> {
        std::mem::take(&mut self.identified)
    }

    /// Returns the known processes, to add or remove those that were found without a record.
    pub(crate) fn clients(&mut self) -> &mut Clients {
        &mut self.clients
    }

    /// Returns requested modules that were not loaded in time, and reported ones that have been loaded since.
    pub(crate) fn missing_modules(&mut self, now: BootTime) -> Vec<ModuleMissing> {
        self.modules.missing(now)
    }

    /// Returns the CNI processes that have exited although no record reported it.
    pub(crate) fn dead_runs(&self) -> Vec<u32> {
        self.cni.dead(|pid| processes::stat(pid).map(|stat| stat.started))
    }

    /// Drops CNI processes that have exited without a record.
    pub(crate) fn forget_runs(&mut self, pids: &[u32]) {
        self.cni.forget(pids);
    }

    /// Adds a CNI process whose execution was not observed.
    pub(crate) fn found_plugin(&mut self, record: &CniExec) {
        self.plugin_started(*record);
    }

    /// Returns the CNI operations in progress.
    pub(crate) fn running_plugins(&self, now: BootTime) -> Vec<CniStart> {
        self.cni.running(now)
    }

    /// Converts a record to any number of observations, and passes them to `emit`.
    pub(crate) fn event(&mut self, event: &Event<'_>, mut emit: impl FnMut(BootTime, Observation)) {
        let at = BootTime(event.at_ns());
        match event {
            Event::ConnectEnd(record) => {
                self.early.ended(record);
                let client = self.clients.find(&record.task);
                emit(at, connects::ended(record, client, self.is_host(record.task.netns), &self.drops));
            }
            Event::ConnectError(record) => {
                if self.early.is_new(record) {
                    let client = self.clients.find(&record.task);
                    emit(at, connects::failed(record, client, self.is_host(record.task.netns)));
                }
            }
            Event::ConnectionEnd(record) => {
                let client = self.clients.find(&record.task);
                emit(at, connects::connection_ended(record, client, self.is_host(record.task.netns)));
            }
            Event::UnixConnect(record) if record.cni != 0 => self.cni.connected(record),
            Event::UnixConnect(record) => {
                if let Some((client, class)) = self.clients.watched_by(record.task.tgid) {
                    let path = connects::socket_path(record);
                    let errno = record.errno;
                    emit(at, Observation::SocketConnect(SocketConnect { client, class, path, errno }));
                }
            }
            // Another node may run on the same kernel, as for executions below.
            Event::LimitHit(record) if !self.is_host(record.task.netns) => {}
            Event::ModuleRequest(record)
                if record.task.uid != 0
                    || !self.is_host(record.task.netns) && !self.cni.contains(record.task.tgid) => {}
            Event::LimitHit(record) => {
                let Client { actor: process, class, .. } = self.clients.find(&record.task);
                let what = if record.what == LimitHit::INOTIFY { "inotify" } else { "processes" }.to_owned();
                let hit = probe_engine::LimitHit { process, class, what, errno: record.errno };
                emit(at, Observation::LimitHit(hit));
            }
            Event::ModuleRequest(record) => {
                let process = self.clients.find(&record.task).actor;
                self.modules.requested(at, clean(text(&record.name), NAME_MAX), process);
            }
            // A container runtime executes plugins in the host's namespace; an installer may write them from a pod.
            Event::FileRefused(record) if record.write == 0 && !self.is_host(record.task.netns) => {}
            Event::FileRefused(record) => emit_some(at, self.file_refused(record), emit),
            Event::Drops(record) if self.is_host(record.netns) => {
                emit(at, Observation::PacketsDropped(self.dropped(record)));
            }
            Event::Drops(_) => {}
            Event::Rtnetlink(record) => self.rtnetlink(at, record, emit),
            Event::Listen(record) => emit(
                at,
                Observation::Listener(Listener {
                    local: SocketAddr::new(address(record.family, record.addr), record.port),
                    up: record.up == 1,
                    process: self.clients.find(&record.task).actor,
                    host_netns: self.is_host(record.task.netns),
                }),
            ),
            // Container runtimes start plugins in the host's namespace; those of another node (kind, for example) may run on
            // the same kernel.
            Event::CniExec(record) if !self.is_host(record.task.netns) => {}
            Event::CniExec(record) => emit_some(at, self.plugin_started(*record), emit),
            Event::ProcessExec(record) => {
                let is_host = self.is_host(record.task.netns);
                let executed = is_host.then(|| self.clients.executed(&record.task, text(&record.path)));
                let executed = executed.flatten();
                self.identified.push((record.task.tgid, at.0, executed.is_some()));
                if let Some((actor, class)) = executed {
                    emit(
                        at,
                        Observation::Process(Process { process: actor, class, event: ProcessEvent::Started }),
                    );
                }
            }
            Event::Stdout { task, data, .. } => self.cni.wrote(task.tgid, data),
            Event::Exit(record) if record.cni != 0 => {
                if let Some(end) = self.cni.exited(record) {
                    emit(at, Observation::CniEnd(end));
                }
            }
            Event::Exit(record) => {
                if let Some((process, class)) = self.clients.exited(record.task.tgid) {
                    let sender = (record.signal != 0).then(|| Actor {
                        pid: record.sender,
                        name: clean(text(&record.sender_comm), NAME_MAX),
                    });
                    let exit = ExitStatus::from_wait(record.status);
                    let sent = u8::try_from(record.signal).unwrap_or_default();
                    let event = ProcessEvent::Exited { exit, sender, sent, oom: record.oom != 0 };
                    emit(at, Observation::Process(Process { process, class, event }));
                }
            }
            Event::Netns(record) => emit(
                at,
                Observation::Netns(Netns {
                    inum: record.inum,
                    up: record.up == 1,
                    process: Actor { pid: record.task.tgid, name: clean(text(&record.task.comm), NAME_MAX) },
                }),
            ),
        }
    }

    fn rtnetlink(&mut self, at: BootTime, record: &Rtnetlink, mut emit: impl FnMut(BootTime, Observation)) {
        let Client { actor: process, class, .. } = self.clients.find(&record.task);
        let host = self.is_host(record.task.netns);
        if let Some(removed) = rtnetlink::removed(record, process.clone()) {
            if host {
                emit(at, Observation::RouteGone(removed));
            }
            return;
        }
        let error = rtnetlink::refused(record, process, class);
        if record.cni != 0 {
            self.cni.refused(record.task.tgid, &error);
        }
        // Of other namespaces only requests of plugins are relevant.
        if host || record.cni != 0 {
            emit(at, Observation::NetlinkError(error));
        }
    }

    fn plugin_started(&mut self, mut record: CniExec) -> Option<Observation> {
        // This comes first because the plugin may exit at any time.
        if text(&record.command).is_empty() {
            environ::fill(&mut record);
        }
        // Any process can set the environment of a plugin, so only trusted processes count. Children of CNI processes are not
        // examined themselves, because delegates exit together with their plugin.
        if !self.cni.contains(record.task.ppid) && !provenance::is_trusted(&self.settings, &record.task) {
            return None;
        }
        let parent = self.clients.name_of(record.task.ppid);
        let settings = &self.settings;
        let class = provenance::class_of(&self.settings, parent.pid, &parent.name);
        let by_runtime = class == Some(ProcessClass::Runtime);
        let resolve_name = |path: &str| namespaces::look(settings, path, record.task.ppid);
        let start = self.cni.started(&record, parent, resolve_name)?;
        // A container runtime passes its plugin directories to every plugin.
        let dirs = text(&record.cni_path);
        if by_runtime && !dirs.is_empty() && dirs.len() < record.cni_path.len() {
            let dirs = dirs.split(|byte| *byte == b':').filter(|dir| dir.starts_with(b"/"));
            let dirs: Vec<_> = dirs.map(|dir| PathBuf::from(OsStr::from_bytes(dir))).collect();
            if !dirs.is_empty() {
                settings.cni.learn_bin(dirs);
            }
        }
        Some(Observation::CniStart(start))
    }

    /// Converts a refused file, if it is that of a plugin and root's attempt: any user can fail to execute a file.
    fn file_refused(&mut self, record: &FileRefused) -> Option<Observation> {
        if record.task.uid != 0 {
            return None;
        }
        let path = Path::new(OsStr::from_bytes(text(&record.path)));
        let name = path.file_name()?;
        let dirs = self.settings.cni.bin();
        let mut dirs = dirs.iter();
        // Some sources report only the name of the file, and its inode number.
        let is_same = |path: &Path| {
            fs::metadata(path).is_ok_and(|file| record.inode == 0 || file.ino() == record.inode)
        };
        let dir = match path.parent().filter(|dir| dir.is_absolute()) {
            Some(parent) => dirs.find(|dir| *dir == parent),
            None => dirs.find(|dir| is_same(&self.settings.on_host(dir).join(name))),
        }?;
        let (errno, write) = (record.errno, record.write == 1);
        let on_host = self.settings.on_host(dir).join(name);
        // ENOENT for an existing plugin means that its interpreter is missing. A missing plugin is reported by other means.
        if errno == libc::ENOENT.unsigned_abs() && !on_host.exists() {
            return None;
        }
        let denied = !write && [libc::EACCES, libc::EPERM].map(i32::unsigned_abs).contains(&errno);
        let denied_by = denied.then(|| denied_by(&on_host)).flatten();
        let process = self.clients.find(&record.task).actor;
        let plugin = clean(name.as_bytes(), NAME_MAX);
        Some(Observation::PluginFile(PluginFile { process, plugin, write, errno, denied_by }))
    }

    fn dropped(&self, record: &Drops) -> PacketsDropped {
        PacketsDropped {
            reason: self.drops.names.get(&record.reason).cloned().unwrap_or_default(),
            device: clean(text(&record.device), NAME_MAX),
            count: record.count,
        }
    }

    fn is_host(&self, netns: u32) -> bool {
        self.host_netns == netns
    }
}

fn emit_some(at: BootTime, observation: Option<Observation>, mut emit: impl FnMut(BootTime, Observation)) {
    if let Some(observation) = observation {
        emit(at, observation);
    }
}

/// Converts an address of a record.
fn address(family: u16, bytes: [u8; 16]) -> IpAddr {
    if i32::from(family) == libc::AF_INET {
        let [a, b, c, d, ..] = bytes;
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    } else {
        // An IPv6 socket that is connected over IPv4 has an address of the form ::ffff:a.b.c.d.
        IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
    }
}
