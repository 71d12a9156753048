//! What is known now: the newest facts, bounded, without judgement of their causes.

mod api;
mod cni;
mod datapath;
mod lives;
mod losses;
mod names;
mod node;
mod phases;
mod quiet;
mod responses;
mod runtime;
mod trust;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::{String, ToString as _};
use core::net::{IpAddr, SocketAddr};

pub(crate) use api::{Failure, Ledger, Unreached};
pub(crate) use cni::{Accesses, GivenUp, PluginFailure, RefusedFile};
pub use datapath::refusal;
pub(crate) use datapath::{ERRNOS, is_taken_vni};
pub(crate) use lives::Life;
pub(crate) use losses::LossLedger;
pub(crate) use names::Unresolved;
pub(crate) use node::SocketFailure;
pub use node::{is_same_path, socket_errno};
pub(crate) use responses::Unanswered;
pub(crate) use runtime::RuntimeAnswer;

use crate::cnis::Cni;
use crate::limits;
use crate::observation::{
    Actor, Admission, CgroupDrivers, CniConfig, CniStart, Credential, Gap, Host, Leases, Limit, LimitHit,
    ModuleMissing, Mono, NameState, NetlinkError, Observation, Ovs, OvsUpcalls, PacketsDropped, Pod,
    PodCidrs, Process, RouteGone, Stuck, Writes,
};
use crate::verdict::Evidence;

