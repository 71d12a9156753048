//! Decides whether a process is the component that its name suggests: any user can name a program `kubelet`.
//!
//! `docs/security.md` lists which processes are trusted and why.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::LazyLock;

use probe_common::Task;
use probe_engine::{ClientRole, ProcessClass};

use super::processes::{classify, client_role, credentials_of};
use crate::settings::Settings;

/// Prefixes of the systemd units that are not named after the component in them: Open vSwitch and OVN on
/// Debian and Red Hat, k0s, and distributions that run the control plane as services.
const UNITS: &[&str] = &["openvswitch", "ovs", "ovn", "k0s", "kube"];

/// Where a process runs, according to its cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Outside pods and systemd units.
    Host,
    /// In a systemd system unit; its name without the suffix.
    Unit(String),
    /// In a Talos service outside pods; its name.
    Service(String),
    /// In a user's session or user manager, where the user can name cgroups freely.
    User,
    /// In a static pod.
    StaticPod,
    /// In any other pod; its UID.
    Pod(String),
}

/// Evidence of who can have started a process.
#[derive(Clone, Debug)]
struct Provenance {
    place: Place,
    /// Both the real and the effective user are root, in the agent's user namespace.
    is_root: bool,
    /// The bounding set includes `CAP_NET_ADMIN`, or the pod is in `kube-system`: azure-cns has only the
    /// default capabilities.
    may_administer: bool,
}

/// Returns the class of a process with this executable name; `None` if it is untrusted or has exited.
pub(crate) fn class_of(settings: &Settings, pid: u32, name: &str) -> Option<ProcessClass> {
    // The name is checked first because it rules out most processes without a read of /proc.
    classify(name)?;
    Provenance::of(settings, pid)?.judge(name).0
}

/// Returns the class of the process in a record; `None` if it is untrusted. The process may have exited.
pub(crate) fn class_of_task(settings: &Settings, task: &Task, name: &str) -> Option<ProcessClass> {
    classify(name)?;
    of_task(settings, task, name).0
}

/// Returns the role of a client of the API server.
pub(crate) fn role_of(settings: &Settings, pid: u32, name: &str) -> ClientRole {
    let (class, is_privileged) =
        Provenance::of(settings, pid).map_or((None, true), |provenance| provenance.judge(name));
    role(pid, class, is_privileged)
}

/// Returns the class of the process in a record, as [`class_of_task`] does, and its role as a client of the
/// API server.
pub(crate) fn of_task(settings: &Settings, task: &Task, name: &str) -> (Option<ProcessClass>, ClientRole) {
    let by_record = || {
        let was_trusted = was_trusted(settings, task);
        (classify(name).filter(|_| was_trusted), was_trusted)
    };
    let (class, is_privileged) =
        Provenance::of(settings, task.tgid).map_or_else(by_record, |provenance| provenance.judge(name));
    (class, role(task.tgid, class, is_privileged))
}

fn role(pid: u32, class: Option<ProcessClass>, is_privileged: bool) -> ClientRole {
    match class {
        _ if pid == std::process::id() => ClientRole::Probe,
        Some(class) => client_role(class),
        None if is_privileged => ClientRole::Other,
        None => ClientRole::Untrusted,
    }
}

/// Returns whether the process in a record is trusted to run a CNI plugin.
pub(crate) fn is_trusted(settings: &Settings, task: &Task) -> bool {
    let provenance = Provenance::of(settings, task.tgid);
    provenance.map_or_else(|| was_trusted(settings, task), |provenance| provenance.is_privileged())
}

/// Returns whether a process that has exited was trusted, determined from its record and from its parent if
/// that still runs.
fn was_trusted(settings: &Settings, task: &Task) -> bool {
    let is_host_root = (task.uid, task.pid_level) == (0, 0);
    is_host_root && Provenance::of(settings, task.ppid).is_none_or(|parent| parent.is_privileged())
}

