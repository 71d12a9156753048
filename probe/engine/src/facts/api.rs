//! API addresses: how connects to them end, what their servers answer, and which processes listen.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use super::phases::{Cure, Phases};
use super::responses::{Unanswered, keeps_connections};
use super::trust::Repeated;
use super::{Facts, LOCAL_PORTS, Taken};
use crate::errno::{EADDRNOTAVAIL, EPERM};
use crate::limits;
use crate::memory::{Bounded, Memory, Seen, UNTIL_CHANGED, memory};
use crate::observation::{
    Actor, Admission, Answer, ApiTarget, BootTime, CONNTRACK, ClientRole, Connect, CredentialAnswer,
    LimitHit, Listener, ProcessClass, Route, Scope, TargetKind, Untrusted,
};
use crate::outcome::{Outcome, is_own};

/// A failure that has not been disproved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) outcome: Outcome,
    /// The sender of the ICMP message, if there was one and the kernel kept it.
    pub(crate) from: Option<IpAddr>,
    /// The kernel's reason for dropping the packet on this host, if it did.
    pub(crate) dropped: Option<String>,
    /// The errno of a connect that failed before a packet was sent; 0 for any other.
    pub(super) early_errno: u32,
    /// The first and the newest of consecutive occurrences.
    pub(crate) since: BootTime,
    pub(crate) last: BootTime,
}

impl Ledger {
    /// Returns an address of which nothing is known but that it was the `order`-th to be named.
    fn new(order: usize) -> Self {
        Self {
            kind: TargetKind::default(),
            source: String::new(),
            is_clients_name: false,
            name: None,
            proxy: None,
            order,
            last_ok: None,
            answer: None,
            last_end: None,
            reported: None,
            is_unverified: false,
            failure: None,
            broken: None,
            stalled: None,
            denied: Bounded::default(),
            unanswered: None,
            cure: None,
            phases: Phases::default(),
            untrusted: None,
            credential: None,
        }
    }
}

impl Memory for Failure {
    fn until(&self) -> Option<BootTime> {
        Some(self.last.plus(limits::CONNECT_FAILURE))
    }
}

impl Ledger {
    /// Returns whether clients get through and no later observation contradicts that.
    pub(super) fn works(&self) -> bool {
        let failed = self.failure.is_some() || self.broken.is_some() || self.stalled.is_some();
        self.last_ok.is_some() && !failed && !self.is_unwell() && self.denied.is_empty()
    }

    /// Returns the address as messages name it: with the proxy if it belongs to one.
    pub(crate) fn label(&self, addr: &SocketAddr) -> String {
        match &self.proxy {
            Some(proxy) => format!("API server through the proxy {proxy} ({addr})"),
            None => addr.to_string(),
        }
    }

    /// Returns whether the newest answer still counts: not while the address cannot be reached, is reached only
    /// intermittently, or has a server that is starting.
    pub(crate) fn has_answer(&self, now: BootTime) -> bool {
        self.failure.is_none() && self.starting(now).is_none() && self.instability(now).is_none()
    }

    /// Returns whether the server answered that it cannot serve.
    pub(super) fn is_unwell(&self) -> bool {
        self.answer.as_ref().is_some_and(|known| !known.value.is_well())
    }
}

impl Failure {
    /// Returns whether this already holds everything that the end of `connect` could add.
    fn covers(&self, connect: &Connect, outcome: Outcome, dropped: Option<&str>) -> bool {
        let from = connect.end.icmp.and_then(|icmp| icmp.from);
        same(self.outcome, outcome)
            && (self.from.is_some() || from.is_none())
            && (self.dropped.is_some() || dropped.is_none())
    }

    /// Returns whether the packet was dropped by policy: netfilter, tc, eBPF or XFRM.
    pub(crate) fn is_policy(&self) -> bool {
        self.dropped.as_deref().is_some_and(is_policy)
    }
}

/// Returns whether this is the kernel's name of a drop by netfilter, tc, eBPF or XFRM, or `unknown`, which is used for these
/// on kernels that name no reason.
fn is_policy(reason: &str) -> bool {
    ["NETFILTER_DROP", "TC_EGRESS", "BPF_CGROUP_EGRESS", "XFRM_POLICY", "unknown"].contains(&reason)
}

