//! Which directory the runtime really reads: it watches the one with its network configurations by inotify(7), and the
//! kernel shows what a process watches (proc_pid_fdinfo(5)). A path is a guess; that is a fact.

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

/// Between two looks.
const LOOK: Duration = Duration::from_secs(30);
/// How long a runtime that was started has until it watches: containerd takes a second.
const START: Duration = Duration::from_secs(3);
/// Most open files of a runtime that are looked at.
const FILES: usize = 4096;
/// Where a directory is searched for, and how deep.
const ROOTS: &[(&str, usize)] =
    &[("/etc", 5), ("/run", 4), ("/opt", 5), ("/var/snap", 6), ("/var/lib", 7), ("/usr/local", 5)];
/// Longest path that is shown.
const PATH: usize = 256;
/// Most directories that such a search enters.
const DIRECTORIES: usize = 20_000;
/// Trees with the layers of images and the volumes of pods: large, and without a configuration of the runtime's.
const SKIPPED: &[&str] = &["containerd", "containers", "docker", "kubelet", "overlay2", "snapshots"];

/// A directory as the kernel names it among what a process watches: inode number and device.
type Place = (u64, u64);

/// Learns now what the runtimes among these processes read.
pub(crate) fn learn(settings: &Settings, processes: &[Found]) {
    let runtimes = processes.iter().filter(|found| found.class == ProcessClass::Runtime);
    if let Some(dir) = find(settings, &runtimes.map(|found| found.actor.pid).collect::<Vec<_>>()) {
        settings.cni.learn_conf(dir);
    }
}

