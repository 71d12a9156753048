//! Assembles a CNI operation from its records: the plugin that a container runtime started, its delegates, and their output.

use std::collections::BTreeMap;

use probe_common::{CniExec, Exit, UnixConnect, text};
use probe_engine::{
    Actor, AgentSocket, BootTime, CniEnd, CniError, CniStart, Delegate, ExitStatus, NetlinkError, NetnsSeen,
    Pod,
};
use serde::Deserialize;

use super::connects::socket_path;
use super::{NAME_MAX, VALUE_MAX};
use crate::text::{clean, redact_text};

/// Maximum number of CNI processes at the same time: 110 pods per node, each with four plugins and their helpers.
const RUNS: usize = 2048;
/// Maximum number of delegates of an operation that are kept.
const DELEGATES: usize = 32;
/// Maximum number of refused requests of an operation that are kept; the oldest are dropped.
const REFUSALS: usize = 8;
/// Maximum number of Unix sockets of an operation that are kept.
const SOCKETS: usize = 8;
/// Maximum output of a process that is kept, bytes: the error objects of real plugins reach 6 KB, with the cause at their end.
const OUTPUT: usize = 16 * 1024;
/// Maximum length of `msg` and `details`, bytes.
pub(super) const MESSAGE: usize = 512;

/// Part of a process with `CNI_COMMAND` in its environment in an operation.
#[expect(clippy::large_enum_variant, reason = "most are roots or live for milliseconds")]
#[derive(Debug)]
enum Part {
    /// A plugin started by a container runtime.
    Root { start: CniStart, delegates: Vec<Delegate>, refusals: Vec<NetlinkError>, sockets: Vec<AgentSocket> },
    /// A plugin started by a plugin; `root` is the process ID of the one that the container runtime started.
    Delegate { root: u32 },
    /// Any other program that inherited the environment (`cat`, `jq`, `ip` in a shell plugin).
    Helper { root: Option<u32> },
}

#[derive(Debug)]
struct Run {
    plugin: String,
    started_ns: u64,
    output: Vec<u8>,
    part: Part,
}

/// Running CNI processes, by process ID.
#[derive(Debug, Default)]
pub(super) struct CniRuns {
    runs: BTreeMap<u32, Run>,
}

impl CniRuns {
    /// Takes the execution of a process with `CNI_COMMAND` in its environment. Returns the operation if a container runtime started
    /// it. `look_up_netns` finds the network namespace at a path.
    pub(super) fn started(
        &mut self,
        record: &CniExec,
        parent: Actor,
        look_up_netns: impl FnOnce(&str) -> NetnsSeen,
    ) -> Option<CniStart> {
        let pid = record.task.tgid;
        let path = text(&record.path);
        let plugin = clean(path.rsplit(|byte| *byte == b'/').next().unwrap_or_default(), NAME_MAX);
        let is_plugin = in_cni_path(path, text(&record.cni_path));
        // A process that executes another program (`ip netns exec`, a wrapper script) keeps its root.
        let root = match self.runs.get(&pid).map(|run| &run.part) {
            Some(Part::Root { .. }) => None,
            Some(Part::Delegate { root }) => Some(*root),
            Some(Part::Helper { root }) => *root,
            None => self.root_of(record.task.ppid),
        };
        let part = match (root, is_plugin) {
            (Some(root), true) => Part::Delegate { root },
            (root, false) => Part::Helper { root },
            (None, true) => {
                let mut start = start(record, pid, plugin.clone(), parent);
                if start.netns.starts_with('/') {
                    start.netns_seen = look_up_netns(&start.netns);
                }
                Part::Root { start, delegates: Vec::new(), refusals: Vec::new(), sockets: Vec::new() }
            }
        };
        let started = match &part {
            Part::Root { start, .. } => Some(start.clone()),
            _ => None,
        };
        if self.runs.len() >= RUNS {
            self.runs.pop_first();
        }
        self.runs.insert(pid, Run { plugin, started_ns: record.header.at_ns, output: Vec::new(), part });
        started
    }

