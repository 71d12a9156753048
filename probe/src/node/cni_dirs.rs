//! Determines which directory the container runtime actually reads. The runtime watches the directory of its
//! network configurations with inotify(7), and the kernel shows what a process watches (proc_pid_fdinfo(5)).
//! Unlike a default or configured path, this shows what the runtime uses.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use inotify::{Inotify, WatchMask};
use probe_engine::{ConfFile, Gap, Observation, ProcessClass};
use tokio::sync::watch;

use super::processes::Found;
use super::pulse::Watched;
use crate::clock;
use crate::feed::{Feed, Seen};
use crate::settings::Settings;
use crate::text::clean;

/// Interval between two searches.
const INTERVAL: Duration = Duration::from_secs(30);
/// Delay after the start of a runtime until it watches its directory: containerd takes 1 s.
const START: Duration = Duration::from_secs(3);
/// Most open files of a runtime that are examined.
const FILES: usize = 4096;
/// Directories below which the watched directory is searched, and the depth of the search.
const ROOTS: &[(&str, usize)] =
    &[("/etc", 5), ("/run", 4), ("/opt", 5), ("/var/snap", 6), ("/var/lib", 7), ("/usr/local", 5)];
/// Longest path that is reported.
const PATH: usize = 256;
/// Most directories that a search reads.
const DIRECTORIES: usize = 20_000;
/// Directories with image layers and pod volumes: large, and without configuration of the runtime.
const SKIPPED: &[&str] = &["containerd", "containers", "docker", "kubelet", "overlay2", "snapshots"];

/// Inode number and device of a directory, as fdinfo shows them for an inotify watch.
type DirId = (u64, u64);

/// Determines which directory the runtimes among `processes` read, and stores it in the settings.
pub(crate) fn learn(settings: &Settings, processes: &[Found]) {
    let runtimes = processes.iter().filter(|found| found.class == ProcessClass::Runtime);
    if let Some(dir) = find(settings, &runtimes.map(|found| found.actor.pid).collect::<Vec<_>>()) {
        settings.cni.learn_conf(dir);
    }
}

/// Determines the directory again after the start of a runtime and every 30 s, and reports a gap while it
/// differs from the configured one. Runs forever.
pub(crate) async fn watch(settings: Arc<Settings>, mut watched: watch::Receiver<Watched>, feed: Feed) {
    const SIGNAL: &str = "cni.config.dir";
    let mut has_gap = false;
    loop {
        match tokio::time::timeout(INTERVAL, watched.changed()).await {
            Ok(Ok(())) => tokio::time::sleep(START).await,
            Ok(Err(_)) => return,
            Err(_) => {}
        }
        let runtimes = runtimes(&watched.borrow_and_update());
        let shared = Arc::clone(&settings);
        // The search may take long on a slow disk.
        let found = tokio::task::spawn_blocking(move || find(&shared, &runtimes)).await;
        let Ok(found) = found else { return };
        if let Some(dir) = &found {
            settings.cni.learn_conf(dir.clone());
        }
        // A directory that was set by a flag is not replaced.
        let other = found.filter(|dir| *dir != settings.cni.conf());
        if other.is_some() == has_gap {
            continue;
        }
        has_gap = other.is_some();
        let signal = SIGNAL.to_owned();
        let observation = match other {
            Some(dir) => {
                let why = format!(
                    "--cni-conf-dir is {}, but the container runtime reads {}",
                    settings.cni.conf().display(),
                    clean(dir.as_os_str().as_bytes(), PATH)
                );
                Observation::Gap(Gap { signal, why, blind: false })
            }
            None => Observation::GapClosed { signal },
        };
        if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
            return;
        }
    }
}

/// Returns the PIDs of the container runtimes.
fn runtimes(watched: &Watched) -> Vec<u32> {
    let runtimes = watched.iter().filter(|(_, (_, class))| *class == ProcessClass::Runtime);
    runtimes.map(|(pid, _)| *pid).collect()
}

/// Returns the directory that runtimes watch instead of the configured one; `None` if they watch the
/// configured one, or if it cannot be determined.
fn find(settings: &Settings, runtimes: &[u32]) -> Option<PathBuf> {
    let watched: BTreeSet<DirId> = runtimes.iter().flat_map(|pid| watched_by(*pid)).collect();
    let configured = settings.on_host(&settings.cni.conf());
    if watched.is_empty() || dir_id(&configured).is_some_and(|id| watched.contains(&id)) {
        return None;
    }
    let mut found = search(settings, &watched);
    // CRI-O also watches the plugin directories.
    if found.len() > 1 {
        found.retain(|dir| has_configurations(&settings.on_host(dir)));
    }
    found.pop().filter(|_| found.is_empty())
}

