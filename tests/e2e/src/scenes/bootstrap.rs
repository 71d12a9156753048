//! A kubelet that has no certificate yet.

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
/// How long the API server may take to notice a change of the token: it caches what it accepted for 10 s.
const NOTICED: Duration = Duration::from_secs(30);

/// The kubelet tries for a minute and exits, and its supervisor starts it again.
pub(super) fn expired(stage: &mut Stage<'_>) -> Result<()> {
    let flag = format!("--bootstrap-kubeconfig={BOOTSTRAP}");
    stage.hold_and(
        Expected::new("bootstrap token expired", &[REACHABLE], &["CredentialRefused"])
            .beside(&["KubeletDown"])
            .says("bootstrap-kubelet.conf: 401 Unauthorized")
            .unwritten(),
        |stage| {
            let cluster = &mut *stage.cluster;
            let user = json!({"token": TOKEN});
            let kubeconfig = pki::kubeconfig(&format!("https://{API}"), &cluster.authority, &user);
            pki::write(&cluster.place.path(BOOTSTRAP), &kubeconfig)?;
            // A bootstrap token may ask for a certificate, and may not read nodes: 403 is an acceptance.
            token_until(cluster, SignedDuration::from_hours(1))?;
            answers(cluster, "403")?;
            token_until(cluster, SignedDuration::from_mins(-1))?;
            answers(cluster, "401")?;
            cluster.kubelet.take().context("it runs")?.stop()?;
            for file in [KUBECONFIG, CERTIFICATE] {
                fs::remove_file(cluster.place.path(file)).with_context(|| format!("remove {file}"))?;
            }
            cluster.start_kubelet_with(&[&flag])
        },
        |stage| {
            if stage.cluster.kubelet.as_mut().context("it was started")?.has_exited()? {
                stage.cluster.start_kubelet_with(&[&flag])?;
            }
            Ok(())
        },
        |stage| {
            let cluster = &mut *stage.cluster;
            cluster.kubelet.take().context("it was started")?.stop()?;
            fs::remove_file(cluster.place.path(BOOTSTRAP)).context("remove the bootstrap kubeconfig")?;
            cluster.kubelet_identity(VALID)?;
            cluster.kubelet_trusts(&cluster.authority)?;
            cluster.start_kubelet()
        },
    )?;
    stage.cluster.kubectl(&["delete", "secret", "-n", "kube-system", "bootstrap-token-abcdef"]).map(|_| ())
}

/// Makes the token valid for so long from now.
fn token_until(cluster: &Cluster, left: SignedDuration) -> Result<()> {
    let (id, secret) = TOKEN.split_once('.').context("a token has two parts")?;
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

/// Waits until the API server answers a request with the token in this way.
fn answers(cluster: &Cluster, status: &str) -> Result<()> {
    let mut last = String::new();
    let answered = until("the API server judges the token so", NOTICED, || {
        let mut curl = cluster.control.command("curl")?;
        curl.args(["--silent", "--max-time", "5", "--write-out", "%{http_code}", "--output", "/dev/null"]);
        curl.arg("--cacert").arg(cluster.file("ca.crt"));
        curl.arg("--header").arg(format!("Authorization: Bearer {TOKEN}"));
        last = run(curl.arg(format!("https://{API}/api/v1/nodes/{NODE}")))?;
        Ok((last.trim() == status).then_some(()))
    });
    answered.with_context(|| format!("it answers {last}, not {status}"))
}
