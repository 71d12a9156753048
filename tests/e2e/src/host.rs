//! What a kubelet and a runtime change of the machine itself, whatever namespaces they are in.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// What the kubelet writes, whatever it is told: the machine gets its own values back.
const SYSCTLS: &[&str] = &[
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// The machine as it was; it is so again when this is dropped.
pub(crate) struct Host {
    sysctls: Vec<(PathBuf, String)>,
    /// Where runtimes put their containers. Made here, for several may share them.
    cgroups: Vec<PathBuf>,
}

impl Host {
    /// Before anything runs.
    pub(crate) fn borrow() -> Result<Self> {
        let read = |name: &&str| {
            let path = Path::new("/proc/sys").join(name);
            fs::read_to_string(&path).map(|value| (path, value)).context("read a sysctl")
        };
        let sysctls = SYSCTLS.iter().map(read).collect::<Result<_>>()?;
        let mut host = Self { sysctls, cgroups: Vec::new() };
        for dir in missing_cgroups() {
            fs::create_dir_all(&dir).with_context(|| format!("make the cgroup {}", dir.display()))?;
            host.cgroups.push(dir);
        }
        Ok(host)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for (path, value) in &self.sysctls {
            let _ = fs::write(path, value);
        }
        self.cgroups.iter().for_each(|dir| remove_cgroup(dir));
    }
}

/// In every hierarchy that has no such place yet.
fn missing_cgroups() -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    // With version 2 the root is the one hierarchy, and the directories in it are groups.
    let hierarchies = if root.join("cgroup.controllers").exists() {
        vec![root]
    } else {
        fs::read_dir(&root).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let places = hierarchies.into_iter().filter(|dir| dir.join("cgroup.procs").exists());
    places.map(|dir| dir.join("k8s.io")).filter(|dir| !dir.exists()).collect()
}

/// Removes a group and those inside; one that has processes stays.
fn remove_cgroup(dir: &Path) {
    for inner in fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&inner.path());
    }
    let _ = fs::remove_dir(dir);
}
