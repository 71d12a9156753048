//! Which processes matter, and where they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;

use caps::Capability;
use probe_common::COMM_LEN;
use probe_engine::{Actor, ClientRole, Mono, ProcessClass, cnis};

use super::provenance;
use crate::privileges;
use crate::settings::Settings;
use crate::text::clean;

/// Executable name → what it is. Matched against the file that a process executes, never against the
/// kernel's name of it, which is cut at 15 bytes: `containerd-shim-runc-v2` is not containerd. The agents of
/// CNIs stand with what else is known of these.
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

/// Programs that are several, each by a link of its name: k3s is its containerd, too.
const SEVERAL: &[&str] = &["k3s"];

/// Most processes that are looked at; `pid_max` is 4 million, a busy node has thousands.
const PROCESSES: usize = 65_536;
/// The bit of `CAP_NET_ADMIN` (include/uapi/linux/capability.h).
const NET_ADMIN: u32 = 12;
/// Longest executable name that is kept.
const NAME: usize = 64;

/// A process of the table.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// Process id and executable name.
    pub(crate) actor: Actor,
    /// What it is.
    pub(crate) class: ProcessClass,
}

/// Returns whether an executable of this name is several programs.
pub(super) fn is_several(name: &str) -> bool {
    SEVERAL.contains(&name)
}

/// What an executable of this name is.
pub(crate) fn classify(name: &str) -> Option<ProcessClass> {
    let known = CLASSES.iter().find(|(known, _)| *known == name).map(|(_, class)| *class);
    known.or_else(|| cnis::executables().any(|agent| agent == name).then_some(ProcessClass::CniAgent))
}

/// What a process of this class is to the API server.
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

/// The names of the table as the kernel cuts them, for its watch list.
pub(crate) fn watch_names() -> Vec<[u8; COMM_LEN]> {
    let names = CLASSES.iter().map(|(name, _)| *name).chain(cnis::executables());
    let names: BTreeSet<_> = names.map(|name| comm(name.as_bytes())).collect();
    names.into_iter().collect()
}

/// The kernel's own name of a process that executes a file of this name.
pub(crate) fn comm(name: &[u8]) -> [u8; COMM_LEN] {
    let mut comm = [0; COMM_LEN];
    let length = name.len().min(COMM_LEN - 1);
    comm[..length].copy_from_slice(&name[..length]);
    comm
}

/// Trusted processes of the table that run now in this process' own network namespace: pods of the host's network
/// do, and another node on the same kernel (kind) does not.
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

/// Processes that the kernel calls by one of these names, in this process' own network namespace.
pub(crate) fn called(names: &[[u8; COMM_LEN]]) -> impl Iterator<Item = u32> {
    let own = netns_of("self");
    let is_called = move |pid: &u32| {
        let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        names.contains(&comm(name.strip_suffix(b"\n").unwrap_or(&name)))
    };
    pids().filter(is_called).filter(move |pid| netns_of(pid) == own)
}

/// Of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    /// Who started it, or who took it over.
    pub(crate) parent: u32,
    /// When; exact to the clock tick that the kernel keeps (10 ms).
    pub(crate) started: Mono,
    /// What its first thread does.
    pub(crate) state: RunState,
    /// Processor time of all of its threads so far, in ticks of 10 ms.
    pub(crate) ticks: u64,
}

/// What a thread does, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunState {
    /// T or t: stopped by a signal, or by a debugger.
    Stopped,
    /// D
    Uninterruptible,
    /// It runs, or sleeps.
    Other,
}

/// What the kernel tells in one line (proc_pid_stat(5)); `None` when the process is gone.
pub(crate) fn stat(pid: impl std::fmt::Display) -> Option<Stat> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; behind it come the fields from the third on.
    let mut fields = line.rsplit(')').next()?.split_whitespace();
    let state = match fields.next()? {
        "T" | "t" => RunState::Stopped,
        "D" => RunState::Uninterruptible,
        _ => RunState::Other,
    };
    let parent = fields.next()?.parse().ok()?;
    let mut number = |skipped: usize| fields.nth(skipped)?.parse::<u64>().ok();
    let (user, system, started) = (number(9)?, number(0)?, number(6)?);
    // USER_HZ is 100 on every Linux of ours.
    let started = Mono(started.saturating_mul(10_000_000));
    Some(Stat { parent, started, state, ticks: user.saturating_add(system) })
}

