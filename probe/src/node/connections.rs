//! Polls the established connections to the API server: a connection that becomes silent produces no event.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use probe_engine::{BootTime, Connection, Observation, SHORTEST_ANSWER};
use tokio::sync::watch;

use super::ask::Targets;
use super::sockets::{self, Established};
use super::{processes, provenance};
use crate::clock;
use crate::feed::{Feed, Seen};
use crate::settings::Settings;

/// Polling interval. A poll walks the kernel's connection table once per port, which takes well under a millisecond on a node.
const POLL_INTERVAL: Duration = Duration::from_secs(3);
/// Polling interval while a client waits for a response.
const FAST_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Consecutive retransmission timeouts after which a connection counts as unacknowledged: the first occurs after 200 ms at the
/// earliest, the third after more than a second.
const UNACKED_TIMEOUTS: u8 = 3;

/// Response time above which a response is late, ns: the API server's own objective is one second, and the shortest deadline
/// that a kubelet sets is two (`nodeStatusUpdateFrequency`).
const LATE_NS: u64 = 1_500_000_000;
/// How long a client waits before that is reported and the server is checked, ns: only lists of thousands of objects take
/// longer.
const OVERDUE_NS: u64 = 3_000_000_000;
/// Minimum time between the last byte received and a byte sent for the latter to be a request, ms: a client's replies to the
/// server (`WINDOW_UPDATE`, acknowledgements of settings) follow at once.
const REQUEST_GAP_MS: u32 = 200;
/// Minimum size of a response, bytes: the acknowledgement of a PING takes 39 to 46 bytes with TLS around it, the headers of a
/// response without a body about 90. A PING and its acknowledgement have the same length, so that the two cancel out. Clients
/// send a PING after requests that they cancel: its acknowledgement shows nothing about requests.
const MIN_RESPONSE_BYTES: u64 = 64;

/// The state of a connection, better states first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// The server has neither responded nor acknowledged data.
    Idle,
    /// The server has responded.
    Answered,
    /// The server has acknowledged data of the client, and has not responded yet.
    Silent,
    /// The server has responded before, and no longer acknowledges data.
    Unacked,
}

/// How long the client of a connection has been waiting for a response, on a connection on which the server has responded
/// before.
///
/// A failing server still responds occasionally, most often with an error when the client's deadline passes. A silence
/// therefore lasts from the first late request until responses are timely again, or until the client sends no more requests.
#[derive(Clone, Copy, Debug)]
struct ResponseWait {
    /// Bytes received at the last poll.
    received: u64,
    /// Bytes acknowledged when the newest timely response was seen, plus those of acknowledged PINGs since.
    acked: u64,
    /// When the oldest request without a response was sent.
    since: Option<BootTime>,
    /// Since when responses have been late.
    late_since: Option<BootTime>,
    /// When the first timely response after that was seen. It may not be a response: a watch receives events without a
    /// request.
    timely_since: Option<BootTime>,
    /// Whether the wait was reported.
    reported: bool,
}

/// The result of a poll of such a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitState {
    /// The client waits for nothing.
    Idle,
    /// The client waits, not yet long enough to be reported.
    Pending,
    /// The client has waited for `ns` nanoseconds, after sending `bytes` bytes.
    Overdue { ns: u64, bytes: u64 },
    /// A reported wait is over: responses are timely again, or the client sends no more requests.
    Recovered,
}

impl ResponseWait {
    fn new(connection: &Established) -> Self {
        Self {
            received: connection.received,
            acked: connection.acked,
            since: None,
            late_since: None,
            timely_since: None,
            reported: false,
        }
    }

