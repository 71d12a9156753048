//! Determines the role of the host, and its container runtime, from its files and processes.

use std::path::Path;

use probe_engine::{Host, ProcessClass, Role, Runtime};

use super::discovery::{Discovery, socket};
use super::processes::Found;
use crate::settings::Settings;

/// Files that show that an API server belongs on the host. Static pod manifests: kubeadm, kops, RKE2. Its
/// serving certificate: kubeadm, Kubespray, kops, k0s, k3s; the manifest may be what is missing, and not
/// every distribution runs the API server as a static pod.
const API_SERVER_FILES: &[&str] = &[
    "/etc/kubernetes/manifests/kube-apiserver.yaml",
    "/etc/kubernetes/manifests/kube-apiserver.yml",
    "/etc/kubernetes/manifests/kube-apiserver.manifest",
    "/var/lib/rancher/rke2/agent/pod-manifests/kube-apiserver.yaml",
    "/etc/kubernetes/pki/apiserver.crt",
    "/etc/kubernetes/ssl/apiserver.crt",
    "/srv/kubernetes/kube-apiserver",
    "/var/lib/k0s/pki/server.crt",
    "/var/lib/rancher/k3s/server",
    "/var/lib/rancher/rke2/server",
];

/// Files that a kubelet creates even on a host that never joined a cluster and so has no kubeconfig.
const KUBELET_FILES: &[&str] = &["/var/lib/kubelet/config.yaml", "/var/lib/kubelet/pki"];

/// Default endpoints.
const CRIO_SOCKETS: &[&str] = &["/run/crio/crio.sock", "/var/run/crio/crio.sock"];
const CONTAINERD_SOCKETS: &[&str] =
    &["/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock"];

/// Files that show that an etcd belongs on the host: a static pod, a systemd unit, data.
const ETCD_FILES: &[&str] = &[
    "/etc/kubernetes/manifests/etcd.yaml",
    "/etc/kubernetes/manifests/etcd.yml",
    "/etc/etcd.env",
    "/etc/systemd/system/etcd.service",
    "/var/lib/etcd/member",
];

/// What else the role of a host depends on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    /// The address of at least one API server is known.
    pub(crate) targets: bool,
    /// The scan of processes may be incomplete.
    pub(crate) hides_processes: bool,
}

/// Returns the role, as set or as detected, and the runtime. The host's addresses are left empty.
pub(crate) fn find(settings: &Settings, processes: &[Found], discovery: &Discovery, known: Known) -> Host {
    let Known { targets, hides_processes } = known;
    let exists = |path: &&str| settings.on_host(Path::new(path)).exists();
    let runs = |class| processes.iter().any(|found| found.class == class);
    let runtime = runtime(settings, processes, discovery, exists);
    // The configuration of a kubelet that does not run may be incomplete.
    let of_kubelet = || {
        let configured = discovery.kubelet.runtime_endpoint.as_ref().filter(|_| discovery.kubelet_is_running);
        configured.map(|known| known.value.clone())
    };
    let by_flag = settings.runtime_endpoint.as_ref();
    let runtime_endpoint = by_flag.map_or_else(of_kubelet, |endpoint| socket(&endpoint.to_string_lossy()));
    let kubelet_installed = discovery.is_installed || KUBELET_FILES.iter().any(&exists);
    let host = |role, role_set| Host {
        role,
        role_set,
        runtime,
        runtime_endpoint,
        kubelet_installed,
        ..Host::default()
    };
    if let Some(role) = settings.role {
        return host(role, true);
    }
    let kubelet = runs(ProcessClass::Kubelet) || kubelet_installed;
    let api_server =
        runs(ProcessClass::ApiServer) || discovery.runs_api_server || API_SERVER_FILES.iter().any(&exists);
    let etcd = runs(ProcessClass::Etcd) || ETCD_FILES.iter().any(&exists);
    // With a configuration directory or an API address there is something to check, whatever else is missing.
    let has_subject = targets || settings.on_host(&settings.cni.conf()).is_dir();
    let role = match (kubelet, api_server, etcd) {
        (_, true, _) => Role::ControlPlane,
        // A hidden process may be a kubelet that uses an API server.
        (false, false, _) | (true, false, true) if hides_processes && !(kubelet && targets) => Role::Unknown,
        // kubeadm runs an external etcd under a kubelet without an API server.
        (true, false, true) if !targets => Role::Etcd,
        (true, false, _) => Role::Worker,
        (false, false, true) => Role::Etcd,
        (false, false, false) if has_subject || runtime != Runtime::Unknown => Role::Unknown,
        (false, false, false) => Role::None,
    };
    host(role, false)
}

