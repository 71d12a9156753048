//! Whether the kubelet and the API server accept each other, as found by the agent's own requests. A single answer proves
//! little: a file may be in the middle of a rotation, or a server in the middle of its start. Only repeated findings count.

use alloc::format;
use core::net::SocketAddr;

use super::Facts;
use super::api::Ledger;
use crate::limits;
use crate::memory::Memory;
use crate::observation::{
    Answer, BootTime, ClientRole, Connection, CredentialAnswer, Untrusted, http_status,
};

/// The newest finding of its kind, and since when it has been the same.
#[derive(Clone, Debug)]
pub(crate) struct Repeated<T> {
    pub(crate) what: T,
    pub(crate) since: BootTime,
    last: BootTime,
}

impl<T> Repeated<T> {
    const fn new(what: T, at: BootTime) -> Self {
        Self { what, since: at, last: at }
    }

    /// Returns whether it was found at least twice, some time apart.
    fn is_certain(&self) -> bool {
        self.last.since(self.since) >= limits::CONFIRMED
    }

    /// Returns when it expires unless it is found again.
    const fn counts_until(&self) -> BootTime {
        self.last.plus(limits::CONNECT_FAILURE)
    }
}

impl Memory for Repeated<Untrusted> {
    fn until(&self) -> Option<BootTime> {
        Some(self.counts_until())
    }
}

impl Memory for Repeated<CredentialAnswer> {
    /// An acceptance does not expire; its readers decide whether it still counts.
    fn until(&self) -> Option<BootTime> {
        (!self.what.accepts()).then(|| self.counts_until())
    }

    fn deadlines(&self, _now: BootTime, at: &mut dyn FnMut(BootTime)) {
        at(if self.what.accepts() { self.last.plus(limits::ACCEPTED) } else { self.counts_until() });
    }
}

impl Ledger {
    /// Returns a certificate of this address that the kubelet will not accept. A server that worked may be in the middle of a
    /// rotation, so the finding has to be certain; one that replaced a failed server is not the API server until it is verified.
    pub(crate) fn mismatch(&self) -> Option<&Repeated<Untrusted>> {
        self.untrusted.as_ref().filter(|known| self.is_unverified || known.is_certain())
    }

    /// Returns the certain finding that the server refuses, or fails to serve, the kubelet's own credential.
    pub(crate) fn rejection(&self) -> Option<&Repeated<CredentialAnswer>> {
        self.credential.as_ref().filter(|known| !known.what.accepts() && known.is_certain())
    }

    /// Returns until when an acceptance of the kubelet's credential counts.
    pub(super) fn accepted_until(&self) -> Option<(&CredentialAnswer, BootTime)> {
        let known = self.credential.as_ref().filter(|known| known.what.accepts())?;
        Some((&known.what, known.last.plus(limits::ACCEPTED)))
    }

    /// Forgets that the credential in `file` was refused.
    pub(super) fn forget_refusal(&mut self, file: &str) {
        self.credential.take_if(|known| known.what.refuses() && known.what.file == file);
    }

    /// Takes a connection of the kubelet. A client that rejects a certificate closes the connection at once, so a kubelet whose
    /// connection lasts has accepted it.
    pub(super) fn note_kubelet(&mut self, connection: &Connection) {
        let lasts = connection.age_ns >= limits::CONFIRMED && connection.received > 0;
        if connection.role == ClientRole::Kubelet && lasts && connection.unanswered_ns == 0 {
            self.untrusted = None;
            self.is_unverified = false;
        }
    }
}

impl Facts {
    /// Takes the parts of an answer that concern certificates and credentials.
    pub(super) fn trust(&mut self, at: BootTime, answer: &Answer) {
        let Some(ledger) = self.targets.get_mut(&answer.to) else { return };
        let mut line = None;
        // Without a certificate nothing was verified.
        if answer.status.is_some() || answer.certificate.is_some() {
            let found = answer.untrusted.as_ref().filter(|untrusted| !untrusted.kubelet_served);
            ledger.is_unverified &= found.is_some();
            ledger.untrusted = found.map(|found| match ledger.untrusted.take() {
                Some(known) if known.what == *found => Repeated { last: at, ..known },
                _ => {
                    line = Some(format!(
                        "{} presents a certificate that none of the CAs in {} issued",
                        answer.to, found.file
                    ));
                    Repeated::new(found.clone(), at)
                }
            });
        }
        let mut credential_line = None;
        if let Some(found) = &answer.kubelet {
            let kind = |answer: &CredentialAnswer| (answer.refuses(), answer.fails());
            let known = ledger
                .credential
                .take()
                .filter(|known| known.what.file == found.file && kind(&known.what) == kind(found));
            if known.is_none() && !found.accepts() {
                let how = match (&found.alert, found.status) {
                    (Some(alert), _) => format!("TLS alert {alert}"),
                    (None, status) => http_status(status.unwrap_or_default()),
                };
                credential_line = Some(format!("{} returned {how} for the kubelet's credential", answer.to));
            }
            let since = known.map_or(at, |known| known.since);
            ledger.credential = Some(Repeated { what: found.clone(), since, last: at });
        }
        for line in line.into_iter().chain(credential_line) {
            self.line(at, "api.answer", line);
        }
    }

    /// Returns whether another API server recently accepted the credential in this file.
    pub(crate) fn is_accepted(&self, file: &str, except: &SocketAddr) -> bool {
        let others = self.targets.iter().filter(|(addr, _)| *addr != except);
        let mut accepted = others.filter_map(|(_, ledger)| ledger.accepted_until());
        accepted.any(|(answer, until)| answer.file == file && self.now < until)
    }
}