    fn root_of(&self, parent: u32) -> Option<u32> {
        match &self.runs.get(&parent)?.part {
            Part::Root { .. } => Some(parent),
            Part::Delegate { root } => Some(*root),
            Part::Helper { root } => *root,
        }
    }

    /// Takes data that a CNI process wrote to its standard output. The output of helpers counts as that of their plugin.
    pub(super) fn wrote(&mut self, pid: u32, data: &[u8]) {
        let Some(run) = self.runs.get_mut(&pid) else { return };
        let owner = match run.part {
            Part::Helper { root: Some(root) } => root,
            _ => pid,
        };
        let Some(run) = self.runs.get_mut(&owner) else { return };
        run.output.extend_from_slice(data);
        if run.output.len() > OUTPUT {
            let spare = run.output.len() - OUTPUT;
            run.output.drain(..spare);
        }
    }

    /// Returns the operation of a CNI process.
    fn operation(&mut self, pid: u32) -> Option<&mut Part> {
        let root = self.root_of(pid)?;
        self.runs.get_mut(&root).map(|run| &mut run.part)
    }

    /// Returns whether a process is a CNI process.
    pub(super) fn contains(&self, pid: u32) -> bool {
        self.root_of(pid).is_some()
    }

    /// Adds a refused request of a CNI process to its operation.
    pub(super) fn refused(&mut self, pid: u32, error: &NetlinkError) {
        if let Some(Part::Root { refusals, .. }) = self.operation(pid) {
            if refusals.len() == REFUSALS {
                refusals.remove(0);
            }
            refusals.push(error.clone());
        }
    }

    /// Adds an attempt of a CNI process to connect to a Unix socket to its operation.
    pub(super) fn connected(&mut self, record: &UnixConnect) {
        let Some(Part::Root { sockets, .. }) = self.operation(record.task.tgid) else { return };
        let path = socket_path(record);
        if let Some(known) = sockets.iter_mut().find(|known| known.path == path) {
            known.errno = record.errno;
            known.tries += 1;
        } else if sockets.len() < SOCKETS {
            sockets.push(AgentSocket { path, errno: record.errno, tries: 1 });
        }
    }

    /// Takes the exit of a CNI process. Returns the operation if a container runtime started the process.
    pub(super) fn exited(&mut self, record: &Exit) -> Option<CniEnd> {
        let run = self.runs.remove(&record.task.tgid)?;
        let exit = ExitStatus::from_wait(record.status);
        let took_ns = record.header.at_ns.saturating_sub(run.started_ns);
        let error = if exit.success() { None } else { error_in(&run.output) };
        match run.part {
            Part::Root { start, delegates, refusals, sockets } => {
                Some(CniEnd { start, took_ns, exit, error, delegates, refusals, sockets })
            }
            Part::Delegate { root } => {
                if let Some(Run { part: Part::Root { delegates, .. }, .. }) = self.runs.get_mut(&root)
                    && delegates.len() < DELEGATES
                {
                    delegates.push(Delegate { plugin: run.plugin, took_ns, exit, error });
                }
                None
            }
            Part::Helper { .. } => None,
        }
    }

    /// Returns the operations in progress, each with its duration so far.
    pub(super) fn running(&self, now: BootTime) -> Vec<CniStart> {
        let roots = self.runs.values().filter_map(|run| match &run.part {
            Part::Root { start, .. } => {
                Some(CniStart { running_ns: now.since(BootTime(run.started_ns)), ..start.clone() })
            }
            _ => None,
        });
        roots.collect()
    }

    /// Returns the processes that have exited. `started` returns the start of the process that now has an ID: if it is later than
    /// the execution of a run, the ID has been reused.
    pub(super) fn dead(&self, started: impl Fn(u32) -> Option<BootTime>) -> Vec<u32> {
        let runs = |pid: u32, run: &Run| started(pid).is_some_and(|started| started.0 <= run.started_ns);
        self.runs.iter().filter(|(pid, run)| !runs(**pid, run)).map(|(pid, _)| *pid).collect()
    }

    /// Drops the runs of these processes.
    pub(super) fn forget(&mut self, pids: &[u32]) {
        self.runs.retain(|pid, _| !pids.contains(pid));
    }
}

