//! The kubelet does not accept the API server, or the API server the kubelet.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::{Causes, Fault};
use crate::facts::{Facts, Ledger};
use crate::observation::{CredentialAnswer, http_status};
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let targets = facts.targets_in_order().into_iter();
    targets
        .filter(|(_, ledger)| ledger.has_answer(facts.now))
        .flat_map(|(addr, ledger)| untrusted(addr, ledger).into_iter().chain(rejected(facts, addr, ledger)))
        .collect()
}

fn untrusted(addr: &SocketAddr, ledger: &Ledger) -> Option<Fault> {
    let mismatch = ledger.mismatch()?;
    let answer = &ledger.answer.as_ref()?.value;
    let subject = answer.certificate.as_ref().map(|certificate| certificate.subject.as_str());
    let message = format!(
        "{} presents a certificate that none of the CAs in {} issued ({}, issued by {})",
        ledger.label(addr),
        mismatch.what.file,
        subject.unwrap_or("no subject"),
        mismatch.what.issuer
    );
    Some(Fault::new(Reason::APITLSFailed, addr.to_string(), message, mismatch.since).state())
}

/// Judges refused and failed requests. A credential that another server accepts is not the fault.
fn rejected(facts: &Facts, addr: &SocketAddr, ledger: &Ledger) -> Option<Fault> {
    let rejection = ledger.rejection()?;
    let (answer, since) = (&rejection.what, rejection.since);
    if answer.fails() {
        let status = http_status(answer.status.unwrap_or_default());
        let message = format!("{} returns {status} for the kubelet's own request", ledger.label(addr));
        return Some(Fault::new(Reason::APIServerUnhealthy, addr.to_string(), message, since));
    }
    if facts.is_accepted(&answer.file, addr) {
        return None;
    }
    let (server, words) = (ledger.label(addr), words(answer));
    let message = format!("{server} refuses the kubelet's credential in {}: {words}", answer.file);
    let fault = Fault::new(Reason::CredentialRefused, answer.file.as_str(), message, since).state();
    Some(fault.may_come_from(Causes::ValidCredential))
}

fn words(answer: &CredentialAnswer) -> String {
    let message = if answer.message.is_empty() { String::new() } else { format!(": {}", answer.message) };
    match (&answer.alert, answer.status) {
        (Some(alert), _) => format!("TLS alert {alert}"),
        (None, status) => format!("{}{message}", http_status(status.unwrap_or_default())),
    }
}
