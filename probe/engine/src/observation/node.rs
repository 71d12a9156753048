//! The host and its processes, and what they run out of.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::is_zero;

/// What this host is for. Found from processes, manifests and files, or set by `--role`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Not known yet.
    #[default]
    Unknown,
    /// Runs a kubelet and no API server.
    Worker,
    /// Runs a kubelet and an API server (static pod manifest, process, or set).
    ControlPlane,
    /// Runs etcd and no kubelet.
    Etcd,
    /// Neither kubelet nor etcd.
    None,
}

/// A container runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runtime {
    /// Not known; judged like containerd.
    #[default]
    Unknown,
    /// containerd: stops at the first bad configuration file.
    Containerd,
    /// CRI-O: skips bad configuration files.
    CriO,
}

/// See [`super::Observation::Host`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// What this host is for.
    pub role: Role,
    /// True when a person set the role, false when it was found.
    #[serde(default)]
    pub role_set: bool,
    /// Which runtime reads the CNI configuration.
    #[serde(default)]
    pub runtime: Runtime,
    /// The CRI socket that the kubelet is configured for, as a path; `None` when that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_endpoint: Option<String>,
    /// Addresses of this host's own links, loopback included.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// A kubelet has been set up here, whether it runs or not.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub kubelet_installed: bool,
}

/// Who acted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Process id in the initial pid namespace; 0 when unknown.
    pub pid: u32,
    /// Name of the executable, or the kernel's name of the process; control characters are escaped.
    pub name: String,
}

impl Actor {
    /// Its name; who ended before it was looked up has none.
    pub(crate) fn who(&self) -> &str {
        if self.name.is_empty() { "a process that has ended" } else { &self.name }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Exit code; 0 when a signal ended it.
    pub code: u8,
    /// Signal number; 0 when it exited by itself.
    #[serde(default)]
    pub signal: u8,
}

impl ExitStatus {
    /// From the form that wait(2) gives.
    #[expect(clippy::cast_possible_truncation, reason = "eight bits each, wait(2)")]
    pub const fn from_wait(status: u32) -> Self {
        Self { code: (status >> 8) as u8, signal: (status & 0x7f) as u8 }
    }

    /// Exit code 0 and no signal.
    pub const fn success(self) -> bool {
        self.code == 0 && self.signal == 0
    }
}

/// See [`super::Observation::Limit`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// `conntrack`, `processes`, `inotify`, `files`, `disk`, `inodes`.
    pub what: String,
    /// The process of `files`, the path of `disk` and `inodes`; else empty.
    #[serde(default)]
    pub subject: String,
    /// Whose files lie there, of `disk` and `inodes`: the runtime, the kubelet, the CNI ([`ProcessClass::CniAgent`]), etcd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ProcessClass>,
    /// How much is used; bytes for `disk`.
    pub used: u64,
    /// How much there is.
    pub max: u64,
}

/// The connection tracking table among [`Limit::what`].
pub(crate) const CONNTRACK: &str = "conntrack";

impl Limit {
    /// Returns whether nothing more of it is to be had.
    pub fn is_full(&self) -> bool {
        let unusable = match self.what.as_str() {
            // Some of its entries are being freed at any time.
            CONNTRACK => self.max / 100,
            // Less than the smallest files take.
            "disk" => (self.max / 1000).min(64 << 10),
            _ => 0,
        };
        self.used.saturating_add(unusable) >= self.max
    }
}

/// See [`super::Observation::LimitHit`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitHit {
    /// Who asked.
    pub process: Actor,
    /// What the process is, when it is one that matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ProcessClass>,
    /// `inotify`, `processes`.
    pub what: String,
    /// Positive errno.
    pub errno: u32,
}

/// See [`super::Observation::Credential`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Path on the host; control characters are escaped.
    pub file: String,
    /// Whose it is: `kubelet`, or a CNI.
    pub owner: String,
    /// Seconds until it is valid; negative when it is.
    pub valid_in_s: i64,
    /// Seconds until it expires; negative when it has.
    pub expires_in_s: i64,
}

/// See [`super::Observation::CgroupDrivers`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupDrivers {
    /// `systemd` or `cgroupfs`, as the runtime is configured.
    pub runtime: String,
    /// The same of the kubelet.
    pub kubelet: String,
}

/// See [`super::Observation::ModuleMissing`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleMissing {
    /// The module, or the alias under which the kernel asked for it; control characters are escaped.
    pub name: String,
    /// Whose doing needs it.
    pub process: Actor,
    /// It came after all: it is not missing any more.
    #[serde(default)]
    pub came: bool,
}

/// What a watched process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessClass {
    /// kubelet (also inside k3s and RKE2).
    Kubelet,
    /// kube-apiserver
    ApiServer,
    /// etcd
    Etcd,
    /// kube-controller-manager, kube-scheduler
    ControlPlane,
    /// kube-proxy
    KubeProxy,
    /// containerd, crio, dockerd
    Runtime,
    /// calico-node, cilium-agent, flanneld, …
    CniAgent,
    /// ovs-vswitchd, ovsdb-server, ovn-controller
    Ovs,
    /// nginx, haproxy, kube-vip: what Kubernetes installers put before the API
    Proxy,
}

