//! Finds the processes of Kubernetes components, container runtimes, CNI agents and Open vSwitch in `/proc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;

use caps::Capability;
use probe_common::COMM_LEN;
use probe_engine::{Actor, BootTime, ClientRole, ProcessClass, cnis};

use super::provenance;
use crate::privileges;
use crate::settings::Settings;
use crate::text::clean;

/// Executable names of components and their classes; those of CNI agents are in [`cnis`].
///
/// They are compared with the file that a process executes, not with the name that the kernel keeps, which is
/// cut to 15 bytes: `containerd-shim-runc-v2` is not containerd.
const CLASSES: &[(&str, ProcessClass)] = &[
    ("kubelet", ProcessClass::Kubelet),
    ("k3s", ProcessClass::Kubelet),
    ("k3s-server", ProcessClass::Kubelet),
    ("k3s-agent", ProcessClass::Kubelet),
    ("kubelite", ProcessClass::Kubelet),
    ("kube-apiserver", ProcessClass::ApiServer),
    ("etcd", ProcessClass::Etcd),
    ("kube-controller-manager", ProcessClass::ControlPlane),
    ("kube-scheduler", ProcessClass::ControlPlane),
    ("kube-proxy", ProcessClass::KubeProxy),
    ("containerd", ProcessClass::Runtime),
    ("crio", ProcessClass::Runtime),
    ("dockerd", ProcessClass::Runtime),
    ("cri-dockerd", ProcessClass::Runtime),
    ("ovs-vswitchd", ProcessClass::Ovs),
    ("ovsdb-server", ProcessClass::Ovs),
    ("ovn-controller", ProcessClass::Ovs),
    ("nginx", ProcessClass::Proxy),
    ("haproxy", ProcessClass::Proxy),
    ("kube-vip", ProcessClass::Proxy),
];

/// Multi-call executables, whose component is the link by which they are called: k3s is also its own
/// containerd.
const MULTI_CALL: &[&str] = &["k3s"];

/// Most processes that are scanned; `pid_max` is 4 million, a busy node has thousands.
const PROCESSES: usize = 65_536;
/// The bit of `CAP_NET_ADMIN` (include/uapi/linux/capability.h).
const NET_ADMIN: u32 = 12;
/// Longest executable name that is kept.
const NAME: usize = 64;

/// The process of a component.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// PID and executable name.
    pub(crate) actor: Actor,
    /// Its class.
    pub(crate) class: ProcessClass,
}

/// Returns whether the executable of this name is a multi-call executable.
pub(super) fn is_multi_call(name: &str) -> bool {
    MULTI_CALL.contains(&name)
}

/// Returns the class of the component with this executable name.
pub(crate) fn classify(name: &str) -> Option<ProcessClass> {
    let known = CLASSES.iter().find(|(known, _)| *known == name).map(|(_, class)| *class);
    known.or_else(|| cnis::executables().any(|agent| agent == name).then_some(ProcessClass::CniAgent))
}

/// Returns the role of a process of this class as a client of the API server.
pub(crate) const fn client_role(class: ProcessClass) -> ClientRole {
    match class {
        ProcessClass::Kubelet => ClientRole::Kubelet,
        ProcessClass::KubeProxy => ClientRole::KubeProxy,
        ProcessClass::CniAgent => ClientRole::CniAgent,
        ProcessClass::ApiServer | ProcessClass::Etcd | ProcessClass::ControlPlane => ClientRole::ControlPlane,
        ProcessClass::Runtime => ClientRole::Runtime,
        ProcessClass::Ovs | ProcessClass::Proxy => ClientRole::Other,
    }
}

/// Returns the executable names of all components, as the kernel truncates them, for the watch list of the
/// kernel programs.
pub(crate) fn watch_names() -> Vec<[u8; COMM_LEN]> {
    let names = CLASSES.iter().map(|(name, _)| *name).chain(cnis::executables());
    let names: BTreeSet<_> = names.map(|name| comm(name.as_bytes())).collect();
    names.into_iter().collect()
}

/// Returns the name that the kernel keeps of a process that executes a file of this name (`TASK_COMM_LEN`).
pub(crate) fn comm(name: &[u8]) -> [u8; COMM_LEN] {
    let mut comm = [0; COMM_LEN];
    let length = name.len().min(COMM_LEN - 1);
    comm[..length].copy_from_slice(&name[..length]);
    comm
}