memory! {
    /// One API address and how the newest connects to it ended.
    #[derive(Clone, Debug)]
    pub(crate) struct Ledger {
        plain {
            pub(crate) kind: TargetKind,
            pub(crate) source: String,
            /// Whether clients use exactly this address or name because a kubeconfig names it.
            pub(crate) is_clients_name: bool,
            /// The name that clients use, if they do not use the address.
            pub(super) name: Option<String>,
            /// The URL of the proxy that this address belongs to, if clients reach the API server through one.
            pub(crate) proxy: Option<String>,
            /// The order in which the addresses were named. Clients try the first one first.
            pub(crate) order: usize,
            pub(crate) last_ok: Option<BootTime>,
            /// The newest answer to the agent's own questions; its times are those of the same answer in a row.
            pub(crate) answer: Option<Seen<Answer, UNTIL_CHANGED>>,
            /// When the server last closed a connection on which it had answered.
            pub(super) last_end: Option<BootTime>,
            /// The process whose connect was the newest line of evidence, and when.
            reported: Option<(u32, BootTime)>,
            /// Whether it accepts connections again after a failure and no certificate has been verified since: any process
            /// may listen there.
            pub(super) is_unverified: bool,
        }
        timed {
            /// A failure on the network. A success of any client disproves it.
            pub(crate) failure: Option<Failure>,
            /// A failure after the handshake. Only received bytes disprove it.
            pub(crate) broken: Option<Failure>,
            /// A connection that worked and is no longer acknowledged. Only the state of the remaining connections disproves it:
            /// a new connection proves nothing about an old one.
            pub(crate) stalled: Option<Failure>,
            /// Failures before the network, by kind of client (a small closed set). Only a success of the same kind disproves
            /// one.
            pub(crate) denied: Bounded<ClientRole, Failure, { usize::MAX }>,
            /// Requests of the node's clients without a timely response.
            pub(crate) unanswered: Option<Unanswered>,
            pub(super) cure: Option<Cure>,
            /// Earlier states.
            pub(super) phases: Phases,
            /// A certificate of this address that none of the kubelet's CAs issued.
            pub(super) untrusted: Option<Repeated<Untrusted>>,
            /// The answer to the kubelet's own credential.
            pub(super) credential: Option<Repeated<CredentialAnswer>>,
        }
    }
}

/// The newest failed connect of a control-plane process to an address.
#[derive(Clone, Debug)]
pub(crate) struct Unreached {
    client: Actor,
    pub(crate) outcome: Outcome,
    last: BootTime,
}

/// Returns whether a silence of `took_ns` until `at` proves nothing new about an address.
fn is_old_silence(ledger: &Ledger, at: BootTime, took_ns: u64) -> bool {
    // A client got through after the silence began.
    let over = ledger.last_ok.is_some_and(|ok| at.since(ok) <= took_ns);
    let known = ledger.failure.as_ref();
    over || known.is_some_and(|known| is_between_messages(known.outcome, known.last, at))
}

/// Returns whether a silence falls between two ICMP messages of a host that rejects connections: it sends at most one per
/// second (`icmp_ratelimit`).
fn is_between_messages(known: Outcome, last: BootTime, at: BootTime) -> bool {
    matches!(known, Outcome::FilteredIcmp | Outcome::RefusedIcmp) && at.since(last) < limits::ICMP_SILENCE
}

/// Returns whether there was no reply, whichever side gave up first.
const fn is_silence(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Timeout | Outcome::GaveUp)
}

/// Returns whether two outcomes are the same failure.
pub(super) const fn same(one: Outcome, other: Outcome) -> bool {
    is_silence(one) && is_silence(other) || one as u8 == other as u8
}

impl Facts {
    pub(super) fn target(&mut self, target: ApiTarget) {
        let order = self.next_order;
        let Some(ledger) = self.targets.get_or_insert_with(target.addr, || Ledger::new(order)) else {
            return;
        };
        if ledger.order == order {
            self.next_order += 1;
        }
        ledger.kind = target.kind;
        ledger.is_clients_name = target.source.starts_with('/');
        ledger.name = target.name;
        ledger.proxy = target.proxy;
        ledger.source = target.source;
    }

