//! Verifies whether a certificate chain leads to a CA that the kubelet trusts. The kubelet is a Go program,
//! and Go accepts more than webpki does: only what both must reject counts as untrusted.

use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, Error, RootCertStore};

use super::certificate;

/// Most CAs that are read from one file; bundles of public CAs have about 150.
const CERTIFICATES: usize = 512;

/// Result of the verification of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chain {
    /// One of the CAs issued it, and it is currently valid for the server's name.
    Trusted,
    /// None of the CAs issued it.
    Untrusted,
    /// Anything else, including what only webpki rejects.
    Unknown,
}

/// The CAs that the kubelet trusts.
pub(super) struct Authorities {
    /// The file that contains them: a kubeconfig, or a file to which it refers.
    pub(super) file: String,
    certificates: Vec<CertificateDer<'static>>,
    /// Also used for connections that require a trusted server.
    pub(super) verifier: Arc<WebPkiServerVerifier>,
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorities").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Authorities {
    /// Parses CAs in PEM. `None` if one of them cannot be parsed, because a chain may lead to that one.
    pub(super) fn new(file: String, pem: &[u8], provider: Arc<CryptoProvider>) -> Option<Self> {
        let certificates: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(pem).take(CERTIFICATES).collect();
        let certificates = certificates.ok().filter(|found| found.len() < CERTIFICATES)?;
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots.add(certificate.clone()).ok()?;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().ok()?;
        Some(Self { file, certificates, verifier })
    }

    /// Verifies the chain that a server presents.
    pub(super) fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
    ) -> Chain {
        let verified =
            self.verifier.verify_server_cert(end_entity, intermediates, name, &[], UnixTime::now());
        match verified {
            Ok(_) => Chain::Trusted,
            Err(Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) if self.can_judge(end_entity, intermediates) => Chain::Untrusted,
            Err(_) => Chain::Unknown,
        }
    }

    /// Returns whether Go would reject the chain too: it trusts a certificate that is itself among the CAs,
    /// and supports keys that ring does not.
    fn can_judge(&self, end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> bool {
        let is_pinned = self.certificates.iter().any(|known| known.as_ref() == end_entity.as_ref());
        let authorities = self.certificates.iter().map(AsRef::as_ref);
        let mut all = authorities.chain(intermediates.iter().map(AsRef::as_ref));
        !is_pinned && all.all(certificate::has_supported_key)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        date_time_ymd,
    };
    use rustls::crypto::ring;

    use super::*;

    /// A CA for tests.
    pub(crate) struct Authority {
        issuer: Issuer<'static, KeyPair>,
        pub(crate) pem: String,
    }

    /// A certificate and its key in PEM.
    pub(crate) struct Identity {
        pub(crate) certificate: String,
        pub(crate) key: String,
    }

    impl Authority {
        pub(crate) fn new(name: &str) -> Self {
            let mut params = CertificateParams::new(Vec::new()).expect("parameters");
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().expect("a key");
            let pem = params.self_signed(&key).expect("signed").pem();
            Self { issuer: Issuer::new(params, key), pem }
        }

        /// Issues a certificate for a server at this address or name, or for a client if that is `None`.
        pub(crate) fn issue(&self, name: &str, address: Option<&str>) -> Identity {
            self.issue_for(name, address, 1)
        }

        /// The same, with the lifetime ending that many years after the year 4000.
        pub(crate) fn issue_for(&self, name: &str, address: Option<&str>, years: i32) -> Identity {
            let names: Vec<_> = address.map(str::to_owned).into_iter().collect();
            let mut params = CertificateParams::new(names).expect("parameters");
            params.distinguished_name.push(DnType::CommonName, name);
            params.not_after = date_time_ymd(4000 + years, 1, 1);
            params.extended_key_usages = vec![match address {
                Some(_) => ExtendedKeyUsagePurpose::ServerAuth,
                None => ExtendedKeyUsagePurpose::ClientAuth,
            }];
            let key = KeyPair::generate().expect("a key");
            let certificate = params.signed_by(&key, &self.issuer).expect("signed").pem();
            Identity { certificate, key: key.serialize_pem() }
        }
    }

    fn judge(authorities: &str, presented: &str) -> Chain {
        let provider = Arc::new(ring::default_provider());
        let authorities =
            Authorities::new("ca.crt".to_owned(), authorities.as_bytes(), provider).expect("CAs");
        let presented = CertificateDer::from_pem_slice(presented.as_bytes()).expect("a certificate");
        authorities.judge(&presented, &[], &ServerName::try_from("127.0.0.1").expect("an address"))
    }

    #[test]
    fn only_certificate_issued_by_another_ca_is_untrusted() {
        let [own, other, namesake] = ["kubernetes", "other", "kubernetes"].map(Authority::new);
        let at =
            |authority: &Authority, address| authority.issue("kube-apiserver", Some(address)).certificate;
        let server = at(&own, "127.0.0.1");
        for (what, authorities, presented, wanted) in [
            ("its own", own.pem.clone(), &server, Chain::Trusted),
            ("a bundle", format!("{}{}", other.pem, own.pem), &server, Chain::Trusted),
            ("another", other.pem.clone(), &server, Chain::Untrusted),
            ("another of the same name", namesake.pem.clone(), &server, Chain::Untrusted),
            ("another address", own.pem.clone(), &at(&own, "10.0.0.1"), Chain::Unknown),
            ("the certificate itself", server.clone(), &server, Chain::Unknown),
            ("a CA as a server", other.pem.clone(), &own.pem, Chain::Unknown),
        ] {
            assert_eq!(judge(&authorities, presented), wanted, "{what}");
        }
    }

    #[test]
    fn chain_with_unsupported_key_is_never_untrusted() {
        let p521 = include_str!("../../tests/certificates/p521-ca.pem");
        let small = include_str!("../../tests/certificates/rsa1024-ca.pem");
        let of_p521 = include_str!("../../tests/certificates/p521-server.pem");
        let of_small = include_str!("../../tests/certificates/rsa1024-server.pem");
        for (authorities, presented) in
            [(p521, of_p521), (small, of_small), (p521, of_small), (small, of_p521)]
        {
            assert_eq!(judge(authorities, presented), Chain::Unknown);
        }
        // The keys of the server and of this CA are P-256.
        let other = Authority::new("kubernetes");
        assert_ne!(judge(&other.pem, of_p521), Chain::Trusted);
        assert_eq!(judge(&Authority::new("other").pem, of_small), Chain::Untrusted);
    }

    #[test]
    fn unreadable_cas_are_none() {
        let provider = Arc::new(ring::default_provider());
        let own = Authority::new("kubernetes").pem;
        let broken = format!("{own}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        for pem in ["", "nonsense", &broken] {
            assert!(
                Authorities::new(String::new(), pem.as_bytes(), Arc::clone(&provider)).is_none(),
                "{pem}"
            );
        }
    }
}
