//! The variables of a plugin from `/proc`, where the kernel half may not read them or was not there to.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;

use probe_common::{CniExec, text};
use zerocopy::FromZeros as _;

use crate::node::processes;

/// Most of an environment that is read: the kernel half looks at as much.
const ENVIRONMENT: u64 = 128 * 1024;

/// The record that the kernel half would have made when this process was executed; `None` when it is gone, or no plugin
/// and nothing that works for one. What a plugin leaves behind as a daemon has its name and its environment, too, but
/// nobody waits for it any more.
pub(crate) fn of(pid: u32) -> Option<CniExec> {
    /// Who takes over what has lost its parent; 0 when that is outside of this process' view.
    const INIT: u32 = 1;
    let stat = processes::stat(pid).filter(|stat| stat.parent > INIT)?;
    let mut record = CniExec::new_zeroed();
    record.header.at_ns = stat.started.0;
    record.task.tgid = pid;
    record.task.ppid = stat.parent;
    fill(&mut record);
    (!text(&record.command).is_empty()).then_some(record)
}

/// Fills in what the process still shows. A plugin that has ended already keeps empty fields.
pub(super) fn fill(record: &mut CniExec) {
    let pid = record.task.tgid;
    if let Ok(path) = std::fs::read_link(format!("/proc/{pid}/exe")) {
        copy(&mut record.path, path.as_os_str().as_bytes());
    }
    let mut environment = Vec::new();
    let read = File::open(format!("/proc/{pid}/environ"))
        .and_then(|file| file.take(ENVIRONMENT).read_to_end(&mut environment));
    if read.is_err() {
        return;
    }
    for variable in environment.split(|byte| *byte == 0) {
        let Some(at) = variable.iter().position(|byte| *byte == b'=') else { continue };
        let (name, value) = (&variable[..at], &variable[at + 1..]);
        match name {
            b"CNI_COMMAND" => copy(&mut record.command, value),
            b"CNI_CONTAINERID" => copy(&mut record.container_id, value),
            b"CNI_NETNS" => copy(&mut record.netns, value),
            b"CNI_IFNAME" => copy(&mut record.ifname, value),
            b"CNI_ARGS" => copy(&mut record.args, value),
            b"CNI_PATH" => copy(&mut record.cni_path, value),
            _ => {}
        }
    }
}

/// As the kernel half writes texts: cut, and ended by a NUL where there is room for it.
fn copy(field: &mut [u8], value: &[u8]) {
    let length = value.len().min(field.len());
    field[..length].copy_from_slice(&value[..length]);
    field[length..].fill(0);
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio, id};

    use super::*;

    #[test]
    fn a_plugin_is_known_by_its_environment() {
        let run = |name: &str| {
            let mut cat = Command::new("cat");
            let cat = cat.env(name, "ADD").stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut cat = cat.spawn().expect("cat starts");
            // Who answers has its environment; who is just being executed has none yet.
            cat.stdin.as_ref().expect("piped").write_all(b"?").expect("it reads");
            cat.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("it answers");
            let record = of(cat.id());
            drop(cat.stdin.take());
            cat.wait().expect("it ends");
            record
        };
        let record = run("CNI_COMMAND").expect("a plugin");
        assert_eq!((text(&record.command), record.task.ppid), (&b"ADD"[..], id()));
        assert!(text(&record.path).ends_with(b"/cat") && record.header.at_ns > 0);
        assert!(run("CNI_COMMANDS").is_none());
        // Nobody waits for the first process.
        assert!(of(1).is_none());
    }
}