/// Returns the trusted processes of components in the agent's own network namespace. It contains the
/// host-network pods, and not the processes of another node on the same kernel (kind).
pub(crate) fn scan(settings: &Settings) -> Vec<Found> {
    let own = netns_of("self");
    pids()
        .filter_map(|pid| {
            let name = executable(pid)?;
            classify(&name)?;
            if netns_of(pid) != own {
                return None;
            }
            let class = provenance::class_of(settings, pid, &name)?;
            Some(Found { actor: Actor { pid, name }, class })
        })
        .collect()
}

/// Returns the PIDs of the processes in the agent's own network namespace whose kernel name is one of
/// `names`.
pub(crate) fn called(names: &[[u8; COMM_LEN]]) -> impl Iterator<Item = u32> {
    let own = netns_of("self");
    let is_called = move |pid: &u32| {
        let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        names.contains(&comm(name.strip_suffix(b"\n").unwrap_or(&name)))
    };
    pids().filter(is_called).filter(move |pid| netns_of(pid) == own)
}

/// State of a process (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    /// PID of the parent.
    pub(crate) parent: u32,
    /// Start time, boot time; a multiple of the clock tick (10 ms).
    pub(crate) started: BootTime,
    /// State of the main thread.
    pub(crate) state: RunState,
    /// CPU time of all threads, in ticks of 10 ms.
    pub(crate) ticks: u64,
}

/// Scheduler state of a thread, as far as it is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunState {
    /// `T` or `t`: stopped by a signal or a tracer.
    Stopped,
    /// `D`: in uninterruptible sleep.
    Uninterruptible,
    /// Any other state: running, sleeping.
    Other,
}

/// Reads `/proc/PID/stat`; `None` if the process has exited.
pub(crate) fn stat(pid: impl std::fmt::Display) -> Option<Stat> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name in parentheses, may contain any character; the third field follows it.
    let mut fields = line.rsplit(')').next()?.split_whitespace();
    let state = match fields.next()? {
        "T" | "t" => RunState::Stopped,
        "D" => RunState::Uninterruptible,
        _ => RunState::Other,
    };
    let parent = fields.next()?.parse().ok()?;
    let mut number = |skipped: usize| fields.nth(skipped)?.parse::<u64>().ok();
    let (user, system, started) = (number(9)?, number(0)?, number(6)?);
    // USER_HZ is 100 on all supported architectures.
    let started = BootTime(started.saturating_mul(10_000_000));
    Some(Stat { parent, started, state, ticks: user.saturating_add(system) })
}

/// Returns the inode number of the network namespace of a process; `None` if the process has exited.
pub(crate) fn netns_of(pid: impl std::fmt::Display) -> Option<u32> {
    let inode = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino();
    u32::try_from(inode).ok()
}

/// Credentials of a process (proc_pid_status(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Credentials {
    /// Real and effective UID in the agent's user namespace. The owner of `/proc/PID` is not sufficient: it
    /// is root also for a process that is not dumpable, and any user can start one.
    users: (u32, u32),
    /// Capability bounding set (capabilities(7)).
    bounding: u64,
    /// The process is in a PID namespace below that of `/proc`, such as a container's.
    contained: bool,
}

