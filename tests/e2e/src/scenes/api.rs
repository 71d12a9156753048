//! Faults of the API server and of the path to it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kernel_tests::{API, Namespace};
use serde_json::{Value, json};

use crate::agent::{self, ExpectedCondition};
use crate::cluster::{CERTIFICATE, Cluster, Running, SERVICE, VALID, until};
use crate::image;
use crate::pki::Authority;
use crate::stage::{NETWORK, PROOF, REACHABLE, RETURN, Stage, healthy_condition};
use crate::watch::Expected;

const API_SIDE: &[&str] = &[REACHABLE];

fn signal(
    program: fn(&Cluster) -> Option<&Running>,
    signal: i32,
) -> impl FnOnce(&mut Stage<'_>) -> Result<()> {
    move |stage| {
        program(stage.cluster).context("not running")?.signal(signal);
        Ok(())
    }
}

fn stop(stage: &mut Stage<'_>) -> Result<()> {
    stage.cluster.api.take().context("not running")?.stop()
}

fn start(stage: &mut Stage<'_>) -> Result<()> {
    stage.cluster.start_api()
}

pub(super) fn stopped(stage: &mut Stage<'_>) -> Result<()> {
    let expected = Expected::new("API server stopped", API_SIDE, &["APIServerRefused"]).unwritten();
    stage.hold(expected, stop, start)
}

pub(super) fn frozen(stage: &mut Stage<'_>) -> Result<()> {
    const fn api(cluster: &Cluster) -> Option<&Running> {
        cluster.api.as_ref()
    }
    // First, requests on established connections get no response; then new connections stall after the TCP handshake.
    let roots = &["APIServerUnhealthy", "APITLSStalled"];
    let expected = Expected::new("API server frozen", API_SIDE, roots).unwritten();
    stage.hold(expected, signal(api, libc::SIGSTOP), signal(api, libc::SIGCONT))
}

/// Like repeated OOM kills, with a supervisor that restarts the server.
pub(super) fn killed_whenever_it_serves(stage: &mut Stage<'_>) -> Result<()> {
    let expected = Expected::new("API server killed whenever it serves", API_SIDE, &["APIServerRefused"])
        .allowing(&["APIServerReset", "APIServerUnhealthy"])
        .message_contains("unstable")
        .steady_after(45)
        .unwritten();
    let mut serves_since = Instant::now();
    stage.hold_and(
        expected,
        |stage| {
            drop(stage.cluster.api.take());
            Ok(())
        },
        |stage| {
            if stage.cluster.api.is_none() {
                stage.cluster.start_api()?;
                serves_since = Instant::now();
            } else if serves_since.elapsed() > Duration::from_secs(4) {
                drop(stage.cluster.api.take());
            }
            Ok(())
        },
        |stage| if stage.cluster.api.is_none() { start(stage) } else { Ok(()) },
    )
}

/// Adds a packet filter rule on a host.
fn filter(
    stage: &mut Stage<'_>,
    expected: Expected,
    on: fn(&Cluster) -> &Namespace,
    hook: &str,
    rule: &str,
) -> Result<()> {
    let rules = format!(
        "add table ip e2e; add chain ip e2e c {{ type filter hook {hook} priority 0; }}; add rule ip e2e c {rule}"
    );
    stage.hold(
        expected.unwritten(),
        |stage| on(stage.cluster).nft(&rules),
        |stage| on(stage.cluster).nft("delete table ip e2e"),
    )
}

const fn control(cluster: &Cluster) -> &Namespace {
    &cluster.control
}

const fn node(cluster: &Cluster) -> &Namespace {
    &cluster.host.netns
}

/// Reason for established connections until a client opens a new one.
const STALLED: &[&str] = &["APIConnectionStalled"];

pub(super) fn dropped(stage: &mut Stage<'_>) -> Result<()> {
    let expected =
        Expected::new("packets to the API server dropped", API_SIDE, &["APITimeout"]).allowing(STALLED);
    filter(stage, expected, control, "input", "ip saddr 10.99.0.2 tcp dport 6443 drop")
}

pub(super) fn rejected(stage: &mut Stage<'_>) -> Result<()> {
    let rule = "ip saddr 10.99.0.2 tcp dport 6443 reject with icmp type admin-prohibited";
    // Established connections get no response either.
    let expected =
        Expected::new("packets to the API server rejected", API_SIDE, &["APITimeout", "APIFirewalled"])
            .allowing(STALLED);
    filter(stage, expected, control, "input", rule)
}

