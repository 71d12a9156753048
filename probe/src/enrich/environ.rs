//! Reads the environment of plugins from `/proc`, for those whose environment the kernel programs could not read.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;

use probe_common::{CniExec, text};
use zerocopy::FromZeros as _;

use crate::node::processes;

/// Maximum size of an environment that is read, bytes; the same as in the kernel programs.
const ENVIRONMENT: u64 = 128 * 1024;

/// Returns the record that the kernel programs would have made of the execution of a process. Returns `None` if it has exited, or
/// is not a CNI process. A daemon that a plugin has left behind has the plugin's name and environment, but no runtime waits for it:
/// it is recognized by its parent.
pub(crate) fn running_plugin(pid: u32) -> Option<CniExec> {
    /// Parent of orphaned processes; 0 if the parent is outside of this PID namespace.
    const INIT: u32 = 1;
    let stat = processes::stat(pid).filter(|stat| stat.parent > INIT)?;
    let mut record = CniExec::new_zeroed();
    record.header.at_ns = stat.started.0;
    record.task.tgid = pid;
    record.task.ppid = stat.parent;
    fill(&mut record);
    (!text(&record.command).is_empty()).then_some(record)
}

/// Fills the fields of a record from `/proc`. They remain empty if the process has exited.
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

/// Copies a text as the kernel programs do: truncated, and terminated by a NUL if there is room for it.
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
    fn recognizes_plugin_by_its_environment() {
        let run = |name: &str| {
            let mut cat = Command::new("cat");
            let cat = cat.env(name, "ADD").stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut cat = cat.spawn().expect("cat starts");
            // A response shows that the execution is complete; before that there is no environment.
            cat.stdin.as_ref().expect("piped").write_all(b"?").expect("it reads");
            cat.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("it responds");
            let record = running_plugin(cat.id());
            drop(cat.stdin.take());
            cat.wait().expect("it exits");
            record
        };
        let record = run("CNI_COMMAND").expect("a plugin");
        assert_eq!((text(&record.command), record.task.ppid), (&b"ADD"[..], id()));
        assert!(text(&record.path).ends_with(b"/cat") && record.header.at_ns > 0);
        assert!(run("CNI_COMMANDS").is_none());
        // Process 1 has no parent that waits for it.
        assert!(running_plugin(1).is_none());
    }
}
