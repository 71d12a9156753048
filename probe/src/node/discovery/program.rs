//! The processes whose command lines and files say what the node uses.

use std::collections::BTreeMap;
use std::fs;

use probe_engine::ProcessClass;

use super::proxy::Proxy;
use crate::node::processes::{self, Found, is_of_the_host};

/// Longest command line that is read: a kubelet's has a few kilobytes.
const COMMAND_LINE: usize = 128 * 1024;
/// Most programs that are looked at; a node has a kubelet and one or two runtimes.
const PROGRAMS: usize = 64;
/// The variables that are kept of an environment: where a distribution keeps its files. Besides the proxy nothing else of it
/// is kept, for it may hold secrets.
const VARIABLES: &[&str] = &["K3S_DATA_DIR", "RKE2_DATA_DIR", "SNAP_COMMON", "SNAP_DATA"];

/// One that only root can have started, and not in a container: a pod on the host network may run a program of any name.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// Name of the file that it executes.
    pub(crate) name: String,
    pub(crate) class: ProcessClass,
    /// Its command line, the program first.
    pub(crate) words: Vec<String>,
    pub(crate) variables: BTreeMap<String, String>,
    /// The proxy of its environment.
    pub(crate) proxy: Option<Proxy>,
}

impl Program {
    /// Those of the kubelets and runtimes among `processes`.
    pub(crate) fn all(processes: &[Found]) -> Vec<Self> {
        let matters = |found: &&Found| {
            matches!(found.class, ProcessClass::Kubelet | ProcessClass::Runtime)
                && is_of_the_host(found.actor.pid)
        };
        let mut programs: Vec<_> = processes.iter().filter(matters).collect();
        oldest_first(&mut programs);
        programs.into_iter().take(PROGRAMS).filter_map(Self::read).collect()
    }

    /// `None` when it is gone.
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

    /// The value of a flag of its command line.
    pub(super) fn flag(&self, name: &str) -> Option<&str> {
        flag(&self.words, name)
    }
}

/// Of several kubelets the oldest is the node's, which holds its ports: installers and scanners run `kubelet --version`.
fn oldest_first(processes: &mut [&Found]) {
    processes.sort_by_cached_key(|found| processes::stat(found.actor.pid).map(|stat| stat.started));
}

fn variable<'a>(environment: &'a [String], name: &str) -> Option<&'a str> {
    environment.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

/// The NUL-terminated strings of a file of a process.
fn strings(pid: u32, file: &str) -> Option<Vec<String>> {
    let mut bytes = fs::read(format!("/proc/{pid}/{file}")).ok()?;
    bytes.truncate(COMMAND_LINE);
    let words = bytes.strip_suffix(b"\0").unwrap_or(&bytes).split(|byte| *byte == 0);
    Some(words.map(|word| String::from_utf8_lossy(word).into_owned()).collect())
}

/// The value of a flag in both of its forms, with one dash or two; the last one counts.
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
    fn the_oldest_of_several_kubelets_comes_first() {
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
