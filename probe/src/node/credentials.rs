//! Credentials on disk: until when they are valid. Only their times are read; nothing of them is kept.

use std::os::unix::ffi::OsStrExt as _;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use probe_engine::Credential;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;

use super::discovery::Discovery;
use super::{certificate, file, targets};
use crate::settings::Settings;
use crate::text::clean;

/// Longest path that is reported, bytes.
const PATH: usize = 256;
/// Kubeconfigs of CNI plugins with a token, inside the configuration directory.
const KUBECONFIGS: &[(&str, &str)] =
    &[("calico-kubeconfig", "calico"), ("multus.d/multus.kubeconfig", "multus")];

/// Every credential that is there and has times.
pub(super) fn find(settings: &Settings, discovery: &Discovery) -> Vec<Credential> {
    let tokens = KUBECONFIGS.iter().filter_map(|(name, owner)| {
        let path = settings.cni.conf().join(name);
        let text = file::read_text(&settings.on_host(&path))?;
        let kubeconfig: Value = serde_yaml_ng::from_str(&text).ok()?;
        let users = kubeconfig.get("users")?.as_array()?;
        let token = users.iter().find_map(|user| user.pointer("/user/token")?.as_str())?;
        let (valid_in_s, expires_in_s) = times_of(token)?;
        let file = clean(path.as_os_str().as_bytes(), PATH);
        Some(Credential { file, owner: (*owner).to_owned(), valid_in_s, expires_in_s })
    });
    of_kubelet(settings, discovery).into_iter().chain(tokens).collect()
}

/// The kubelet's certificate: the one that the first of its kubeconfigs that is there names or holds, else the one that it
/// keeps itself.
fn of_kubelet(settings: &Settings, discovery: &Discovery) -> Option<Credential> {
    let kubeconfigs = targets::kubeconfigs(settings, discovery);
    let mut texts =
        kubeconfigs.iter().filter_map(|path| Some((path, file::read_text(&settings.on_host(path))?)));
    let in_kubeconfig = texts.next().and_then(|(path, text)| {
        let kubeconfig: Value = serde_yaml_ng::from_str(&text).ok()?;
        let user = kubeconfig.get("users")?.as_array()?.first()?.get("user")?.clone();
        if let Some(named) = user.get("client-certificate").and_then(Value::as_str) {
            return Some((path.parent()?.join(named), None));
        }
        let data = user.get("client-certificate-data")?.as_str()?;
        Some((path.clone(), Some(BASE64.decode(data.as_bytes()).ok()?)))
    });
    let (path, pem) = in_kubeconfig.or_else(|| Some((discovery.client_certificate()?, None)))?;
    let pem = pem.or_else(|| file::read(&settings.on_host(&path)).ok())?;
    let der = CertificateDer::from_pem_slice(&pem).ok()?;
    let read = certificate::read(&der, None)?;
    let file = clean(path.as_os_str().as_bytes(), PATH);
    let (valid_in_s, expires_in_s) = (read.valid_in_s, read.expires_in_s);
    Some(Credential { file, owner: "kubelet".to_owned(), valid_in_s, expires_in_s })
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
