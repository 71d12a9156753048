//! Reads X.509 certificates.

use std::net::IpAddr;

use probe_engine::Certificate;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::text::clean;

/// Longest subject or name that is kept.
const NAME: usize = 128;
/// Most names that are kept of a certificate.
const NAMES: usize = 16;

/// Parses a certificate in DER. `wanted` is the name or address that it should be valid for. `None` if it is
/// not a certificate.
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

/// Parses the first certificate of a PEM file.
pub(super) fn first(pem: &[u8]) -> Option<Certificate> {
    read(&CertificateDer::from_pem_slice(pem).ok()?, None)
}

/// Returns the distinguished name of a certificate's issuer.
pub(super) fn issuer(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(clean(certificate.issuer().to_string().as_bytes(), NAME))
}

/// Returns the common name of a certificate's subject, verbatim.
pub(super) fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?;
    Some(name.as_str().ok()?.to_owned())
}

/// Returns whether signatures of this certificate's key can be verified: Ed25519, P-256, P-384, and RSA with
/// 2048 to 8192 bits (ring's `RSA_PKCS1_2048_8192`). Verification with any other key always fails.
pub(super) fn has_supported_key(der: &[u8]) -> bool {
    /// RFC 8410 section 3.
    const ED25519: &str = "1.3.101.112";
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    let key = certificate.public_key();
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => (2048..=8192).contains(&rsa.key_size()),
        Ok(PublicKey::EC(point)) => matches!(point.key_size(), 256 | 384),
        _ => key.algorithm.algorithm.to_id_string() == ED25519,
    }
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

/// Returns whether a name of a certificate covers `wanted` (RFC 6125): the names are equal, or a leading `*`
/// stands for one label.
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
    fn wildcard_matches_exactly_one_label() {
        assert!(fits("10.0.0.1", "10.0.0.1") && fits("API.example.org", "api.example.org"));
        assert!(fits("*.example.org", "api.example.org") && !fits("*.example.org", "a.b.example.org"));
        assert!(!fits("10.0.0.1", "10.0.0.11"));
    }

    #[test]
    fn invalid_certificate_is_none() {
        assert_eq!(read(b"", None), None);
        assert_eq!(read(&[0x30; 300], None), None);
    }
}
