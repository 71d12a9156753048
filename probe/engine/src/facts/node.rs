//! Processes, runtime sockets, limits and credentials.

use alloc::format;
use alloc::string::String;

use super::Facts;
use crate::errno::{EACCES, EPERM, socket_words};
use crate::limits;
use crate::memory::Memory;
use crate::observation::{
    Actor, BootTime, CONNTRACK, Credential, Gap, Limit, LimitHit, ModuleMissing, Process, ProcessClass,
    ProcessEvent, Role, Runtime, SocketConnect,
};

/// A Unix socket to which connects fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SocketFailure {
    pub(crate) path: String,
    pub(crate) errno: u32,
    /// The number of consecutive failures.
    pub(crate) tries: u32,
    pub(crate) since: BootTime,
    pub(crate) last: BootTime,
}

/// A credential as it was when its file was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadCredential {
    pub(crate) credential: Credential,
    pub(crate) at: BootTime,
}

impl Memory for ReadCredential {
    fn deadlines(&self, _now: BootTime, at: &mut dyn FnMut(BootTime)) {
        for seconds in [self.credential.valid_in_s, self.credential.expires_in_s] {
            let seconds = u64::try_from(seconds).unwrap_or_default();
            at(self.at.plus(seconds.saturating_mul(limits::SECOND)));
        }
    }
}

impl Memory for SocketFailure {
    fn until(&self) -> Option<BootTime> {
        Some(self.last.plus(limits::CONNECT_FAILURE))
    }
}

impl SocketFailure {
    /// Returns whether the client lacks permission.
    pub(super) fn is_denied(&self) -> bool {
        matches!(self.errno, EPERM | EACCES)
    }
}

/// Returns whether this is the socket of a container runtime, in whichever directory an installer puts it.
fn is_cri_socket(path: &str) -> bool {
    ["/containerd.sock", "/crio.sock", "/cri-dockerd.sock"].iter().any(|name| path.ends_with(name))
}

/// Returns whether two paths name the same socket: `/var/run` is a link to `/run` (FHS 3.0, section 5.13).
pub fn is_same_path(one: &str, other: &str) -> bool {
    fn bare(path: &str) -> &str {
        path.strip_prefix("/var").filter(|rest| rest.starts_with("/run/")).unwrap_or(path)
    }
    bare(one) == bare(other)
}

impl Facts {
    pub(super) fn limit(&mut self, at: BootTime, limit: Limit) {
        let key = (limit.what.clone(), limit.subject.clone());
        if limit.what == CONNTRACK && (limit.is_full() || self.full.contains_key(&key)) {
            self.conntrack_full = Some(at);
            self.blame_conntrack(at);
        }
        if !limit.is_full() {
            // Sandboxes that failed for want of space are no evidence any more.
            if self.full.remove(&key).is_some() && limit.class.is_some() {
                self.sandboxes.clear();
            }
            return;
        }
        let text = format!("{} {} is full: {} of {}", limit.what, limit.subject, limit.used, limit.max);
        self.line(at, "limit", text);
        self.full.see(key, limit, at);
    }

    pub(super) fn limit_hit(&mut self, at: BootTime, hit: LimitHit) {
        if hit.class.is_none() {
            return;
        }
        self.line(at, "limit", format!("{} {}", hit.process.with_pid(), hit.words()));
        self.hits.see(hit.what.clone(), hit, at);
    }

    pub(super) fn credential(&mut self, at: BootTime, credential: Credential) {
        // It is reported when its file changes: the credential that was refused is the previous one.
        self.targets.values_mut().for_each(|ledger| ledger.forget_refusal(&credential.file));
        self.credentials.put(credential.file.clone(), ReadCredential { credential, at });
    }

    pub(super) fn module(&mut self, at: BootTime, missing: ModuleMissing) {
        if missing.came {
            self.modules.remove(&missing.name);
            return;
        }
        let who = missing.process.with_pid();
        let text = format!("kernel module {} is not available, requested for {who}", missing.name);
        self.line(at, "module.request", text);
        self.modules.see(missing.name.clone(), missing, at);
    }

