//! What is known of one name: the addresses that it resolves to, and those that the kubelet is connected to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use probe_engine::{Actor, Gap, Mono, NameLookup, Observation, ProcessClass, limits};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{ADDRESSES, EVERY, LookedUp, Named};
use crate::clock;
use crate::node::discovery::Kubelet;
use crate::node::targets::Whose;
use crate::node::{accepted, processes, provenance, sockets, targets};
use crate::settings::Settings;
use crate::text::clean;

/// Between two look-ups while the name has no address.
const AGAIN: Duration = Duration::from_secs(5);
/// For how long an address that is neither among the answers nor used any more is kept: answers take turns, and clients keep
/// what they had.
const KEPT: u64 = 300 * limits::SECOND;
/// Between two looks at what the kubelet is connected to: a walk of the kernel's connections to one port.
const LOOK: Duration = Duration::from_secs(10);
/// How long a connection is open before its address counts as one of the name. The kubelet keeps its connection to the API
/// server for hours; those of its probes to pods with the same port end with the probe's timeout.
const LASTS: Duration = Duration::from_secs(30);
/// Longest name (RFC 1035).
const NAME: usize = 253;

/// See the module.
#[derive(Debug)]
pub(super) struct Known {
    /// Its addresses.
    addresses: BTreeMap<IpAddr, Address>,
    /// When it is looked up next.
    pub(super) due: Instant,
    failed: bool,
    /// When the kubelet's connections are looked at next.
    look_due: Instant,
    /// By inode: connections to addresses that are not among the known ones.
    others: BTreeMap<u32, Other>,
}

#[derive(Clone, Copy, Debug)]
struct Address {
    /// When it was last among the answers, or found in use.
    at: Mono,
    /// It was among the answers.
    is_resolved: bool,
}

#[derive(Clone, Copy, Debug)]
struct Other {
    /// When it was first seen.
    since: Instant,
    /// It is not the kubelet's, or not to the API server.
    is_rejected: bool,
}

impl Default for Known {
    fn default() -> Self {
        let now = Instant::now();
        Self { addresses: BTreeMap::new(), due: now, failed: false, look_due: now, others: BTreeMap::new() }
    }
}

impl Known {
    /// The files that say how names resolve have changed.
    pub(super) fn is_due(&mut self) {
        self.due = Instant::now();
    }

    /// Returns what to report of a lookup.
    pub(super) fn take(
        &mut self,
        named: &Named,
        LookedUp { resolver, result }: LookedUp,
    ) -> Vec<Observation> {
        let now = clock::now();
        let mut seen = Vec::new();
        let name = clean(named.name.as_bytes(), NAME);
        let (addresses, failure) = match result {
            Ok((addresses, ttl)) => {
                self.due = Instant::now() + ttl.clamp(EVERY[0], EVERY[1]);
                (addresses, None)
            }
            Err(failure) => {
                self.due = Instant::now() + AGAIN;
                (Vec::new(), Some(failure))
            }
        };
        for ip in addresses {
            if self.addresses.insert(ip, Address { at: now, is_resolved: true }).is_none() {
                seen.push(Observation::ApiTarget(named.target(ip)));
            }
        }
        if failure.is_some() || self.failed {
            self.failed = failure.is_some();
            seen.push(match failure {
                // Its agent may have another way.
                Some(failure) if named.whose == Whose::Cni => {
                    let why = format!("{name} in {}: {resolver} {}", named.source, failure.words());
                    Observation::Gap(Gap { signal: targets::SIGNAL.to_owned(), why, blind: false })
                }
                failure => {
                    let proxy = named.proxy.clone();
                    Observation::NameLookup(NameLookup { name, resolver, failure, proxy })
                }
            });
        }
        seen
    }

