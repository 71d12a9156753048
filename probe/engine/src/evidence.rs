//! What is known now: the newest facts, bounded, without judgement of their causes.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use crate::limits;
use crate::observation::{
    Access, Actor, AgentSocket, Answer, ApiTarget, ClientRole, CniConfig, CniEnd, CniError, CniStart,
    ConfAccess, Connect, Connection, Credential, Gap, Host, Limit, LimitHit, Listener, ModuleMissing, Mono,
    NameState, NetlinkError, NetnsSeen, Observation, Ovs, OvsUpcalls, PacketsDropped, PluginFile, Process,
    ProcessClass, ProcessEvent, Role, RouteGone, Scope, SocketConnect, TargetKind, TlsFailure,
};
use crate::outcome::{Outcome, is_own};
use crate::verdict::Evidence;

/// A failure that was not disproved since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) outcome: Outcome,
    /// Who sent the ICMP message, when one did and the kernel kept it.
    pub(crate) from: Option<IpAddr>,
    /// Why this host dropped what was sent, when it did.
    pub(crate) dropped: Option<String>,
    /// First and newest occurrence in a row.
    pub(crate) since: Mono,
    pub(crate) last: Mono,
}

/// One API address and how the newest connects to it ended.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    pub(crate) kind: TargetKind,
    pub(crate) source: String,
    /// Clients use exactly this address or name: it stands in a kubeconfig.
    pub(crate) is_clients_name: bool,
    /// Order in which the addresses were named: the first is the one that clients use first.
    pub(crate) order: usize,
    pub(crate) last_ok: Option<Mono>,
    /// On the network: disproved by anybody's success.
    pub(crate) failure: Option<Failure>,
    /// After the handshake: disproved only by bytes that come back.
    pub(crate) broken: Option<Failure>,
    /// What it said when it was asked, and since when it says that.
    pub(crate) answer: Option<(Answer, Mono)>,
    /// A connection that worked and is not acknowledged any more: disproved only by a look at those that are
    /// left, for a new one says nothing of it.
    pub(crate) stalled: Option<Failure>,
    /// Before the network: disproved only by a success of the same kind of client.
    pub(crate) denied: BTreeMap<ClientRole, Failure>,
}

/// A Unix socket that does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SocketFailure {
    pub(crate) path: String,
    pub(crate) errno: u32,
    pub(crate) since: Mono,
    pub(crate) last: Mono,
}

/// Sockets of container runtimes, wherever an installer puts them.
fn is_cri_socket(path: &str) -> bool {
    ["/containerd.sock", "/crio.sock", "/cri-dockerd.sock"].iter().any(|name| path.ends_with(name))
}

/// What rtnetlink(7) answers, as strerror(3) and Go write it, in lower case.
pub(crate) const ERRNOS: &[(u32, &str)] = &[
    (1, "operation not permitted"),
    (16, "device or resource busy"),
    (17, "file exists"),
    (19, "no such device"),
    (22, "invalid argument"),
    (34, "numerical result out of range"),
    (95, "operation not supported"),
    (97, "address family not supported"),
    (98, "address already in use"),
    (99, "cannot assign requested address"),
    (101, "network is unreachable"),
    (113, "no route to host"),
];

/// What the kernel refused, in plain words: `newlink vxlan0: errno 98 (address already in use): …`.
pub fn refusal(error: &NetlinkError) -> String {
    let mut text = error.request.clone();
    if !error.object.is_empty() {
        text.push_str(&format!(" {}", error.object));
    }
    if error.errno != 0 {
        let name = ERRNOS.iter().find(|(errno, _)| *errno == error.errno);
        let name = name.map(|(_, name)| format!(" ({name})")).unwrap_or_default();
        text.push_str(&format!(": errno {}{name}", error.errno));
    }
    if !error.text.is_empty() {
        text.push_str(&format!(": {}", error.text));
    }
    text.trim_start_matches([':', ' ']).to_string()
}

