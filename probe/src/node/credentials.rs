//! Credentials on disk: until when they are valid. Only their times are read; nothing of them is kept.

use std::path::Path;

use data_encoding::BASE64URL_NOPAD;
use probe_engine::Credential;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;

use super::{certificate, file};
use crate::settings::Settings;

/// The kubelet's certificate as it rotates it, and as k3s and RKE2 write it.
const CERTIFICATES: &[(&str, &str)] = &[
    ("/var/lib/kubelet/pki/kubelet-client-current.pem", "kubelet"),
    ("/var/lib/rancher/k3s/agent/client-kubelet.crt", "kubelet"),
    ("/var/lib/rancher/rke2/agent/client-kubelet.crt", "kubelet"),
];
/// Kubeconfigs of CNI plugins with a token, inside the configuration directory.
const KUBECONFIGS: &[(&str, &str)] =
    &[("calico-kubeconfig", "calico"), ("multus.d/multus.kubeconfig", "multus")];

/// Every credential that is there and has times.
pub(crate) fn find(settings: &Settings) -> Vec<Credential> {
    let certificates = CERTIFICATES.iter().filter_map(|(path, owner)| {
        let text = file::read_text(&settings.on_host(Path::new(path)))?;
        let der = CertificateDer::from_pem_slice(text.as_bytes()).ok()?;
        let read = certificate::read(&der, None)?;
        Some(Credential {
            file: (*path).to_owned(),
            owner: (*owner).to_owned(),
            valid_in_s: read.valid_in_s,
            expires_in_s: read.expires_in_s,
        })
    });
    let tokens = KUBECONFIGS.iter().filter_map(|(name, owner)| {
        let path = settings.cni.conf().join(name);
        let text = file::read_text(&settings.on_host(&path))?;
        let kubeconfig: Value = serde_yaml_ng::from_str(&text).ok()?;
        let users = kubeconfig.get("users")?.as_array()?;
        let token = users.iter().find_map(|user| user.pointer("/user/token")?.as_str())?;
        let (valid_in_s, expires_in_s) = times_of(token)?;
        let file = crate::text::clean(path.to_string_lossy().as_bytes(), 200);
        Some(Credential { file, owner: (*owner).to_owned(), valid_in_s, expires_in_s })
    });
    certificates.chain(tokens).collect()
}

/// `nbf` and `exp` of a JSON Web Token, RFC 7519, from now; the signature is the server's to judge.
fn times_of(token: &str) -> Option<(i64, i64)> {
    let payload = token.split('.').nth(1)?;
    let claims: Value = serde_json::from_slice(&BASE64URL_NOPAD.decode(payload.as_bytes()).ok()?).ok()?;
    let now = crate::clock::unix_now();
    let expires = claims.get("exp")?.as_i64()?.saturating_sub(now);
    let valid = claims.get("nbf").and_then(Value::as_i64).unwrap_or(0).saturating_sub(now);
    Some((valid, expires))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_tells_its_times_and_a_broken_one_nothing() {
        let payload = BASE64URL_NOPAD.encode(br#"{"exp": 1000, "nbf": 500}"#);
        let (valid, expires) = times_of(&format!("e30.{payload}.x")).expect("times");
        assert!(expires < 0 && valid == expires - 500);
        assert_eq!(times_of("a.b"), None);
        assert_eq!(times_of(""), None);
        assert_eq!(times_of("a.e30.c"), None);
    }
}