fn start(record: &CniExec, pid: u32, plugin: String, parent: Actor) -> CniStart {
    CniStart {
        pid,
        plugin,
        command: clean(text(&record.command), NAME_MAX),
        container_id: clean(text(&record.container_id), VALUE_MAX),
        netns: clean(text(&record.netns), VALUE_MAX),
        ifname: clean(text(&record.ifname), NAME_MAX),
        pod: pod(text(&record.args)),
        parent,
        netns_seen: NetnsSeen::Unknown,
        running_ns: 0,
    }
}

/// Returns whether a program is in one of the directories of `CNI_PATH`, as plugins are. Always true if `CNI_PATH` is not set.
pub(super) fn in_cni_path(path: &[u8], cni_path: &[u8]) -> bool {
    if cni_path.is_empty() {
        return true;
    }
    let dir = path.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |slash| &path[..slash]);
    let trimmed = |entry: &[u8]| entry.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    cni_path.split(|byte| *byte == b':').any(|entry| entry[..trimmed(entry)] == *dir)
}

/// Returns the pod in `CNI_ARGS`: `K8S_POD_NAMESPACE=…;K8S_POD_NAME=…;K8S_POD_UID=…`, in any order and among other pairs.
pub(super) fn pod(args: &[u8]) -> Option<Pod> {
    let value = |key: &[u8]| {
        args.split(|byte| *byte == b';').find_map(|pair| pair.strip_prefix(key)).map(|v| clean(v, VALUE_MAX))
    };
    let uid = value(b"K8S_POD_UID=").unwrap_or_default();
    Some(Pod { namespace: value(b"K8S_POD_NAMESPACE=")?, name: value(b"K8S_POD_NAME=")?, uid })
}

/// The error object of the CNI specification (SPEC.md). Any number is accepted as code, because plugins differ.
#[derive(Deserialize)]
struct WireError {
    code: serde_json::Number,
    msg: Option<String>,
    details: Option<String>,
}

/// Returns the error object in a plugin's output. Some plugins print other lines before it.
pub(super) fn error_in(output: &[u8]) -> Option<CniError> {
    let starts = output.iter().enumerate().filter(|(_, byte)| **byte == b'{').map(|(at, _)| at);
    // Try every opening brace; the limit bounds the time for the output of a hostile plugin.
    let error = starts.take(16).find_map(|at| {
        serde_json::Deserializer::from_slice(&output[at..]).into_iter::<WireError>().next()?.ok()
    })?;
    let short = |text: Option<String>| shorten(&text.unwrap_or_default());
    Some(CniError {
        code: error.code.as_u64().unwrap_or(0),
        msg: short(error.msg),
        details: short(error.details),
    })
}

/// Shortens a message to [`MESSAGE`] bytes by removing its middle: long messages quote their input and have the cause at the end.
fn shorten(text: &str) -> String {
    // Redact first: a secret that is cut in two would not be recognized.
    let text = &*redact_text(text);
    if text.len() <= MESSAGE {
        return clean(text.trim().as_bytes(), MESSAGE);
    }
    let mut tail = text.len() - MESSAGE / 2;
    while !text.is_char_boundary(tail) {
        tail += 1;
    }
    let head = clean(text.as_bytes(), MESSAGE / 2 - 8);
    clean(format!("{head} {}", &text[tail..]).trim().as_bytes(), MESSAGE)
}

#[cfg(test)]
mod tests {
    use probe_common::{ProcessState, Task};
    use zerocopy::FromZeros as _;

    use super::*;

    fn exec(pid: u32, ppid: u32, path: &str, at: u64) -> CniExec {
        let mut record = CniExec::new_zeroed();
        record.header.at_ns = at;
        record.task = Task { tgid: pid, tid: pid, ppid, netns: 1, uid: 0, pid_level: 0, comm: [0; 16] };
        let set = |field: &mut [u8], value: &str| field[..value.len()].copy_from_slice(value.as_bytes());
        set(&mut record.path, path);
        set(&mut record.command, "ADD");
        set(&mut record.cni_path, "/opt/cni/bin/:/usr/lib/cni");
        set(&mut record.args, "K8S_POD_UID=6f1c;IgnoreUnknown=1;K8S_POD_NAME=web-1;K8S_POD_NAMESPACE=shop");
        record
    }