/// The packets are dropped before they leave the node.
pub(super) fn firewalled(stage: &mut Stage<'_>) -> Result<()> {
    let expected =
        Expected::new("packets to the API server dropped on the node", API_SIDE, &["APIPolicyDenied"]);
    filter(stage, expected, node, "output", "ip daddr 10.99.0.1 tcp dport 6443 drop")
}

pub(super) fn etcd_killed(stage: &mut Stage<'_>) -> Result<()> {
    let expected = Expected::new("etcd killed", API_SIDE, &["APIServerUnhealthy"]).unwritten();
    stage.hold(
        expected,
        |stage| {
            drop(stage.cluster.etcd.take());
            Ok(())
        },
        |stage| {
            stage.cluster.start_etcd()?;
            // The API server's client backs off and reconnects up to half a minute later.
            until("the API server reaches etcd", PROOF, || Ok(stage.cluster.node_object().ok().map(|_| ())))
        },
    )
}

pub(super) fn etcd_frozen(stage: &mut Stage<'_>) -> Result<()> {
    const fn etcd(cluster: &Cluster) -> Option<&Running> {
        cluster.etcd.as_ref()
    }
    let expected = Expected::new("etcd frozen", API_SIDE, &["APIServerUnhealthy"]).unwritten();
    stage.hold(expected, signal(etcd, libc::SIGSTOP), signal(etcd, libc::SIGCONT))
}

/// The node has its own API server, as on a control plane of several hosts, while another one serves.
pub(super) fn crash_loop(stage: &mut Stage<'_>) -> Result<()> {
    let mut last = None;
    stage.hold_and(
        Expected::new("kube-apiserver on the node crash-loops", API_SIDE, &["ControlPlaneCrashLoop"]),
        |_| Ok(()),
        |stage| {
            // The kubelet restarts static pods less often; three exits are enough.
            if last.is_none_or(|last: Instant| last.elapsed() > Duration::from_secs(5)) {
                let status = stage.cluster.run_broken_api_server()?;
                ensure!(!status.success(), "kube-apiserver started with an unknown option");
                last = Some(Instant::now());
            }
            Ok(())
        },
        |stage| stage.cluster.start_placeholder("kube-apiserver"),
    )
}

pub(super) fn credentials(stage: &mut Stage<'_>) -> Result<()> {
    stage.hold(
        Expected::new("certificate expired", API_SIDE, &["CredentialExpired"])
            .allowing(&["CredentialRefused"])
            .unwritten(),
        |stage| stage.cluster.install_kubelet_certificate(-time::Duration::hours(1)),
        |stage| stage.cluster.install_kubelet_certificate(VALID),
    )?;
    ensure!(stage.cluster.host.path(CERTIFICATE).exists(), "the certificate does not exist");
    Ok(())
}

/// Makes a fault in files that the kubelet reads only at its start and that do not make it exit, by restarting it.
fn with_restarted_kubelet(
    stage: &mut Stage<'_>,
    expected: Expected,
    fault: impl FnOnce(&Cluster) -> Result<()>,
    repair: impl FnOnce(&Cluster) -> Result<()>,
) -> Result<()> {
    stage.hold(
        expected.allowing(&["KubeletDown"]).unwritten(),
        |stage| {
            fault(stage.cluster)?;
            stage.cluster.restart_kubelet()
        },
        |stage| {
            repair(stage.cluster)?;
            stage.cluster.restart_kubelet()
        },
    )
}

pub(super) fn another_authority(stage: &mut Stage<'_>) -> Result<()> {
    let expected = Expected::new("kubeconfig with another CA", API_SIDE, &["APITLSFailed"])
        .message_contains("none of the CAs in /etc/kubernetes/kubelet.conf issued");
    let fault = |cluster: &Cluster| cluster.write_kubelet_kubeconfig(&Authority::new()?);
    with_restarted_kubelet(stage, expected, fault, |cluster| {
        cluster.write_kubelet_kubeconfig(&cluster.authority)
    })
}

pub(super) fn unknown_certificate(stage: &mut Stage<'_>) -> Result<()> {
    let expected = Expected::new("certificate of another CA", API_SIDE, &["CredentialRefused"])
        .message_contains("401 Unauthorized");
    with_restarted_kubelet(stage, expected, Cluster::install_untrusted_certificate, |cluster| {
        cluster.install_kubelet_certificate(VALID)
    })
}