impl Provenance {
    /// Reads the provenance of a process; `None` if it has exited.
    fn of(settings: &Settings, pid: u32) -> Option<Self> {
        static OWN: LazyLock<(Option<u64>, Option<Place>)> =
            LazyLock::new(|| (user_namespace("self"), place_of("self")));
        let (own_namespace, own_place) = &*OWN;
        let credentials = credentials_of(pid)?;
        let is_ours = user_namespace(pid)? == (*own_namespace)?;
        // In a development container the whole node may run in the agent's own pod.
        let place = place_of(pid)?;
        let is_own = matches!(place, Place::Pod(_)) && Some(&place) == own_place.as_ref();
        let may_administer =
            credentials.may_administer() || matches!(&place, Place::Pod(uid) if is_of_cluster(settings, uid));
        Some(Self {
            place: if is_own { Place::Host } else { place },
            is_root: credentials.is_root() && is_ours,
            may_administer: may_administer && is_ours,
        })
    }

    /// Returns the class of a process of this name, and whether it is privileged.
    fn judge(&self, name: &str) -> (Option<ProcessClass>, bool) {
        (classify(name).filter(|class| self.allows(name, *class)), self.is_privileged())
    }

    fn allows(&self, name: &str, class: ProcessClass) -> bool {
        match class {
            // They start pods and never run in one.
            ProcessClass::Kubelet | ProcessClass::Runtime => {
                self.is_root && !matches!(self.place, Place::StaticPod | Place::Pod(_))
            }
            _ => self.is_privileged() || self.place.is_static_or_of(name),
        }
    }

    fn is_privileged(&self) -> bool {
        match self.place {
            Place::Pod(_) | Place::StaticPod => self.may_administer,
            Place::Host | Place::Unit(_) | Place::Service(_) | Place::User => self.is_root,
        }
    }
}

impl Place {
    fn is_static_or_of(&self, name: &str) -> bool {
        match self {
            Self::StaticPod => true,
            Self::Service(service) => service == name,
            Self::Unit(unit) => {
                unit.starts_with(name) || UNITS.iter().any(|beginning| unit.starts_with(beginning))
            }
            Self::Host | Self::User | Self::Pod(_) => false,
        }
    }

    /// Parses `/proc/PID/cgroup` (cgroups(7)), of version 1 or 2.
    fn parse(text: &str) -> Self {
        let paths = || text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        let mut segments = paths().flat_map(|path| path.split('/'));
        if segments.any(|segment| segment == "user.slice" || segment.starts_with("user@")) {
            return Self::User;
        }
        // The outermost pod decides: a process can create cgroups of any name below its own.
        if let Some(uid) = paths().find_map(|path| path.split('/').find_map(pod_of)) {
            return if uid.len() == CONFIG_HASH { Self::StaticPod } else { Self::Pod(uid.to_owned()) };
        }
        let unit =
            paths().find_map(|path| path.split('/').find_map(|segment| segment.strip_suffix(".service")));
        let service = || text.lines().find_map(|line| service_of(line.strip_prefix("0::")?));
        match (unit, service()) {
            (Some(unit), _) => Self::Unit(unit.to_owned()),
            (None, Some(service)) => Self::Service(service.to_owned()),
            (None, None) => Self::Host,
        }
    }
}

/// Returns the Talos service whose cgroup this is. machined runs Kubernetes components outside pods in
/// `/podruntime/<name>`, etcd under its own user and without capabilities
/// (pkg/machinery/constants/constants.go, `CgroupEtcd`; internal/app/machined/pkg/system/services/etcd.go).
///
/// Only the full path is accepted: only root can create cgroups at the root, but a delegated cgroup can have
/// children of any name.
fn service_of(path: &str) -> Option<&str> {
    let mut path = path;
    // The path is relative to the cgroup namespace of the reader, which may be that of a pod.
    while let Some(rest) = path.strip_prefix("/..") {
        path = rest;
    }
    path.strip_prefix("/podruntime/").filter(|name| !name.is_empty() && !name.contains('/'))
}

/// Length of the UID of a static pod, the hash of its manifest (pkg/kubelet/config/common.go).
const CONFIG_HASH: usize = 32;
/// Length of the UID of any other pod, which the API server assigns.
const UUID: usize = 36;

