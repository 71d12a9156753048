//! Looking at the connections to the API server that live: one that is silent has no event.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use probe_engine::{Connection, Mono, Observation, SHORTEST_ANSWER};
use tokio::sync::watch;

use super::ask::Targets;
use super::sockets::{self, Established};
use super::{processes, provenance};
use crate::clock;
use crate::feed::{Feed, Seen};
use crate::settings::Settings;

/// Between two looks: one walk of the kernel's table of connections for each port, well under a millisecond on a node.
const LOOK: Duration = Duration::from_secs(3);
/// The same while a client waits for an answer.
const LOOK_CLOSELY: Duration = Duration::from_secs(1);
/// Time-outs in a row after which a connection counts as unacknowledged: the first comes after 200 ms at the
/// earliest, the third after more than a second.
const TIMEOUTS: u8 = 3;

/// A response that takes longer is late: the API server's own objective is one second, and the shortest deadline that a
/// kubelet sets is two (`nodeStatusUpdateFrequency`).
const LATE: u64 = 1_500_000_000;
/// A client that waits this long is a reason to ask the server: only lists of thousands of objects take longer.
const WAITS: u64 = 3_000_000_000;
/// How long after the last byte that came a client must have sent something for that to be of its own accord: what answers
/// the server (`WINDOW_UPDATE`, acknowledgements of settings) follows at once.
const OF_ITS_OWN_MS: u32 = 200;
/// Less than this at once is not a response: the acknowledgement of a PING takes 39 to 46 bytes with TLS around it,
/// the headers of a response without a body about 90. A PING and its acknowledgement have the same length, so that the
/// two cancel out. Clients send a PING after requests that they cancel: its acknowledgement says nothing about requests.
const ANSWER: u64 = 64;

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

/// What the client of a connection that worked waits for.
///
/// A server in trouble still responds occasionally, most often with an error when the client's deadline passes. So a silence
/// lasts from the first late request until responses are timely again, or until the client sends no more requests.
#[derive(Clone, Copy, Debug)]
struct Waits {
    /// Bytes that had come when it was last looked at.
    received: u64,
    /// Bytes that were acknowledged when the newest timely response was seen, plus those of acknowledged PINGs since.
    acked: u64,
    /// Since when the oldest request has been waiting.
    since: Option<Mono>,
    /// Since when responses have been late.
    late: Option<Mono>,
    /// When the first timely response after that was seen. It may not be one: a watch sends events of its own accord.
    in_time: Option<Mono>,
    told: bool,
}

/// What a look at such a client shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// For nothing.
    No,
    /// Not for long yet.
    Shortly,
    /// For so many nanoseconds, after so many bytes.
    For { ns: u64, bytes: u64 },
    /// It had waited, and responses are timely again.
    Answered,
}

impl Waits {
    fn new(connection: &Established) -> Self {
        Self {
            received: connection.received,
            acked: connection.acked,
            since: None,
            late: None,
            in_time: None,
            told: false,
        }
    }

    fn look(&mut self, now: Mono, connection: &Established) -> Waiting {
        let ago = |ms: u32| now.minus(u64::from(ms) * 1_000_000);
        let (sent_ms, received_ms) = (connection.last_sent_ms, connection.last_received_ms);
        let came = connection.received.saturating_sub(self.received);
        self.received = connection.received;
        if came >= ANSWER {
            match self.since.take() {
                Some(since) if ago(received_ms).since(since) >= LATE => self.is_late(since),
                _ => _ = self.in_time.get_or_insert(now),
            }
        } else {
            self.acked = connection.acked.min(self.acked.saturating_add(came));
        }
        let only_a_ping = came > 0 && self.acked == connection.acked;
        if only_a_ping {
            self.since = None;
        }
        if sent_ms.saturating_add(OF_ITS_OWN_MS) < received_ms {
            self.since.get_or_insert(ago(sent_ms));
        }
        if let Some(since) = self.since.filter(|since| now.since(*since) >= LATE) {
            self.is_late(since);
        }
        let answered = self.in_time.is_some_and(|at| self.late.is_none() || now.since(at) >= WAITS);
        let nobody_asks = self.since.is_none() && u64::from(received_ms) * 1_000_000 >= WAITS;
        if answered || only_a_ping || nobody_asks {
            let was_told = self.told;
            *self = Self { since: self.since, ..Self::new(connection) };
            if was_told {
                return Waiting::Answered;
            }
        }
        match self.late.map(|late| now.since(late)) {
            None if self.since.is_none() => Waiting::No,
            None | Some(..WAITS) => Waiting::Shortly,
            _ if self.in_time.is_some() => Waiting::Shortly,
            Some(ns) => {
                self.told = true;
                Waiting::For { ns, bytes: connection.acked.saturating_sub(self.acked) }
            }
        }
    }

    fn is_late(&mut self, since: Mono) {
        self.late.get_or_insert(since);
        self.in_time = None;
    }
}

/// What is remembered of the connections between two looks.
#[derive(Debug)]
struct Connections {
    settings: Arc<Settings>,
    /// How the worst of each target looked.
    told: BTreeMap<SocketAddr, Looks>,
    /// By the number of the socket's file.
    waits: BTreeMap<u32, Waits>,
}

