//! One CNI operation from many records: the plugin that a runtime started, its delegates, what it wrote.

use std::collections::BTreeMap;

use probe_common::{CniExec, Exit, UnixConnect, text};
use probe_engine::{
    Actor, AgentSocket, CniEnd, CniError, CniStart, Delegate, ExitStatus, Mono, NetlinkError, NetnsSeen, Pod,
};
use serde::Deserialize;

use super::connects::socket_path;
use super::{NAME_MAX, VALUE_MAX};
use crate::text::{clean, redact_text};

/// Most CNI processes at once: at 110 pods a node, each with four plugins and their helpers, all at once.
const RUNS: usize = 2048;
/// Most delegates that are kept of one operation.
const DELEGATES: usize = 32;
/// Most refusals of the kernel that are kept of one operation, the newest.
const REFUSALS: usize = 8;
/// Most Unix sockets that are kept of one operation.
const SOCKETS: usize = 8;
/// Most output that is kept of one process: the error objects of real plugins reach 6 KB, with the cause at
/// their end.
const OUTPUT: usize = 16 * 1024;
/// Longest `msg` or `details` that is kept.
pub(super) const MESSAGE: usize = 512;

/// What a process with `CNI_COMMAND` in its environment is.
#[expect(clippy::large_enum_variant, reason = "most are roots or live for milliseconds")]
#[derive(Debug)]
enum Part {
    /// Started by a runtime.
    Root { start: CniStart, delegates: Vec<Delegate>, refusals: Vec<NetlinkError>, sockets: Vec<AgentSocket> },
    /// A plugin started by a plugin; the root's process.
    Delegate { root: u32 },
    /// Anything else that inherited the environment (`cat`, `jq`, `ip` in a shell plugin).
    Helper { root: Option<u32> },
}

#[derive(Debug)]
struct Run {
    plugin: String,
    started_ns: u64,
    output: Vec<u8>,
    part: Part,
}

/// CNI processes that run now.
#[derive(Debug, Default)]
pub(super) struct CniRuns {
    runs: BTreeMap<u32, Run>,
}

