//! What an API server says when it is asked: its certificate, its health.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::Fault;
use crate::evidence::{Facts, Ledger};
use crate::observation::{Answer, Certificate, TlsFailure};
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let asked = facts.targets_in_order().into_iter();
    asked
        .filter_map(|(addr, ledger)| {
            // An address that cannot be reached now says nothing of what it would answer.
            let (answer, since) = ledger.answer.as_ref().filter(|_| ledger.failure.is_none())?;
            let (reason, words) = verdict(answer, ledger)?;
            Some(Fault::new(reason, addr.to_string(), format!("{addr} {words}"), *since))
        })
        .collect()
}

fn verdict(answer: &Answer, ledger: &Ledger) -> Option<(Reason, String)> {
    if let Some(certificate) = &answer.certificate
        && let Some(words) = unfit(certificate, ledger)
    {
        return Some((Reason::APITLSFailed, words));
    }
    match (&answer.tls, answer.status) {
        (Some(TlsFailure::Closed), _) => {
            Some((Reason::APIServerReset, "accepts the connection and ends it before an answer".to_string()))
        }
        (Some(TlsFailure::Silent), _) => Some((
            Reason::APITLSStalled,
            "accepts the connection, takes the client's bytes and sends nothing".to_string(),
        )),
        (Some(TlsFailure::Alert { alert }), _) => {
            Some((Reason::APITLSFailed, format!("ends the TLS handshake with the alert {alert}")))
        }
        (Some(TlsFailure::Other { why }), _) => {
            Some((Reason::APITLSFailed, format!("fails in the TLS handshake: {why}")))
        }
        // 401, 403 and 404 are answers of a server that does not tell everybody how it is.
        (None, Some(status @ 500..)) => {
            let failing = if answer.failing.is_empty() {
                String::new()
            } else {
                format!("; it names {}", answer.failing.join(", "))
            };
            Some((Reason::APIServerUnhealthy, format!("answers /readyz with {status}{failing}")))
        }
        (None, _) => None,
    }
}

/// What clients will not accept. A name that does not fit counts only where clients are known to use it.
fn unfit(certificate: &Certificate, ledger: &Ledger) -> Option<String> {
    let subject = &certificate.subject;
    if certificate.expires_in_s < 0 {
        let ago = words(-certificate.expires_in_s);
        return Some(format!("shows a certificate that expired {ago} ago ({subject})"));
    }
    if certificate.valid_in_s > 0 {
        let ahead = words(certificate.valid_in_s);
        return Some(format!(
            "shows a certificate that is valid only in {ahead} ({subject}): this host's clock may be wrong"
        ));
    }
    if !certificate.fits && ledger.is_clients_name {
        let names = certificate.names.join(", ");
        return Some(format!("shows a certificate for other names ({subject}: {names})"));
    }
    None
}

fn words(seconds: i64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86400),
    }
}
