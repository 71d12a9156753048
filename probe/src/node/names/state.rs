//! The state of one name: the addresses that it resolves to, and those that the kubelet is connected to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use probe_engine::{Actor, BootTime, Gap, NameLookup, Observation, ProcessClass, limits};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{MAX_ADDRESSES, MAX_INTERVAL, MIN_INTERVAL, NameResolution, Named};
use crate::clock;
use crate::node::discovery::Kubelet;
use crate::node::targets::Origin;
use crate::node::{accepted, processes, provenance, sockets, targets};
use crate::settings::Settings;
use crate::text::clean;

/// Interval between lookups while the lookup fails.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// How long an address is kept after it was last resolved or in use, ns: resolvers rotate the addresses in their responses,
/// and clients keep the address they are connected to.
const RETENTION_NS: u64 = 300 * limits::SECOND;
/// Interval between polls of the kubelet's connections; each walks the kernel's connections to one port.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Minimum age of a connection for its address to count as one of the name. The kubelet keeps its connection to the API server
/// open for hours; connections of its probes to pods on the same port close with the probe's timeout.
const MIN_CONNECTION_AGE: Duration = Duration::from_secs(30);
/// Maximum length of a name, bytes (RFC 1035).
const MAX_NAME_LEN: usize = 253;

/// The state of one name.
#[derive(Debug)]
pub(super) struct NameState {
    addresses: BTreeMap<IpAddr, Address>,
    /// When the next lookup is due.
    pub(super) due: Instant,
    /// Whether the last lookup failed.
    failed: bool,
    /// When the kubelet's connections are polled next.
    poll_due: Instant,
    /// Connections to addresses that are not known, by the socket's inode number.
    unknown_peers: BTreeMap<u32, UnknownPeer>,
}

#[derive(Clone, Copy, Debug)]
struct Address {
    /// When it was last in a response, or in use.
    at: BootTime,
    /// Whether a lookup returned it.
    is_resolved: bool,
}

#[derive(Clone, Copy, Debug)]
struct UnknownPeer {
    /// When the connection was first seen.
    since: Instant,
    /// Whether the connection is known not to be one of the kubelet to the API server.
    is_rejected: bool,
}

impl Default for NameState {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            addresses: BTreeMap::new(),
            due: now,
            failed: false,
            poll_due: now,
            unknown_peers: BTreeMap::new(),
        }
    }
}

impl NameState {
    /// Makes the next lookup due at once: the resolver's configuration has changed.
    pub(super) fn retry_now(&mut self) {
        self.due = Instant::now();
    }

    /// Records the result of a lookup and returns what to report of it.
    pub(super) fn record(
        &mut self,
        named: &Named,
        NameResolution { resolver, result }: NameResolution,
    ) -> Vec<Observation> {
        let now = clock::now();
        let mut reports = Vec::new();
        let name = clean(named.name.as_bytes(), MAX_NAME_LEN);
        let (addresses, failure) = match result {
            Ok((addresses, ttl)) => {
                self.due = Instant::now() + ttl.clamp(MIN_INTERVAL, MAX_INTERVAL);
                (addresses, None)
            }
            Err(failure) => {
                self.due = Instant::now() + RETRY_INTERVAL;
                (Vec::new(), Some(failure))
            }
        };
        for ip in addresses {
            if self.addresses.insert(ip, Address { at: now, is_resolved: true }).is_none() {
                reports.push(Observation::ApiTarget(named.target(ip)));
            }
        }
        if failure.is_some() || self.failed {
            self.failed = failure.is_some();
            reports.push(match failure {
                // The CNI agent may use another address.
                Some(failure) if named.origin == Origin::Cni => {
                    let why = format!("{name} in {}: {resolver} {}", named.source, failure.words());
                    Observation::Gap(Gap { signal: targets::SIGNAL.to_owned(), why, blind: false })
                }
                failure => {
                    let proxy = named.proxy.clone();
                    Observation::NameLookup(NameLookup { name, resolver, failure, proxy })
                }
            });
        }
        reports
    }