impl CniRuns {
    /// A process with `CNI_COMMAND` in its environment was executed. Answers with the operation when it is
    /// one that a runtime started. `look` says what the path of its namespace is.
    pub(super) fn started(
        &mut self,
        record: &CniExec,
        parent: Actor,
        look: impl FnOnce(&str) -> NetnsSeen,
    ) -> Option<CniStart> {
        let pid = record.task.tgid;
        let path = text(&record.path);
        let plugin = clean(path.rsplit(|byte| *byte == b'/').next().unwrap_or_default(), NAME_MAX);
        let is_plugin = in_cni_path(path, text(&record.cni_path));
        // A program that replaces itself (`ip netns exec`, a wrapper script) starts anew, under its old parent.
        let above = match self.runs.get(&pid).map(|run| &run.part) {
            Some(Part::Root { .. }) => None,
            Some(Part::Delegate { root }) => Some(*root),
            Some(Part::Helper { root }) => *root,
            None => self.root_of(record.task.ppid),
        };
        let part = match (above, is_plugin) {
            (Some(root), true) => Part::Delegate { root },
            (root, false) => Part::Helper { root },
            (None, true) => {
                let mut start = start(record, pid, plugin.clone(), parent);
                if start.netns.starts_with('/') {
                    start.netns_seen = look(&start.netns);
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

    /// A CNI process wrote to its standard output. What a helper writes is what its plugin answers, as long
    /// as the plugin itself writes nothing.
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

    /// The operation that a CNI process works for.
    fn operation(&mut self, pid: u32) -> Option<&mut Part> {
        let root = self.root_of(pid)?;
        self.runs.get_mut(&root).map(|run| &mut run.part)
    }

    /// Is this a CNI process?
    pub(super) fn works_for_one(&self, pid: u32) -> bool {
        self.root_of(pid).is_some()
    }

    /// The kernel refused a CNI process something: kept with the operation.
    pub(super) fn refused(&mut self, pid: u32, error: &NetlinkError) {
        if let Some(Part::Root { refusals, .. }) = self.operation(pid) {
            if refusals.len() == REFUSALS {
                refusals.remove(0);
            }
            refusals.push(error.clone());
        }
    }

    /// A CNI process connected to a Unix socket, or failed to: kept with the operation.
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

    /// A CNI process ended. Answers with the operation when it is one that a runtime started.
    pub(super) fn ended(&mut self, record: &Exit) -> Option<CniEnd> {
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

    /// Operations that run at this time, each with how long it does.
    pub(super) fn running(&self, now: Mono) -> Vec<CniStart> {
        let roots = self.runs.values().filter_map(|run| match &run.part {
            Part::Root { start, .. } => {
                Some(CniStart { running_ns: now.since(Mono(run.started_ns)), ..start.clone() })
            }
            _ => None,
        });
        roots.collect()
    }

    /// Returns the processes that have exited: `began` says when the one that has this id now did, which is later than an
    /// execution by one that had it before.
    pub(super) fn dead(&self, began: impl Fn(u32) -> Option<Mono>) -> Vec<u32> {
        let runs = |pid: u32, run: &Run| began(pid).is_some_and(|began| began.0 <= run.started_ns);
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

/// A plugin is run from one of the directories in `CNI_PATH`, whoever runs it; a runtime that does not set
/// it gets the benefit of the doubt.
pub(super) fn in_cni_path(path: &[u8], cni_path: &[u8]) -> bool {
    if cni_path.is_empty() {
        return true;
    }
    let dir = path.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |slash| &path[..slash]);
    let trimmed = |entry: &[u8]| entry.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    cni_path.split(|byte| *byte == b':').any(|entry| entry[..trimmed(entry)] == *dir)
}

/// `K8S_POD_NAMESPACE=…;K8S_POD_NAME=…;K8S_POD_UID=…` in any order among others.
pub(super) fn pod(args: &[u8]) -> Option<Pod> {
    let value = |key: &[u8]| {
        args.split(|byte| *byte == b';').find_map(|pair| pair.strip_prefix(key)).map(|v| clean(v, VALUE_MAX))
    };
    let uid = value(b"K8S_POD_UID=").unwrap_or_default();
    Some(Pod { namespace: value(b"K8S_POD_NAMESPACE=")?, name: value(b"K8S_POD_NAME=")?, uid })
}

/// The error object as SPEC.md has it; numbers as lenient as plugins are.
#[derive(Deserialize)]
struct Wire {
    code: serde_json::Number,
    msg: Option<String>,
    details: Option<String>,
}

/// The last JSON object in what a plugin wrote: some print other lines before it.
pub(super) fn error_in(output: &[u8]) -> Option<CniError> {
    let starts = output.iter().enumerate().filter(|(_, byte)| **byte == b'{').map(|(at, _)| at);
    // The whole output first, then each line that opens an object; bounded, for a hostile plugin.
    let wire = starts.take(16).find_map(|at| {
        serde_json::Deserializer::from_slice(&output[at..]).into_iter::<Wire>().next()?.ok()
    })?;
    let short = |text: Option<String>| ends(&text.unwrap_or_default());
    Some(CniError {
        code: wire.code.as_u64().unwrap_or(0),
        msg: short(wire.msg),
        details: short(wire.details),
    })
}

/// Long messages carry their input at length and their cause at the end: both ends are kept.
fn ends(text: &str) -> String {
    // Where the text is parted, a secret would be, too.
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

    fn unseen(_: &str) -> NetnsSeen {
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
    fn a_delegate_belongs_to_the_plugin_that_the_runtime_started() {
        let mut runs = CniRuns::default();
        let start =
            runs.started(&exec(10, 1, "/opt/cni/bin/bridge", 100), Actor::default(), unseen).expect("a root");
        let pod = Pod { namespace: "shop".into(), name: "web-1".into(), uid: "6f1c".into() };
        assert_eq!(start.pod, Some(pod));
        assert_eq!(
            runs.started(&exec(11, 10, "/opt/cni/bin/host-local", 110), Actor::default(), unseen),
            None
        );
        runs.wrote(11, br#"{"cniVersion":"0.4.0","code":999,"msg":"no IP addresses available in range set: 10.0.0.1-10.0.0.2"}"#);
        assert_eq!(runs.ended(&exit(11, 0x100, 120)), None);
        runs.wrote(10, br#"{"code":999,"msg":"failed to allocate"}"#);
        let end = runs.ended(&exit(10, 0x100, 150)).expect("the operation");
        assert_eq!((end.took_ns, end.exit.code), (50, 1));
        assert_eq!(end.error.expect("its error").msg, "failed to allocate");
        assert_eq!(end.delegates[0].plugin, "host-local");
        assert!(end.delegates[0].error.as_ref().expect("its error").msg.starts_with("no IP addresses"));
        assert!(runs.runs.is_empty());
    }

    #[test]
    fn a_helper_of_a_shell_plugin_is_no_plugin_but_writes_for_it() {
        let mut runs = CniRuns::default();
        runs.started(&exec(10, 1, "/usr/lib/cni/shell-plugin", 100), Actor::default(), unseen)
            .expect("a root");
        assert_eq!(runs.started(&exec(11, 10, "/usr/bin/jq", 110), Actor::default(), unseen), None);
        runs.wrote(11, br#"{"code":7,"msg":"bad"}"#);
        assert_eq!(runs.ended(&exit(11, 0, 120)), None);
        let end = runs.ended(&exit(10, 0x100, 130)).expect("the operation");
        assert_eq!(end.delegates, Vec::new());
        assert_eq!(end.error.map(|error| error.code), Some(7));
    }

    #[test]
    fn an_error_is_found_after_other_output_and_made_safe() {
        let error = error_in(b"warning {x}\n{\"code\": 11, \"msg\": \"a\\u001b[31mb\", \"details\": \"d\"}")
            .expect("found");
        assert_eq!((error.code, error.msg.as_str()), (11, "a\\u{1b}[31mb"));
        assert_eq!(error_in(b"{{{{{{{{"), None);
        assert_eq!(error_in(b""), None);
    }

    #[test]
    fn a_secret_that_a_long_message_is_parted_in_is_redacted() {
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
    fn a_long_message_keeps_both_ends() {
        let long = format!("start{}the cause", "x".repeat(6000));
        let kept = ends(&long);
        assert!(kept.len() <= MESSAGE && kept.starts_with("start") && kept.ends_with("the cause"), "{kept}");
    }
}