/// A positive errno of connect(2) for a Unix socket, in plain words that follow its path.
pub fn socket_errno(errno: u32) -> String {
    match errno {
        2 => "is not there".to_string(),
        111 => "is there and nobody listens".to_string(),
        11 => "is there and its queue is full".to_string(),
        1 | 13 => "may not be used".to_string(),
        other => format!("fails with errno {other}"),
    }
}

/// What was done to one configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accesses {
    pub(crate) changed: Option<(Mono, Access, Actor)>,
    /// By the runtime.
    pub(crate) opened: Option<Mono>,
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

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) host: Host,
    pub(crate) targets: BTreeMap<SocketAddr, Ledger>,
    pub(crate) routes: BTreeMap<IpAddr, (u32, Mono)>,
    pub(crate) listeners: BTreeSet<SocketAddr>,
    /// When the set of listeners last changed for the API's ports.
    pub(crate) listeners_since: Mono,
    pub(crate) config: Option<(CniConfig, Mono)>,
    /// By file: who changed it last, and when the runtime opened it last.
    pub(crate) accesses: BTreeMap<String, Accesses>,
    pub(crate) plugins: BTreeMap<String, PluginFailure>,
    /// Plugins that run now, by process id, and since when.
    pub(crate) running: BTreeMap<u32, (CniStart, Mono)>,
    /// What is full, by what and subject, and since when.
    pub(crate) full: BTreeMap<(String, String), (Limit, Mono)>,
    /// By what was asked for: the newest that was refused.
    pub(crate) hits: BTreeMap<String, (LimitHit, Mono, Mono)>,
    /// By file.
    pub(crate) credentials: BTreeMap<String, (Credential, Mono)>,
    /// By module.
    pub(crate) modules: BTreeMap<String, (ModuleMissing, Mono)>,
    pub(crate) sysctls: BTreeMap<String, String>,
    /// By plugin: the newest try to execute or to replace it that was refused.
    pub(crate) files: BTreeMap<String, (PluginFile, Mono, Mono)>,
    /// By link: packets that the reverse path filter dropped.
    pub(crate) dropping: BTreeMap<String, (PacketsDropped, Mono, Mono)>,
    pub(crate) ovs: Option<(Ovs, Mono)>,
    /// Since when changes wait that ovs-vswitchd was asked for.
    pub(crate) behind: Option<Mono>,
    /// ovs-vswitchd ended, and no other has started.
    pub(crate) vswitchd_gone: Option<(String, Mono)>,
    /// The newest count, while questions of the datapath are lost, and since when they are.
    pub(crate) upcalls_lost: Option<(OvsUpcalls, Mono)>,
    /// The container runtime that runs.
    pub(crate) runtime: Option<Actor>,
    pub(crate) runtime_down: Option<SocketFailure>,
    pub(crate) exits: VecDeque<(Mono, Process)>,
    pub(crate) lost: BTreeMap<Scope, Mono>,
    pub(crate) gaps: BTreeMap<String, Gap>,
    pub(crate) snapshot_done: Option<Mono>,
    pub(crate) stopping: Option<Mono>,
    pub(crate) lines: VecDeque<Evidence>,
    /// The newest time that was told.
    pub(crate) now: Mono,
    pub(crate) next_order: usize,
    /// Instead of each plugin's own.
    pub(crate) plugin_limit_ns: Option<u64>,
}

