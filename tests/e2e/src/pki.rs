//! The cluster's certificate authority, the certificates that it signs, and kubeconfigs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use data_encoding::BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

/// A certificate and its key pair, PEM.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The certificate.
    pub(crate) certificate: String,
    /// The private key, PKCS #8.
    pub(crate) key: String,
    /// The public key.
    pub(crate) public: String,
}

impl Identity {
    /// Returns certificate and private key in one PEM file, as the kubelet stores its own.
    pub(crate) fn pem_bundle(&self) -> String {
        format!("{}{}", self.certificate, self.key)
    }
}

/// The authority that signs all certificates, trusted by all components.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Certificate of the authority, PEM.
    pub(crate) certificate: String,
}

impl Authority {
    /// Creates an authority with a new key.
    pub(crate) fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "netready-e2e");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// Issues the certificate of a server with these addresses.
    pub(crate) fn server(&self, addresses: &[&str]) -> Result<Identity> {
        let mut params = CertificateParams::new(vec!["kubernetes.default.svc".to_owned()])?;
        for address in addresses {
            params.subject_alt_names.push(SanType::IpAddress(address.parse()?));
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, "kube-apiserver", Duration::days(2))
    }

    /// Issues the certificate of the client `user` in `group`, valid for `left` from now; negative for an expired one.
    pub(crate) fn client(&self, user: &str, group: &str, left: Duration) -> Result<Identity> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, user, left)
    }

    fn sign(&self, mut params: CertificateParams, name: &str, left: Duration) -> Result<Identity> {
        params.distinguished_name.push(DnType::CommonName, name);
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - Duration::days(2), now + left);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Identity { certificate, key: key.serialize_pem(), public: key.public_key_pem() })
    }
}

/// Writes a file that only its owner can read, and returns its path.
pub(crate) fn write(path: &Path, content: &str) -> Result<PathBuf> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(path, content).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(path.to_owned())
}

/// Returns a kubeconfig for `server` with this `user`.
pub(crate) fn kubeconfig(server: &str, authority: &Authority, user: &Value) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "e2e", "cluster": {
            "server": server, "certificate-authority-data": BASE64.encode(authority.certificate.as_bytes())
        }}],
        "users": [{"name": "e2e", "user": user}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
        "current-context": "e2e",
    })
    .to_string()
}

/// Returns the user of a kubeconfig with embedded certificate and key.
pub(crate) fn embedded_user(identity: &Identity) -> Value {
    json!({
        "client-certificate-data": BASE64.encode(identity.certificate.as_bytes()),
        "client-key-data": BASE64.encode(identity.key.as_bytes()),
    })
}