fn runtime(
    settings: &Settings,
    processes: &[Found],
    discovery: &Discovery,
    exists: impl Fn(&&str) -> bool,
) -> Runtime {
    if let Some(endpoint) = &settings.runtime_endpoint {
        let name = endpoint.file_name().unwrap_or_default().to_string_lossy();
        return if name.contains("crio") { Runtime::CriO } else { Runtime::Containerd };
    }
    match discovery.runtime.as_str() {
        "containerd" => return Runtime::Containerd,
        "crio" => return Runtime::CriO,
        _ => {}
    }
    let runs = |name: &str| processes.iter().any(|found| found.actor.name == name);
    // CRI-O takes precedence: containerd is often installed beside it for other uses.
    if runs("crio") || CRIO_SOCKETS.iter().any(&exists) {
        Runtime::CriO
    } else if runs("containerd") || CONTAINERD_SOCKETS.iter().any(&exists) {
        Runtime::Containerd
    } else {
        Runtime::Unknown
    }
}

#[cfg(test)]
mod tests {
    use crate::settings::tests::settings;
    use probe_engine::Actor;

    use super::*;

    const CONTAINERD: (&str, ProcessClass) = ("containerd", ProcessClass::Runtime);
    const KUBELET: (&str, ProcessClass) = ("kubelet", ProcessClass::Kubelet);

    /// Returns the role of a host with these files and processes; `targets`: an address of an API server is
    /// known.
    fn role(files: &[&str], processes: &[(&str, ProcessClass)], targets: bool) -> Role {
        role_of(files, processes, Known { targets, ..Known::default() })
    }

    fn role_of(files: &[&str], processes: &[(&str, ProcessClass)], known: Known) -> Role {
        let root = tempfile::tempdir().expect("a directory");
        for file in files {
            let path = root.path().join(file.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("created");
            std::fs::write(path, "").expect("written");
        }
        let flag = root.path().to_str().expect("UTF-8");
        let settings = settings(&["--host-root", flag]);
        let found = |(name, class): &(&str, ProcessClass)| Found {
            actor: Actor { pid: 1, name: (*name).to_owned() },
            class: *class,
        };
        let processes: Vec<_> = processes.iter().map(found).collect();
        let discovery = Discovery::find(&settings, &[]);
        find(&settings, &processes, &discovery, known).role
    }

    #[test]
    fn host_with_kubelet_is_worker_unless_an_api_server_is_found() {
        let kubelet = ["/etc/kubernetes/kubelet.conf", "/etc/kubernetes/pki/ca.crt"];
        assert_eq!(role(&kubelet, &[CONTAINERD, KUBELET], true), Role::Worker);
        // The kubelet is not running.
        assert_eq!(role(&kubelet, &[CONTAINERD], true), Role::Worker);
        // The manifest of the API server was moved away.
        let moved = ["/etc/kubernetes/kubelet.conf", "/etc/kubernetes/pki/apiserver.crt"];
        assert_eq!(role(&moved, &[CONTAINERD, KUBELET], true), Role::ControlPlane);
        let processes = [KUBELET, ("kube-apiserver", ProcessClass::ApiServer)];
        assert_eq!(role(&[], &processes, true), Role::ControlPlane);
        for file in API_SERVER_FILES {
            assert_eq!(role(&[file], &[], false), Role::ControlPlane, "{file}");
        }
    }

    #[test]
    fn host_with_etcd_has_role_etcd_with_and_without_a_kubelet() {
        let etcd = ("etcd", ProcessClass::Etcd);
        assert_eq!(role(&["/etc/etcd.env"], &[], false), Role::Etcd);
        assert_eq!(role(&[], &[etcd, CONTAINERD], false), Role::Etcd);
        // kubeadm runs external etcd as a static pod of a kubelet without an API server.
        assert_eq!(role(&["/var/lib/kubelet/config.yaml"], &[KUBELET, etcd], false), Role::Etcd);
        assert_eq!(role(&["/var/lib/kubelet/config.yaml"], &[KUBELET, etcd], true), Role::Worker);
    }

    #[test]
    fn host_without_kubernetes_has_no_role() {
        assert_eq!(role(&[], &[], false), Role::None);
        assert_eq!(role(&[], &[], true), Role::Unknown);
        assert_eq!(role(&[], &[CONTAINERD], false), Role::Unknown);
    }

    #[test]
    fn hidden_processes_leave_the_role_of_a_host_without_kubelet_unknown() {
        let role = |files: &[&str], targets| role_of(files, &[], Known { targets, hides_processes: true });
        let kubelet = "/var/lib/kubelet/config.yaml";
        assert_eq!(role(&[], false), Role::Unknown);
        assert_eq!(role(&["/etc/etcd.env"], false), Role::Unknown);
        assert_eq!(role(&[kubelet, "/etc/etcd.env"], false), Role::Unknown);
        // Files are conclusive whatever processes are hidden.
        assert_eq!(role(&[kubelet], false), Role::Worker);
        assert_eq!(role(&[kubelet, "/etc/etcd.env"], true), Role::Worker);
        assert_eq!(role(&["/etc/kubernetes/pki/apiserver.crt"], false), Role::ControlPlane);
    }
}