impl Facts {
    /// Takes one observation. Answers with the API address that a client failed to reach, if one did.
    pub(crate) fn take(&mut self, at: Mono, observation: Observation) -> Option<SocketAddr> {
        self.now = at;
        match observation {
            Observation::Host(host) => self.host = host,
            Observation::ApiTarget(target) => self.target(target),
            Observation::ApiTargetGone { addr } => {
                self.targets.remove(&addr);
            }
            Observation::Connect(connect) => return self.connect(at, &connect),
            Observation::Listener(listener) => self.listener(at, &listener),
            Observation::Route(route) => {
                if self.routes.len() < limits::ROUTES || self.routes.contains_key(&route.to) {
                    let since =
                        self.routes.get(&route.to).filter(|old| old.0 == route.errno).map_or(at, |old| old.1);
                    self.routes.insert(route.to, (route.errno, since));
                }
            }
            Observation::CniConfig(config) => self.config = Some((config, at)),
            Observation::Answer(answer) => self.answer(at, answer),
            Observation::Connection(connection) => self.connection(at, &connection),
            Observation::SocketConnect(connect) => self.socket(at, connect),
            Observation::NetlinkError(error) => self.netlink_error(at, &error),
            Observation::RouteGone(gone) => self.route_gone(at, &gone),
            Observation::Limit(limit) => self.limit(at, limit),
            Observation::LimitHit(hit) => self.limit_hit(at, hit),
            Observation::Credential(credential) => self.credential(at, credential),
            Observation::ClockStep { by_ms } => {
                self.line(at, "clock", format!("the wall clock was set by {by_ms} ms"));
            }
            Observation::ModuleMissing(missing) => self.module(at, missing),
            Observation::Sysctl { name, value } => {
                if self.sysctls.len() < limits::SYSCTLS || self.sysctls.contains_key(&name) {
                    self.sysctls.insert(name, value);
                }
            }
            Observation::ConfAccess(access) => self.access(at, access),
            Observation::PluginFile(file) => self.plugin_file(at, file),
            Observation::PacketsDropped(dropped) => self.packets_dropped(at, dropped),
            Observation::CniStart(start) => self.plugin_started(at, start),
            Observation::NetnsName(name) => {
                if name.state == NameState::Stale {
                    self.line(at, "netns", format!("{} is a file, bound to no namespace", name.path));
                }
            }
            Observation::Ovs(ovs) => self.ovs(at, ovs),
            Observation::OvsUpcalls(upcalls) => self.upcalls(at, upcalls),
            Observation::Netns(_)
            | Observation::Link(_)
            | Observation::OvsPort(_)
            | Observation::Sandbox(_) => {}
            Observation::CniEnd(end) => self.plugin(at, &end),
            Observation::Process(process) => self.process(at, process),
            Observation::Lost(lost) => {
                self.lost.entry(lost.scope).or_insert(at);
                if matches!(lost.scope, Scope::Cni | Scope::Processes) {
                    // Whose end was lost is not known; those that still run are told again.
                    self.running.clear();
                }
                self.line(at, "events.lost", format!("{} lost {} events", lost.hook, lost.count));
            }
            Observation::Reread { scope } => {
                self.lost.remove(&scope);
            }
            Observation::Gap(gap) => {
                if self.gaps.len() < limits::GAPS || self.gaps.contains_key(&gap.signal) {
                    self.gaps.insert(gap.signal.clone(), gap);
                }
            }
            Observation::GapClosed { signal } => {
                self.gaps.remove(&signal);
            }
            Observation::SnapshotDone => {
                self.snapshot_done.get_or_insert(at);
            }
            Observation::Stopping => {
                self.stopping.get_or_insert(at);
            }
        }
        None
    }

    fn target(&mut self, target: ApiTarget) {
        if let Some(known) = self.targets.get_mut(&target.addr) {
            known.kind = target.kind;
            known.is_clients_name = target.source.starts_with('/');
            known.source = target.source;
        } else if self.targets.len() < limits::TARGETS {
            let ledger = Ledger {
                kind: target.kind,
                is_clients_name: target.source.starts_with('/'),
                source: target.source,
                order: self.next_order,
                last_ok: None,
                failure: None,
                broken: None,
                stalled: None,
                answer: None,
                denied: BTreeMap::new(),
            };
            self.next_order += 1;
            self.targets.insert(target.addr, ledger);
        }
    }

    fn connect(&mut self, at: Mono, connect: &Connect) -> Option<SocketAddr> {
        // A pod's own trouble, or somebody else's address, says nothing of this node's way to the API.
        if !connect.host_netns || !self.targets.contains_key(&connect.to) {
            return None;
        }
        let mut outcome = Outcome::of(connect, &self.host.addresses);
        // EACCES is also the answer of a `prohibit` route: the look-up tells them apart.
        if outcome == Outcome::Denied
            && connect.end.early_errno != 1
            && self.routes.get(&connect.to.ip()).is_some_and(|(errno, _)| *errno != 0)
        {
            outcome = Outcome::NoRoute;
        }
        let first = self.note(at, connect, outcome);
        if first || connect.role != ClientRole::Probe {
            self.connect_line(at, connect, outcome);
        }
        let asked = outcome.is_failure() && connect.role != ClientRole::Probe;
        asked.then_some(connect.to)
    }