/// Learns again when a runtime was started, and now and then. Runs for ever.
pub(crate) async fn watch(settings: Arc<Settings>, mut watched: watch::Receiver<Watched>, feed: Feed) {
    const SIGNAL: &str = "cni.config.dir";
    let mut has_gap = false;
    loop {
        match tokio::time::timeout(LOOK, watched.changed()).await {
            Ok(Ok(())) => tokio::time::sleep(START).await,
            Ok(Err(_)) => return,
            Err(_) => {}
        }
        let runtimes = runtimes(&watched.borrow_and_update());
        let shared = Arc::clone(&settings);
        // A search takes its time on a slow disk.
        let found = tokio::task::spawn_blocking(move || find(&shared, &runtimes)).await;
        let Ok(found) = found else { return };
        if let Some(dir) = &found {
            settings.cni.learn_conf(dir.clone());
        }
        // What was named by hand stays.
        let other = found.filter(|dir| *dir != settings.cni.conf());
        if other.is_some() == has_gap {
            continue;
        }
        has_gap = other.is_some();
        let signal = SIGNAL.to_owned();
        let observation = match other {
            Some(dir) => {
                let why = format!(
                    "--cni-conf-dir names {}, and the container runtime reads {}",
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

/// Process ids of the container runtimes.
fn runtimes(watched: &Watched) -> Vec<u32> {
    let runtimes = watched.iter().filter(|(_, (_, class))| *class == ProcessClass::Runtime);
    runtimes.map(|(pid, _)| *pid).collect()
}

/// Returns the directory that runtimes watch instead of the known one; `None` where they watch that, and where it cannot be
/// determined.
fn find(settings: &Settings, runtimes: &[u32]) -> Option<PathBuf> {
    let watched: BTreeSet<Place> = runtimes.iter().flat_map(|pid| watched_by(*pid)).collect();
    let known = settings.on_host(&settings.cni.conf());
    if watched.is_empty() || place(&known).is_some_and(|place| watched.contains(&place)) {
        return None;
    }
    let mut found = search(settings, &watched);
    // The plugin directories are watched, too (CRI-O).
    if found.len() > 1 {
        found.retain(|dir| holds_configurations(&settings.on_host(dir)));
    }
    found.pop().filter(|_| found.is_empty())
}

/// What a process watches by inotify.
fn watched_by(pid: u32) -> Vec<Place> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().take(FILES);
    let inotify = files
        .filter(|file| fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:inotify"));
    let info = inotify.filter_map(|file| {
        let number = file.file_name();
        fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", number.to_str()?)).ok()
    });
    info.flat_map(|text| text.lines().filter_map(parse).collect::<Vec<_>>()).collect()
}

/// `inotify wd:1 ino:9d3f sdev:800013 mask:800afce …`, numbers in hexadecimal.
fn parse(line: &str) -> Option<Place> {
    let words = line.strip_prefix("inotify ")?;
    let number = |name: &str| {
        let value = words.split(' ').find_map(|word| word.strip_prefix(name))?;
        u64::from_str_radix(value, 16).ok()
    };
    Some((number("ino:")?, number("sdev:")?))
}

/// How the kernel names a directory, by watching it for a moment: stat(2) gives other numbers on some file systems.
fn place(dir: &Path) -> Option<Place> {
    let inotify = Inotify::init().ok()?;
    inotify.watches().add(dir, WatchMask::DELETE_SELF | WatchMask::ONLYDIR).ok()?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", inotify.as_raw_fd())).ok()?;
    info.lines().find_map(parse)
}

/// The directories of the host that are among `watched` and may hold network configurations.
fn search(settings: &Settings, watched: &BTreeSet<Place>) -> Vec<PathBuf> {
    let numbers: BTreeSet<u64> = watched.iter().map(|(inode, _)| *inode).collect();
    let mut found = Vec::new();
    let mut left = DIRECTORIES;
    let mut todo: Vec<(PathBuf, usize)> =
        ROOTS.iter().rev().map(|(root, depth)| (PathBuf::from(root), *depth)).collect();
    while let Some((dir, depth)) = todo.pop() {
        let Some(less) = left.checked_sub(1) else { break };
        left = less;
        for entry in fs::read_dir(settings.on_host(&dir)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let skipped = SKIPPED.iter().any(|skipped| name == *skipped) && dir != Path::new("/etc");
            if skipped || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = dir.join(name);
            let on_host = settings.on_host(&path);
            // A mount point has the number of what it hides.
            let inode = || fs::metadata(&on_host).map_or(0, |metadata| metadata.ino());
            let may_be = numbers.contains(&entry.ino()) || numbers.contains(&inode());
            if may_be && may_hold(&path) && place(&on_host).is_some_and(|place| watched.contains(&place)) {
                found.push(path.clone());
            }
            if depth > 1 {
                todo.push((path, depth - 1));
            }
        }
    }
    found
}

/// Runtimes also watch where devices are described (CDI), and plugins for the runtime itself (NRI).
fn may_hold(dir: &Path) -> bool {
    let of = |name: &str| dir.iter().any(|part| part == name);
    !of("cdi") && !of("nri") && !of("certs.d")
}

fn holds_configurations(dir: &Path) -> bool {
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
    fn the_directory_that_a_process_watches_is_found_wherever_it_lies() {
        let root = tempfile::tempdir().expect("a directory");
        let flag = root.path().to_str().expect("a text");
        let settings = || settings(&["--host-root", flag]);
        let own = [process::id()];
        for dir in ["etc/cni/net.d", "etc/cdi", "var/lib/some/where/net.d"] {
            fs::create_dir_all(root.path().join(dir)).expect("made");
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
        // Only that of devices is left.
        assert_eq!(find(&settings(), &own), None);
        let _known = watch("etc/cni/net.d");
        let _other = watch("var/lib/some/where/net.d");
        assert_eq!(find(&settings(), &own), None);
        assert_eq!(find(&settings(), &[]), None);
    }

    #[test]
    fn only_a_watch_is_read() {
        let line = "inotify wd:1 ino:9d3f sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8";
        assert_eq!(parse(line), Some((0x9d3f, 0x80_0013)));
        for bad in ["pos:\t0", "inotify wd:1 ino:x sdev:1", "inotify wd:1", ""] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
