//! What this host is for, from what is on it.

use std::path::Path;

use probe_engine::{Host, ProcessClass, Role, Runtime};

use super::processes::Found;
use crate::settings::Settings;

/// Static pod manifests of an API server: kubeadm, kops, RKE2.
const API_SERVER_MANIFESTS: &[&str] = &[
    "/etc/kubernetes/manifests/kube-apiserver.yaml",
    "/etc/kubernetes/manifests/kube-apiserver.yml",
    "/etc/kubernetes/manifests/kube-apiserver.manifest",
    "/var/lib/rancher/rke2/agent/pod-manifests/kube-apiserver.yaml",
    "/var/lib/rancher/k3s/server",
];

/// What a kubelet leaves on its host.
const KUBELET_FILES: &[&str] = &[
    "/var/lib/kubelet/config.yaml",
    "/var/lib/kubelet/kubeconfig",
    "/var/lib/kubelet/pki",
    "/etc/kubernetes/kubelet.conf",
    "/var/lib/rancher/k3s/agent",
    "/var/lib/rancher/rke2/agent",
];

const CRIO_SOCKETS: &[&str] = &["/run/crio/crio.sock", "/var/run/crio/crio.sock"];
const CONTAINERD_SOCKETS: &[&str] =
    &["/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock"];

/// What etcd leaves on its host: static pod, systemd unit, data.
const ETCD_FILES: &[&str] = &[
    "/etc/kubernetes/manifests/etcd.yaml",
    "/etc/kubernetes/manifests/etcd.yml",
    "/etc/etcd.env",
    "/etc/systemd/system/etcd.service",
    "/var/lib/etcd/member",
];

/// The role, set or found, and the runtime. The addresses are left empty. `targets`: some address of an API server is
/// known.
pub(crate) fn find(settings: &Settings, processes: &[Found], targets: bool) -> Host {
    let exists = |path: &&str| settings.on_host(Path::new(path)).exists();
    let runs = |class| processes.iter().any(|found| found.class == class);
    let runtime = runtime(settings, processes, exists);
    let kubelet_installed = KUBELET_FILES.iter().any(&exists);
    let host = |role, role_set| Host { role, role_set, runtime, kubelet_installed, ..Host::default() };
    if let Some(role) = settings.role {
        return host(role, true);
    }
    let kubelet = runs(ProcessClass::Kubelet) || kubelet_installed;
    let api_server = runs(ProcessClass::ApiServer) || API_SERVER_MANIFESTS.iter().any(&exists);
    let etcd = runs(ProcessClass::Etcd) || ETCD_FILES.iter().any(&exists);
    // A directory or an address that somebody named is worth an answer, whatever else is missing.
    let asked_for = targets || settings.on_host(&settings.cni_conf_dir).is_dir();
    let role = match (kubelet, api_server, etcd) {
        (_, true, _) => Role::ControlPlane,
        // kubeadm runs an external etcd by a kubelet that knows no API server.
        (true, false, true) if !targets => Role::Etcd,
        (true, false, _) => Role::Worker,
        (false, false, true) => Role::Etcd,
        (false, false, false) if asked_for || runtime != Runtime::Unknown => Role::Unknown,
        (false, false, false) => Role::None,
    };
    host(role, false)
}

fn runtime(settings: &Settings, processes: &[Found], exists: impl Fn(&&str) -> bool) -> Runtime {
    if let Some(endpoint) = &settings.runtime_endpoint {
        let name = endpoint.file_name().unwrap_or_default().to_string_lossy();
        return if name.contains("crio") { Runtime::CriO } else { Runtime::Containerd };
    }
    let runs = |name: &str| processes.iter().any(|found| found.actor.name == name);
    // CRI-O first: containerd is often installed beside it, for other uses.
    if runs("crio") || CRIO_SOCKETS.iter().any(&exists) {
        Runtime::CriO
    } else if runs("containerd") || CONTAINERD_SOCKETS.iter().any(&exists) {
        Runtime::Containerd
    } else {
        Runtime::Unknown
    }
}