    /// Enters the outcome; true when it changes what is known of the address.
    fn note(&mut self, at: Mono, connect: &Connect, outcome: Outcome) -> bool {
        let Some(ledger) = self.targets.get_mut(&connect.to) else { return false };
        let from = connect.end.icmp.and_then(|icmp| icmp.from);
        let dropped = connect.end.dropped.clone();
        let fresh = Failure { outcome, from, dropped: dropped.clone(), since: at, last: at };
        match outcome {
            Outcome::Cancelled => false,
            Outcome::Ok => {
                let first = ledger.last_ok.is_none();
                ledger.last_ok = Some(at);
                let cured = ledger.failure.take().is_some();
                ledger.denied.remove(&connect.role).is_some() || cured || first
            }
            Outcome::Denied => {
                let entry = ledger.denied.entry(connect.role);
                let first = matches!(entry, alloc::collections::btree_map::Entry::Vacant(_));
                entry.or_insert(fresh).last = at;
                first
            }
            _ => match &mut ledger.failure {
                Some(known)
                    if same(known.outcome, outcome)
                        && (known.from.is_some() || from.is_none())
                        && (known.dropped.is_some() || dropped.is_none()) =>
                {
                    known.last = at;
                    false
                }
                other => {
                    let since = other.as_ref().map_or(at, |known| known.since);
                    *other = Some(Failure { since, ..fresh });
                    true
                }
            },
        }
    }

    /// The agent's own question was answered, or came to nothing after the handshake.
    fn answer(&mut self, at: Mono, answer: Answer) {
        let Some(ledger) = self.targets.get_mut(&answer.to) else { return };
        if answer.status.is_some() {
            ledger.broken = None;
        }
        let kind = |answer: &Answer| (answer.tls.clone(), answer.status, answer.failing.clone());
        let known = ledger.answer.as_ref().filter(|(known, _)| kind(known) == kind(&answer));
        let (since, first) = known.map_or((at, true), |(_, since)| (*since, false));
        if first {
            let text = match (&answer.tls, answer.status) {
                (Some(TlsFailure::Closed), _) => "closed the connection before an answer".to_string(),
                (Some(TlsFailure::Silent), _) => "is silent after the handshake of TCP".to_string(),
                (Some(TlsFailure::Alert { alert }), _) => format!("sent the TLS alert {alert}"),
                (Some(TlsFailure::Other { why }), _) => format!("failed in TLS: {why}"),
                (None, Some(status)) => format!("answered /readyz with {status}"),
                (None, None) => "answered".to_string(),
            };
            self.line(at, "api.answer", format!("{} {text}", answer.to));
        }
        if let Some(ledger) = self.targets.get_mut(&answer.to) {
            ledger.answer = Some((answer, since));
        }
    }

    /// What follows the handshake. A connect that succeeds says nothing of it.
    fn connection(&mut self, at: Mono, connection: &Connection) {
        if !connection.host_netns {
            return;
        }
        let Some(ledger) = self.targets.get_mut(&connection.to) else { return };
        let Some(outcome) = Outcome::of_connection(connection) else { return };
        if outcome == Outcome::Ok {
            ledger.broken = None;
            if !connection.ended {
                ledger.stalled = None;
            }
            return;
        }
        let worked = outcome == Outcome::Stalled && connection.received > 0;
        let known = if worked { &mut ledger.stalled } else { &mut ledger.broken };
        let first = known.as_ref().is_none_or(|known| known.outcome != outcome);
        let since = known.as_ref().map_or(at, |known| known.since);
        *known = Some(Failure { outcome, from: None, dropped: None, since, last: at });
        if first || connection.role != ClientRole::Probe {
            let client = &connection.client;
            let seconds = connection.age_ns / 1_000_000_000;
            let text = format!(
                "{}[{}] → {} {}, {} bytes out, {} in, after {seconds} s",
                client.name,
                client.pid,
                connection.to,
                outcome.words(),
                connection.acked,
                connection.received
            );
            self.line(at, "tcp.connection", text);
        }
    }