impl Connections {
    fn new(settings: Arc<Settings>) -> Self {
        Self { settings, told: BTreeMap::new(), waits: BTreeMap::new() }
    }

    /// What is news of `found`, and how long until the next look.
    fn look(&mut self, now: Mono, found: Vec<Established>) -> (Vec<Connection>, Duration) {
        let mut seen = Vec::new();
        let mut next = LOOK;
        self.waits.retain(|inode, _| found.iter().any(|connection| connection.inode == *inode));
        for connection in found.iter().filter(|connection| looks(connection) == Looks::Answered) {
            let waits = self.waits.entry(connection.inode).or_insert_with(|| Waits::new(connection));
            match waits.look(now, connection) {
                Waiting::No => continue,
                Waiting::Shortly => {}
                Waiting::For { ns, bytes } => seen.push(Connection {
                    unanswered_ns: ns,
                    unanswered_bytes: bytes,
                    ..describe(&self.settings, connection, true)
                }),
                Waiting::Answered => seen.push(describe(&self.settings, connection, true)),
            }
            next = LOOK_CLOSELY;
        }
        let mut worst: BTreeMap<SocketAddr, (Looks, Established)> = BTreeMap::new();
        for connection in found {
            let looks = looks(&connection);
            if worst.get(&connection.to).is_none_or(|(known, _)| *known < looks) {
                worst.insert(connection.to, (looks, connection));
            }
        }
        self.told.retain(|addr, _| worst.contains_key(addr));
        for (to, (looks, connection)) in worst {
            let bad = looks > Looks::Answered;
            let before = self.told.insert(to, looks);
            if looks != Looks::Quiet && (bad || before != Some(looks)) {
                seen.push(describe(&self.settings, &connection, bad));
            }
        }
        (seen, next)
    }
}

/// Tells of connections that are silent for as long as they are, and of the others when that changes.
pub(crate) async fn watch(settings: Arc<Settings>, targets: watch::Receiver<Targets>, feed: Feed) {
    let mut connections = Connections::new(settings);
    let mut next = LOOK;
    loop {
        tokio::time::sleep(next).await;
        next = LOOK;
        let wanted: Vec<_> = targets.borrow().keys().copied().collect();
        if wanted.is_empty() {
            continue;
        }
        // Without sock_diag nothing is seen here; the listeners' gap has said so.
        let Ok(found) = sockets::established(&wanted) else { continue };
        let (seen, soon) = connections.look(clock::now(), found);
        next = soon;
        for connection in seen {
            let observation = Observation::Connection(connection);
            if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                return;
            }
        }
    }
}

fn looks(connection: &Established) -> Looks {
    let answered = connection.received >= SHORTEST_ANSWER;
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
fn describe(settings: &Settings, connection: &Established, bad: bool) -> Connection {
    let owners = if bad { processes::socket_owners(&[connection.inode].into()) } else { BTreeMap::new() };
    let client = owners.into_values().next().unwrap_or_default();
    let role = provenance::role_of(settings, client.pid, &client.name);
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
        unanswered_bytes: 0,
    }
}

#[cfg(test)]
mod tests {
    use crate::settings::tests::settings;

    use super::*;

    /// A look at a connection: bytes acknowledged and received, and the ages of what was sent and received last.
    fn at(acked: u64, received: u64, sent_ms: u32, received_ms: u32) -> Established {
        Established {
            to: "10.0.0.1:6443".parse().expect("an address"),
            inode: 7,
            retransmits: 0,
            unacked: 0,
            last_sent_ms: sent_ms,
            last_received_ms: received_ms,
            last_ack_ms: 0,
            acked,
            received,
        }
    }

    const S: u64 = 1_000_000_000;

    #[test]
    fn a_request_without_an_answer_is_reported_until_it_is_answered() {
        let mut waits = Waits::new(&at(1000, 5000, 2000, 1990));
        let mut look = |s: u64, connection| waits.look(Mono(s * S), &connection);
        // Sent 100 ms before this look, 5 s after the last answer.
        assert_eq!(look(3, at(1500, 5000, 100, 5000)), Waiting::Shortly);
        assert_eq!(look(5, at(1500, 5000, 2100, 7000)), Waiting::Shortly);
        assert_eq!(look(6, at(1500, 5000, 3100, 8000)), Waiting::For { ns: 31 * S / 10, bytes: 500 });
        // A second request does not begin the silence anew, and the acknowledgement of a PING does not end it.
        assert_eq!(look(8, at(1900, 5000, 500, 10_000)), Waiting::For { ns: 51 * S / 10, bytes: 900 });
        assert_eq!(look(9, at(1939, 5039, 900, 890)), Waiting::For { ns: 61 * S / 10, bytes: 900 });
        // An answer that comes late does not end it. One in time does, if none is late soon after it.
        assert_eq!(look(10, at(1939, 5400, 1900, 500)), Waiting::For { ns: 71 * S / 10, bytes: 900 });
        assert_eq!(look(11, at(2439, 5700, 850, 800)), Waiting::Shortly);
        assert_eq!(look(12, at(2439, 5700, 100, 1800)), Waiting::Shortly);
        assert_eq!(look(14, at(2439, 5700, 2100, 3800)), Waiting::For { ns: 111 * S / 10, bytes: 1400 });
        assert_eq!(look(15, at(2939, 6000, 850, 800)), Waiting::For { ns: 121 * S / 10, bytes: 1900 });
        assert_eq!(look(16, at(2939, 6300, 450, 400)), Waiting::Shortly);
        assert_eq!(look(19, at(2939, 6600, 850, 800)), Waiting::Answered);
        assert_eq!(look(20, at(2939, 6600, 1850, 1800)), Waiting::No);
    }

