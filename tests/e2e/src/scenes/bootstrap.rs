//! A kubelet without a certificate.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};
use kernel_tests::{API, run};
use serde_json::json;

use crate::cluster::{CERTIFICATE, Cluster, NODE, VALID, until};
use crate::pki;
use crate::stage::{REACHABLE, Stage};
use crate::watch::Expected;

const TOKEN: &str = "abcdef.0123456789abcdef";
const KUBECONFIG: &str = "/etc/kubernetes/kubelet.conf";
const BOOTSTRAP: &str = "/etc/kubernetes/bootstrap-kubelet.conf";
/// How long the API server may take to apply a change of the token: it caches accepted tokens for 10 s.
const PROPAGATION: Duration = Duration::from_secs(30);

/// The kubelet retries for a minute and exits, and its supervisor restarts it.
pub(super) fn expired(stage: &mut Stage<'_>) -> Result<()> {
    let flag = format!("--bootstrap-kubeconfig={BOOTSTRAP}");
    stage.hold_and(
        Expected::new("bootstrap token expired", &[REACHABLE], &["CredentialRefused"])
            .allowing(&["KubeletDown"])
            .message_contains("bootstrap-kubelet.conf: 401 Unauthorized")
            .unwritten(),
        |stage| {
            let cluster = &mut *stage.cluster;
            let user = json!({"token": TOKEN});
            let kubeconfig = pki::kubeconfig(&format!("https://{API}"), &cluster.authority, &user);
            pki::write(&cluster.host.path(BOOTSTRAP), &kubeconfig)?;
            // A bootstrap token may request a certificate but not read nodes: 403 means that the token was accepted.
            token_until(cluster, SignedDuration::from_hours(1))?;
            wait_for_status(cluster, "403")?;
            token_until(cluster, SignedDuration::from_mins(-1))?;
            wait_for_status(cluster, "401")?;
            cluster.kubelet.take().context("not running")?.stop()?;
            for file in [KUBECONFIG, CERTIFICATE] {
                fs::remove_file(cluster.host.path(file)).with_context(|| format!("remove {file}"))?;
            }
            cluster.start_kubelet_with(&[&flag])
        },
        |stage| {
            if stage.cluster.kubelet.as_mut().context("not running")?.has_exited()? {
                stage.cluster.start_kubelet_with(&[&flag])?;
            }
            Ok(())
        },
        |stage| {
            let cluster = &mut *stage.cluster;
            cluster.kubelet.take().context("not running")?.stop()?;
            fs::remove_file(cluster.host.path(BOOTSTRAP)).context("remove the bootstrap kubeconfig")?;
            cluster.install_kubelet_certificate(VALID)?;
            cluster.write_kubelet_kubeconfig(&cluster.authority)?;
            cluster.start_kubelet()
        },
    )?;
    stage.cluster.kubectl(&["delete", "secret", "-n", "kube-system", "bootstrap-token-abcdef"]).map(|_| ())
}

/// Makes the token valid for `left` from now.
fn token_until(cluster: &Cluster, left: SignedDuration) -> Result<()> {
    let (id, secret) = TOKEN.split_once('.').context("the token has no secret")?;
    let expiration = format!("{:.0}", Timestamp::now() + left);
    cluster.apply(&json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "stringData": {
            "token-id": id, "token-secret": secret, "expiration": expiration,
            "usage-bootstrap-authentication": "true",
        },
    }))
}

/// Waits until the API server responds to a request with the token with this status.
fn wait_for_status(cluster: &Cluster, status: &str) -> Result<()> {
    let mut last = String::new();
    let answered = until("the API server applies the change", PROPAGATION, || {
        let mut curl = cluster.control.command("curl")?;
        curl.args(["--silent", "--max-time", "5", "--write-out", "%{http_code}", "--output", "/dev/null"]);
        curl.arg("--cacert").arg(cluster.file("ca.crt"));
        curl.arg("--header").arg(format!("Authorization: Bearer {TOKEN}"));
        last = run(curl.arg(format!("https://{API}/api/v1/nodes/{NODE}")))?;
        Ok((last.trim() == status).then_some(()))
    });
    answered.with_context(|| format!("the last status is {last}, not {status}"))
}
