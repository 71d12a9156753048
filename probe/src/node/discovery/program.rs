//! The processes whose command lines and files say what the node uses.

use std::collections::BTreeMap;
use std::fs;

use probe_engine::ProcessClass;

use super::proxy;
use crate::node::processes::{Found, is_of_the_host};

/// Longest command line that is read: a kubelet's has a few kilobytes.
const COMMAND_LINE: usize = 128 * 1024;
/// Most programs that are looked at; a node has a kubelet and one or two runtimes.
const PROGRAMS: usize = 64;
/// The variables that are read of an environment: where a distribution keeps its files. Besides those of a proxy nothing else
/// of it is kept, for it may hold secrets.
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
}

impl Program {
    /// Those of the kubelets and runtimes among `processes`.
    pub(crate) fn all(processes: &[Found]) -> Vec<Self> {
        let matters = |found: &&Found| {
            matches!(found.class, ProcessClass::Kubelet | ProcessClass::Runtime)
                && is_of_the_host(found.actor.pid)
        };
        processes.iter().filter(matters).take(PROGRAMS).filter_map(Self::read).collect()
    }

    /// `None` when it is gone.
    fn read(found: &Found) -> Option<Self> {
        let pid = found.actor.pid;
        let words = strings(pid, "cmdline")?;
        let environment = strings(pid, "environ").unwrap_or_default();
        let wanted = |line: &String| {
            let (name, value) = line.split_once('=')?;
            let is_set = proxy::PROXY.contains(&name) && !value.is_empty();
            let value = if is_set { "set" } else { value };
            let is_wanted = is_set || proxy::EXCEPTIONS.contains(&name) || VARIABLES.contains(&name);
            is_wanted.then(|| (name.to_owned(), value.to_owned()))
        };
        Some(Self {
            name: found.actor.name.clone(),
            class: found.class,
            words,
            variables: environment.iter().filter_map(wanted).collect(),
        })
    }

    /// The value of a flag of its command line.
    pub(super) fn flag(&self, name: &str) -> Option<&str> {
        flag(&self.words, name)
    }
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