    fn update(&mut self, now: BootTime, connection: &Established) -> WaitState {
        let ago = |ms: u32| now.minus(u64::from(ms) * 1_000_000);
        let (sent_ms, received_ms) = (connection.last_sent_ms, connection.last_received_ms);
        let arrived = connection.received.saturating_sub(self.received);
        self.received = connection.received;
        if arrived >= MIN_RESPONSE_BYTES {
            match self.since.take() {
                Some(since) if ago(received_ms).since(since) >= LATE_NS => self.set_late(since),
                _ => _ = self.timely_since.get_or_insert(now),
            }
        } else {
            self.acked = connection.acked.min(self.acked.saturating_add(arrived));
        }
        let only_ping = arrived > 0 && self.acked == connection.acked;
        if only_ping {
            self.since = None;
        }
        if sent_ms.saturating_add(REQUEST_GAP_MS) < received_ms {
            self.since.get_or_insert(ago(sent_ms));
        }
        if let Some(since) = self.since.filter(|since| now.since(*since) >= LATE_NS) {
            self.set_late(since);
        }
        let answered =
            self.timely_since.is_some_and(|at| self.late_since.is_none() || now.since(at) >= OVERDUE_NS);
        let no_requests = self.since.is_none() && u64::from(received_ms) * 1_000_000 >= OVERDUE_NS;
        if answered || only_ping || no_requests {
            let was_reported = self.reported;
            *self = Self { since: self.since, ..Self::new(connection) };
            if was_reported {
                return WaitState::Recovered;
            }
        }
        match self.late_since.map(|since| now.since(since)) {
            None if self.since.is_none() => WaitState::Idle,
            None | Some(..OVERDUE_NS) => WaitState::Pending,
            _ if self.timely_since.is_some() => WaitState::Pending,
            Some(ns) => {
                self.reported = true;
                WaitState::Overdue { ns, bytes: connection.acked.saturating_sub(self.acked) }
            }
        }
    }

    fn set_late(&mut self, since: BootTime) {
        self.late_since.get_or_insert(since);
        self.timely_since = None;
    }
}

/// The connections at the last poll.
#[derive(Debug)]
struct Connections {
    settings: Arc<Settings>,
    /// The state of the worst connection to each target.
    worst: BTreeMap<SocketAddr, State>,
    /// By the socket's inode number.
    waits: BTreeMap<u32, ResponseWait>,
}

impl Connections {
    fn new(settings: Arc<Settings>) -> Self {
        Self { settings, worst: BTreeMap::new(), waits: BTreeMap::new() }
    }

    /// Returns what to report of the connections found at `now`, and the time until the next poll.
    fn update(&mut self, now: BootTime, found: Vec<Established>) -> (Vec<Connection>, Duration) {
        let mut reports = Vec::new();
        let mut next = POLL_INTERVAL;
        self.waits.retain(|inode, _| found.iter().any(|connection| connection.inode == *inode));
        for connection in found.iter().filter(|connection| state_of(connection) == State::Answered) {
            let waits = self.waits.entry(connection.inode).or_insert_with(|| ResponseWait::new(connection));
            match waits.update(now, connection) {
                WaitState::Idle => continue,
                WaitState::Pending => {}
                WaitState::Overdue { ns, bytes } => reports.push(Connection {
                    unanswered_ns: ns,
                    unanswered_bytes: bytes,
                    ..describe(&self.settings, connection, true)
                }),
                WaitState::Recovered => reports.push(describe(&self.settings, connection, true)),
            }
            next = FAST_POLL_INTERVAL;
        }
        let mut worst: BTreeMap<SocketAddr, (State, Established)> = BTreeMap::new();
        for connection in found {
            let state = state_of(&connection);
            if worst.get(&connection.to).is_none_or(|(known, _)| *known < state) {
                worst.insert(connection.to, (state, connection));
            }
        }
        self.worst.retain(|addr, _| worst.contains_key(addr));
        for (to, (state, connection)) in worst {
            let bad = state > State::Answered;
            let before = self.worst.insert(to, state);
            if state != State::Idle && (bad || before != Some(state)) {
                reports.push(describe(&self.settings, &connection, bad));
            }
        }
        (reports, next)
    }
}

/// Reports silent connections at each poll, and other connections when their state changes. Returns when the receiver of the
/// feed is dropped.
pub(crate) async fn watch(settings: Arc<Settings>, targets: watch::Receiver<Targets>, feed: Feed) {
    let mut connections = Connections::new(settings);
    let mut next = POLL_INTERVAL;
    loop {
        tokio::time::sleep(next).await;
        next = POLL_INTERVAL;
        let wanted: Vec<_> = targets.borrow().keys().copied().collect();
        if wanted.is_empty() {
            continue;
        }
        // Without sock_diag no connection is visible. The gap of the listeners covers that.
        let Ok(found) = sockets::established(&wanted) else { continue };
        let (changes, until_next) = connections.update(clock::now(), found);
        next = until_next;
        for connection in changes {
            let observation = Observation::Connection(connection);
            if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                return;
            }
        }
    }
}