    fn netlink_error(&mut self, at: Mono, error: &NetlinkError) {
        // Anybody may try anything; what plugins, agents and runtimes are refused is of the node.
        if error.cni || error.class.is_some() {
            let who = &error.process;
            self.line(at, "link.error", format!("{}[{}] {}", who.name, who.pid, refusal(error)));
        }
    }

    fn route_gone(&mut self, at: Mono, gone: &RouteGone) {
        let what = if gone.rule { "the rule from" } else { "the route to" };
        let who = &gone.process;
        self.line(at, "route.gone", format!("{}[{}] removed {what} {}", who.name, who.pid, gone.object));
    }

    fn limit(&mut self, at: Mono, limit: Limit) {
        let key = (limit.what.clone(), limit.subject.clone());
        if limit.used < limit.max {
            self.full.remove(&key);
            return;
        }
        if self.full.len() < limits::FULL || self.full.contains_key(&key) {
            let text = format!("{} {} is full: {} of {}", limit.what, limit.subject, limit.used, limit.max);
            self.line(at, "limit", text);
            let since = self.full.get(&key).map_or(at, |(_, since)| *since);
            self.full.insert(key, (limit, since));
        }
    }

    fn limit_hit(&mut self, at: Mono, hit: LimitHit) {
        if hit.class.is_none() {
            return;
        }
        let who = &hit.process;
        self.line(at, "limit", format!("{}[{}] got no {}: errno {}", who.name, who.pid, hit.what, hit.errno));
        let since = self.hits.get(&hit.what).map_or(at, |(_, since, _)| *since);
        self.hits.insert(hit.what.clone(), (hit, since, at));
    }

    fn credential(&mut self, at: Mono, credential: Credential) {
        if self.credentials.len() < limits::FILES || self.credentials.contains_key(&credential.file) {
            self.credentials.insert(credential.file.clone(), (credential, at));
        }
    }

    fn ovs(&mut self, at: Mono, ovs: Ovs) {
        let behind = ovs.database.as_ref().is_some_and(|database| database.behind);
        self.behind = behind.then(|| self.behind.unwrap_or(at));
        let known = self.ovs.as_ref().and_then(|(known, _)| known.database.as_ref());
        let known: Vec<_> = known.into_iter().flat_map(|known| known.failed.clone()).collect();
        let failed = ovs.database.iter().flat_map(|database| &database.failed);
        for failed in failed.filter(|failed| !known.contains(failed)) {
            self.line(at, "ovs.interface", format!("{}: {}", failed.name, failed.error));
        }
        if let Some(error) = ovs.database.as_ref().and_then(|database| database.error.as_ref()) {
            self.line(at, "ovs.database", error.clone());
        }
        self.ovs = Some((ovs, at));
    }

    fn upcalls(&mut self, at: Mono, upcalls: OvsUpcalls) {
        if upcalls.lost == 0 {
            self.upcalls_lost = None;
            return;
        }
        let since = self.upcalls_lost.as_ref().map_or(at, |(_, since)| *since);
        if self.upcalls_lost.is_none() {
            let text = format!("{} questions of {} were lost", upcalls.lost, upcalls.datapath);
            self.line(at, "ovs.upcall", text);
        }
        self.upcalls_lost = Some((upcalls, since));
    }

    fn plugin_file(&mut self, at: Mono, file: PluginFile) {
        let who = &file.process;
        let what = if file.write { "replace" } else { "execute" };
        let text = format!("{}[{}] cannot {what} {}: errno {}", who.name, who.pid, file.plugin, file.errno);
        self.line(at, "cni.binary", text);
        if self.files.len() < limits::PLUGINS || self.files.contains_key(&file.plugin) {
            let since = self.files.get(&file.plugin).map_or(at, |(_, since, _)| *since);
            self.files.insert(file.plugin.clone(), (file, since, at));
        }
    }