    /// Takes the end of a connect. A failure is a reason to probe the address, and so is a new connection of a client that
    /// normally keeps its connections for hours.
    pub(super) fn connect(&mut self, at: BootTime, connect: &Connect) -> Taken {
        // Pods and untrusted processes can fail to connect for reasons that do not concern the node.
        if !connect.host_netns || connect.role == ClientRole::Untrusted {
            return Taken { is_news: false, ask: None };
        }
        if !self.targets.contains_key(&connect.to) {
            return match connect.role {
                ClientRole::ControlPlane => self.elsewhere(at, connect),
                _ => Taken { is_news: false, ask: None },
            };
        }
        let mut outcome = Outcome::of(connect, &self.host.addresses);
        let mut is_news = false;
        match outcome {
            Outcome::NoPort => {
                self.no_port(at, connect);
                is_news = true;
            }
            // A client that gets through has a port and a route.
            Outcome::Ok => {
                is_news |= self.hits.remove(LOCAL_PORTS).is_some();
                is_news |= self.routes.remove(&connect.to.ip()).is_some_and(|route| route.value != 0);
            }
            _ => {}
        }
        // EACCES is also what a `prohibit` route returns (EPERM never is): the route look-up tells them apart.
        if outcome == Outcome::Denied
            && connect.end.early_errno != EPERM
            && self.routes.get(&connect.to.ip()).is_some_and(|route| route.value != 0)
        {
            outcome = Outcome::NoRoute;
        }
        let changes = self.note(at, connect, outcome);
        if self.is_worth_a_line(at, connect, changes) {
            self.connect_line(at, connect, outcome);
        }
        let asks = outcome.is_failure() && connect.role != ClientRole::Probe
            || outcome == Outcome::Ok && keeps_connections(connect.role);
        Taken { is_news: is_news || changes, ask: asks.then_some(connect.to) }
    }

    /// Limits repeated outcomes of one client to one line per second, so that a client that tries thousands of times does not
    /// displace all other evidence.
    fn is_worth_a_line(&mut self, at: BootTime, connect: &Connect, first: bool) -> bool {
        let Some(ledger) = self.targets.get_mut(&connect.to) else { return false };
        let pid = connect.client.pid;
        let again = connect.role == ClientRole::Probe
            || ledger
                .reported
                .is_some_and(|(reported, last)| reported == pid && at.since(last) < limits::SECOND);
        if again && !first {
            return false;
        }
        ledger.reported = Some((pid, at));
        true
    }

    /// Takes the result of a route look-up.
    pub(super) fn route(&mut self, at: BootTime, route: &Route) {
        let known = self.routes.get(&route.to).filter(|known| known.value == route.errno);
        let since = known.map_or(at, |known| known.since);
        self.routes.put(route.to, Seen { value: route.errno, since, last: at });
        if route.errno != 0 {
            self.no_way(route.to);
        }
    }

    /// Corrects earlier denials now that the kernel is known to have no route: they came from a `prohibit` route.
    fn no_way(&mut self, to: IpAddr) {
        for (_, ledger) in self.targets.iter_mut().filter(|(addr, _)| addr.ip() == to) {
            let of_route = |denied: &Failure| denied.early_errno != EPERM;
            if let Some(first) =
                ledger.denied.values().filter(|denied| of_route(denied)).min_by_key(|d| d.since)
            {
                let failure = Failure { outcome: Outcome::NoRoute, ..first.clone() };
                ledger.failure.get_or_insert(failure);
            }
            ledger.denied.retain(|_, denied| !of_route(denied));
        }
    }

    /// Takes a connect that found every local port in use, which is no evidence about the API server.
    fn no_port(&mut self, at: BootTime, connect: &Connect) {
        let class = (connect.role == ClientRole::Kubelet).then_some(ProcessClass::Kubelet);
        let process = connect.client.clone();
        self.limit_hit(at, LimitHit { process, class, what: LOCAL_PORTS.to_string(), errno: EADDRNOTAVAIL });
    }

