//! The kubelet and runtime processes, from whose command lines and environments settings are read.

use std::collections::BTreeMap;
use std::fs;

use probe_engine::ProcessClass;

use super::proxy::Proxy;
use crate::node::processes::{self, Found, is_host_root_process};

/// Maximum size of a command line or environment, bytes: a kubelet's command line has a few kilobytes.
const MAX_FILE_LEN: usize = 128 * 1024;
/// Maximum number of programs; a node has a kubelet and one or two runtimes.
const MAX_PROGRAMS: usize = 64;
/// Environment variables that are kept: the data directories of distributions. Apart from the proxy, no other variable is kept
/// because it may contain a secret.
const VARIABLES: &[&str] = &["K3S_DATA_DIR", "RKE2_DATA_DIR", "SNAP_COMMON", "SNAP_DATA"];

/// A program that root started outside containers: a pod on the host network may run a program of any name.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// File name of the executable.
    pub(crate) name: String,
    pub(crate) class: ProcessClass,
    /// Its command line, including the program.
    pub(crate) words: Vec<String>,
    /// The environment variables in [`VARIABLES`] that are set.
    pub(crate) variables: BTreeMap<String, String>,
    /// The proxy in its environment.
    pub(crate) proxy: Option<Proxy>,
}

impl Program {
    /// Returns the kubelets and runtimes among `processes`, oldest first.
    pub(crate) fn all(processes: &[Found]) -> Vec<Self> {
        let matters = |found: &&Found| {
            matches!(found.class, ProcessClass::Kubelet | ProcessClass::Runtime)
                && is_host_root_process(found.actor.pid)
        };
        let mut programs: Vec<_> = processes.iter().filter(matters).collect();
        oldest_first(&mut programs);
        programs.into_iter().take(MAX_PROGRAMS).filter_map(Self::read).collect()
    }

    /// Returns `None` if the process has exited.
    fn read(found: &Found) -> Option<Self> {
        let pid = found.actor.pid;
        let words = strings(pid, "cmdline")?;
        let environment = strings(pid, "environ").unwrap_or_default();
        let kept = |name: &&str| Some(((*name).to_owned(), variable(&environment, name)?.to_owned()));
        Some(Self {
            name: found.actor.name.clone(),
            class: found.class,
            words,
            variables: VARIABLES.iter().filter_map(kept).collect(),
            proxy: Proxy::of(|name| variable(&environment, name)),
        })
    }

    /// Returns the value of a flag on the command line.
    pub(super) fn flag(&self, name: &str) -> Option<&str> {
        flag(&self.words, name)
    }
}

/// Sorts processes by start time. Of several kubelets the oldest is the node's: it holds the kubelet's ports, while installers
/// and scanners run short-lived commands such as `kubelet --version`.
fn oldest_first(processes: &mut [&Found]) {
    processes.sort_by_cached_key(|found| processes::stat(found.actor.pid).map(|stat| stat.started));
}

fn variable<'a>(environment: &'a [String], name: &str) -> Option<&'a str> {
    environment.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

/// Returns the NUL-terminated strings in a file of `/proc/PID`.
fn strings(pid: u32, file: &str) -> Option<Vec<String>> {
    let mut bytes = fs::read(format!("/proc/{pid}/{file}")).ok()?;
    bytes.truncate(MAX_FILE_LEN);
    let words = bytes.strip_suffix(b"\0").unwrap_or(&bytes).split(|byte| *byte == 0);
    Some(words.map(|word| String::from_utf8_lossy(word).into_owned()).collect())
}

/// Returns the value of a flag in the forms `--name=value` and `--name value`, with one dash or two. The last occurrence wins.
pub(super) fn flag<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    let bare = |word: &'a String| word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
    words.iter().enumerate().rev().find_map(|(at, word)| match bare(word)?.split_once('=') {
        Some((known, value)) => (known == name).then_some(value),
        None => (bare(word)? == name).then(|| words.get(at + 1).map(String::as_str)).flatten(),
    })
}

#[cfg(test)]
mod tests {
    use probe_engine::Actor;

    use super::*;

    #[test]
    fn oldest_kubelet_is_first() {
        let found =
            |pid| Found { actor: Actor { pid, name: "kubelet".to_owned() }, class: ProcessClass::Kubelet };
        let (own, parent) = (found(std::process::id()), found(std::os::unix::process::parent_id()));
        let started = |found: &Found| processes::stat(found.actor.pid).expect("it runs").started;
        assert!(started(&parent) < started(&own), "both started within 10 ms");
        for mut order in [[&own, &parent], [&parent, &own]] {
            oldest_first(&mut order);
            assert_eq!(order.map(|found| found.actor.pid), [parent.actor.pid, own.actor.pid]);
        }
    }
}
