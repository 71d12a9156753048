//! API addresses: how connects to them end, what they say, who listens.

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
    Actor, Admission, Answer, ApiTarget, CONNTRACK, ClientRole, Connect, CredentialAnswer, LimitHit,
    Listener, Mono, ProcessClass, Route, Scope, TargetKind, Untrusted,
};
use crate::outcome::{Outcome, is_own};

/// A failure that was not disproved since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) outcome: Outcome,
    /// Who sent the ICMP message, when one did and the kernel kept it.
    pub(crate) from: Option<IpAddr>,
    /// Why this host dropped what was sent, when it did.
    pub(crate) dropped: Option<String>,
    /// Of a connect that failed before a packet left; 0 for any other.
    pub(super) early_errno: u32,
    /// First and newest occurrence in a row.
    pub(crate) since: Mono,
    pub(crate) last: Mono,
}

impl Ledger {
    /// Returns an address that is not known yet, the `order`-th that was named.
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
            told: None,
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
    fn until(&self) -> Option<Mono> {
        Some(self.last.plus(limits::CONNECT_FAILURE))
    }
}

impl Ledger {
    /// Clients get through, and nothing that they or the agent found out later says otherwise.
    pub(super) fn works(&self) -> bool {
        let failed = self.failure.is_some() || self.broken.is_some() || self.stalled.is_some();
        self.last_ok.is_some() && !failed && !self.is_unwell() && self.denied.is_empty()
    }

    /// Returns the address as messages name it: with the proxy, where it is one's.
    pub(crate) fn label(&self, addr: &SocketAddr) -> String {
        match &self.proxy {
            Some(proxy) => format!("API server through the proxy {proxy} ({addr})"),
            None => addr.to_string(),
        }
    }

    /// Whether what the address answered last still says something: not while it cannot be reached, is reached only now
    /// and then, or starts.
    pub(crate) fn has_answer(&self, now: Mono) -> bool {
        self.failure.is_none() && self.starting(now).is_none() && self.instability(now).is_none()
    }

    /// The server said itself that it cannot serve.
    pub(super) fn is_unwell(&self) -> bool {
        self.answer.as_ref().is_some_and(|known| !known.value.is_well())
    }
}

impl Failure {
    /// Everything that this end of a connect could add.
    fn tells(&self, connect: &Connect, outcome: Outcome, dropped: Option<&str>) -> bool {
        let from = connect.end.icmp.and_then(|icmp| icmp.from);
        same(self.outcome, outcome)
            && (self.from.is_some() || from.is_none())
            && (self.dropped.is_some() || dropped.is_none())
    }

    /// Dropped by something that is configured to: netfilter, tc, eBPF, XFRM.
    pub(crate) fn is_policy(&self) -> bool {
        self.dropped.as_deref().is_some_and(is_policy)
    }
}

/// The kernel's names of drops by netfilter, tc, eBPF and XFRM, and what stands for them where it names none.
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
            /// Clients use exactly this address or name: it stands in a kubeconfig.
            pub(crate) is_clients_name: bool,
            /// The name that clients use, where it is not the address.
            pub(super) name: Option<String>,
            /// The URL of the proxy that this address belongs to, where clients reach the API server by one.
            pub(crate) proxy: Option<String>,
            /// Order in which the addresses were named: the first is the one that clients use first.
            pub(crate) order: usize,
            pub(crate) last_ok: Option<Mono>,
            /// The newest answer to the agent's own questions; its times are those of the same answer in a row.
            pub(crate) answer: Option<Seen<Answer, UNTIL_CHANGED>>,
            /// When the server last ended a connection on which it had answered.
            pub(super) last_end: Option<Mono>,
            /// The process whose connect was the newest line of evidence, and when.
            told: Option<(u32, Mono)>,
            /// It accepts connections again after a failure, and no certificate was verified since: anything may listen there.
            pub(super) is_unverified: bool,
        }
        timed {
            /// On the network: disproved by a success of any client.
            pub(crate) failure: Option<Failure>,
            /// After the handshake: disproved only by bytes that come back.
            pub(crate) broken: Option<Failure>,
            /// A connection that worked and is no longer acknowledged: disproved only by a look at the connections that are
            /// left, because a new one shows nothing of it.
            pub(crate) stalled: Option<Failure>,
            /// Before the network, by kind of client, of which there are few: disproved only by a success of the same kind.
            pub(crate) denied: Bounded<ClientRole, Failure, { usize::MAX }>,
            /// Requests of the node's clients that get no response in time.
            pub(crate) unanswered: Option<Unanswered>,
            pub(super) cure: Option<Cure>,
            /// What it looked like before.
            pub(super) phases: Phases,
            /// The kubelet's CAs did not issue the certificate of this address.
            pub(super) untrusted: Option<Repeated<Untrusted>>,
            /// The answer to the kubelet's own credential.
            pub(super) credential: Option<Repeated<CredentialAnswer>>,
        }
    }
}