/// Inode number of a process' network namespace; `None` when it is gone.
pub(crate) fn netns_of(pid: impl std::fmt::Display) -> Option<u32> {
    let inode = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino();
    u32::try_from(inode).ok()
}

/// Whose a process is (proc_pid_status(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// Real and effective user, as this process' user namespace counts them. The owner of the process' directory in `/proc`
    /// says less: that is root, too, of one that cannot be dumped, and every user can have such a process.
    users: (u32, u32),
    /// The capability bounding set (capabilities(7)).
    bounding: u64,
    /// It is in a process-id namespace of its own or of a container's, below that of `/proc`.
    contained: bool,
}

/// Reads the owner of a process; `None` if it has exited.
pub(super) fn owner(pid: u32) -> Option<Owner> {
    Owner::parse(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

impl Owner {
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

/// Returns whether only root can have started a process, and not in a container: what such a process says on its command
/// line is the node's own configuration.
pub(super) fn is_of_the_host(pid: u32) -> bool {
    owner(pid).is_some_and(|owner| owner.is_root() && !owner.contained)
}

/// Inode numbers of the sockets that a process holds.
pub(super) fn sockets_of(pid: u32) -> impl Iterator<Item = u32> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.filter_map(|descriptor| {
        let target = fs::read_link(descriptor.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
}

/// Which process holds each of these sockets.
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
/// Reading which file another process executes, and its namespaces, takes `CAP_SYS_PTRACE` for a process with more privileges
/// (ptrace(2), `PTRACE_MODE_READ_FSCREDS`), and with `hidepid` even its directory is hidden without it.
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
    // A security module may deny one process to everybody: only a denial of all of them hides the host's.
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

/// Process ids of root's processes.
pub(crate) fn pids_of_root() -> impl Iterator<Item = u32> {
    pids().filter(|pid| owner(*pid).is_some_and(|owner| owner.users.1 == 0))
}

/// Name of the file that a process executes, or of the link by which a program that is several was called; `None` when the
/// process is gone.
pub(crate) fn executable(pid: u32) -> Option<String> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = path.file_name()?.as_bytes();
    // A program that was replaced while it runs.
    let name = clean(name.strip_suffix(b" (deleted)").unwrap_or(name), NAME);
    let called = || kernel_name(pid).filter(|called| classify(called).is_some());
    Some(if is_several(&name) { called().unwrap_or(name) } else { name })
}

/// That, or the kernel's name of a process without a file; empty when it is gone.
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
    fn only_the_whole_name_counts() {
        assert_eq!(classify("kubelet"), Some(ProcessClass::Kubelet));
        assert_eq!(classify("containerd-shim-runc-v2"), None);
        assert_eq!(classify("kube-controller"), None);
    }

    #[test]
    fn a_process_tells_its_parent_and_its_start() {
        let own = stat("self").expect("this process");
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        let earlier = stat(own.parent).expect("its parent");
        assert!(earlier.started <= own.started && own.started <= crate::clock::now());
        assert!(stat(u32::MAX).is_none());
    }

    #[test]
    fn rights_are_read_from_the_status_of_a_process() {
        let rights = |status: &str| {
            let owner = Owner::parse(status)?;
            Some((owner.is_root(), owner.may_administer()))
        };
        let status = |users: &str, bounding: &str| format!("Name:\tx\nUid:\t{users}\nCapBnd:\t{bounding}\n");
        assert_eq!(rights(&status("0\t0\t0\t0", "000001ffffffffff")), Some((true, true)));
        // The default of containers.
        assert_eq!(rights(&status("0\t0\t0\t0", "00000000a80425fb")), Some((true, false)));
        assert_eq!(rights(&status("1000\t0\t0\t0", "0")), Some((false, false)));
        assert_eq!(rights("Uid:\t0\n"), None);
    }

    #[test]
    fn names_are_cut_as_the_kernel_cuts_them() {
        let names = watch_names();
        assert!(names.contains(b"kube-controller\0"));
        assert!(names.contains(b"etcd\0\0\0\0\0\0\0\0\0\0\0\0"));
        assert!(names.len() <= probe_common::MAX_NAMES as usize);
    }
}
