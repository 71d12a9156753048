//! What is known now: the newest observations, bounded, without judgement.

mod api;
mod cni;
mod datapath;
mod lives;
mod losses;
mod names;
mod node;
mod phases;
mod responses;
mod runtime;
mod sandboxes;
mod trust;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::{String, ToString as _};
use core::net::{IpAddr, SocketAddr};

pub(crate) use api::{Failure, Ledger, Unreached};
pub(crate) use cni::{Accesses, PluginFailure, RefusedFile, RunningPlugin};
pub(crate) use datapath::{Behind, ERRNOS, is_taken_vni};
pub(crate) use lives::{Exits, Life};
pub(crate) use losses::LossLedger;
pub(crate) use names::Unresolved;
pub use node::is_same_path;
pub(crate) use node::{ReadCredential, SocketFailure};
pub(crate) use runtime::RuntimeAnswer;
pub(crate) use sandboxes::Sandboxes;

use crate::cnis::Cni;
use crate::limits;
use crate::memory::{Bounded, Memory, Seen, UNTIL_CHANGED, memory};
use crate::observation::{
    Actor, Admission, BootTime, CgroupDrivers, CniConfig, Gap, Host, Leases, Limit, LimitHit, ModuleMissing,
    NameState, NetlinkError, Observation, Ovs, OvsUpcalls, PacketsDropped, PodCidrs, RouteGone, Stuck,
    Writes,
};
use crate::verdict::Evidence;

/// A limit that shows as an errno of connect(2): every port of `net.ipv4.ip_local_port_range` is in use towards one address.
const LOCAL_PORTS: &str = "local ports";