/// How the newest connect of a process of the control plane to an address ended.
#[derive(Clone, Debug)]
pub(crate) struct Unreached {
    client: Actor,
    pub(crate) outcome: Outcome,
    last: Mono,
}

/// A silence of `took_ns` until `at` that tells nothing new of an address.
fn is_old_silence(ledger: &Ledger, at: Mono, took_ns: u64) -> bool {
    // Somebody has got through since it began: it tells of a time that is over.
    let over = ledger.last_ok.is_some_and(|ok| at.since(ok) <= took_ns);
    let known = ledger.failure.as_ref();
    over || known.is_some_and(|known| is_between_messages(known.outcome, known.last, at))
}

/// A host that rejects says so once a second at the most (`icmp_ratelimit`), and is silent in between.
fn is_between_messages(known: Outcome, last: Mono, at: Mono) -> bool {
    matches!(known, Outcome::FilteredIcmp | Outcome::RefusedIcmp) && at.since(last) < limits::ICMP_SILENCE
}

/// Who lost patience first does not matter.
const fn is_silence(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Timeout | Outcome::GaveUp)
}

/// Two names for one thing.
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

    /// Takes the end of a connect. A failure is a reason to question the address, and so is a connection of a client that
    /// keeps its connections for hours.
    pub(super) fn connect(&mut self, at: Mono, connect: &Connect) -> Taken {
        // A pod or an untrusted process can fail to connect for reasons of its own.
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
        // EACCES is also the answer of a `prohibit` route, EPERM never: the look-up tells them apart.
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

    /// The same from the same client is worth one line a second: a client that tries thousands of times would push out
    /// everything else.
    fn is_worth_a_line(&mut self, at: Mono, connect: &Connect, first: bool) -> bool {
        let Some(ledger) = self.targets.get_mut(&connect.to) else { return false };
        let pid = connect.client.pid;
        let again = connect.role == ClientRole::Probe
            || ledger.told.is_some_and(|(told, last)| told == pid && at.since(last) < limits::SECOND);
        if again && !first {
            return false;
        }
        ledger.told = Some((pid, at));
        true
    }

    /// What a look-up of the way to an address said.
    pub(super) fn route(&mut self, at: Mono, route: &Route) {
        let known = self.routes.get(&route.to).filter(|known| known.value == route.errno);
        let since = known.map_or(at, |known| known.since);
        self.routes.put(route.to, Seen { value: route.errno, since, last: at });
        if route.errno != 0 {
            self.no_way(route.to);
        }
    }

    /// The kernel has no way there: what looked like a denial before that was known is the answer of a `prohibit` route.
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

    /// Says nothing of the API server: every local port towards it is in use.
    fn no_port(&mut self, at: Mono, connect: &Connect) {
        let class = (connect.role == ClientRole::Kubelet).then_some(ProcessClass::Kubelet);
        let process = connect.client.clone();
        self.limit_hit(at, LimitHit { process, class, what: LOCAL_PORTS.to_string(), errno: EADDRNOTAVAIL });
    }

    /// The control plane's own connects, to other than API addresses. What it does not reach, etcd above all, it may not
    /// be able to answer without: a reason to ask it.
    fn elsewhere(&mut self, at: Mono, connect: &Connect) -> Taken {
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

    /// A webhook that blocks pods is served there.
    pub(super) fn is_backend(&self, addr: &SocketAddr) -> bool {
        let mut blocked = self.admission.iter().flat_map(|(admission, _)| &admission.blocked);
        blocked.any(|blocked| blocked.backend == Some(*addr))
    }

    /// Why this host dropped what a connect sent. A full connection tracking table drops by netfilter, too, and is no
    /// policy.
    pub(super) fn dropped<'a>(&self, at: Mono, connect: &'a Connect) -> Option<&'a str> {
        let was_full = self.conntrack_full.is_some_and(|full| at.since(full) < limits::CONNTRACK_SEEN_LATE);
        let is_full = self.full.keys().any(|(what, _)| what == CONNTRACK);
        connect.end.dropped.as_deref().filter(|reason| !(is_policy(reason) && (was_full || is_full)))
    }

    /// The table was full a moment ago already: it is looked at now and then.
    pub(super) fn blame_conntrack(&mut self, at: Mono) {
        for failure in self.targets.values_mut().filter_map(|ledger| ledger.failure.as_mut()) {
            if failure.is_policy() && at.since(failure.last) < limits::CONNTRACK_SEEN_LATE {
                failure.dropped = None;
            }
        }
    }

    /// Enters the outcome; true when it changes what is known of the address.
    pub(super) fn note(&mut self, at: Mono, connect: &Connect, outcome: Outcome) -> bool {
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
                    // Established connections learn of it only with their next retransmission.
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
                Some(known) if known.tells(connect, outcome, fresh.dropped.as_deref()) => {
                    known.last = at;
                    false
                }
                other => {
                    let since = other.as_ref().map_or(at, |known| known.since);
                    *other = Some(Failure { since, ..fresh });
                    // Whatever showed it does not serve any more.
                    ledger.untrusted = None;
                    true
                }
            },
        }
    }

    pub(super) fn admission(&mut self, at: Mono, mut admission: Admission) {
        admission.blocked.truncate(limits::BLOCKED);
        let oldest = admission.blocked.iter().map(|blocked| blocked.since_s).max();
        let Some(oldest) = oldest else {
            self.admission = None;
            return;
        };
        for blocked in &admission.blocked {
            let text = format!("the webhook {} refuses pods of {}", blocked.webhook, blocked.daemonset);
            self.line(at, "api.admission", text);
            let own = blocked.backend.and_then(|backend| self.unreached.get_key_value(&backend));
            if let Some((backend, Unreached { client, outcome, last })) = own {
                let ago = at.since(*last) / limits::SECOND;
                let text =
                    format!("{}[{}] → {backend} {}, {ago} s ago", client.name, client.pid, outcome.words());
                self.line(at, "tcp.connect", text);
            }
        }
        let told = Mono(at.0.saturating_sub(oldest.saturating_mul(limits::SECOND)));
        let since = self.admission.as_ref().map_or(told, |(_, since)| told.min(*since));
        self.admission = Some((admission, since));
    }

    pub(super) fn connect_line(&mut self, at: Mono, connect: &Connect, outcome: Outcome) {
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

    pub(super) fn listener(&mut self, at: Mono, listener: &Listener) {
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

    /// Addresses in the order in which they were named.
    pub(crate) fn targets_in_order(&self) -> Vec<(&SocketAddr, &Ledger)> {
        let mut all: Vec<_> = self.targets.iter().collect();
        all.sort_by_key(|(_, ledger)| ledger.order);
        all
    }

    /// Another address of the same name, by which clients get through now: they try every address of a name.
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
            || self.losses.may_explain(Scope::Sockets, self.listeners_since, self.now);
        if blind || !self.is_control_plane() {
            return Vec::new();
        }
        let own = |addr: &SocketAddr| is_own(addr.ip(), &self.host.addresses) && !self.listens(addr);
        // A proxy on this host is not the API server that the host should serve.
        let servers = self.targets_in_order().into_iter().filter(|(_, ledger)| ledger.proxy.is_none());
        servers.map(|(addr, _)| *addr).filter(own).collect()
    }
}