/// Returns what a process watches with inotify.
fn watched_by(pid: u32) -> Vec<DirId> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().take(FILES);
    let inotify = files
        .filter(|file| fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:inotify"));
    let info = inotify.filter_map(|file| {
        let number = file.file_name();
        fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", number.to_str()?)).ok()
    });
    info.flat_map(|text| text.lines().filter_map(parse).collect::<Vec<_>>()).collect()
}

/// Parses a line of fdinfo: `inotify wd:1 ino:9d3f sdev:800013 mask:800afce …`, with hexadecimal numbers.
fn parse(line: &str) -> Option<DirId> {
    let words = line.strip_prefix("inotify ")?;
    let number = |name: &str| {
        let value = words.split(' ').find_map(|word| word.strip_prefix(name))?;
        u64::from_str_radix(value, 16).ok()
    };
    Some((number("ino:")?, number("sdev:")?))
}

/// Returns the id of a directory by watching it briefly: stat(2) returns other numbers on some file systems.
fn dir_id(dir: &Path) -> Option<DirId> {
    let inotify = Inotify::init().ok()?;
    inotify.watches().add(dir, WatchMask::DELETE_SELF | WatchMask::ONLYDIR).ok()?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", inotify.as_raw_fd())).ok()?;
    info.lines().find_map(parse)
}

/// Returns the directories of the host that are among `watched` and may contain network configurations.
fn search(settings: &Settings, watched: &BTreeSet<DirId>) -> Vec<PathBuf> {
    let inodes: BTreeSet<u64> = watched.iter().map(|(inode, _)| *inode).collect();
    let mut found = Vec::new();
    let mut todo: Vec<(PathBuf, usize)> =
        ROOTS.iter().rev().map(|(root, depth)| (PathBuf::from(root), *depth)).collect();
    for _ in 0..DIRECTORIES {
        let Some((dir, depth)) = todo.pop() else { break };
        for entry in fs::read_dir(settings.on_host(&dir)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let skipped = SKIPPED.iter().any(|skipped| name == *skipped) && dir != Path::new("/etc");
            if skipped || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = dir.join(name);
            let on_host = settings.on_host(&path);
            // The entry of a mount point has the inode number of the directory below the mount.
            let inode = || fs::metadata(&on_host).map_or(0, |metadata| metadata.ino());
            let may_match = inodes.contains(&entry.ino()) || inodes.contains(&inode());
            if may_match && is_candidate(&path) && dir_id(&on_host).is_some_and(|id| watched.contains(&id)) {
                found.push(path.clone());
            }
            if depth > 1 {
                todo.push((path, depth - 1));
            }
        }
    }
    found
}

/// Returns whether a directory may contain network configurations. Runtimes also watch device descriptions
/// (CDI), plugins of the runtime itself (NRI) and registry certificates.
fn is_candidate(dir: &Path) -> bool {
    let is_in = |name: &str| dir.iter().any(|part| part == name);
    !is_in("cdi") && !is_in("nri") && !is_in("certs.d")
}

fn has_configurations(dir: &Path) -> bool {
    let mut names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.any(|name| ConfFile::is_read(&name.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use std::process;

    use probe_engine::Actor;

    use crate::settings::tests::settings;

    use super::*;

    #[test]
    fn finds_the_directory_that_a_process_watches() {
        let root = tempfile::tempdir().expect("a directory");
        let flag = root.path().to_str().expect("UTF-8");
        let settings = || settings(&["--host-root", flag]);
        let own = [process::id()];
        for dir in ["etc/cni/net.d", "etc/cdi", "var/lib/some/where/net.d"] {
            fs::create_dir_all(root.path().join(dir)).expect("created");
        }
        let watch = |dir: &str| {
            let inotify = Inotify::init().expect("inotify");
            inotify.watches().add(root.path().join(dir), WatchMask::CREATE).expect("watched");
            inotify
        };
        let _devices = watch("etc/cdi");
        {
            let _elsewhere = watch("var/lib/some/where/net.d");
            let settings = settings();
            let actor = Actor { pid: process::id(), name: "containerd".to_owned() };
            learn(&settings, &[Found { actor, class: ProcessClass::Runtime }]);
            assert_eq!(settings.cni.conf(), Path::new("/var/lib/some/where/net.d"));
        }
        // Only the device descriptions are still watched.
        assert_eq!(find(&settings(), &own), None);
        let _known = watch("etc/cni/net.d");
        let _other = watch("var/lib/some/where/net.d");
        assert_eq!(find(&settings(), &own), None);
        assert_eq!(find(&settings(), &[]), None);
    }

    #[test]
    fn parses_only_lines_of_inotify_watches() {
        let line = "inotify wd:1 ino:9d3f sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8";
        assert_eq!(parse(line), Some((0x9d3f, 0x80_0013)));
        for bad in ["pos:\t0", "inotify wd:1 ino:x sdev:1", "inotify wd:1", ""] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
