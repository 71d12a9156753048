//! The cluster's authority, and what it signs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use data_encoding::BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

/// A certificate and its key, PEM.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The certificate.
    pub(crate) certificate: String,
    /// The private key, PKCS #8.
    pub(crate) key: String,
    /// The public one.
    pub(crate) public: String,
}

impl Identity {
    /// Both in one text, as the kubelet keeps its own.
    pub(crate) fn together(&self) -> String {
        format!("{}{}", self.certificate, self.key)
    }
}

/// Signs everything; trusted by everybody.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, PEM.
    pub(crate) certificate: String,
}

impl Authority {
    /// A new one.
    pub(crate) fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "netready-e2e");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// For a server that is reached by these addresses.
    pub(crate) fn server(&self, addresses: &[&str]) -> Result<Identity> {
        let mut params = CertificateParams::new(vec!["kubernetes.default.svc".to_owned()])?;
        for address in addresses {
            params.subject_alt_names.push(SanType::IpAddress(address.parse()?));
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, "kube-apiserver", Duration::days(2))
    }

    /// For a client, which is `user` in `group`, until `left` from now; negative for one that has expired.
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

/// Writes `content` readable for its owner only; answers with the path.
pub(crate) fn write(path: &Path, content: &str) -> Result<PathBuf> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(path, content).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(path.to_owned())
}

/// A kubeconfig for `server` with this `user`.
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

/// The user of a kubeconfig, with everything inside.
pub(crate) fn inline(identity: &Identity) -> Value {
    json!({
        "client-certificate-data": BASE64.encode(identity.certificate.as_bytes()),
        "client-key-data": BASE64.encode(identity.key.as_bytes()),
    })
}