    /// Takes a connect of the kubelet to a CRI socket.
    pub(super) fn socket(&mut self, at: BootTime, connect: SocketConnect) {
        if connect.class != ProcessClass::Kubelet || !self.may_be_endpoint(&connect.path) {
            return;
        }
        if connect.errno == 0 {
            self.runtime_down = None;
            if self.served.len() < limits::FILES {
                self.served.insert(connect.path);
            }
            return;
        }
        let known = self.runtime_down.as_ref().filter(|known| known.path == connect.path);
        let (since, tries) = known.map_or((at, 0), |known| (known.since, known.tries));
        let text = format!(
            "{}[{}] → {} {}",
            connect.client.name,
            connect.client.pid,
            connect.path,
            socket_words(connect.errno)
        );
        if self.runtime_down.as_ref().is_none_or(|known| known.errno != connect.errno) {
            self.line(at, "runtime.socket", text);
        }
        let tries = tries.saturating_add(1);
        self.runtime_down =
            Some(SocketFailure { path: connect.path, errno: connect.errno, tries, since, last: at });
    }

    /// Returns whether the kubelet may be configured for this socket. A kubelet that starts dials the socket of every runtime
    /// whose containers it can count (cAdvisor), but only the configured one counts; if that is unknown, one that it has reached
    /// before does.
    fn may_be_endpoint(&self, path: &str) -> bool {
        if let Some(endpoint) = &self.host.runtime_endpoint {
            return is_same_path(endpoint, path);
        }
        let of_host = match self.host.runtime {
            Runtime::Containerd => !path.ends_with("/crio.sock"),
            Runtime::CriO => path.ends_with("/crio.sock"),
            Runtime::Unknown => true,
        };
        is_cri_socket(path) && (of_host && self.served.is_empty() || self.served.contains(path))
    }

    /// Returns the failing CRI socket. If the kubelet's configuration is unknown, a socket that it dials repeatedly is the one
    /// that it needs: cAdvisor dials each socket once.
    pub(crate) fn dead_endpoint(&self) -> Option<&SocketFailure> {
        let down = self.runtime_down.as_ref()?;
        let is_known = self.host.runtime_endpoint.is_some() || self.served.contains(&down.path);
        (is_known || down.tries >= limits::UNKNOWN_ENDPOINT).then_some(down)
    }

    pub(super) fn process(&mut self, at: BootTime, process: Process) {
        if process.class == ProcessClass::Runtime {
            let alive = !matches!(process.event, ProcessEvent::Exited { .. });
            // The previous process gave that answer.
            self.runtime_answer = None;
            if alive {
                self.runtime = Some(process.process.clone());
            } else {
                self.runtime.take_if(|known| known.pid == process.process.pid);
            }
        }
        self.life(at, &process);
        if process.class == ProcessClass::Ovs && process.process.name == "ovs-vswitchd" {
            let ended = matches!(process.event, ProcessEvent::Exited { .. });
            self.vswitchd_gone = ended.then(|| (process.process.name.clone(), at));
        }
        let (ProcessEvent::Exited { sender, .. }, Some(how)) = (&process.event, process.event.words()) else {
            return;
        };
        self.line(at, "process.exit", format!("{} {how}", process.process.with_pid()));
        // A runtime that stops its static pods repeatedly is a fault. A restart by an operator is not.
        let by_runtime = sender.as_ref().is_some_and(Actor::is_runtime);
        let serves =
            matches!(process.class, ProcessClass::ApiServer | ProcessClass::Etcd | ProcessClass::Proxy);
        if serves && (by_runtime || !process.event.is_stop()) {
            self.exits.push(at, process);
        }
    }

    pub(super) fn gap(&mut self, gap: Gap) {
        self.gaps.put(gap.signal.clone(), gap);
    }

    /// Returns whether processes that were already running when the agent started may be unknown.
    pub(crate) fn hides_processes(&self) -> bool {
        self.gaps.contains_key(Gap::PROCESS_TABLE)
    }

    /// Returns whether this host has, or should have, a control plane.
    pub(crate) fn is_control_plane(&self) -> bool {
        self.host.role == Role::ControlPlane
    }
}