/// Who stops a process in order to restart or replace it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeper {
    /// An init system: the process is a unit of the host.
    Supervisor,
    /// A container runtime, on behalf of the kubelet.
    Runtime,
}

/// See [`super::Observation::Process`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The process.
    pub process: Actor,
    /// What it is.
    pub class: ProcessClass,
    /// What happened.
    #[serde(flatten)]
    pub event: ProcessEvent,
}

/// See [`super::Observation::Stuck`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stuck {
    /// The process.
    pub process: Actor,
    /// What it is.
    pub class: ProcessClass,
    /// How it is stuck; `None` when it makes progress again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub how: Option<StuckHow>,
    /// For how long, nanoseconds, as far as that was seen.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub for_ns: u64,
}

/// How a process makes no progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StuckHow {
    /// State T: stopped by a signal, or traced.
    Stopped,
    /// State D: inside a system call that cannot be interrupted.
    Uninterruptible,
    /// None of its threads was scheduled, though they were before.
    Asleep,
}

impl StuckHow {
    /// In plain words, after the process.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Stopped => "is stopped (state T: SIGSTOP, SIGTSTP or a debugger)",
            Self::Uninterruptible => "hangs in a system call (state D: disk or network file system)",
            Self::Asleep => "is blocked: none of its threads runs (deadlock, or a frozen cgroup)",
        }
    }
}

/// What happened to a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ProcessEvent {
    /// Executed just now.
    Started,
    /// Was there when the agent looked.
    Found,
    /// Its last thread ended.
    Exited {
        /// How.
        exit: ExitStatus,
        /// Sender of the newest signal that ends a process by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sender: Option<Actor>,
        /// The number of that signal, whether the process handled it or not; 0 when it is not known.
        #[serde(default, skip_serializing_if = "is_zero")]
        sent: u8,
        /// The out-of-memory killer chose it.
        #[serde(default)]
        oom: bool,
    },
}

// include/uapi/asm-generic/signal.h
const SIGINT: u8 = 2;
const SIGKILL: u8 = 9;
const SIGTERM: u8 = 15;

/// Programs that start and stop others: init systems and service supervisors. The first process is one whatever its name.
const SUPERVISORS: &[&str] = &["init", "runsv", "s6-supervise", "supervise-daemon", "supervisord", "systemd"];

/// Container runtimes and what they are made of: they stop containers on behalf of the kubelet.
const RUNTIMES: &[&str] = &["conmon", "containerd", "crio", "crun", "docker", "kubelet", "runc"];

impl Actor {
    /// Returns whether this is an init system or a service supervisor.
    fn is_supervisor(&self) -> bool {
        self.pid == 1 || SUPERVISORS.contains(&self.name.as_str())
    }

    /// Returns whether this is a container runtime or a part of one.
    pub(crate) fn is_runtime(&self) -> bool {
        RUNTIMES.iter().any(|name| self.name.starts_with(name))
    }
}

impl ProcessEvent {
    /// Returns whether the process exited on request, or because it was done: exit code 0, an exit after
    /// SIGTERM or SIGINT, or SIGKILL from its supervisor or runtime after these. Everything else is a crash.
    pub(crate) fn is_stop(&self) -> bool {
        let Self::Exited { exit, sender, sent, oom } = self else { return false };
        let keeper = sender.as_ref().is_some_and(|sender| sender.is_supervisor() || sender.is_runtime());
        let signal = match (*sent, exit.signal) {
            // Shells and Go's programs exit with 128 and the number of the signal.
            (0, 0) => exit.code.saturating_sub(128),
            (0, signal) | (signal, _) => signal,
        };
        let asked = match signal {
            SIGINT | SIGTERM => true,
            SIGKILL => keeper,
            // Which signal it was is not in recordings of older agents.
            _ => keeper && *sent == 0 && exit.signal == 0,
        };
        !oom && (exit.success() || asked)
    }

    /// Returns whether a process that exited like this is started again by whoever stopped it.
    pub(crate) fn stopped_by_keeper(&self) -> Option<Keeper> {
        let Self::Exited { sender, .. } = self else { return None };
        if !self.is_stop() {
            return None;
        }
        match sender {
            Some(sender) if sender.is_runtime() => Some(Keeper::Runtime),
            Some(sender) if sender.is_supervisor() => Some(Keeper::Supervisor),
            Some(_) => None,
            // A container's first process is stopped from outside of what is seen.
            None => Some(Keeper::Runtime),
        }
    }

    /// How it ended, to follow `it ended`; `None` for one that runs.
    pub(crate) fn how(&self) -> Option<String> {
        let Self::Exited { exit, sender, oom, .. } = self else { return None };
        Some(match (exit.signal, sender) {
            _ if *oom => String::from("by the kernel, out of memory"),
            (0, None) => format!("by itself, with exit code {}", exit.code),
            (0, Some(sender)) => format!("by order of {}, with exit code {}", sender.name, exit.code),
            (signal, None) => format!("by signal {signal}"),
            (signal, Some(sender)) => format!("by signal {signal} from {}", sender.name),
        })
    }
}