fn state_of(connection: &Established) -> State {
    let answered = connection.received >= SHORTEST_ANSWER;
    if connection.unacked > 0 && connection.retransmits >= UNACKED_TIMEOUTS && answered {
        State::Unacked
    } else if answered {
        State::Answered
    } else if connection.acked > 1 {
        State::Silent
    } else {
        State::Idle
    }
}

/// Returns the observation of a connection. Its owner is determined only if `bad`, because that walks all of `/proc`.
fn describe(settings: &Settings, connection: &Established, bad: bool) -> Connection {
    let owners = if bad { processes::socket_owners(&[connection.inode].into()) } else { BTreeMap::new() };
    let client = owners.into_values().next().unwrap_or_default();
    let role = provenance::role_of(settings, client.pid, &client.name);
    let ns = |ms: u32| u64::from(ms) * 1_000_000;
    let unacked = state_of(connection) == State::Unacked;
    Connection {
        client,
        role,
        host_netns: true,
        to: connection.to,
        // Since this side last sent data: sock_diag does not report the age of a connection.
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

    /// A connection with these bytes acknowledged and received, and these ages of the last bytes sent and received.
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
    fn reports_a_request_until_responses_are_timely() {
        let mut waits = ResponseWait::new(&at(1000, 5000, 2000, 1990));
        let mut poll = |s: u64, connection| waits.update(BootTime(s * S), &connection);
        // Sent 100 ms before this poll, 5 s after the last response.
        assert_eq!(poll(3, at(1500, 5000, 100, 5000)), WaitState::Pending);
        assert_eq!(poll(5, at(1500, 5000, 2100, 7000)), WaitState::Pending);
        assert_eq!(poll(6, at(1500, 5000, 3100, 8000)), WaitState::Overdue { ns: 31 * S / 10, bytes: 500 });
        // A second request does not restart the silence, and the acknowledgement of a PING does not end it.
        assert_eq!(poll(8, at(1900, 5000, 500, 10_000)), WaitState::Overdue { ns: 51 * S / 10, bytes: 900 });
        assert_eq!(poll(9, at(1939, 5039, 900, 890)), WaitState::Overdue { ns: 61 * S / 10, bytes: 900 });
        // A late response does not end it. A timely one does, unless a late one follows soon.
        assert_eq!(poll(10, at(1939, 5400, 1900, 500)), WaitState::Overdue { ns: 71 * S / 10, bytes: 900 });
        assert_eq!(poll(11, at(2439, 5700, 850, 800)), WaitState::Pending);
        assert_eq!(poll(12, at(2439, 5700, 100, 1800)), WaitState::Pending);
        assert_eq!(
            poll(14, at(2439, 5700, 2100, 3800)),
            WaitState::Overdue { ns: 111 * S / 10, bytes: 1400 }
        );
        assert_eq!(poll(15, at(2939, 6000, 850, 800)), WaitState::Overdue { ns: 121 * S / 10, bytes: 1900 });
        assert_eq!(poll(16, at(2939, 6300, 450, 400)), WaitState::Pending);
        assert_eq!(poll(19, at(2939, 6600, 850, 800)), WaitState::Recovered);
        assert_eq!(poll(20, at(2939, 6600, 1850, 1800)), WaitState::Idle);
    }

    #[test]
    fn bytes_sent_right_after_a_response_are_not_a_request() {
        let mut waits = ResponseWait::new(&at(1000, 5000, 0, 0));
        // A watch: an event arrives, and the client sends a WINDOW_UPDATE.
        for turn in 1..20_u32 {
            let (sent, received) = (1000 * (turn % 7), 1000 * (turn % 7) + 3);
            let poll = at(1000 + 35 * u64::from(turn), 5000 + 300 * u64::from(turn), sent, received);
            assert_eq!(waits.update(BootTime(u64::from(turn) * 3 * S), &poll), WaitState::Idle, "{turn}");
        }
    }

    #[test]
    fn only_an_unacknowledged_ping_counts_as_waiting() {
        let mut waits = ResponseWait::new(&at(1000, 5000, 0, 0));
        assert_eq!(waits.update(BootTime(30 * S), &at(1039, 5000, 10, 30_000)), WaitState::Pending);
        assert_eq!(waits.update(BootTime(31 * S), &at(1039, 5039, 1010, 1008)), WaitState::Idle);
        assert_eq!(waits.update(BootTime(61 * S), &at(1078, 5039, 10, 31_000)), WaitState::Pending);
        let waiting = waits.update(BootTime(65 * S), &at(1078, 5039, 4010, 35_000));
        assert_eq!(waiting, WaitState::Overdue { ns: 401 * S / 100, bytes: 39 });
    }

    /// Measured on a kubelet's connection while etcd was stopped: requests time out after 2 s, the first is followed by a PING,
    /// and the next request is shorter than the first because of header compression (HPACK).
    #[test]
    fn ping_after_a_cancelled_request_does_not_hide_the_silence() {
        let mut waits = ResponseWait::new(&at(1000, 5000, 10, 10));
        let mut poll = |ms: u64, connection| waits.update(BootTime(ms * 1_000_000), &connection);
        assert_eq!(poll(1000, at(1038, 5000, 700, 1010)), WaitState::Pending);
        assert_eq!(poll(2500, at(1128, 5039, 200, 200)), WaitState::Pending);
        let waiting = poll(4500, at(1201, 5039, 500, 2200));
        assert_eq!(waiting, WaitState::Overdue { ns: 4_200_000_000, bytes: 162 });
        // The server responds with an error, and the next request waits as well.
        assert_eq!(
            poll(6500, at(1201, 5310, 2500, 100)),
            WaitState::Overdue { ns: 6_200_000_000, bytes: 162 }
        );
        assert_eq!(
            poll(8500, at(1767, 5310, 1600, 2100)),
            WaitState::Overdue { ns: 8_200_000_000, bytes: 728 }
        );
    }

    #[test]
    fn silence_ends_when_no_request_follows_a_late_response() {
        let mut waits = ResponseWait::new(&at(1000, 5000, 2000, 1990));
        let mut poll = |s: u64, connection| waits.update(BootTime(s * S), &connection);
        assert_eq!(poll(3, at(1500, 5000, 100, 5000)), WaitState::Pending);
        assert_eq!(poll(7, at(1500, 5000, 4100, 9000)), WaitState::Overdue { ns: 41 * S / 10, bytes: 500 });
        assert_eq!(poll(8, at(1500, 5900, 5100, 900)), WaitState::Overdue { ns: 51 * S / 10, bytes: 500 });
        assert_eq!(poll(11, at(1500, 5900, 8100, 3900)), WaitState::Recovered);
        assert_eq!(poll(14, at(1500, 5900, 11_100, 6900)), WaitState::Idle);
    }

    #[test]
    fn idle_connection_waits_for_nothing() {
        let mut waits = ResponseWait::new(&at(1000, 5000, 100, 90));
        for turn in 1..100 {
            let age = u32::try_from(turn * 3000).expect("small");
            assert_eq!(
                waits.update(BootTime(turn * 3 * S), &at(1000, 5000, age + 100, age + 90)),
                WaitState::Idle
            );
        }
    }

    #[test]
    fn polls_faster_while_a_client_waits() {
        let mut connections = Connections::new(Arc::new(settings(&[])));
        assert_eq!(connections.update(BootTime(0), vec![at(1000, 5000, 100, 90)]).1, POLL_INTERVAL);
        assert_eq!(connections.update(BootTime(3 * S), vec![at(1500, 5000, 50, 3090)]).1, FAST_POLL_INTERVAL);
        assert_eq!(connections.update(BootTime(4 * S), vec![at(1500, 5600, 1050, 900)]).1, POLL_INTERVAL);
    }
}
