//! Certificates: whose, for which names, and how long yet.

use std::net::IpAddr;

use probe_engine::Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::text::clean;

/// Longest subject or name that is kept.
const NAME: usize = 128;
/// Most names that are kept of a certificate.
const NAMES: usize = 16;

/// Reads one; `wanted` is the name or address that it should be for. `None` when it is no certificate.
pub(crate) fn read(der: &[u8], wanted: Option<&str>) -> Option<Certificate> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let names: Vec<_> = names.iter().flat_map(|names| &names.value.general_names).filter_map(name).collect();
    let now = crate::clock::unix_now();
    let validity = certificate.validity();
    Some(Certificate {
        subject: clean(certificate.subject().to_string().as_bytes(), NAME),
        valid_in_s: validity.not_before.timestamp().saturating_sub(now),
        expires_in_s: validity.not_after.timestamp().saturating_sub(now),
        fits: wanted.is_none_or(|wanted| names.iter().any(|name| fits(name, wanted))),
        names: names.into_iter().take(NAMES).collect(),
    })
}

fn name(general: &GeneralName<'_>) -> Option<String> {
    match general {
        GeneralName::DNSName(name) => Some(clean(name.as_bytes(), NAME)),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// RFC 6125: the same name, or one label in the place of a leading `*`.
fn fits(name: &str, wanted: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(parent) => wanted.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
        None => name.eq_ignore_ascii_case(wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_as_clients_see_it() {
        assert!(fits("10.0.0.1", "10.0.0.1") && fits("API.example.org", "api.example.org"));
        assert!(fits("*.example.org", "api.example.org") && !fits("*.example.org", "a.b.example.org"));
        assert!(!fits("10.0.0.1", "10.0.0.11"));
    }

    #[test]
    fn what_is_no_certificate_is_none() {
        assert_eq!(read(b"", None), None);
        assert_eq!(read(&[0x30; 300], None), None);
    }
}