memory! {
    /// Everything that is known about the node.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Facts {
        plain {
            /// The newest time that was observed.
            pub(crate) now: BootTime,
            /// Replaces the limit of each plugin's own row, nanoseconds.
            pub(crate) plugin_limit_ns: Option<u64>,
            pub(crate) snapshot_done: Option<BootTime>,
            pub(crate) stopping: Option<BootTime>,
            pub(crate) host: Host,
            pub(crate) gaps: Bounded<String, Gap, { limits::GAPS }>,
            pub(crate) writes: Option<Writes>,
            /// The newest lines of evidence, oldest first.
            pub(crate) lines: VecDeque<Evidence>,

            pub(crate) next_order: usize,
            /// By destination: the errno of its route, 0 for a route that exists.
            pub(crate) routes: Bounded<IpAddr, Seen<u32, UNTIL_CHANGED>, { limits::ROUTES }>,
            pub(crate) listeners: BTreeSet<SocketAddr>,
            /// When the set of listeners last changed for the API's ports.
            pub(crate) listeners_since: BootTime,
            /// Addresses that the control plane of this host cannot reach, API addresses apart: the backends of webhooks
            /// are among them.
            pub(crate) unreached: BTreeMap<SocketAddr, Unreached>,
            /// DaemonSets without pods, and since when there is any.
            pub(crate) admission: Option<(Admission, BootTime)>,
            /// The Node object was read and has no pod CIDR.
            pub(crate) without_pod_cidr: bool,

            pub(crate) config: Option<(CniConfig, BootTime)>,
            /// Since when there is no configuration, if there was one before.
            pub(crate) config_vanished: Option<BootTime>,
            /// By name of a configuration file: the CNI that it belongs to, where that is known.
            pub(crate) owners: Bounded<String, &'static Cni, { limits::FILES }>,
            /// A pod got its network by this plugin while the configuration that is judged holds none.
            pub(crate) contradicted: Option<String>,
            /// By plugin: when it last started.
            pub(crate) ran: Bounded<String, BootTime, { limits::PLUGINS }>,
            /// Process ids of running plugins whose exit may have been lost. Those that are not reported again until all state
            /// was read again have exited.
            pub(crate) unsure: BTreeSet<u32>,
            /// By directory.
            pub(crate) leases: Bounded<String, Leases, { limits::FULL }>,

            /// The container runtime that runs.
            pub(crate) runtime: Option<Actor>,
            /// Sockets of runtimes that the kubelet has reached.
            pub(crate) served: BTreeSet<String>,
            pub(crate) drivers: Option<CgroupDrivers>,
            /// By what is full and where.
            pub(crate) full: Bounded<(String, String), Seen<Limit, UNTIL_CHANGED>, { limits::FULL }>,
            /// When the connection tracking table was last reported as full, or as having been full.
            pub(crate) conntrack_full: Option<BootTime>,
            /// By process id: those that run and make no progress.
            pub(crate) stuck: Bounded<u32, Seen<Stuck, UNTIL_CHANGED>, { limits::LIVES }>,

            pub(crate) ovs: Option<(Ovs, BootTime)>,
            /// When ovs-vswitchd exited, if no other has started.
            pub(crate) vswitchd_gone: Option<(String, BootTime)>,
            /// The newest count while upcalls of the datapath are lost.
            pub(crate) upcalls_lost: Option<(OvsUpcalls, BootTime)>,
        }
        timed {
            pub(crate) losses: LossLedger,
            pub(crate) targets: Bounded<SocketAddr, Ledger, { limits::TARGETS }>,
            /// By name: names of API servers that have no address.
            pub(crate) unresolved: Bounded<String, Unresolved, { limits::NAMES }>,
            /// By file.
            pub(crate) credentials: Bounded<String, ReadCredential, { limits::FILES }>,

            /// By file.
            pub(crate) accesses: Bounded<String, Accesses, { limits::FILES }>,
            /// By plugin: attempts to execute or to replace it that were refused.
            pub(crate) files: Bounded<String, RefusedFile, { limits::PLUGINS }>,
            /// By plugin: its newest failed ADD.
            pub(crate) plugins: Bounded<String, PluginFailure, { limits::PLUGINS }>,
            /// By process id: plugins that run now.
            pub(crate) running: Bounded<u32, RunningPlugin, { limits::RUNNING }>,
            pub(crate) sandboxes: Sandboxes,

            /// Why the CRI socket cannot be used, as the kubelet finds it.
            pub(crate) runtime_down: Option<SocketFailure>,
            pub(crate) runtime_answer: Option<RuntimeAnswer>,
            /// By name of the executable.
            pub(crate) lives: Bounded<String, Life, { limits::LIVES }>,
            pub(crate) exits: Exits,
            /// By resource: the newest request for it that was refused.
            pub(crate) hits: Bounded<String, Seen<LimitHit, { limits::CONNECT_FAILURE }>, { limits::FULL }>,
            /// By module.
            pub(crate) modules: Bounded<String, Seen<ModuleMissing, { limits::AGENT_FAILURE }>, { limits::FULL }>,

            /// By whether it is a rule, and object: routes and rules that were removed. They count from their removal.
            pub(crate) routes_gone:
                Bounded<(bool, String), Seen<RouteGone, { limits::AGENT_FAILURE }>, { limits::FULL }>,
            /// By link: the newest request of an agent of a CNI that the kernel refused.
            pub(crate) refused_links:
                Bounded<String, Seen<NetlinkError, { limits::AGENT_FAILURE }>, { limits::FULL }>,
            /// By link: packets that the reverse path filter dropped.
            pub(crate) dropping:
                Bounded<String, Seen<PacketsDropped, { limits::CONNECT_FAILURE }>, { limits::FULL }>,
            /// Since when changes are pending that ovs-vswitchd was asked for.
            pub(crate) behind: Option<Behind>,
        }
    }
}

/// What taking an observation led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Whether the node may have to be judged differently. A busy node reports thousands of successes a second, which change
    /// nothing.
    pub(crate) is_news: bool,
    /// The API address to question: a client failed to reach it, or has reason to doubt it.
    pub(crate) ask: Option<SocketAddr>,
}