    /// Polls the kubelet's own connections and returns what to report of them: an address that the kubelet is connected to is
    /// an address of the name, regardless of how the kubelet resolved it. Removes addresses that have expired.
    pub(super) async fn follow_kubelet(
        &mut self,
        settings: &Settings,
        kubelet: &watch::Receiver<Kubelet>,
        named: &Named,
    ) -> Vec<Observation> {
        let now = Instant::now();
        // A name without an address needs one soon, and there is no known address that it could be confused with.
        let is_urgent = self.failed && self.addresses.is_empty();
        if now < self.poll_due && !is_urgent {
            return Vec::new();
        }
        self.poll_due = now + POLL_INTERVAL;
        let found = sockets::connected_to(named.port).unwrap_or_default();
        let mut reports = Vec::new();
        if named.origin == Origin::Kubelet {
            let min_age = if is_urgent { Duration::ZERO } else { MIN_CONNECTION_AGE };
            let lasting = self.lasting(&found, now, min_age);
            let inodes: BTreeSet<_> = lasting.iter().map(|(_, inode)| *inode).collect();
            let of_kubelet = of_kubelets(settings, &inodes);
            for (ip, inode) in lasting {
                if self.addresses.contains_key(&ip) || self.addresses.len() >= MAX_ADDRESSES {
                    continue;
                }
                let target = named.target(ip);
                let is_server = if of_kubelet.contains(&inode) {
                    let kubelet = kubelet.borrow().clone();
                    accepted::is_server_of_kubelet(settings, &kubelet, &target).await
                } else {
                    Some(false)
                };
                match is_server {
                    Some(true) => {
                        self.addresses.insert(ip, Address { at: clock::now(), is_resolved: false });
                        reports.push(Observation::ApiTarget(target));
                    }
                    Some(false) => _ = self.unknown_peers.get_mut(&inode).map(|peer| peer.is_rejected = true),
                    // Unknown: checked again at the next poll.
                    None => {}
                }
            }
        }
        let expired = self.expired(clock::now());
        if expired.is_empty() {
            return reports;
        }
        // The kubelet may still use an expired address: its connections stay open for hours.
        let to_them = found.into_iter().filter(|(ip, _)| expired.contains(ip)).collect();
        reports.extend(self.forget(named, expired, &used(settings, to_them)));
        reports
    }

    /// Returns the connections to unknown addresses that have been open for at least `min_age` and were not rejected.
    fn lasting(&mut self, found: &[(IpAddr, u32)], now: Instant, min_age: Duration) -> Vec<(IpAddr, u32)> {
        let unknown = found.iter().copied().filter(|(ip, _)| !self.addresses.contains_key(ip));
        let unknown: Vec<_> = unknown.collect();
        let open: BTreeSet<_> = unknown.iter().map(|(_, inode)| *inode).collect();
        self.unknown_peers.retain(|inode, _| open.contains(inode));
        let is_lasting = |(_, inode): &(IpAddr, u32)| {
            let peer =
                self.unknown_peers.entry(*inode).or_insert(UnknownPeer { since: now, is_rejected: false });
            !peer.is_rejected && now.duration_since(peer.since) >= min_age
        };
        unknown.into_iter().filter(is_lasting).collect()
    }

    /// Returns the addresses that were neither resolved nor in use for [`RETENTION_NS`]. Resolved addresses do not expire while
    /// lookups fail.
    fn expired(&self, now: BootTime) -> Vec<IpAddr> {
        let expired = self.addresses.iter().filter(|(_, address)| {
            now.since(address.at) >= RETENTION_NS && !(self.failed && address.is_resolved)
        });
        expired.map(|(ip, _)| *ip).collect()
    }

    /// Removes the expired addresses that are not in use, and returns what to report.
    fn forget(&mut self, named: &Named, expired: Vec<IpAddr>, used: &BTreeSet<IpAddr>) -> Vec<Observation> {
        let now = clock::now();
        let mut reports = Vec::new();
        for ip in expired {
            if used.contains(&ip) {
                self.addresses.entry(ip).and_modify(|address| address.at = now);
                continue;
            }
            self.addresses.remove(&ip);
            reports.push(Observation::ApiTargetGone { addr: SocketAddr::new(ip, named.port) });
        }
        reports
    }
}

/// Returns which of these sockets belong to the node's kubelet.
fn of_kubelets(settings: &Settings, inodes: &BTreeSet<u32>) -> BTreeSet<u32> {
    if inodes.is_empty() {
        return BTreeSet::new();
    }
    let owners = processes::socket_owners(inodes).into_iter();
    let is_kubelet =
        |owner: &Actor| provenance::class_of(settings, owner.pid, &owner.name) == Some(ProcessClass::Kubelet);
    owners.filter(|(_, owner)| is_kubelet(owner)).map(|(inode, _)| inode).collect()
}

/// Returns the addresses of these connections that a kubelet holds.
fn used(settings: &Settings, connections: Vec<(IpAddr, u32)>) -> BTreeSet<IpAddr> {
    let of_kubelet = of_kubelets(settings, &connections.iter().map(|(_, inode)| *inode).collect());
    connections.into_iter().filter(|(_, inode)| of_kubelet.contains(inode)).map(|(ip, _)| ip).collect()
}

