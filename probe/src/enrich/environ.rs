//! The variables of a plugin from `/proc`, where the kernel half may not read them.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;

use probe_common::CniExec;

/// Most of an environment that is read: the kernel half looks at as much.
const ENVIRONMENT: u64 = 128 * 1024;

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