    /// Takes a connect of the control plane to an address other than the API server's. An API server that cannot reach its
    /// backends, etcd above all, may be unable to answer, so it is probed.
    fn elsewhere(&mut self, at: BootTime, connect: &Connect) -> Taken {
        let is_news = self.is_backend(&connect.to);
        let outcome = Outcome::of(connect, &self.host.addresses);
        let known = self.unreached.get(&connect.to);
        let between = known.is_some_and(|known| is_between_messages(known.outcome, known.last, at));
        if matches!(outcome, Outcome::Cancelled | Outcome::NoPort) || is_silence(outcome) && between {
            return Taken { is_news: false, ask: None };
        }
        let known = self.unreached.remove(&connect.to);
        if !outcome.is_failure() {
            return Taken { is_news, ask: None };
        }
        if self.unreached.len() >= limits::UNREACHED {
            let oldest =
                self.unreached.iter().min_by_key(|(_, unreached)| unreached.last).map(|(addr, _)| *addr);
            oldest.map(|addr| self.unreached.remove(&addr));
        }
        self.unreached.insert(connect.to, Unreached { client: connect.client.clone(), outcome, last: at });
        if is_news && known.is_none_or(|known| known.outcome != outcome) {
            self.connect_line(at, connect, outcome);
        }
        Taken { is_news, ask: self.targets_in_order().first().map(|(addr, _)| **addr) }
    }

    /// Returns whether a webhook that blocks pods is served at this address.
    pub(super) fn is_backend(&self, addr: &SocketAddr) -> bool {
        let mut blocked = self.admission.iter().flat_map(|(admission, _)| &admission.blocked);
        blocked.any(|blocked| blocked.backend == Some(*addr))
    }