/// Reads the credentials of a process; `None` if it has exited.
pub(super) fn credentials_of(pid: u32) -> Option<Credentials> {
    Credentials::parse(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

impl Credentials {
    fn parse(status: &str) -> Option<Self> {
        let words = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.into_iter().flat_map(str::split_whitespace)
        };
        let mut users = words("Uid:").map(str::parse);
        let users = (users.next()?.ok()?, users.next()?.ok()?);
        let bounding = u64::from_str_radix(words("CapBnd:").next()?, 16).ok()?;
        Some(Self { users, bounding, contained: words("NSpid:").count() != 1 })
    }

    /// Returns whether both the real and the effective user are root.
    pub(super) fn is_root(self) -> bool {
        self.users == (0, 0)
    }

    /// Returns whether the bounding set includes `CAP_NET_ADMIN`.
    pub(super) fn may_administer(self) -> bool {
        self.bounding >> NET_ADMIN & 1 == 1
    }
}

/// Returns whether only root can have started a process, and outside a container: its command line is then
/// configuration of the node.
pub(super) fn is_host_root_process(pid: u32) -> bool {
    credentials_of(pid).is_some_and(|credentials| credentials.is_root() && !credentials.contained)
}

/// Returns the inode numbers of the sockets that a process has open.
pub(super) fn sockets_of(pid: u32) -> impl Iterator<Item = u32> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.filter_map(|descriptor| {
        let target = fs::read_link(descriptor.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
}

/// Returns the process that has each of these sockets open, by inode number; the first one found if there are
/// several.
pub(super) fn socket_owners(inodes: &BTreeSet<u32>) -> BTreeMap<u32, Actor> {
    let mut owners = BTreeMap::new();
    if inodes.is_empty() {
        return owners;
    }
    for pid in pids() {
        for inode in sockets_of(pid).filter(|inode| inodes.contains(inode)) {
            owners.entry(inode).or_insert_with(|| Actor { pid, name: executable(pid).unwrap_or_default() });
        }
        if owners.len() == inodes.len() {
            break;
        }
    }
    owners
}

/// Returns why the processes of the host cannot be read; `None` if they can be.
///
/// Reading the executable and the namespaces of a process with more privileges takes `CAP_SYS_PTRACE`
/// (ptrace(2), `PTRACE_MODE_READ_FSCREDS`); without it, `hidepid` hides even the directory of the process.
pub(crate) fn hidden() -> Option<String> {
    if fs::exists("/proc/self").is_ok_and(|exists| !exists) {
        return Some("/proc is not mounted".to_owned());
    }
    let own = std::process::id();
    if own == 1 {
        return Some("the agent runs in a PID namespace of its own (hostPID is not set)".to_owned());
    }
    if privileges::lacks(Capability::CAP_SYS_PTRACE) {
        return Some("CAP_SYS_PTRACE is missing: other processes cannot be read".to_owned());
    }
    // A security module may deny access to a single process: the host's are hidden only if all are denied.
    let mut is_denied = false;
    for pid in pids().filter(|pid| *pid != own) {
        match fs::read_link(format!("/proc/{pid}/exe")) {
            Ok(_) => return None,
            Err(error) => is_denied |= error.kind() == ErrorKind::PermissionDenied,
        }
    }
    is_denied.then(|| "a security module denies the agent access to other processes (EACCES)".to_owned())
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).take(PROCESSES)
}

/// Returns the PIDs of processes whose effective user is root.
pub(crate) fn pids_of_root() -> impl Iterator<Item = u32> {
    pids().filter(|pid| credentials_of(*pid).is_some_and(|credentials| credentials.users.1 == 0))
}

/// Returns the name of the file that a process executes, or of the link by which a multi-call executable was
/// called; `None` if the process has exited.
pub(crate) fn executable(pid: u32) -> Option<String> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = path.file_name()?.as_bytes();
    // The kernel appends this if the file was replaced or removed after the start.
    let name = clean(name.strip_suffix(b" (deleted)").unwrap_or(name), NAME);
    let called = || kernel_name(pid).filter(|called| classify(called).is_some());
    Some(if is_multi_call(&name) { called().unwrap_or(name) } else { name })
}

/// Returns the executable name of a process, or the kernel's name of a process without an executable; empty
/// if the process has exited.
pub(crate) fn name(pid: u32) -> String {
    executable(pid).or_else(|| kernel_name(pid)).unwrap_or_default()
}

fn kernel_name(pid: u32) -> Option<String> {
    fs::read(format!("/proc/{pid}/comm")).ok().map(|name| clean(name.trim_ascii(), NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_full_executable_name_is_classified() {
        assert_eq!(classify("kubelet"), Some(ProcessClass::Kubelet));
        assert_eq!(classify("containerd-shim-runc-v2"), None);
        assert_eq!(classify("kube-controller"), None);
    }

    #[test]
    fn stat_returns_parent_and_start_time() {
        let own = stat("self").expect("this process");
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        let earlier = stat(own.parent).expect("its parent");
        assert!(earlier.started <= own.started && own.started <= crate::clock::now());
        assert!(stat(u32::MAX).is_none());
    }

    #[test]
    fn reads_credentials_from_the_status_of_a_process() {
        let credentials = |status: &str| {
            let credentials = Credentials::parse(status)?;
            Some((credentials.is_root(), credentials.may_administer()))
        };
        let status = |users: &str, bounding: &str| format!("Name:\tx\nUid:\t{users}\nCapBnd:\t{bounding}\n");
        assert_eq!(credentials(&status("0\t0\t0\t0", "000001ffffffffff")), Some((true, true)));
        // The default bounding set of containers.
        assert_eq!(credentials(&status("0\t0\t0\t0", "00000000a80425fb")), Some((true, false)));
        assert_eq!(credentials(&status("1000\t0\t0\t0", "0")), Some((false, false)));
        assert_eq!(credentials("Uid:\t0\n"), None);
    }

    #[test]
    fn watch_names_are_truncated_as_by_the_kernel() {
        let names = watch_names();
        assert!(names.contains(b"kube-controller\0"));
        assert!(names.contains(b"etcd\0\0\0\0\0\0\0\0\0\0\0\0"));
        assert!(names.len() <= probe_common::MAX_NAMES as usize);
    }
}
