//! The API server's responses to the agent's own requests and to the node's clients.

use alloc::format;
use alloc::string::ToString as _;
use core::net::SocketAddr;

use super::Facts;
use super::api::{Failure, Ledger};
use crate::limits;
use crate::memory::{Memory, Seen};
use crate::observation::{
    Actor, Answer, BootTime, ClientRole, Connection, REQUEST_BYTES, TlsFailure, http_status,
};
use crate::outcome::Outcome;

/// One silence after requests of a client, or several consecutive ones.
#[derive(Clone, Debug)]
pub(crate) struct Unanswered {
    pub(crate) client: Actor,
    /// When the first silence began.
    pub(crate) since: BootTime,
    /// The longest, nanoseconds.
    longest_ns: u64,
    /// When it was last reported.
    last: BootTime,
}

impl Memory for Unanswered {
    fn until(&self) -> Option<BootTime> {
        Some(self.last.plus(limits::UNANSWERED_FORGOTTEN))
    }
}

impl Unanswered {
    /// Returns for how long there was no timely response, nanoseconds. Consecutive silences count together if they span long
    /// enough.
    pub(crate) fn lasted(&self) -> u64 {
        let span = self.last.since(self.since);
        if span >= limits::UNANSWERED_SPAN { span } else { self.longest_ns }
    }
}

/// Returns whether clients of this kind are long-lived and keep their connections.
pub(super) const fn keeps_connections(role: ClientRole) -> bool {
    matches!(
        role,
        ClientRole::Kubelet | ClientRole::KubeProxy | ClientRole::CniAgent | ClientRole::ControlPlane
    )
}

impl Ledger {
    /// Returns whether an established connection is unacknowledged only because of an outage that is over: TCP has not
    /// retransmitted on it since.
    fn is_left_over(&self, at: BootTime, unacked_ns: u64) -> bool {
        let began = at.minus(unacked_ns);
        let cured = self.cure.as_ref().map(|cure| cure.at);
        cured.is_some_and(|cured| began < cured && at.since(cured) < limits::STALLED_LEFT_OVER)
    }
}

impl Facts {
    /// Takes the answer to the agent's own request, or its failure after the handshake.
    pub(super) fn answer(&mut self, at: BootTime, answer: Answer) {
        self.trust(at, &answer);
        let Some(ledger) = self.targets.get_mut(&answer.to) else { return };
        if answer.status.is_some() {
            ledger.broken = None;
            // A server that answers has accepted a connection, whether that was observed or not.
            ledger.last_ok.get_or_insert(at);
        }
        let starts = matches!(answer.tls, Some(TlsFailure::Closed | TlsFailure::Silent))
            || answer.tls.is_none() && !answer.is_well();
        if let Some(cure) = &mut ledger.cure {
            cure.served |= !starts;
        }
        let kind = |answer: &Answer| (answer.tls.clone(), answer.status, answer.failing.clone(), answer.etcd);
        let known = ledger.answer.as_ref().filter(|known| kind(&known.value) == kind(&answer));
        let (since, first) = known.map_or((at, true), |known| (known.since, false));
        if first {
            let text = match (&answer.tls, answer.status) {
                (Some(failure), _) => failure.words(),
                (None, Some(status)) => {
                    let etcd = answer.etcd.map(|etcd| format!(", {} for /livez/etcd", http_status(etcd)));
                    format!("returned {} for /readyz{}", http_status(status), etcd.unwrap_or_default())
                }
                (None, None) => "responded".to_string(),
            };
            self.line(at, "api.answer", format!("{} {text}", answer.to));
        }
        if let Some(ledger) = self.targets.get_mut(&answer.to) {
            ledger.answer = Some(Seen { value: answer, since, last: at });
        }
    }

    /// Takes the state of a connection after its handshake, about which a successful connect proves nothing. Returns the address
    /// to probe, if there is reason to: the kernel of a frozen server still accepts connections, so only its answers count.
    pub(super) fn connection(&mut self, at: BootTime, connection: &Connection) -> Option<SocketAddr> {
        if !connection.host_netns || connection.role == ClientRole::Untrusted {
            return None;
        }
        let ledger = self.targets.get_mut(&connection.to)?;
        // After the handshake a connection to a proxy depends on the server that the client requested: a runtime pulls images
        // through it.
        if ledger.proxy.is_some() && connection.role != ClientRole::Kubelet {
            return None;
        }
        ledger.note_kubelet(connection);
        if connection.unanswered_ns > 0 {
            self.unanswered(at, connection);
            return Some(connection.to);
        }
        // Closed by the server, given up by its client, not acknowledged, or answered by a server that was unhealthy.
        let recovers = !connection.ended && connection.received > 0 && !ledger.works();
        let lost = connection.ended && connection.by_peer && keeps_connections(connection.role);
        if lost && connection.received > 0 {
            ledger.connection_ended(at);
        }
        let news = Outcome::was_given_up(connection) || lost || recovers || connection.unacked_ns > 0;
        let ask = news.then_some(connection.to);
        let Some(outcome) = Outcome::of_connection(connection) else { return ask };
        if outcome == Outcome::Ok {
            ledger.broken = None;
            if !connection.ended {
                ledger.stalled = None;
            }
            return ask;
        }
        let worked = outcome == Outcome::Stalled && connection.received > 0;
        if worked && ledger.is_left_over(at, connection.unacked_ns) {
            return ask;
        }
        let known = if worked { &mut ledger.stalled } else { &mut ledger.broken };
        let first = known.as_ref().is_none_or(|known| known.outcome != outcome);
        let since = known.as_ref().map_or(at, |known| known.since);
        *known = Some(Failure { outcome, from: None, dropped: None, early_errno: 0, since, last: at });
        if first || connection.role != ClientRole::Probe {
            let client = &connection.client;
            let seconds = connection.age_ns / 1_000_000_000;
            let text = format!(
                "{}[{}] → {} {}, {} bytes out, {} in, after {seconds} s",
                client.name,
                client.pid,
                connection.to,
                outcome.words(),
                connection.acked,
                connection.received
            );
            self.line(at, "tcp.connection", text);
        }
        ask
    }

    /// Takes a client that waits for a response on a connection that worked.
    fn unanswered(&mut self, at: BootTime, connection: &Connection) {
        let is_request = connection.unanswered_bytes >= REQUEST_BYTES && keeps_connections(connection.role);
        let Some(ledger) = self.targets.get_mut(&connection.to).filter(|_| is_request) else { return };
        let client = &connection.client;
        if let Some(known) = &mut ledger.unanswered {
            known.last = at;
            known.longest_ns = known.longest_ns.max(connection.unanswered_ns);
            return;
        }
        ledger.unanswered = Some(Unanswered {
            client: client.clone(),
            since: at.minus(connection.unanswered_ns),
            longest_ns: connection.unanswered_ns,
            last: at,
        });
        let text = format!(
            "{}[{}] → {} no timely response to {} bytes for {} s",
            client.name,
            client.pid,
            connection.to,
            connection.unanswered_bytes,
            connection.unanswered_ns / limits::SECOND
        );
        self.line(at, "tcp.connection", text);
    }
}