/// Returns the UID in the name of a pod's cgroup: `pod<uid>`, or `kubepods-burstable-pod<uid>.slice` with `_`
/// for `-`.
fn pod_of(segment: &str) -> Option<&str> {
    let (before, uid) = segment.strip_suffix(".slice").unwrap_or(segment).rsplit_once("pod")?;
    let is_pod_cgroup = before.is_empty() || before.starts_with("kubepods");
    let is_uid = match uid.len() {
        CONFIG_HASH => uid.bytes().all(|byte| byte.is_ascii_hexdigit()),
        UUID => uid.bytes().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'-' | b'_')),
        _ => false,
    };
    (is_pod_cgroup && is_uid).then_some(uid)
}

/// Prefix of the log directories of pods in `kube-system`, which only cluster administrators can create.
const NAMESPACE: &str = "kube-system_";
/// Most log directories that are examined; a node has a few hundred.
const PODS: usize = 4096;

/// Returns whether the pod with this UID is in `kube-system`. The kubelet keeps the logs of each pod in a
/// directory `<namespace>_<name>_<uid>` that root owns (pkg/kubelet/kuberuntime/helpers.go).
fn is_of_cluster(settings: &Settings, uid: &str) -> bool {
    let ending = format!("_{}", uid.replace('_', "-"));
    let entries =
        fs::read_dir(settings.on_host(&settings.pod_logs.value())).into_iter().flatten().flatten().take(PODS);
    let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.any(|name| name.starts_with(NAMESPACE) && name.ends_with(&ending))
}

/// Returns the inode number of the user namespace of a process.
fn user_namespace(pid: impl std::fmt::Display) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/user")).ok().map(|namespace| namespace.ino())
}

