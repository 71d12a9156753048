//! What an API server says when it is asked: its certificate, its health.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::{Causes, Fault};
use crate::Mono;
use crate::facts::{Facts, Ledger};
use crate::limits;
use crate::memory::{Seen, UNTIL_CHANGED};
use crate::observation::{Answer, Certificate, TlsFailure, http_status};
use crate::outcome::is_own;
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let asked = facts.targets_in_order().into_iter();
    asked
        .filter_map(|(addr, ledger)| {
            if !ledger.has_answer(facts.now) {
                return None;
            }
            let said = |Seen { value: answer, since, .. }: &Seen<Answer, UNTIL_CHANGED>| {
                let (reason, words) = verdict(answer, ledger)?;
                Some((reason, words, *since))
            };
            let said = ledger.answer.as_ref().and_then(said);
            let (reason, words, since) = said.or_else(|| unanswered(ledger))?;
            let fault =
                Fault::new(reason, addr.to_string(), format!("{} {words}", ledger.label(addr)), since);
            let own = reason != Reason::APITLSFailed && is_own(addr.ip(), &facts.host.addresses);
            Some(if own { fault.may_come_from(Causes::StaticPods) } else { fault })
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
        (Some(TlsFailure::Proxy { status }), _) => {
            Some((Reason::APIProxyRefused, format!("is refused: the proxy answers CONNECT with {status}")))
        }
        (Some(TlsFailure::Other { why }), _) => {
            Some((Reason::APITLSFailed, format!("fails in the TLS handshake: {why}")))
        }
        (None, Some(status)) if Answer::is_refusal(status) => {
            let failing = if answer.failing.is_empty() {
                String::new()
            } else {
                format!("; failing checks: {}", answer.failing.join(", "))
            };
            let words = format!("answers /readyz with {}{failing}", http_status(status));
            Some((Reason::APIServerUnhealthy, words))
        }
        // Some builds leave etcd out of /readyz.
        (None, _) => {
            let status = answer.etcd.filter(|status| Answer::is_refusal(*status))?;
            let words = format!("answers /livez/etcd with {}: it does not reach etcd", http_status(status));
            Some((Reason::APIServerUnhealthy, words))
        }
    }
}

/// What the agent's own questions do not show: requests of the node's clients are answered late, or not at all. The question
/// comes first, because it says more.
fn unanswered(ledger: &Ledger) -> Option<(Reason, String, Mono)> {
    let silence = ledger.unanswered.as_ref()?;
    let asked_since = ledger.answer.as_ref().is_some_and(|answer| answer.last >= silence.since);
    let enough = if asked_since { limits::UNANSWERED } else { limits::UNANSWERED_ALONE };
    if ledger.broken.is_some() || ledger.stalled.is_some() || silence.lasted() < enough {
        return None;
    }
    let words = format!(
        "accepts connections but answers {} late or not at all: no timely response for more than {} s",
        silence.client.name,
        limits::UNANSWERED / limits::SECOND
    );
    Some((Reason::APIServerUnhealthy, words, silence.since))
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