/// An unrelated process removes the configuration, which is therefore not a consequence of the API server's fault.
pub(super) fn both_at_once(stage: &mut Stage<'_>) -> Result<()> {
    let expected = Expected::new(
        "API server stopped and configuration removed",
        &[REACHABLE, NETWORK],
        &["CNIConfigMissing", "APIServerRefused"],
    )
    .allowing(&["CNIConfigMissing", "CNIConfigDisplaced"])
    .unwritten();
    stage.hold(
        expected,
        |stage| {
            stop(stage)?;
            stage.cluster.remove_network("10-pods.conflist")
        },
        |stage| {
            stage.cluster.install_network("10.244.0.0/24")?;
            start(stage)
        },
    )
}

/// The agent as a DaemonSet runs it, without kube-proxy: it writes through the address that the kubelet uses.
pub(super) fn in_cluster(stage: &mut Stage<'_>) -> Result<()> {
    stage.cluster.install_service_account()?;
    let rules = format!(
        "add table ip e2e; add chain ip e2e out {{ type nat hook output priority -100; }}; \
         add rule ip e2e out ip daddr {SERVICE} tcp dport 443 dnat to {API}"
    );
    stage.hold(
        Expected::new(
            "Service address not translated",
            API_SIDE,
            &["AgentStopping", "Learning", "APIServiceNotProgrammed"],
        ),
        |stage| stage.restart_agent(agent::start_in_cluster),
        |stage| {
            let by = agent::state(stage.cluster)?["conditionWrites"]["by"].clone();
            ensure!(by == format!("in-cluster account at {API}"), "the conditions are written by {by}");
            stage.cluster.host.netns.nft(&rules)
        },
    )
}

/// As in kops' rolling update: the webhook's backend needs the network, whose pods cannot be created without the webhook.
pub(super) fn webhook(stage: &mut Stage<'_>) -> Result<()> {
    if !stage.cluster.has_service_account() {
        in_cluster(stage)?;
    }
    stage.restart_agent(agent::start_in_cluster)?;
    let controllers = stage.cluster.start_controllers()?;
    let on_control = agent::start_on_control(stage.cluster)?;
    stage.wait_until_healthy()?;
    let roots = &["CNIConfigMissing", "AdmissionBlocked"];
    let expected = Expected::new("webhook without a backend", &[REACHABLE, NETWORK], roots)
        .allowing(&["CNIConfigMissing", "CNIConfigDisplaced"]);
    stage.hold(
        expected,
        |stage| {
            stage.cluster.apply(&closed_webhook())?;
            stage.cluster.remove_network_as("calico-node", "10-pods.conflist")?;
            stage.cluster.apply(&network_daemonset())
        },
        |stage| {
            let state = agent::state(stage.cluster)?;
            ensure!(state["verdict"]["subject"] == "closed.example.com", "{}", state["verdict"]);
            ensure!(state["consequences"][0]["reason"] == "CNIConfigMissing", "{}", state["consequences"]);
            // The agent on the control plane's host has observed the results of connects to the webhook.
            let mut last = Value::Null;
            let joined = until("the agent on the control plane's host reports it", PROOF, || {
                last = agent::control_state(stage.cluster)?["verdict"].clone();
                let message = last["message"].as_str().unwrap_or_default();
                let ends =
                    message.ends_with("observed on this host: connection refused: no listener on this host");
                Ok((last["reason"] == "AdmissionBlocked" && ends).then_some(()))
            });
            joined.with_context(|| format!("its verdict is {last}"))?;
            on_control.stop()?;
            stage.cluster.kubectl(&["delete", "mutatingwebhookconfiguration", "closed"])?;
            stage.cluster.kubectl(&["delete", "daemonset", "calico-node", "-n", "kube-system"])?;
            stage.cluster.install_network("10.244.0.0/24")
        },
    )?;
    controllers.stop()?;
    stage.cluster.remove_service_account()?;
    stage.cluster.host.netns.nft("delete table ip e2e")?;
    stage.restart_agent(agent::start)?;
    agent::wait(stage.cluster, ExpectedCondition { ..healthy_condition(REACHABLE) }, RETURN).map(|_| ())
}

fn closed_webhook() -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "closed"},
        "webhooks": [{
            "name": "closed.example.com", "failurePolicy": "Fail", "sideEffects": "None", "timeoutSeconds": 5,
            "admissionReviewVersions": ["v1"], "clientConfig": {"url": "https://127.0.0.1:9999/mutate"},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        }],
    })
}

fn network_daemonset() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "calico-node", "namespace": "kube-system"},
        "spec": {
            "selector": {"matchLabels": {"app": "cni"}},
            "template": {
                "metadata": {"labels": {"app": "cni"}},
                "spec": {
                    "hostNetwork": true, "automountServiceAccountToken": false,
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{"name": "c", "image": image::NAME, "imagePullPolicy": "Never"}],
                },
            },
        },
    })
}
