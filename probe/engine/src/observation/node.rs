//! The host, its processes, and the limits that they reach.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::is_zero;
use crate::errno::{SIGINT, SIGKILL, SIGTERM, errno_words, signal_words};

/// The role of this host: detected from processes, manifests and files, or set by `--role`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Not known yet.
    #[default]
    Unknown,
    /// Runs a kubelet and no API server.
    Worker,
    /// Runs a kubelet and an API server (detected by static pod manifest or process, or set).
    ControlPlane,
    /// Runs etcd and no kubelet.
    Etcd,
    /// Runs neither a kubelet nor etcd.
    None,
}

/// A container runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runtime {
    /// Not known; treated like containerd.
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
    /// The role of the host.
    pub role: Role,
    /// Whether the role was set by `--role`; false when it was detected.
    #[serde(default)]
    pub role_set: bool,
    /// The runtime that reads the CNI configuration.
    #[serde(default)]
    pub runtime: Runtime,
    /// The CRI socket that the kubelet is configured for, as a path; `None` when that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_endpoint: Option<String>,
    /// Addresses of this host's own links, including loopback.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// A kubelet is installed on this host, whether or not it runs.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub kubelet_installed: bool,
}

/// A process that did something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Process ID in the initial PID namespace; 0 when not known.
    pub pid: u32,
    /// Name of the executable, or the kernel's name of the process; empty for a process that exited before it was read.
    /// Control characters are escaped.
    pub name: String,
}

impl Actor {
    /// Returns the name of the process, or a phrase for a process that exited before its name was read.
    pub(crate) fn who(&self) -> &str {
        if self.name.is_empty() { "an exited process" } else { &self.name }
    }

    /// Returns the name with the process ID: `containerd[812]`.
    pub fn with_pid(&self) -> String {
        if self.name.is_empty() {
            format!("{} (PID {})", self.who(), self.pid)
        } else {
            format!("{}[{}]", self.name, self.pid)
        }
    }
}

/// The exit status of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Exit code; 0 when a signal killed it.
    pub code: u8,
    /// Number of the signal that killed it; 0 when it exited.
    #[serde(default)]
    pub signal: u8,
}

impl ExitStatus {
    /// Converts a status in the format of wait(2).
    #[expect(clippy::cast_possible_truncation, reason = "eight bits each, wait(2)")]
    pub const fn from_wait(status: u32) -> Self {
        Self { code: (status >> 8) as u8, signal: (status & 0x7f) as u8 }
    }

    /// Returns whether the process exited with code 0.
    pub const fn success(self) -> bool {
        self.code == 0 && self.signal == 0
    }

    /// Returns the status as a phrase that follows the process: `exited (code 1)`, `was killed (SIGKILL)`.
    pub fn words(self) -> String {
        match self.signal {
            0 => format!("exited (code {})", self.code),
            signal => format!("was killed ({})", signal_words(signal)),
        }
    }
}

/// See [`super::Observation::Limit`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// `conntrack`, `processes`, `inotify`, `files`, `disk`, `inodes`.
    pub what: String,
    /// The process for `files`, the path for `disk` and `inodes`; otherwise empty.
    #[serde(default)]
    pub subject: String,
    /// For `disk` and `inodes`, whose files are on the file system: the runtime, the kubelet, the CNI
    /// ([`ProcessClass::CniAgent`]) or etcd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ProcessClass>,
    /// Used amount; bytes for `disk`.
    pub used: u64,
    /// Maximum, in the unit of `used`.
    pub max: u64,
}

/// The value of [`Limit::what`] for the connection tracking table.
pub(crate) const CONNTRACK: &str = "conntrack";

impl Limit {
    /// Returns whether the limit is reached.
    pub fn is_full(&self) -> bool {
        let unavailable = match self.what.as_str() {
            // At any time some entries are being freed and cannot be used yet.
            CONNTRACK => self.max / 100,
            // The remaining space is smaller than the smallest files.
            "disk" => (self.max / 1000).min(64 << 10),
            _ => 0,
        };
        self.used.saturating_add(unavailable) >= self.max
    }
}

/// See [`super::Observation::LimitHit`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitHit {
    /// The process whose system call failed.
    pub process: Actor,
    /// Its class, if it is a watched process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ProcessClass>,
    /// `inotify`, `processes`, `local ports`.
    pub what: String,
    /// Positive errno.
    pub errno: u32,
}

impl LimitHit {
    /// Returns what failed and which limit was reached, as a phrase that follows the process.
    pub fn words(&self) -> String {
        let errno = errno_words(self.errno);
        match self.what.as_str() {
            "inotify" => format!(
                "cannot create an inotify instance ({errno}): fs.inotify.max_user_instances or the open-file limit reached"
            ),
            "processes" => {
                format!(
                    "cannot create a process or thread ({errno}): pids.max or another process limit reached"
                )
            }
            "local ports" => {
                format!("cannot connect ({errno}): no local port available (net.ipv4.ip_local_port_range)")
            }
            what => format!("cannot obtain {what} ({errno}): limit reached"),
        }
    }
}

/// See [`super::Observation::Credential`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Path on the host; control characters are escaped.
    pub file: String,
    /// The owner: `kubelet`, or the name of a CNI.
    pub owner: String,
    /// Seconds until it becomes valid; negative when it already is.
    pub valid_in_s: i64,
    /// Seconds until it expires; negative when it has expired.
    pub expires_in_s: i64,
}

