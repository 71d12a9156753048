//! The certificate and health of an API server, from its responses to the agent's own requests.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::{Causes, Fault};
use crate::BootTime;
use crate::facts::{Facts, Ledger};
use crate::limits;
use crate::memory::{Seen, UNTIL_CHANGED};
use crate::observation::{Answer, Certificate, TlsFailure, http_status};
use crate::outcome::is_own;
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let targets = facts.targets_in_order().into_iter();
    targets
        .filter_map(|(addr, ledger)| {
            if !ledger.has_answer(facts.now) {
                return None;
            }
            let of_answer = |Seen { value: answer, since, .. }: &Seen<Answer, UNTIL_CHANGED>| {
                let (reason, words) = verdict(answer, ledger)?;
                Some((reason, words, *since))
            };
            let answered = ledger.answer.as_ref().and_then(of_answer);
            let (reason, words, since) = answered.or_else(|| unanswered(ledger))?;
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
    if let Some(failure) = &answer.tls {
        let reason = match failure {
            TlsFailure::Closed => Reason::APIServerReset,
            TlsFailure::Silent => Reason::APITLSStalled,
            TlsFailure::Proxy { .. } => Reason::APIProxyRefused,
            TlsFailure::Alert { .. } | TlsFailure::Other { .. } => Reason::APITLSFailed,
        };
        return Some((reason, failure.words()));
    }
    match answer.status {
        Some(status) if Answer::is_refusal(status) => {
            let failing = if answer.failing.is_empty() {
                String::new()
            } else {
                format!("; failing checks: {}", answer.failing.join(", "))
            };
            let words = format!("returns {} for /readyz{failing}", http_status(status));
            Some((Reason::APIServerUnhealthy, words))
        }
        // /readyz of some builds does not include etcd.
        _ => {
            let status = answer.etcd.filter(|status| Answer::is_refusal(*status))?;
            let words = format!("returns {} for /livez/etcd: it cannot use etcd", http_status(status));
            Some((Reason::APIServerUnhealthy, words))
        }
    }
}

/// Judges late and missing responses to requests of the node's clients. The agent's own requests take precedence,
/// because their responses are more specific.
fn unanswered(ledger: &Ledger) -> Option<(Reason, String, BootTime)> {
    let silence = ledger.unanswered.as_ref()?;
    let queried_since = ledger.answer.as_ref().is_some_and(|answer| answer.last >= silence.since);
    let enough = if queried_since { limits::UNANSWERED } else { limits::UNANSWERED_ALONE };
    if ledger.broken.is_some() || ledger.stalled.is_some() || silence.lasted() < enough {
        return None;
    }
    let words = format!(
        "accepts connections, but {} has received no timely response for more than {} s",
        silence.client.name,
        limits::UNANSWERED / limits::SECOND
    );
    Some((Reason::APIServerUnhealthy, words, silence.since))
}

/// Returns why clients reject the certificate. A wrong name counts only where clients are known to use the name.
fn unfit(certificate: &Certificate, ledger: &Ledger) -> Option<String> {
    let subject = &certificate.subject;
    if certificate.expires_in_s < 0 {
        let ago = rough(-certificate.expires_in_s);
        return Some(format!("presents a certificate that expired {ago} ago ({subject})"));
    }
    if certificate.valid_in_s > 0 {
        let ahead = rough(certificate.valid_in_s);
        return Some(format!(
            "presents a certificate that becomes valid in {ahead} ({subject}): this host's clock may be wrong"
        ));
    }
    if !certificate.fits && ledger.is_clients_name {
        let names = certificate.names.join(", ");
        return Some(format!("presents a certificate for other names ({subject}, valid for {names})"));
    }
    None
}

/// Returns a duration in the largest unit of which it has at least two.
fn rough(seconds: i64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86400),
    }
}