#[cfg(test)]
mod tests {
    use probe_engine::NameFailure;

    use super::*;

    fn named() -> Named {
        Named {
            name: "api.test".to_owned(),
            port: 443,
            source: "here".to_owned(),
            origin: Origin::Kubelet,
            services: Vec::new(),
            proxy: None,
        }
    }

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn answer(result: Result<u8, NameFailure>) -> NameResolution {
        let result = result.map(|last| (vec![ip(last)], MIN_INTERVAL));
        NameResolution { resolver: "10.0.0.2:53".to_owned(), result }
    }

    fn summaries(reports: &[Observation]) -> Vec<String> {
        let kind = |observation: &Observation| match observation {
            Observation::ApiTarget(target) => format!("+{}", target.addr),
            Observation::ApiTargetGone { addr } => format!("-{addr}"),
            Observation::NameLookup(lookup) => format!("{:?}", lookup.failure),
            other => format!("{other:?}"),
        };
        reports.iter().map(kind).collect()
    }

    /// Sets the age of an address to the retention time.
    fn age(state: &mut NameState, last: u8) {
        let at = clock::now().minus(RETENTION_NS);
        state.addresses.entry(ip(last)).and_modify(|address| address.at = at);
    }

    fn forget(state: &mut NameState, used: &[u8]) -> Vec<String> {
        let expired = state.expired(clock::now());
        summaries(&state.forget(&named(), expired, &used.iter().map(|last| ip(*last)).collect()))
    }

    #[test]
    fn keeps_rotated_addresses_and_reports_a_failure_until_it_ends() {
        let (named, mut state) = (named(), NameState::default());
        assert_eq!(summaries(&state.record(&named, answer(Ok(1)))), ["+10.0.0.1:443"]);
        assert_eq!(summaries(&state.record(&named, answer(Ok(2)))), ["+10.0.0.2:443"]);
        assert_eq!(summaries(&state.record(&named, answer(Ok(1)))), [""; 0]);
        for _ in 0..2 {
            assert_eq!(summaries(&state.record(&named, answer(Err(NameFailure::Silent)))), ["Some(Silent)"]);
        }
        age(&mut state, 2);
        assert_eq!(forget(&mut state, &[]), [""; 0], "resolved addresses do not expire while lookups fail");
        assert_eq!(summaries(&state.record(&named, answer(Ok(1)))), ["None"]);
        assert_eq!(forget(&mut state, &[]), ["-10.0.0.2:443"]);
    }

    #[test]
    fn address_that_only_the_kubelet_uses_expires_with_its_connection() {
        let mut state = NameState::default();
        state.record(&named(), answer(Ok(1)));
        state.addresses.insert(ip(3), Address { at: clock::now(), is_resolved: false });
        assert_eq!(forget(&mut state, &[]), [""; 0], "it was in use recently");
        age(&mut state, 3);
        assert_eq!(forget(&mut state, &[3]), [""; 0]);
        age(&mut state, 3);
        state.record(&named(), answer(Err(NameFailure::Silent)));
        assert_eq!(forget(&mut state, &[]), ["-10.0.0.3:443"], "it expires whether or not the name resolves");
    }

    #[test]
    fn only_lasting_connections_count() {
        let mut state = NameState::default();
        state.record(&named(), answer(Ok(1)));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let found = [(ip(1), 11), (ip(3), 13), (ip(4), 14)];
        assert_eq!(state.lasting(&found, at(0), MIN_CONNECTION_AGE), []);
        // One connection was closed, and another was opened to the same address.
        let next = [(ip(1), 11), (ip(3), 23), (ip(4), 14)];
        assert_eq!(state.lasting(&next, at(20), MIN_CONNECTION_AGE), []);
        assert_eq!(state.lasting(&next, at(30), MIN_CONNECTION_AGE), [(ip(4), 14)]);
        state.unknown_peers.get_mut(&14).expect("a peer").is_rejected = true;
        assert_eq!(state.lasting(&next, at(60), MIN_CONNECTION_AGE), [(ip(3), 23)]);
        assert_eq!(state.lasting(&[], at(70), MIN_CONNECTION_AGE), []);
        assert!(state.unknown_peers.is_empty(), "closed connections are removed");
        assert_eq!(state.lasting(&found, at(80), Duration::ZERO), [(ip(3), 13), (ip(4), 14)]);
    }
}
