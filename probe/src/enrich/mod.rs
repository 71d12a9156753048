//! From the kernel's records to observations: names for process ids, one object for one CNI operation.
//! Adds what the kernel side does not know, and judges nothing.

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
    Actor, CniStart, DeniedBy, ExitStatus, Listener, ModuleMissing, Mono, Netns, Observation, PacketsDropped,
    PluginFile, Process, ProcessClass, ProcessEvent, SocketConnect,
};

use crate::node::{namespaces, processes, provenance};
use crate::settings::Settings;
use crate::text::clean;
use clients::Client;
pub(crate) use clients::Clients;
use cni::CniRuns;
use connects::EarlyErrors;
pub(crate) use environ::of as plugin_of;
use modules::Modules;
pub(crate) use sandbox::Sandboxes;

/// Who says that root may not execute the file at `path`; `None` when it cannot be looked at any more.
fn denied_by(path: &Path) -> Option<DeniedBy> {
    if fs::metadata(path).ok()?.mode() & 0o111 == 0 {
        return Some(DeniedBy::Mode);
    }
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: all zero is a valid value.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with a NUL, and `stat` is live and of the type that is filled.
    let answer = unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) };
    let noexec = stat.f_flag & libc::ST_NOEXEC != 0;
    (answer == 0).then_some(if noexec { DeniedBy::Mount } else { DeniedBy::SecurityModule })
}

/// Longest name that is kept; an executable's name may be 255 bytes (`NAME_MAX`).
const NAME_MAX: usize = 64;
/// Longest path or other value of a CNI variable that is kept.
const VALUE_MAX: usize = 256;

/// What the kernel says of the packets that it drops.
#[derive(Clone, Debug, Default)]
pub(crate) struct DropReasons {
    /// Its own numbers, and their names.
    pub(crate) names: BTreeMap<u32, String>,
    /// It gives no reasons, and reports a segment as sent again only when it could be sent (before 5.17): a
    /// silence without any is a drop on this host.
    pub(crate) by_silence: bool,
}

/// Everything that is remembered between two records.
pub(crate) struct Enricher {
    /// The host's network namespace, which is the agent's own; 0 when it is not known.
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
    /// `host_netns` as in the field; `drops` are the kernel's.
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

    /// Processes that were found without a record.
    pub(crate) fn clients(&mut self) -> &mut Clients {
        &mut self.clients
    }

    /// Modules that were asked for long enough ago and have not come.
    pub(crate) fn missing_modules(&mut self, now: Mono) -> Vec<ModuleMissing> {
        self.modules.missing(now)
    }

    /// The processes of CNI runs that have exited.
    pub(crate) fn dead_runs(&self) -> Vec<u32> {
        self.cni.dead(|pid| processes::stat(pid).map(|stat| stat.started))
    }

    /// Forgets the CNI runs of these processes: no record of their exit came.
    pub(crate) fn forget_runs(&mut self, pids: &[u32]) {
        self.cni.forget(pids);
    }

    /// Takes in a plugin, or what works for one, whose execution was not seen.
    pub(crate) fn found_plugin(&mut self, record: &CniExec) {
        self.plugin_started(*record);
    }

    /// CNI operations that run at this time.
    pub(crate) fn running_plugins(&self, now: Mono) -> Vec<CniStart> {
        self.cni.running(now)
    }

    /// One record becomes none, one or more observations.
    pub(crate) fn event(&mut self, event: &Event<'_>, mut emit: impl FnMut(Mono, Observation)) {
        let at = Mono(event.at_ns());
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
            // As with executions: another node may run on the same kernel.
            Event::LimitHit(record) if !self.is_host(record.task.netns) => {}
            Event::ModuleRequest(record)
                if record.task.uid != 0
                    || !self.is_host(record.task.netns) && !self.cni.works_for_one(record.task.tgid) => {}
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
            // A runtime executes in the host's namespace; an installer may run in a pod.
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
            // Runtimes start their plugins in the host's namespace; another node's (kind, a laboratory) may
            // run on the same kernel.
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
                if let Some(end) = self.cni.ended(record) {
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

    fn rtnetlink(&mut self, at: Mono, record: &Rtnetlink, mut emit: impl FnMut(Mono, Observation)) {
        let Client { actor: process, class, .. } = self.clients.find(&record.task);
        let host = self.is_host(record.task.netns);
        if let Some(gone) = rtnetlink::gone(record, process.clone()) {
            if host {
                emit(at, Observation::RouteGone(gone));
            }
            return;
        }
        let error = rtnetlink::refused(record, process, class);
        if record.cni != 0 {
            self.cni.refused(record.task.tgid, &error);
        }
        // Of other namespaces, only what plugins do there.
        if host || record.cni != 0 {
            emit(at, Observation::NetlinkError(error));
        }
    }

    fn plugin_started(&mut self, mut record: CniExec) -> Option<Observation> {
        // First, because the plugin may exit at any moment.
        if text(&record.command).is_empty() {
            environ::fill(&mut record);
        }
        // Any process can set the environment of a plugin. Delegates exit together with the plugin that runs them.
        if !self.cni.works_for_one(record.task.ppid) && !provenance::is_trusted(&self.settings, &record.task)
        {
            return None;
        }
        let parent = self.clients.name_of(record.task.ppid);
        let settings = &self.settings;
        let class = provenance::class_of(&self.settings, parent.pid, &parent.name);
        let by_runtime = class == Some(ProcessClass::Runtime);
        let seen = |path: &str| namespaces::look(settings, path, record.task.ppid);
        let start = self.cni.started(&record, parent, seen)?;
        // A runtime hands its own directories to every plugin.
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

    /// Judges only plugins, and only attempts of root: any user can fail to execute a file.
    fn file_refused(&mut self, record: &FileRefused) -> Option<Observation> {
        if record.task.uid != 0 {
            return None;
        }
        let path = Path::new(OsStr::from_bytes(text(&record.path)));
        let name = path.file_name()?;
        let dirs = self.settings.cni.bin();
        let mut dirs = dirs.iter();
        // A short name without its directory is all that some sources give, and the file's number with it.
        let is_it = |path: &Path| {
            fs::metadata(path).is_ok_and(|file| record.inode == 0 || file.ino() == record.inode)
        };
        let dir = match path.parent().filter(|dir| dir.is_absolute()) {
            Some(parent) => dirs.find(|dir| *dir == parent),
            None => dirs.find(|dir| is_it(&self.settings.on_host(dir).join(name))),
        }?;
        let (errno, write) = (record.errno, record.write == 1);
        let on_host = self.settings.on_host(dir).join(name);
        // Of a plugin that is there something else is missing: its interpreter.
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

fn emit_some(at: Mono, observation: Option<Observation>, mut emit: impl FnMut(Mono, Observation)) {
    if let Some(observation) = observation {
        emit(at, observation);
    }
}

/// An address as the records carry it.
fn address(family: u16, bytes: [u8; 16]) -> IpAddr {
    if i32::from(family) == libc::AF_INET {
        let [a, b, c, d, ..] = bytes;
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    } else {
        // A socket of IPv6 that speaks IPv4 carries ::ffff:a.b.c.d.
        IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
    }
}