    fn unknown(_: &str) -> NetnsSeen {
        NetnsSeen::Unknown
    }

    fn exit(pid: u32, status: u32, at: u64) -> Exit {
        let mut record = Exit::new_zeroed();
        record.header.at_ns = at;
        record.task.tgid = pid;
        record.status = status;
        record.cni = ProcessState { cni: 1, ..ProcessState::default() }.cni.try_into().expect("small");
        record
    }

    #[test]
    fn delegate_belongs_to_plugin_started_by_runtime() {
        let mut runs = CniRuns::default();
        let start = runs
            .started(&exec(10, 1, "/opt/cni/bin/bridge", 100), Actor::default(), unknown)
            .expect("a root");
        let pod = Pod { namespace: "shop".into(), name: "web-1".into(), uid: "6f1c".into() };
        assert_eq!(start.pod, Some(pod));
        assert_eq!(
            runs.started(&exec(11, 10, "/opt/cni/bin/host-local", 110), Actor::default(), unknown),
            None
        );
        runs.wrote(11, br#"{"cniVersion":"0.4.0","code":999,"msg":"no IP addresses available in range set: 10.0.0.1-10.0.0.2"}"#);
        assert_eq!(runs.exited(&exit(11, 0x100, 120)), None);
        runs.wrote(10, br#"{"code":999,"msg":"failed to allocate"}"#);
        let end = runs.exited(&exit(10, 0x100, 150)).expect("the operation");
        assert_eq!((end.took_ns, end.exit.code), (50, 1));
        assert_eq!(end.error.expect("its error").msg, "failed to allocate");
        assert_eq!(end.delegates[0].plugin, "host-local");
        assert!(end.delegates[0].error.as_ref().expect("its error").msg.starts_with("no IP addresses"));
        assert!(runs.runs.is_empty());
    }

    #[test]
    fn output_of_helper_counts_as_that_of_its_plugin() {
        let mut runs = CniRuns::default();
        runs.started(&exec(10, 1, "/usr/lib/cni/shell-plugin", 100), Actor::default(), unknown)
            .expect("a root");
        assert_eq!(runs.started(&exec(11, 10, "/usr/bin/jq", 110), Actor::default(), unknown), None);
        runs.wrote(11, br#"{"code":7,"msg":"bad"}"#);
        assert_eq!(runs.exited(&exit(11, 0, 120)), None);
        let end = runs.exited(&exit(10, 0x100, 130)).expect("the operation");
        assert_eq!(end.delegates, Vec::new());
        assert_eq!(end.error.map(|error| error.code), Some(7));
    }

    #[test]
    fn finds_error_object_after_other_output() {
        let error = error_in(b"warning {x}\n{\"code\": 11, \"msg\": \"a\\u001b[31mb\", \"details\": \"d\"}")
            .expect("found");
        assert_eq!((error.code, error.msg.as_str()), (11, "a\\u{1b}[31mb"));
        assert_eq!(error_in(b"{{{{{{{{"), None);
        assert_eq!(error_in(b""), None);
    }

    #[test]
    fn redacts_secrets_before_shortening() {
        let key = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----", "canary".repeat(100));
        for msg in
            [format!("password={} is wrong", "canary".repeat(100)), format!("cannot parse {key}: bad key")]
        {
            let output = serde_json::json!({"code": 7, "msg": msg, "details": msg}).to_string();
            let error = error_in(output.as_bytes()).expect("found");
            assert!(!error.msg.contains("canary") && error.msg.contains("[redacted]"), "{}", error.msg);
            assert_eq!(error.details, error.msg);
        }
    }

    #[test]
    fn long_message_keeps_both_ends() {
        let long = format!("start{}the cause", "x".repeat(6000));
        let kept = shorten(&long);
        assert!(kept.len() <= MESSAGE && kept.starts_with("start") && kept.ends_with("the cause"), "{kept}");
    }
}
