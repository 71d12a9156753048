//! Validity periods of credentials on disk. Only the times are kept.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use data_encoding::BASE64URL_NOPAD;
use probe_engine::{Certificate, Credential, cnis};
use serde_json::Value;

use super::discovery::Kubelet;
use super::kubeconfig::Kubeconfig;
use super::{certificate, file};
use crate::settings::Settings;
use crate::text::clean;

/// Maximum length of a reported path, bytes.
const MAX_PATH_LEN: usize = 256;

/// Returns the kubelet's certificate and the tokens in the kubeconfigs of CNI plugins, as far as they have a validity period.
pub(super) fn find(settings: &Settings, kubelet: &Kubelet) -> Vec<Credential> {
    let tokens = cnis::kubeconfigs().filter_map(|(name, owner)| {
        let path = settings.cni.conf().join(name);
        let times = times_of(Kubeconfig::read(settings, &path)?.token()?)?;
        Some(credential(&path, owner, times))
    });
    let of_kubelet = of_kubelet(settings, kubelet)
        .map(|(path, read)| credential(&path, "kubelet", (read.valid_in_s, read.expires_in_s)));
    of_kubelet.into_iter().chain(tokens).collect()
}

fn credential(path: &Path, owner: &str, (valid_in_s, expires_in_s): (i64, i64)) -> Credential {
    let file = clean(path.as_os_str().as_bytes(), MAX_PATH_LEN);
    Credential { file, owner: owner.to_owned(), valid_in_s, expires_in_s }
}

/// Returns the kubelet's client certificate: the one that its kubeconfig names or contains, else the rotated one.
fn of_kubelet(settings: &Settings, kubelet: &Kubelet) -> Option<(PathBuf, Certificate)> {
    let kubeconfig = match &settings.kubeconfig {
        Some(path) => Kubeconfig::read(settings, path),
        None => Kubeconfig::of(settings, kubelet),
    };
    let rotated = || {
        let path = kubelet.client_certificate()?;
        let read = certificate::first(&file::read(&settings.on_host(&path)).ok()?)?;
        Some((path, read))
    };
    kubeconfig.and_then(|kubeconfig| kubeconfig.certificate(settings, kubelet)).or_else(rotated)
}

/// Returns `nbf` and `exp` of a JSON Web Token (RFC 7519), seconds from now. The signature is not verified.
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
    use crate::node::trust::tests::Authority;
    use crate::settings::Known;
    use crate::settings::tests::host;

    use super::*;

    #[test]
    fn reads_certificate_and_token_of_the_current_context() {
        let authority = Authority::new("kubernetes");
        let [early, late] = [1, 2].map(|years| authority.issue_for("system:node:a", None, years).certificate);
        let token = format!("e30.{}.x", BASE64URL_NOPAD.encode(br#"{"exp": 1000}"#));
        // The first user belongs to a context that is not the current one.
        let kubeconfig = |other: &str, own: &str| {
            format!(
                "current-context: own\ncontexts: [{{name: other, context: {{cluster: c, user: other}}}}, \
                 {{name: own, context: {{cluster: c, user: own}}}}]\nclusters: [{{name: c, cluster: {{}}}}]\nusers: \
                 [{{name: other, user: {{{other}}}}}, {{name: own, user: {{{own}}}}}]\n"
            )
        };
        let of_kubelet = kubeconfig("client-certificate: late", "client-certificate: early");
        let of_plugin = kubeconfig("token: x", &format!("token: {token}"));
        let (settings, _root) = host(&[
            ("etc/k", &of_kubelet),
            ("etc/early", &early),
            ("etc/late", &late),
            ("etc/cni/net.d/calico-kubeconfig", &of_plugin),
        ]);
        let kubeconfig = Some(Known::of(PathBuf::from("/etc/k"), &"a test"));
        let kubelet = Kubelet { kubeconfig, ..Kubelet::default() };
        let found = find(&settings, &kubelet);
        let files: Vec<_> = found.iter().map(|found| (found.file.as_str(), found.owner.as_str())).collect();
        assert_eq!(files, [("/etc/early", "kubelet"), ("/etc/cni/net.d/calico-kubeconfig", "Calico")]);
    }

    #[test]
    fn reads_times_of_a_token_and_rejects_malformed_ones() {
        let payload = BASE64URL_NOPAD.encode(br#"{"exp": 1000, "nbf": 500}"#);
        let (valid, expires) = times_of(&format!("e30.{payload}.x")).expect("times");
        assert!(expires < 0 && valid == expires - 500);
        assert_eq!(times_of("a.b"), None);
        assert_eq!(times_of(""), None);
        assert_eq!(times_of("a.e30.c"), None);
    }
}