fn place_of(pid: impl std::fmt::Display) -> Option<Place> {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).ok().map(|text| Place::parse(&text))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use crate::settings::Known;
    use crate::settings::tests::{host, settings};

    use super::*;

    const UID: &str = "2f1c6a1e-7d0c-4b0b-9a3e-0d7e2a5c9f10";
    const HASH: &str = "8f9c6f5b0b4ec8b5a6d0c1e2f3a4b5c6";

    #[test]
    fn place_is_the_outermost_pod_or_the_unit() {
        let pod = |uid: &str| Place::Pod(uid.to_owned());
        let unit = |name: &str| Place::Unit(name.to_owned());
        let under = UID.replace('-', "_");
        for (text, wanted) in [
            ("0::/\n".to_owned(), Place::Host),
            ("0::/docker/0123456789abcdef\n".to_owned(), Place::Host),
            ("0::/system.slice/kubelet.service\n".to_owned(), unit("kubelet")),
            ("0::/system.slice/system-etcd.slice/etcd.service/x\n".to_owned(), unit("etcd")),
            (format!("0::/kubepods/besteffort/pod{UID}/0123\n"), pod(UID)),
            (
                format!(
                    "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{under}.slice/cri-containerd-01.scope\n"
                ),
                pod(&under),
            ),
            (format!("0::/kubepods.slice/kubepods-pod{HASH}.slice/crio-01.scope\n"), Place::StaticPod),
            (format!("0::/kubepods/burstable/pod{HASH}/0123\n"), Place::StaticPod),
            ("0::/podruntime/etcd\n".to_owned(), Place::Service("etcd".to_owned())),
            ("0::/../../../podruntime/etcd\n".to_owned(), Place::Service("etcd".to_owned())),
            // Not at the root, not the full path, or not the hierarchy that Talos uses.
            ("0::/lxc/shop/podruntime/etcd\n".to_owned(), Place::Host),
            ("0::/podruntime/etcd/x\n".to_owned(), Place::Host),
            ("0::/podruntime/\n".to_owned(), Place::Host),
            ("4:memory:/podruntime/etcd\n0::/\n".to_owned(), Place::Host),
            // Read in the cgroup namespace of another pod.
            (format!("0::/../../burstable/pod{HASH}/0123\n"), Place::StaticPod),
            // Hierarchies of version 1.
            (format!("4:memory:/kubepods/pod{UID}/01\n1:name=systemd:/kubepods/pod{UID}/01\n"), pod(UID)),
            ("4:memory:/\n1:name=systemd:/system.slice/crio.service\n".to_owned(), unit("crio")),
            // Cgroups that users and containers created.
            (format!("0::/user.slice/user-1000.slice/user@1000.service/pod{HASH}\n"), Place::User),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/etcd.service\n".to_owned(),
                Place::User,
            ),
            (format!("0::/kubepods/pod{UID}/01/pod{HASH}\n"), pod(UID)),
            (format!("0::/kubepods/pod{UID}/01/system.slice/etcd.service\n"), pod(UID)),
            (format!("0::/kubepods/pod{UID}/01/podruntime/etcd\n"), pod(UID)),
            ("0::/user.slice/user-1000.slice/podruntime/etcd\n".to_owned(), Place::User),
            ("0::/tripod/podium\n".to_owned(), Place::Host),
        ] {
            assert_eq!(Place::parse(&text), wanted, "{text}");
        }
    }

    #[test]
    fn processes_that_an_unprivileged_user_can_start_are_untrusted() {
        use ProcessClass::{ApiServer, CniAgent, Etcd, Kubelet, Ovs, Proxy, Runtime};
        let of = |place: &Place, is_root, may_administer| Provenance {
            place: place.clone(),
            is_root,
            may_administer,
        };
        let (host, user, pod) = (Place::Host, Place::User, Place::Pod(UID.to_owned()));
        let unit = |name: &str| Place::Unit(name.to_owned());
        let service = Place::Service("etcd".to_owned());
        for (provenance, name, class, wanted) in [
            (of(&host, true, true), "kubelet", Kubelet, true),
            (of(&host, false, true), "kubelet", Kubelet, false),
            (of(&unit("kubelet"), false, true), "kubelet", Kubelet, false),
            (of(&pod, true, true), "kubelet", Kubelet, false),
            (of(&pod, true, true), "containerd", Runtime, false),
            (of(&Place::StaticPod, false, false), "etcd", Etcd, true),
            (of(&Place::StaticPod, true, false), "kube-apiserver", ApiServer, true),
            (of(&pod, true, false), "kube-apiserver", ApiServer, false),
            (of(&pod, true, false), "nginx", Proxy, false),
            (of(&pod, true, true), "calico-node", CniAgent, true),
            (of(&pod, true, false), "calico-node", CniAgent, false),
            (of(&unit("etcd"), false, true), "etcd", Etcd, true),
            (of(&unit("cron"), false, true), "etcd", Etcd, false),
            (of(&unit("openvswitch-switch"), false, true), "ovs-vswitchd", Ovs, true),
            (of(&service, false, false), "etcd", Etcd, true),
            (of(&service, false, false), "kube-apiserver", ApiServer, false),
            (of(&service, false, false), "kubelet", Kubelet, false),
            (of(&user, false, true), "ovs-vswitchd", Ovs, false),
            (of(&user, true, true), "ovs-vswitchd", Ovs, true),
        ] {
            assert_eq!(provenance.allows(name, class), wanted, "{provenance:?} {name}");
        }
    }

    #[test]
    fn pods_of_kube_system_are_recognised_by_their_log_directories() {
        let (settings, root) = host(&[]);
        let logs = |dir: &str| {
            for name in [format!("kube-system_azure-cns-x7k2p_{UID}"), format!("shop_kube-system_{HASH}")] {
                fs::create_dir_all(root.path().join(dir).join(name)).expect("created");
            }
        };
        let of = |uid: &str| is_of_cluster(&settings, uid);
        assert!(!of(UID));
        logs("var/log/pods");
        assert!(of(UID) && of(&UID.replace('-', "_")));
        assert!(!of(HASH) && !of("2f1c6a1e-7d0c-4b0b-9a3e-0d7e2a5c9f11"));
        // A kubelet with another log directory.
        settings.pod_logs.configure(Some(Known::of(PathBuf::from("/data/pods"), &"a test")));
        assert!(!of(UID));
        logs("data/pods");
        assert!(of(UID));
    }

    #[test]
    fn only_a_running_process_has_a_provenance() {
        let settings = settings(&[]);
        assert!(Provenance::of(&settings, std::process::id()).is_some());
        assert!(Provenance::of(&settings, u32::MAX).is_none());
    }
}