    /// Returns what to report of the kubelet's own connections: whoever resolved the name for it, the address that it is
    /// connected to is one of the name. Forgets what is neither resolved nor used any more.
    pub(super) async fn follow_kubelet(
        &mut self,
        settings: &Settings,
        kubelet: &watch::Receiver<Kubelet>,
        named: &Named,
    ) -> Vec<Observation> {
        let now = Instant::now();
        // Without any address there is nothing that the kubelet's connection could be mistaken beside.
        let is_urgent = self.failed && self.addresses.is_empty();
        if now < self.look_due && !is_urgent {
            return Vec::new();
        }
        self.look_due = now + LOOK;
        let found = sockets::connected_to(named.port).unwrap_or_default();
        let mut seen = Vec::new();
        if named.whose == Whose::Kubelet {
            let lasts = if is_urgent { Duration::ZERO } else { LASTS };
            let lasting = self.lasting(&found, now, lasts);
            let inodes: BTreeSet<_> = lasting.iter().map(|(_, inode)| *inode).collect();
            let of_kubelet = of_kubelets(settings, &inodes);
            for (ip, inode) in lasting {
                if self.addresses.contains_key(&ip) || self.addresses.len() >= ADDRESSES {
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
                        seen.push(Observation::ApiTarget(target));
                    }
                    Some(false) => _ = self.others.get_mut(&inode).map(|other| other.is_rejected = true),
                    // Asked again at the next look.
                    None => {}
                }
            }
        }
        let over = self.over(clock::now());
        if over.is_empty() {
            return seen;
        }
        // Whoever is connected to one stays so for hours.
        let to_them = found.into_iter().filter(|(ip, _)| over.contains(ip)).collect();
        seen.extend(self.forget(named, over, &used(settings, to_them)));
        seen
    }

    /// Returns the connections to unknown addresses that have been open for this long and were not rejected.
    fn lasting(&mut self, found: &[(IpAddr, u32)], now: Instant, lasts: Duration) -> Vec<(IpAddr, u32)> {
        let unknown = found.iter().copied().filter(|(ip, _)| !self.addresses.contains_key(ip));
        let unknown: Vec<_> = unknown.collect();
        let open: BTreeSet<_> = unknown.iter().map(|(_, inode)| *inode).collect();
        self.others.retain(|inode, _| open.contains(inode));
        let lasts = |(_, inode): &(IpAddr, u32)| {
            let other = self.others.entry(*inode).or_insert(Other { since: now, is_rejected: false });
            !other.is_rejected && now.duration_since(other.since) >= lasts
        };
        unknown.into_iter().filter(lasts).collect()
    }

    /// Returns the addresses that have not been among the answers, or in use, for too long. While the name does not resolve
    /// there is nothing that those which it resolved to would be missing from.
    fn over(&self, now: Mono) -> Vec<IpAddr> {
        let over = self
            .addresses
            .iter()
            .filter(|(_, address)| now.since(address.at) >= KEPT && !(self.failed && address.is_resolved));
        over.map(|(ip, _)| *ip).collect()
    }

    /// Forgets those of them that are not used.
    fn forget(&mut self, named: &Named, over: Vec<IpAddr>, used: &BTreeSet<IpAddr>) -> Vec<Observation> {
        let now = clock::now();
        let mut seen = Vec::new();
        for ip in over {
            if used.contains(&ip) {
                self.addresses.entry(ip).and_modify(|address| address.at = now);
                continue;
            }
            self.addresses.remove(&ip);
            seen.push(Observation::ApiTargetGone { addr: SocketAddr::new(ip, named.port) });
        }
        seen
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
            whose: Whose::Kubelet,
            services: Vec::new(),
            proxy: None,
        }
    }

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn answer(result: Result<u8, NameFailure>) -> LookedUp {
        let result = result.map(|last| (vec![ip(last)], EVERY[0]));
        LookedUp { resolver: "10.0.0.2:53".to_owned(), result }
    }

    fn kinds(seen: &[Observation]) -> Vec<String> {
        let kind = |observation: &Observation| match observation {
            Observation::ApiTarget(target) => format!("+{}", target.addr),
            Observation::ApiTargetGone { addr } => format!("-{addr}"),
            Observation::NameLookup(lookup) => format!("{:?}", lookup.failure),
            other => format!("{other:?}"),
        };
        seen.iter().map(kind).collect()
    }

    /// Makes an address as old as one that is kept no longer.
    fn age(known: &mut Known, last: u8) {
        let at = clock::now().minus(KEPT);
        known.addresses.entry(ip(last)).and_modify(|address| address.at = at);
    }

    fn forget(known: &mut Known, used: &[u8]) -> Vec<String> {
        let over = known.over(clock::now());
        kinds(&known.forget(&named(), over, &used.iter().map(|last| ip(*last)).collect()))
    }

    #[test]
    fn an_address_stays_while_answers_take_turns_and_a_failure_is_told_until_it_is_over() {
        let (named, mut known) = (named(), Known::default());
        assert_eq!(kinds(&known.take(&named, answer(Ok(1)))), ["+10.0.0.1:443"]);
        assert_eq!(kinds(&known.take(&named, answer(Ok(2)))), ["+10.0.0.2:443"]);
        assert_eq!(kinds(&known.take(&named, answer(Ok(1)))), [""; 0]);
        for _ in 0..2 {
            assert_eq!(kinds(&known.take(&named, answer(Err(NameFailure::Silent)))), ["Some(Silent)"]);
        }
        age(&mut known, 2);
        assert_eq!(forget(&mut known, &[]), [""; 0], "without an answer nothing is missing from it");
        assert_eq!(kinds(&known.take(&named, answer(Ok(1)))), ["None"]);
        assert_eq!(forget(&mut known, &[]), ["-10.0.0.2:443"]);
    }

    #[test]
    fn an_address_that_only_the_kubelet_uses_goes_with_its_connection() {
        let mut known = Known::default();
        known.take(&named(), answer(Ok(1)));
        known.addresses.insert(ip(3), Address { at: clock::now(), is_resolved: false });
        assert_eq!(forget(&mut known, &[]), [""; 0], "it was used a moment ago");
        age(&mut known, 3);
        assert_eq!(forget(&mut known, &[3]), [""; 0]);
        age(&mut known, 3);
        known.take(&named(), answer(Err(NameFailure::Silent)));
        assert_eq!(forget(&mut known, &[]), ["-10.0.0.3:443"], "whether the name resolves or not");
    }

    #[test]
    fn only_connections_that_last_count() {
        let mut known = Known::default();
        known.take(&named(), answer(Ok(1)));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let found = [(ip(1), 11), (ip(3), 13), (ip(4), 14)];
        assert_eq!(known.lasting(&found, at(0), LASTS), []);
        // One has ended, another takes its place.
        let next = [(ip(1), 11), (ip(3), 23), (ip(4), 14)];
        assert_eq!(known.lasting(&next, at(20), LASTS), []);
        assert_eq!(known.lasting(&next, at(30), LASTS), [(ip(4), 14)]);
        known.others.get_mut(&14).expect("known").is_rejected = true;
        assert_eq!(known.lasting(&next, at(60), LASTS), [(ip(3), 23)]);
        assert_eq!(known.lasting(&[], at(70), LASTS), []);
        assert!(known.others.is_empty(), "what has ended is forgotten");
        assert_eq!(known.lasting(&found, at(80), Duration::ZERO), [(ip(3), 13), (ip(4), 14)]);
    }
}