/// See [`super::Observation::CgroupDrivers`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupDrivers {
    /// The cgroup driver of the runtime: `systemd` or `cgroupfs`.
    pub runtime: String,
    /// The cgroup driver of the kubelet.
    pub kubelet: String,
}

/// See [`super::Observation::ModuleMissing`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleMissing {
    /// The module, or the alias by which the kernel requested it; control characters are escaped.
    pub name: String,
    /// The process whose system call needs the module.
    pub process: Actor,
    /// The module was loaded later and is no longer missing.
    #[serde(default)]
    pub came: bool,
}

/// The class of a watched process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessClass {
    /// kubelet (also as part of k3s and RKE2)
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
    /// nginx, haproxy, kube-vip: proxies that Kubernetes installers place in front of the API server
    Proxy,
}

/// The manager that stops a process in order to restart or replace it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcessManager {
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
    /// Its class.
    pub class: ProcessClass,
    /// The event.
    #[serde(flatten)]
    pub event: ProcessEvent,
}

/// See [`super::Observation::Stuck`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stuck {
    /// The process.
    pub process: Actor,
    /// Its class.
    pub class: ProcessClass,
    /// Why it makes no progress; `None` when it makes progress again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub how: Option<StuckHow>,
    /// Observed duration without progress, nanoseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub for_ns: u64,
}

/// Why a process makes no progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StuckHow {
    /// State T: stopped by a signal, or traced.
    Stopped,
    /// State D: in a system call that cannot be interrupted.
    Uninterruptible,
    /// None of its threads was scheduled, although they were before.
    Asleep,
}

impl StuckHow {
    /// Returns a phrase that follows the process.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Stopped => "is stopped (state T: SIGSTOP, SIGTSTP or a debugger)",
            Self::Uninterruptible => "is blocked in a system call (state D: disk or network file system)",
            Self::Asleep => "is blocked: none of its threads runs (deadlock or frozen cgroup)",
        }
    }
}

/// What happened to a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ProcessEvent {
    /// The process was executed.
    Started,
    /// The process was running when the agent read the process table.
    Found,
    /// The last thread of the process exited.
    Exited {
        /// The exit status.
        exit: ExitStatus,
        /// The sender of the newest signal whose default action terminates the process.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sender: Option<Actor>,
        /// The number of that signal, whether or not the process handled it; 0 when not known.
        #[serde(default, skip_serializing_if = "is_zero")]
        sent: u8,
        /// The OOM killer killed it.
        #[serde(default)]
        oom: bool,
    },
}

/// Init systems and service supervisors, which start and stop other programs. Process 1 counts as one whatever its
/// name.
const SUPERVISORS: &[&str] = &["init", "runsv", "s6-supervise", "supervise-daemon", "supervisord", "systemd"];

/// Container runtimes and their parts, which stop containers on behalf of the kubelet.
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
    /// Returns whether the process was stopped or finished: exit code 0, an exit after SIGTERM or SIGINT, or SIGKILL
    /// from its supervisor or runtime after these. Everything else is a crash.
    pub(crate) fn is_stop(&self) -> bool {
        let Self::Exited { exit, sender, sent, oom } = self else { return false };
        let keeper = sender.as_ref().is_some_and(|sender| sender.is_supervisor() || sender.is_runtime());
        let signal = match (*sent, exit.signal) {
            // Shells and programs in Go exit with 128 plus the signal number.
            (0, 0) => exit.code.saturating_sub(128),
            (0, signal) | (signal, _) => signal,
        };
        let is_requested = match signal {
            SIGINT | SIGTERM => true,
            SIGKILL => keeper,
            // Recordings of older agents do not contain the signal.
            _ => keeper && *sent == 0 && exit.signal == 0,
        };
        !oom && (exit.success() || is_requested)
    }

    /// Returns the manager that stopped the process and will start it again.
    pub(crate) fn stopped_by_manager(&self) -> Option<ProcessManager> {
        let Self::Exited { sender, .. } = self else { return None };
        if !self.is_stop() {
            return None;
        }
        match sender {
            Some(sender) if sender.is_runtime() => Some(ProcessManager::Runtime),
            Some(sender) if sender.is_supervisor() => Some(ProcessManager::Supervisor),
            Some(_) => None,
            // The sender of a signal to the first process of a container is outside the namespaces that are observed.
            None => Some(ProcessManager::Runtime),
        }
    }

    /// Returns how the process exited, as a phrase that follows its name: `exited (code 1)`, `was killed (SIGKILL by
    /// systemd)`. `None` for a running process. The phrase is the same for each exit of the same kind: it has no
    /// process ID.
    pub(crate) fn how(&self) -> Option<String> {
        self.exit_words(|sender| String::from(sender.who()))
    }

    /// Returns how the process exited in words, with the process ID of the sender of a signal.
    pub fn words(&self) -> Option<String> {
        self.exit_words(Actor::with_pid)
    }

    fn exit_words(&self, name: impl Fn(&Actor) -> String) -> Option<String> {
        let Self::Exited { exit, sender, sent, oom } = self else { return None };
        Some(match (exit.signal, sender) {
            _ if *oom => String::from("was killed (SIGKILL by the OOM killer)"),
            (_, None) => exit.words(),
            (0, Some(sender)) => {
                let signal = if *sent == 0 { String::from("a signal") } else { signal_words(*sent) };
                format!("{} after {signal} from {}", exit.words(), name(sender))
            }
            (signal, Some(sender)) => format!("was killed ({} by {})", signal_words(signal), name(sender)),
        })
    }
}