/// A limit that shows as an errno of connect(2): `net.ipv4.ip_local_port_range` towards one address is used up.
const LOCAL_PORTS: &str = "local ports";

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
    /// There was a configuration before, and since when there is none.
    pub(crate) config_vanished: Option<Mono>,
    /// By name of a configuration file: whose it is, as long as it is known.
    pub(crate) owners: BTreeMap<String, &'static Cni>,
    /// By file: who changed it last, and when the runtime opened it last.
    pub(crate) accesses: BTreeMap<String, Accesses>,
    pub(crate) plugins: BTreeMap<String, PluginFailure>,
    /// Plugins that run now, by process id, and since when.
    pub(crate) running: BTreeMap<u32, (CniStart, Mono)>,
    /// Those of them whose end may have been lost: who is not told again until all was read again has ended.
    pub(crate) unsure: BTreeSet<u32>,
    /// What is full, by what and subject, and since when.
    pub(crate) full: BTreeMap<(String, String), (Limit, Mono)>,
    /// When the connection tracking table was last reported as full, or as having been full.
    pub(crate) conntrack_full: Option<Mono>,
    /// By what was asked for: the newest that was refused.
    pub(crate) hits: BTreeMap<String, (LimitHit, Mono, Mono)>,
    /// By file.
    pub(crate) credentials: BTreeMap<String, (Credential, Mono)>,
    /// By module.
    pub(crate) modules: BTreeMap<String, (ModuleMissing, Mono, Mono)>,
    pub(crate) sysctls: BTreeMap<String, String>,
    pub(crate) drivers: Option<CgroupDrivers>,
    /// By directory.
    pub(crate) leases: BTreeMap<String, Leases>,
    /// By plugin: when it last started.
    pub(crate) ran: BTreeMap<String, Mono>,
    /// A pod got its network, by this plugin, while the configuration that is judged holds none.
    pub(crate) contradicted: Option<String>,
    /// By plugin: tries to execute or to replace it that were refused.
    pub(crate) files: BTreeMap<String, RefusedFile>,
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
    pub(crate) runtime_answer: Option<RuntimeAnswer>,
    /// Sockets of runtimes that the kubelet has reached.
    pub(crate) served: BTreeSet<String>,
    pub(crate) exits: VecDeque<(Mono, Process)>,
    /// By name of the executable.
    pub(crate) lives: BTreeMap<String, Life>,
    /// By process id: those that run and make no progress, and since when.
    pub(crate) stuck: BTreeMap<u32, (Stuck, Mono)>,
    /// By kind and object: routes and rules that somebody took away, and since when.
    pub(crate) routes_gone: BTreeMap<(bool, String), (RouteGone, Mono)>,
    /// By link: what the kernel refused an agent of a CNI, since when and when last.
    pub(crate) refused_links: BTreeMap<String, (NetlinkError, Mono, Mono)>,
    /// By pod.
    pub(crate) given_up: BTreeMap<Pod, GivenUp>,
    pub(crate) losses: LossLedger,
    pub(crate) gaps: BTreeMap<String, Gap>,
    pub(crate) writes: Option<Writes>,
    /// By name: names of API servers that have no address.
    pub(crate) unresolved: BTreeMap<String, Unresolved>,
    /// What the control plane of this host did not reach, API addresses apart: the backends of webhooks are among it.
    pub(crate) unreached: BTreeMap<SocketAddr, Unreached>,
    /// DaemonSets without pods, and since when there is any.
    pub(crate) admission: Option<(Admission, Mono)>,
    /// The Node object was read, and has no range for pods.
    pub(crate) without_pod_cidr: bool,
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
            Observation::Connect(connect) => {
                let ask = self.connect(at, &connect);
                self.enter_phase(at, connect.to);
                return ask;
            }
            Observation::Listener(listener) => self.listener(at, &listener),
            Observation::NameLookup(lookup) => self.name_lookup(at, lookup),
            Observation::Route(route) => self.route(at, &route),
            Observation::CniConfig(config) => self.configuration(at, config),
            Observation::Answer(answer) => {
                let addr = answer.to;
                self.answer(at, answer);
                self.enter_phase(at, addr);
            }
            Observation::Connection(connection) => {
                let ask = self.connection(at, &connection);
                self.enter_phase(at, connection.to);
                return ask;
            }
            Observation::SocketConnect(connect) => self.socket(at, connect),
            Observation::Cri(cri) => self.cri(at, cri),
            Observation::NetlinkError(error) => self.netlink_error(at, &error),
            Observation::RouteGone(gone) => self.route_gone(at, &gone),
            Observation::Limit(limit) => self.limit(at, limit),
            Observation::LimitHit(hit) => self.limit_hit(at, hit),
            Observation::Credential(credential) => self.credential(at, credential),
            Observation::ClockStep { by_ms } => {
                self.line(at, "clock", format!("the wall clock was set by {by_ms} ms"));
            }
            Observation::CgroupDrivers(drivers) => self.drivers = Some(drivers),
            Observation::Leases(leases) => {
                if self.leases.len() < limits::FULL || self.leases.contains_key(&leases.dir) {
                    self.leases.insert(leases.dir.clone(), leases);
                }
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
            Observation::Sandbox(sandbox) => self.sandbox(at, sandbox),
            Observation::Link(link) => self.link(&link),
            // What an earlier agent said is a fact of the conditions, not of the node.
            // Of throttled events none were the node's own.
            Observation::Netns(_)
            | Observation::OvsPort(_)
            | Observation::Remembered(_)
            | Observation::Throttled(_) => {}
            Observation::CniEnd(end) => self.plugin(at, &end),
            Observation::Process(process) => self.process(at, process),
            Observation::Stuck(stuck) => self.stuck(at, stuck),
            Observation::Lost(lost) => self.lost(at, &lost),
            Observation::Reread { scope } => self.reread(scope),
            Observation::Gap(gap) => self.gap(gap),
            Observation::GapClosed { signal } => {
                self.gaps.remove(&signal);
            }
            Observation::Writes(writes) => self.writes = Some(writes),
            Observation::Admission(admission) => self.admission(at, admission),
            Observation::PodCidrs(PodCidrs { cidrs }) => {
                self.without_pod_cidr = cidrs.is_some_and(|cidrs| cidrs.is_empty());
                if self.without_pod_cidr {
                    self.line(at, "api.node", "the Node object has no pod CIDR".to_string());
                }
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

    fn enter_phase(&mut self, at: Mono, addr: SocketAddr) {
        let Some(ledger) = self.targets.get_mut(&addr) else { return };
        ledger.enter_phase(at);
        // Most addresses have never failed.
        if ledger.has_failed()
            && let Some(stopped) = self.restarted(at, addr)
            && let Some(ledger) = self.targets.get_mut(&addr)
        {
            ledger.forgive(stopped);
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
            let over = |silence: &mut Unanswered| now.since(silence.last) >= limits::UNANSWERED_FORGOTTEN;
            gone |= ledger.unanswered.take_if(over).is_some();
            gone |= ledger.expire_trust(now);
            let before = ledger.denied.len();
            ledger.denied.retain(|_, failure| !stale(failure));
            gone |= ledger.denied.len() != before;
            ledger.enter_phase(now);
        }
        let before = self.unresolved.len();
        self.unresolved.retain(|_, unresolved| now.since(unresolved.last) < limits::CONNECT_FAILURE);
        gone |= self.unresolved.len() != before;
        let before = self.files.len() + self.dropping.len();
        self.files.retain(|_, file| now < file.until());
        self.dropping.retain(|_, (.., last)| now.since(*last) < limits::CONNECT_FAILURE);
        gone |= self.files.len() + self.dropping.len() != before;
        let before = self.hits.len();
        self.hits.retain(|_, (.., last)| now.since(*last) < limits::CONNECT_FAILURE);
        gone |= self.hits.len() != before;
        let before = self.given_up.len() + self.routes_gone.len() + self.refused_links.len();
        self.expire_sandboxes();
        self.refused_links.retain(|_, (.., last)| now.since(*last) < limits::AGENT_FAILURE);
        self.routes_gone.retain(|_, (_, since)| now.since(*since) < limits::AGENT_FAILURE);
        gone |= self.given_up.len() + self.routes_gone.len() + self.refused_links.len() != before;
        let old = |failure: &mut SocketFailure| now.since(failure.last) >= limits::CONNECT_FAILURE;
        gone |= self.runtime_down.take_if(old).is_some();
        gone |=
            self.runtime_answer.take_if(|known| known.until().is_some_and(|until| until <= now)).is_some();
        let before = self.modules.len();
        self.modules.retain(|_, (.., last)| now.since(*last) < limits::AGENT_FAILURE);
        gone |= self.modules.len() != before;
        let before = self.plugins.len();
        self.plugins.retain(|_, failure| failure.until > now);
        gone |= self.plugins.len() != before;
        while self.exits.front().is_some_and(|(at, _)| now.since(*at) >= limits::CRASH_WINDOW) {
            self.exits.pop_front();
            gone = true;
        }
        gone
    }

    /// When something will be too old to count, or old enough.
    pub(crate) fn next_expiry(&self) -> Option<Mono> {
        let mut next: Option<Mono> = None;
        // What is over already must not hide what is still to come.
        let mut at = |deadline: Mono| {
            if deadline > self.now {
                next = Some(next.map_or(deadline, |next| next.min(deadline)));
            }
        };
        for ledger in self.targets.values() {
            let failures = ledger.failure.iter().chain(&ledger.broken).chain(&ledger.stalled);
            let failures = failures.chain(ledger.denied.values());
            failures.for_each(|failure| at(failure.last.plus(limits::CONNECT_FAILURE)));
            ledger.phases.deadlines(self.now).for_each(&mut at);
            ledger.cure.iter().for_each(|cure| at(cure.until()));
            ledger.trust_deadlines().for_each(&mut at);
            let silence = ledger.unanswered.iter();
            silence.for_each(|silence| at(silence.last.plus(limits::UNANSWERED_FORGOTTEN)));
        }
        self.unresolved.values().for_each(|unresolved| at(unresolved.last.plus(limits::CONNECT_FAILURE)));
        self.runtime_down.iter().for_each(|failure| at(failure.last.plus(limits::CONNECT_FAILURE)));
        self.runtime_answer.iter().filter_map(RuntimeAnswer::until).for_each(&mut at);
        self.hits.values().for_each(|(.., last)| at(last.plus(limits::CONNECT_FAILURE)));
        self.files.values().for_each(|file| at(file.until()));
        self.dropping.values().for_each(|(.., last)| at(last.plus(limits::CONNECT_FAILURE)));
        self.plugins.values().for_each(|failure| at(failure.until));
        self.modules.values().for_each(|(.., last)| at(last.plus(limits::AGENT_FAILURE)));
        self.routes_gone.values().for_each(|(_, since)| at(since.plus(limits::AGENT_FAILURE)));
        self.refused_links.values().for_each(|(.., last)| at(last.plus(limits::AGENT_FAILURE)));
        for (start, since) in self.running.values() {
            at(since.plus(limits::WAITS));
            at(since.plus(self.plugin_limit(&start.plugin)));
        }
        self.sandbox_deadlines().for_each(&mut at);
        for (credential, read) in self.credentials.values() {
            for seconds in [credential.valid_in_s, credential.expires_in_s] {
                let seconds = u64::try_from(seconds).unwrap_or_default();
                at(read.plus(seconds.saturating_mul(limits::SECOND)));
            }
        }
        let changed = self.accesses.values().filter_map(|known| known.changed.as_ref());
        changed.for_each(|(since, ..)| at(since.plus(limits::LOAD)));
        self.behind.iter().for_each(|since| at(since.plus(limits::BEHIND)));
        self.losses.deadlines().for_each(&mut at);
        self.exits.front().iter().for_each(|(oldest, _)| at(oldest.plus(limits::CRASH_WINDOW)));
        self.exits.back().iter().for_each(|(newest, _)| at(newest.plus(limits::CRASH_REST)));
        self.lives.values().flat_map(Life::deadlines).for_each(&mut at);
        at(Mono(limits::SETTLE));
        self.until_asked().into_iter().for_each(&mut at);
        for since in self.snapshot_done.iter().chain(self.config.as_ref().map(|(_, since)| since)) {
            at(since.plus(limits::SETTLE));
            at(since.plus(limits::ORPHAN));
        }
        next
    }
}
