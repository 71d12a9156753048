//! Changes that a kubelet and a runtime make to the machine itself, regardless of their namespaces.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Settings that the kubelet writes regardless of its configuration; their previous values are restored.
const SYSCTLS: &[&str] = &[
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// The previous state of the machine, which is restored when this is dropped.
pub(crate) struct MachineState {
    sysctls: Vec<(PathBuf, String)>,
    /// Parent cgroups of the runtimes' containers. They are created here because several runtimes may share them.
    cgroups: Vec<PathBuf>,
}

impl MachineState {
    /// Saves the settings and creates the cgroups, before anything else runs.
    pub(crate) fn save() -> Result<Self> {
        let read = |name: &&str| {
            let path = Path::new("/proc/sys").join(name);
            fs::read_to_string(&path).map(|value| (path, value)).context("read a sysctl")
        };
        let sysctls = SYSCTLS.iter().map(read).collect::<Result<_>>()?;
        let mut state = Self { sysctls, cgroups: Vec::new() };
        for dir in missing_cgroups() {
            fs::create_dir_all(&dir).with_context(|| format!("create the cgroup {}", dir.display()))?;
            state.cgroups.push(dir);
        }
        Ok(state)
    }
}

impl Drop for MachineState {
    fn drop(&mut self) {
        for (path, value) in &self.sysctls {
            let _ = fs::write(path, value);
        }
        self.cgroups.iter().for_each(|dir| remove_cgroup(dir));
    }
}

/// Returns the parent cgroup of containers in each hierarchy where it does not exist.
fn missing_cgroups() -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    // cgroup v2 has one hierarchy, whose subdirectories are groups.
    let hierarchies = if root.join("cgroup.controllers").exists() {
        vec![root]
    } else {
        fs::read_dir(&root).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let places = hierarchies.into_iter().filter(|dir| dir.join("cgroup.procs").exists());
    places.map(|dir| dir.join("k8s.io")).filter(|dir| !dir.exists()).collect()
}

/// Removes a cgroup and those inside; one that has processes stays.
fn remove_cgroup(dir: &Path) {
    for inner in fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&inner.path());
    }
    let _ = fs::remove_dir(dir);
}