    fn packets_dropped(&mut self, at: Mono, dropped: PacketsDropped) {
        let known = self.dropping.get(&dropped.device).map(|(_, since, _)| *since);
        if known.is_none() {
            let PacketsDropped { reason, device, count } = &dropped;
            self.line(at, "packet.drop", format!("{count} packets dropped on {device}: {reason}"));
        }
        if self.dropping.len() < limits::FULL || known.is_some() {
            self.dropping.insert(dropped.device.clone(), (dropped, known.unwrap_or(at), at));
        }
    }

    fn module(&mut self, at: Mono, missing: ModuleMissing) {
        let who = &missing.process;
        let text = format!("module {} did not come; {}[{}] needs it", missing.name, who.name, who.pid);
        self.line(at, "module.request", text);
        if self.modules.len() < limits::FULL || self.modules.contains_key(&missing.name) {
            let since = self.modules.get(&missing.name).map_or(at, |(_, since)| *since);
            self.modules.insert(missing.name.clone(), (missing, since));
        }
    }

    fn access(&mut self, at: Mono, access: ConfAccess) {
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

    /// The CRI socket as the kubelet finds it.
    fn socket(&mut self, at: Mono, connect: SocketConnect) {
        if connect.class != ProcessClass::Kubelet || !is_cri_socket(&connect.path) {
            return;
        }
        if connect.errno == 0 {
            self.runtime_down = None;
            return;
        }
        let since = self.runtime_down.as_ref().map_or(at, |known| known.since);
        let text = format!(
            "{}[{}] → {} {}",
            connect.client.name,
            connect.client.pid,
            connect.path,
            socket_errno(connect.errno)
        );
        if self.runtime_down.as_ref().is_none_or(|known| known.errno != connect.errno) {
            self.line(at, "runtime.socket", text);
        }
        self.runtime_down = Some(SocketFailure { path: connect.path, errno: connect.errno, since, last: at });
    }

    fn connect_line(&mut self, at: Mono, connect: &Connect, outcome: Outcome) {
        let mut text =
            format!("{}[{}] → {} {}", connect.client.name, connect.client.pid, connect.to, outcome.words());
        if connect.end.retransmits > 0 {
            text.push_str(&format!(", {} SYN", connect.end.retransmits + 1));
        }
        if let Some(from) = connect.end.icmp.and_then(|icmp| icmp.from) {
            text.push_str(&format!(", ICMP from {from}"));
        }
        if let Some(reason) = &connect.end.dropped {
            text.push_str(&format!(", dropped on this host: {reason}"));
        }
        let millis = connect.took_ns / 1_000_000;
        text.push_str(&format!(", {}.{} s", millis / 1000, millis % 1000 / 100));
        self.line(at, "tcp.connect", text);
    }

    fn listener(&mut self, at: Mono, listener: &Listener) {
        if !listener.host_netns {
            return;
        }
        let changed = if listener.up {
            self.listeners.len() < limits::LISTENERS && self.listeners.insert(listener.local)
        } else {
            self.listeners.remove(&listener.local)
        };
        if changed && self.targets.keys().any(|target| target.port() == listener.local.port()) {
            self.listeners_since = at;
            let what = if listener.up { "listens" } else { "does not listen any more" };
            let who = if listener.process.name.is_empty() { "somebody" } else { &listener.process.name };
            self.line(
                at,
                "tcp.listen",
                format!("{who}[{}] {what} on {}", listener.process.pid, listener.local),
            );
        }
    }

    fn plugin_started(&mut self, at: Mono, start: CniStart) {
        // It runs: what could not be executed can be.
        self.files.retain(|plugin, (file, ..)| file.write || *plugin != start.plugin);
        if self.running.len() < limits::RUNNING {
            self.running.insert(start.pid, (start, at));
        }
    }

    fn plugin(&mut self, at: Mono, end: &CniEnd) {
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

    fn process(&mut self, at: Mono, process: Process) {
        if process.class == ProcessClass::Runtime {
            let alive = !matches!(process.event, ProcessEvent::Exited { .. });
            if alive {
                self.runtime = Some(process.process.clone());
            } else {
                self.runtime.take_if(|known| known.pid == process.process.pid);
            }
        }
        if process.class == ProcessClass::Ovs && process.process.name == "ovs-vswitchd" {
            let ended = matches!(process.event, ProcessEvent::Exited { .. });
            self.vswitchd_gone = ended.then(|| (process.process.name.clone(), at));
        }
        let ProcessEvent::Exited { exit, sender, oom } = &process.event else { return };
        let mut text = format!("{}[{}] ended", process.process.name, process.process.pid);
        match exit.signal {
            0 => text.push_str(&format!(" with exit code {}", exit.code)),
            signal => text.push_str(&format!(" by signal {signal}")),
        }
        if let Some(sender) = sender {
            text.push_str(&format!(" from {}[{}]", sender.name, sender.pid));
        }
        if *oom {
            text.push_str(", out of memory");
        }
        self.line(at, "process.exit", text);
        if matches!(process.class, ProcessClass::ApiServer | ProcessClass::Etcd | ProcessClass::Proxy) {
            if self.exits.len() >= limits::EXITS {
                self.exits.pop_front();
            }
            self.exits.push_back((at, process));
        }
    }

    /// Adds a line of evidence; the oldest goes.
    pub(crate) fn line(&mut self, at: Mono, signal: &str, text: String) {
        if self.lines.len() >= limits::EVIDENCE {
            self.lines.pop_front();
        }
        self.lines.push_back(Evidence {
            at,
            signal: signal.to_string(),
            text: limits::cut(text, limits::MESSAGE),
        });
    }

    /// Forgets what is too old to count. Answers whether anything went.
    pub(crate) fn expire(&mut self, now: Mono) -> bool {
        self.now = now;
        let mut gone = false;
        for ledger in self.targets.values_mut() {
            let stale = |failure: &Failure| now.since(failure.last) >= limits::CONNECT_FAILURE;
            for failure in [&mut ledger.failure, &mut ledger.broken, &mut ledger.stalled] {
                gone |= failure.take_if(|failure| stale(failure)).is_some();
            }
            let before = ledger.denied.len();
            ledger.denied.retain(|_, failure| !stale(failure));
            gone |= ledger.denied.len() != before;
        }
        let before = self.files.len() + self.dropping.len();
        self.files.retain(|_, (.., last)| now.since(*last) < limits::CONNECT_FAILURE);
        self.dropping.retain(|_, (.., last)| now.since(*last) < limits::CONNECT_FAILURE);
        gone |= self.files.len() + self.dropping.len() != before;
        let before = self.hits.len();
        self.hits.retain(|_, (.., last)| now.since(*last) < limits::CONNECT_FAILURE);
        gone |= self.hits.len() != before;
        let old = |failure: &mut SocketFailure| now.since(failure.last) >= limits::CONNECT_FAILURE;
        gone |= self.runtime_down.take_if(old).is_some();
        let before = self.plugins.len();
        self.plugins.retain(|_, failure| now.since(failure.last) < limits::PLUGIN_FAILURE);
        gone |= self.plugins.len() != before;
        while self.exits.front().is_some_and(|(at, _)| now.since(*at) >= limits::CRASH_WINDOW) {
            self.exits.pop_front();
            gone = true;
        }
        gone
    }

    /// When something will be too old to count.
    pub(crate) fn next_expiry(&self) -> Option<Mono> {
        let connects = self.targets.values().flat_map(|ledger| {
            let failures = ledger.failure.iter().chain(&ledger.broken).chain(&ledger.stalled);
            let failures = failures.chain(ledger.denied.values());
            failures.map(|failure| failure.last.plus(limits::CONNECT_FAILURE))
        });
        let sockets = self.runtime_down.iter().map(|failure| failure.last.plus(limits::CONNECT_FAILURE));
        let plugins = self.plugins.values().map(|failure| failure.last.plus(limits::PLUGIN_FAILURE));
        let exits = self.exits.front().map(|(at, _)| at.plus(limits::CRASH_WINDOW));
        let stalls = self.running.values().map(|(start, at)| at.plus(self.plugin_limit(&start.plugin)));
        let waits = self.running.values().map(|(_, at)| at.plus(limits::WAITS));
        let stalls = stalls.chain(waits).filter(|at| *at > self.now);
        let hits = self.hits.values().map(|(.., last)| last.plus(limits::CONNECT_FAILURE));
        let files = self.files.values().map(|(.., last)| last.plus(limits::CONNECT_FAILURE));
        let dropping = self.dropping.values().map(|(.., last)| last.plus(limits::CONNECT_FAILURE));
        let credentials = self.credentials.values().flat_map(|(credential, at)| {
            let times = [credential.valid_in_s, credential.expires_in_s];
            times
                .into_iter()
                .filter_map(|s| Some(at.plus(u64::try_from(s).ok()?.saturating_mul(limits::SECOND))))
        });
        let credentials = credentials.filter(|at| *at > self.now);
        let behind = self.behind.map(|at| at.plus(limits::BEHIND)).filter(|at| *at > self.now);
        let loads = self.accesses.values().filter_map(|known| known.changed.as_ref());
        let loads = loads.map(|(at, ..)| at.plus(limits::LOAD)).filter(|at| *at > self.now);
        let rest = self.exits.back().map(|(at, _)| at.plus(limits::CRASH_REST)).filter(|at| *at > self.now);
        let lost = self.lost.values().map(|at| at.plus(limits::REREAD));
        connects
            .chain(sockets)
            .chain(loads)
            .chain(hits)
            .chain(files)
            .chain(stalls)
            .chain(behind)
            .chain(dropping)
            .chain(credentials)
            .chain(plugins)
            .chain(exits)
            .chain(rest)
            .chain(lost)
            .min()
    }

    /// How long a plugin may run.
    pub(crate) fn plugin_limit(&self, plugin: &str) -> u64 {
        self.plugin_limit_ns.unwrap_or_else(|| {
            let known = limits::PLUGIN_RUNS.iter().find(|(name, _)| *name == plugin);
            known.map_or(limits::PLUGIN_RUN, |(_, limit)| *limit)
        })
    }

    /// Addresses in the order in which they were named.
    pub(crate) fn targets_in_order(&self) -> Vec<(&SocketAddr, &Ledger)> {
        let mut all: Vec<_> = self.targets.iter().collect();
        all.sort_by_key(|(_, ledger)| ledger.order);
        all
    }

    /// Does anything on this host listen where `addr` points to?
    pub(crate) fn listens(&self, addr: &SocketAddr) -> bool {
        self.listeners.iter().any(|local| {
            local.port() == addr.port() && (local.ip() == addr.ip() || local.ip().is_unspecified())
        })
    }

    /// Addresses of this host where it should serve the API and nothing listens. Without the listeners that
    /// are read at start, or after a loss, an absence proves nothing.
    pub(crate) fn missing_listeners(&self) -> Vec<SocketAddr> {
        let blind = self.snapshot_done.is_none()
            || self.gaps.contains_key("tcp.listen")
            || self.lost.contains_key(&Scope::Sockets);
        if blind || !self.is_control_plane() {
            return Vec::new();
        }
        let own = |addr: &SocketAddr| is_own(addr.ip(), &self.host.addresses) && !self.listens(addr);
        self.targets_in_order().into_iter().map(|(addr, _)| *addr).filter(own).collect()
    }

    /// The control plane runs, or should run, on this host.
    pub(crate) fn is_control_plane(&self) -> bool {
        self.host.role == Role::ControlPlane
    }
}

/// Two names for one thing: who lost patience first does not matter.
const fn same(one: Outcome, other: Outcome) -> bool {
    matches!((one, other), (Outcome::Timeout | Outcome::GaveUp, Outcome::Timeout | Outcome::GaveUp))
        || one as u8 == other as u8
}
