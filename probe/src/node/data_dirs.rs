//! Data directories of etcd and containerd.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use probe_engine::ProcessClass;

use crate::settings::Settings;

/// Returns the directories on the host in which an etcd keeps its data and its log, or containerd its images
/// and containers, determined from the files that the process has open. Returns none for other classes.
pub(super) fn of(settings: &Settings, pid: u32, class: ProcessClass) -> Vec<String> {
    const CONTAINERD_DATABASE: &str = "io.containerd.metadata.v1.bolt/meta.db";
    let is_data = |path: &Path| match class {
        ProcessClass::Etcd => path.ends_with("member/snap/db") || path.extension() == Some("wal".as_ref()),
        ProcessClass::Runtime => path.ends_with(CONTAINERD_DATABASE),
        _ => false,
    };
    if !matches!(class, ProcessClass::Etcd | ProcessClass::Runtime) {
        return Vec::new();
    }
    // These are opened at start, so they have low numbers; an etcd has thousands of client sockets.
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().take(256);
    let dir_of = |open: fs::DirEntry| {
        let path = fs::read_link(open.path()).ok()?;
        if !is_data(&path) {
            return None;
        }
        let file = fs::metadata(open.path()).ok()?;
        let is_file = |other: fs::Metadata| (other.dev(), other.ino()) == (file.dev(), file.ino());
        // In a container the path may have components in front of the host's path.
        let path = path.to_str()?;
        let mut suffixes = path.match_indices('/').map(|(at, _)| Path::new(&path[at..]));
        let is_on_host = |path: &&Path| fs::metadata(settings.on_host(path)).is_ok_and(is_file);
        let dir = suffixes.find(is_on_host)?.parent()?;
        let data = if dir.ends_with("member/snap") || dir.ends_with("member/wal") {
            dir.parent()?.parent()?
        } else if class == ProcessClass::Runtime {
            dir.parent()?
        } else {
            dir
        };
        data.to_str().map(str::to_owned)
    };
    files.filter_map(dir_of).collect()
}
