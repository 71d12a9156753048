//! Looking at the connections to the API server that live: one that is silent has no event.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use probe_engine::{Actor, ClientRole, Connection, Observation};
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

/// Tells of connections that are silent for as long as they are, and of the others when that changes.
pub(crate) async fn watch(targets: watch::Receiver<Targets>, feed: Feed) {
    let mut told: BTreeMap<SocketAddr, Looks> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let wanted: Vec<_> = targets.borrow().keys().copied().collect();
        told.retain(|addr, _| wanted.contains(addr));
        if wanted.is_empty() {
            continue;
        }
        // Without sock_diag nothing is seen here; the listeners' gap has said so.
        let Ok(found) = sockets::established(&wanted) else { continue };
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
            let observation = Observation::Connection(describe(&connection, bad));
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
    }
}

fn role(client: &Actor) -> ClientRole {
    if client.pid == std::process::id() {
        return ClientRole::Probe;
    }
    processes::classify(&client.name).map_or(ClientRole::Other, processes::client_role)
}