    /// Returns the kernel's reason for dropping the packets of a connect. Drops of a full connection tracking table carry the
    /// same reason as those of netfilter rules but are not policy.
    pub(super) fn dropped<'a>(&self, at: BootTime, connect: &'a Connect) -> Option<&'a str> {
        let was_full = self.conntrack_full.is_some_and(|full| at.since(full) < limits::CONNTRACK_SEEN_LATE);
        let is_full = self.full.keys().any(|(what, _)| what == CONNTRACK);
        connect.end.dropped.as_deref().filter(|reason| !(is_policy(reason) && (was_full || is_full)))
    }

    /// Attributes recent drops to the connection tracking table: it is only polled, and was full before that was noticed.
    pub(super) fn blame_conntrack(&mut self, at: BootTime) {
        for failure in self.targets.values_mut().filter_map(|ledger| ledger.failure.as_mut()) {
            if failure.is_policy() && at.since(failure.last) < limits::CONNTRACK_SEEN_LATE {
                failure.dropped = None;
            }
        }
    }

    /// Records the outcome. Returns whether it changes what is known about the address.
    pub(super) fn note(&mut self, at: BootTime, connect: &Connect, outcome: Outcome) -> bool {
        let dropped = self.dropped(at, connect);
        let Some(ledger) = self.targets.get_mut(&connect.to) else { return false };
        let from = connect.end.icmp.and_then(|icmp| icmp.from);
        let dropped = dropped.map(String::from);
        let fresh =
            Failure { outcome, from, dropped, early_errno: connect.end.early_errno, since: at, last: at };
        match outcome {
            Outcome::Cancelled | Outcome::NoPort => false,
            Outcome::Ok => {
                let first = ledger.last_ok.is_none();
                ledger.last_ok = Some(at);
                let failure = ledger.failure.take();
                let cured = failure.is_some();
                if let Some(failure) = failure {
                    // Established connections recover only with their next retransmission.
                    ledger.stalled = None;
                    ledger.is_unverified = true;
                    ledger.cure = Some(Cure::new(at, failure));
                }
                ledger.denied.remove(&connect.role).is_some() || cured || first
            }
            Outcome::Denied => {
                let first = !ledger.denied.contains_key(&connect.role);
                let known = ledger.denied.get_or_insert_with(connect.role, || fresh);
                if let Some(known) = known {
                    known.last = at;
                }
                first
            }
            _ if is_silence(outcome) && is_old_silence(ledger, at, connect.took_ns) => false,
            _ => match &mut ledger.failure {
                Some(known) if known.covers(connect, outcome, fresh.dropped.as_deref()) => {
                    known.last = at;
                    false
                }
                other => {
                    let since = other.as_ref().map_or(at, |known| known.since);
                    *other = Some(Failure { since, ..fresh });
                    // The server that presented the certificate no longer serves.
                    ledger.untrusted = None;
                    true
                }
            },
        }
    }

    pub(super) fn admission(&mut self, at: BootTime, mut admission: Admission) {
        admission.blocked.truncate(limits::BLOCKED);
        let oldest = admission.blocked.iter().map(|blocked| blocked.since_s).max();
        let Some(oldest) = oldest else {
            self.admission = None;
            return;
        };
        for blocked in &admission.blocked {
            let text = format!(
                "admission webhook {} blocks creation of the pods of {}",
                blocked.webhook, blocked.daemonset
            );
            self.line(at, "api.admission", text);
            let own = blocked.backend.and_then(|backend| self.unreached.get_key_value(&backend));
            if let Some((backend, Unreached { client, outcome, last })) = own {
                let ago = at.since(*last) / limits::SECOND;
                let text =
                    format!("{}[{}] → {backend} {}, {ago} s ago", client.name, client.pid, outcome.words());
                self.line(at, "tcp.connect", text);
            }
        }
        let began = BootTime(at.0.saturating_sub(oldest.saturating_mul(limits::SECOND)));
        let since = self.admission.as_ref().map_or(began, |(_, since)| began.min(*since));
        self.admission = Some((admission, since));
    }

    pub(super) fn connect_line(&mut self, at: BootTime, connect: &Connect, outcome: Outcome) {
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

    pub(super) fn listener(&mut self, at: BootTime, listener: &Listener) {
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
            let what = if listener.up { "listens" } else { "no longer listens" };
            let who = listener.process.with_pid();
            self.line(at, "tcp.listen", format!("{who} {what} on {}", listener.local));
        }
    }

    /// Returns the addresses in the order in which they were named.
    pub(crate) fn targets_in_order(&self) -> Vec<(&SocketAddr, &Ledger)> {
        let mut all: Vec<_> = self.targets.iter().collect();
        all.sort_by_key(|(_, ledger)| ledger.order);
        all
    }

    /// Returns another address of the same name that works now: clients try every address of a name.
    pub(crate) fn other_way(&self, addr: &SocketAddr) -> Option<SocketAddr> {
        let name = self.targets.get(addr)?.name.as_deref()?;
        let others = self.targets.iter().filter(|(other, ledger)| {
            *other != addr && other.port() == addr.port() && ledger.name.as_deref() == Some(name)
        });
        others
            .filter(|(_, ledger)| ledger.works() && ledger.mismatch().is_none())
            .map(|(other, _)| *other)
            .next()
    }

    /// Returns whether any process on this host listens at `addr`.
    pub(crate) fn listens(&self, addr: &SocketAddr) -> bool {
        self.listeners.iter().any(|local| {
            local.port() == addr.port() && (local.ip() == addr.ip() || local.ip().is_unspecified())
        })
    }

    /// Returns addresses of this host at which it should serve the API and nothing listens. Before the listeners were read,
    /// at start or after a loss, an absence proves nothing.
    pub(crate) fn missing_listeners(&self) -> Vec<SocketAddr> {
        let blind = self.snapshot_done.is_none()
            || self.gaps.contains_key("tcp.listen")
            || self.losses.may_explain(Scope::Sockets, self.listeners_since, self.now);
        if blind || !self.is_control_plane() {
            return Vec::new();
        }
        let own = |addr: &SocketAddr| is_own(addr.ip(), &self.host.addresses) && !self.listens(addr);
        // A proxy on this host is not the API server that the host is expected to run.
        let servers = self.targets_in_order().into_iter().filter(|(_, ledger)| ledger.proxy.is_none());
        servers.map(|(addr, _)| *addr).filter(own).collect()
    }
}