    #[test]
    fn what_follows_an_answer_at_once_waits_for_nothing() {
        let mut waits = Waits::new(&at(1000, 5000, 0, 0));
        // A watch: an event comes, the client makes room for the next one.
        for turn in 1..20_u32 {
            let (sent, received) = (1000 * (turn % 7), 1000 * (turn % 7) + 3);
            let look = at(1000 + 35 * u64::from(turn), 5000 + 300 * u64::from(turn), sent, received);
            assert_eq!(waits.look(Mono(u64::from(turn) * 3 * S), &look), Waiting::No, "{turn}");
        }
    }

    #[test]
    fn a_ping_that_is_acknowledged_waits_for_nothing_and_one_that_is_not_does() {
        let mut waits = Waits::new(&at(1000, 5000, 0, 0));
        assert_eq!(waits.look(Mono(30 * S), &at(1039, 5000, 10, 30_000)), Waiting::Shortly);
        assert_eq!(waits.look(Mono(31 * S), &at(1039, 5039, 1010, 1008)), Waiting::No);
        assert_eq!(waits.look(Mono(61 * S), &at(1078, 5039, 10, 31_000)), Waiting::Shortly);
        let waiting = waits.look(Mono(65 * S), &at(1078, 5039, 4010, 35_000));
        assert_eq!(waiting, Waiting::For { ns: 401 * S / 100, bytes: 39 });
    }

    /// Read off a kubelet's connection while etcd was away: requests time out after 2 s, the first of them is followed by a
    /// PING, and what it sends next is shorter than a first request, for the server remembers its headers.
    #[test]
    fn a_ping_after_a_request_that_was_given_up_does_not_hide_the_silence() {
        let mut waits = Waits::new(&at(1000, 5000, 10, 10));
        let mut look = |ms: u64, connection| waits.look(Mono(ms * 1_000_000), &connection);
        assert_eq!(look(1000, at(1038, 5000, 700, 1010)), Waiting::Shortly);
        assert_eq!(look(2500, at(1128, 5039, 200, 200)), Waiting::Shortly);
        let waiting = look(4500, at(1201, 5039, 500, 2200));
        assert_eq!(waiting, Waiting::For { ns: 4_200_000_000, bytes: 162 });
        // The server says that it cannot, and the next request waits, too.
        assert_eq!(look(6500, at(1201, 5310, 2500, 100)), Waiting::For { ns: 6_200_000_000, bytes: 162 });
        assert_eq!(look(8500, at(1767, 5310, 1600, 2100)), Waiting::For { ns: 8_200_000_000, bytes: 728 });
    }

    #[test]
    fn a_late_answer_after_which_nobody_asks_is_over() {
        let mut waits = Waits::new(&at(1000, 5000, 2000, 1990));
        let mut look = |s: u64, connection| waits.look(Mono(s * S), &connection);
        assert_eq!(look(3, at(1500, 5000, 100, 5000)), Waiting::Shortly);
        assert_eq!(look(7, at(1500, 5000, 4100, 9000)), Waiting::For { ns: 41 * S / 10, bytes: 500 });
        assert_eq!(look(8, at(1500, 5900, 5100, 900)), Waiting::For { ns: 51 * S / 10, bytes: 500 });
        assert_eq!(look(11, at(1500, 5900, 8100, 3900)), Waiting::Answered);
        assert_eq!(look(14, at(1500, 5900, 11_100, 6900)), Waiting::No);
    }

    #[test]
    fn an_idle_connection_waits_for_nothing() {
        let mut waits = Waits::new(&at(1000, 5000, 100, 90));
        for turn in 1..100 {
            let age = u32::try_from(turn * 3000).expect("small");
            assert_eq!(waits.look(Mono(turn * 3 * S), &at(1000, 5000, age + 100, age + 90)), Waiting::No);
        }
    }

    #[test]
    fn it_is_looked_at_closely_while_somebody_waits() {
        let mut connections = Connections::new(Arc::new(settings(&[])));
        assert_eq!(connections.look(Mono(0), vec![at(1000, 5000, 100, 90)]).1, LOOK);
        assert_eq!(connections.look(Mono(3 * S), vec![at(1500, 5000, 50, 3090)]).1, LOOK_CLOSELY);
        assert_eq!(connections.look(Mono(4 * S), vec![at(1500, 5600, 1050, 900)]).1, LOOK);
    }
}