impl Facts {
    /// Takes one observation.
    pub(crate) fn take(&mut self, at: BootTime, observation: Observation) -> Taken {
        self.now = at;
        let (mut is_news, mut ask) = (true, None);
        match observation {
            Observation::Host(host) => self.host = host,
            Observation::ApiTarget(target) => self.target(target),
            Observation::ApiTargetGone { addr } => {
                self.targets.remove(&addr);
            }
            Observation::Connect(connect) => {
                Taken { is_news, ask } = self.connect(at, &connect);
                self.enter_phase(at, connect.to);
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
                ask = self.connection(at, &connection);
                self.enter_phase(at, connection.to);
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
            Observation::Leases(leases) => self.leases.put(leases.dir.clone(), leases),
            Observation::ModuleMissing(missing) => self.module(at, missing),
            Observation::ConfAccess(access) => self.access(at, access),
            Observation::PluginFile(file) => self.plugin_file(at, file),
            Observation::PacketsDropped(dropped) => self.packets_dropped(at, dropped),
            Observation::CniStart(start) => is_news = self.plugin_started(at, start),
            Observation::NetnsName(name) => {
                is_news = name.state == NameState::Stale;
                if is_news {
                    self.line(at, "netns", format!("{} is a file, bound to no namespace", name.path));
                }
            }
            Observation::Ovs(ovs) => self.ovs(at, ovs),
            Observation::OvsUpcalls(upcalls) => self.upcalls(at, upcalls),
            Observation::Sandbox(sandbox) => self.sandbox(at, &sandbox),
            Observation::Link(link) => is_news = self.link(&link),
            // Conditions that an earlier agent wrote are not facts of the node, and no throttled event was one of its
            // components. No rule reads the others.
            Observation::Netns(_)
            | Observation::OvsPort(_)
            | Observation::Remembered(_)
            | Observation::Sysctl { .. }
            | Observation::Throttled(_) => is_news = false,
            Observation::CniEnd(end) => is_news = self.plugin(at, &end),
            Observation::Process(process) => self.process(at, process),
            Observation::Stuck(stuck) => self.stuck(at, stuck),
            Observation::Lost(lost) => self.lost(at, &lost),
            Observation::Reread { scope } => self.reread(scope),
            Observation::Gap(gap) => self.gap(gap),
            Observation::GapClosed { signal } => {
                self.gaps.remove(&signal);
            }
            Observation::Writes(writes) => {
                self.writes = Some(writes);
                is_news = false;
            }
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
        Taken { is_news, ask }
    }

    fn enter_phase(&mut self, at: BootTime, addr: SocketAddr) {
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

    /// Adds a line of evidence. The oldest one is removed if there is no room.
    pub(crate) fn line(&mut self, at: BootTime, signal: &str, text: String) {
        if self.lines.len() >= limits::EVIDENCE {
            self.lines.pop_front();
        }
        self.lines.push_back(Evidence {
            at,
            signal: signal.to_string(),
            text: limits::cut(text, limits::MESSAGE),
        });
    }

    /// Removes what no longer counts at `now`.
    pub(crate) fn expire(&mut self, now: BootTime) {
        self.now = now;
        Memory::expire(self, now);
        self.targets.values_mut().for_each(|ledger| ledger.enter_phase(now));
    }

    /// Returns the next time at which this may be judged differently although nothing was observed.
    pub(crate) fn next_deadline(&self) -> Option<BootTime> {
        let mut next: Option<BootTime> = None;
        // A time that has passed must not hide one that is still to come.
        let mut at = |deadline: BootTime| {
            if deadline > self.now {
                next = Some(next.map_or(deadline, |next| next.min(deadline)));
            }
        };
        self.deadlines(self.now, &mut at);
        at(BootTime(limits::SETTLE));
        self.until_asked().into_iter().for_each(&mut at);
        for since in self.snapshot_done.iter().chain(self.config.as_ref().map(|(_, since)| since)) {
            at(since.plus(limits::SETTLE));
            at(since.plus(limits::ORPHAN));
        }
        next
    }
}
