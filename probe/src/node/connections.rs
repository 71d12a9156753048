//! Looking at the connections to the API server that live: one that is silent has no event.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use probe_engine::{Actor, ClientRole, Connection, Mono, Observation};
use tokio::sync::watch;

use super::ask::Targets;
use super::processes;
use super::sockets::{self, Established};
use crate::clock;
use crate::feed::{Feed, Seen};

/// Between two looks: one walk of the kernel's table of connections for each port, well under a millisecond
/// on a node. A silence counts from 10 s on.
const LOOK: Duration = Duration::from_secs(3);
/// Time-outs in a row after which a connection counts as unacknowledged: the first comes after 200 ms at the
/// earliest, the third after more than a second.
const TIMEOUTS: u8 = 3;

/// A client's words that wait for an answer this long are a reason to ask: the API server answers within a second,
/// but for lists of thousands of objects.
const WAITS: u64 = 5_000_000_000;
/// So many bytes are a request: frames that only keep a connection going are shorter, 35 bytes with TLS around them.
const REQUEST: u64 = 128;

/// How the worst of a target's connections looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Looks {
    Quiet,
    Answered,
    /// Spoken to, and silent so far.
    Silent,
    /// Worked, and acknowledges nothing any more.
    Unacked,
}

/// What a connection that worked waits for.
#[derive(Clone, Copy, Debug)]
struct Waits {
    /// Bytes that had come, and bytes that were acknowledged, when something came last.
    received: u64,
    acked: u64,
    /// When a request was first seen unanswered.
    since: Option<Mono>,
    told: bool,
}

impl Waits {
    fn new(connection: &Established) -> Self {
        Self { received: connection.received, acked: connection.acked, since: None, told: false }
    }

    /// Takes a look at `now`; answers with the length of a silence that is news.
    fn look(&mut self, now: Mono, connection: &Established) -> Option<u64> {
        if connection.received != self.received {
            *self = Self::new(connection);
        }
        if connection.acked.saturating_sub(self.acked) < REQUEST {
            return None;
        }
        let waited = now.since(*self.since.get_or_insert(now));
        if waited < WAITS || std::mem::replace(&mut self.told, true) {
            return None;
        }
        Some(waited)
    }
}

/// Tells of connections that are silent for as long as they are, and of the others when that changes.
pub(crate) async fn watch(targets: watch::Receiver<Targets>, feed: Feed) {
    let mut told: BTreeMap<SocketAddr, Looks> = BTreeMap::new();
    // By the number of the socket's file.
    let mut waits: BTreeMap<u32, Waits> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let wanted: Vec<_> = targets.borrow().keys().copied().collect();
        told.retain(|addr, _| wanted.contains(addr));
        if wanted.is_empty() {
            continue;
        }
        // Without sock_diag nothing is seen here; the listeners' gap has said so.
        let Ok(found) = sockets::established(&wanted) else { continue };
        let mut seen = Vec::new();
        waits.retain(|inode, _| found.iter().any(|connection| connection.inode == *inode));
        for connection in found.iter().filter(|connection| connection.received > 0) {
            let waits = waits.entry(connection.inode).or_insert_with(|| Waits::new(connection));
            if let Some(unanswered_ns) = waits.look(clock::now(), connection) {
                seen.push(Connection { unanswered_ns, ..describe(connection, true) });
            }
        }
        let mut worst: BTreeMap<SocketAddr, (Looks, Established)> = BTreeMap::new();
        for connection in found {
            let looks = looks(&connection);
            if worst.get(&connection.to).is_none_or(|(known, _)| *known < looks) {
                worst.insert(connection.to, (looks, connection));
            }
        }
        for (to, (looks, connection)) in worst {
            let bad = looks > Looks::Answered;
            let before = told.insert(to, looks);
            if looks == Looks::Quiet || (!bad && before == Some(looks)) {
                continue;
            }
            seen.push(describe(&connection, bad));
        }
        for connection in seen {
            let observation = Observation::Connection(connection);
            if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                return;
            }
        }
    }
}

fn looks(connection: &Established) -> Looks {
    let answered = connection.received > 0;
    if connection.unacked > 0 && connection.retransmits >= TIMEOUTS && answered {
        Looks::Unacked
    } else if answered {
        Looks::Answered
    } else if connection.acked > 1 {
        Looks::Silent
    } else {
        Looks::Quiet
    }
}

/// Who owns it is looked for only when there is something to tell: that walks all of `/proc`.
fn describe(connection: &Established, bad: bool) -> Connection {
    let owners = if bad { processes::socket_owners(&[connection.inode].into()) } else { BTreeMap::new() };
    let client = owners.into_values().next().unwrap_or_default();
    let role = role(&client);
    let ns = |ms: u32| u64::from(ms) * 1_000_000;
    let unacked = looks(connection) == Looks::Unacked;
    Connection {
        client,
        role,
        host_netns: true,
        to: connection.to,
        // From the last word of this side: the kernel does not tell the age.
        age_ns: ns(connection.last_sent_ms),
        received: connection.received,
        acked: connection.acked.saturating_sub(1),
        ended: false,
        by_peer: false,
        rst: false,
        sk_err: 0,
        unacked_ns: if unacked { ns(connection.last_ack_ms) } else { 0 },
        unanswered_ns: 0,
    }
}

fn role(client: &Actor) -> ClientRole {
    if client.pid == std::process::id() {
        return ClientRole::Probe;
    }
    processes::classify(&client.name).map_or(ClientRole::Other, processes::client_role)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(acked: u64, received: u64) -> Established {
        Established {
            to: "10.0.0.1:6443".parse().expect("an address"),
            inode: 7,
            retransmits: 0,
            unacked: 0,
            last_sent_ms: 0,
            last_ack_ms: 0,
            acked,
            received,
        }
    }

    const S: u64 = 1_000_000_000;

    #[test]
    fn a_request_without_an_answer_is_told_once() {
        let mut waits = Waits::new(&connection(1000, 5000));
        assert_eq!(waits.look(Mono(3 * S), &connection(1500, 5000)), None);
        assert_eq!(waits.look(Mono(6 * S), &connection(1500, 5000)), None);
        assert_eq!(waits.look(Mono(9 * S), &connection(1900, 5000)), Some(6 * S));
        assert_eq!(waits.look(Mono(12 * S), &connection(2000, 5000)), None);
        // An answer, and the next silence.
        assert_eq!(waits.look(Mono(15 * S), &connection(2000, 5100)), None);
        assert_eq!(waits.look(Mono(18 * S), &connection(2300, 5100)), None);
        assert_eq!(waits.look(Mono(24 * S), &connection(2300, 5100)), Some(6 * S));
    }

    #[test]
    fn frames_that_keep_a_connection_going_want_no_answer() {
        let mut waits = Waits::new(&connection(1000, 5000));
        for turn in 1..20 {
            assert_eq!(waits.look(Mono(turn * 3 * S), &connection(1070, 5000)), None);
        }
    }
}
