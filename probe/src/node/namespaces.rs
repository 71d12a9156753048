//! Network namespaces that runtimes have bind-mounted, and the ids that the agent's own namespace has for them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use probe_engine::{NameState, NetnsName, NetnsSeen, Observation};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::netlink;
use crate::clock;
use crate::feed::{Feed, Seen};
use crate::settings::Settings;
use crate::text::clean;

/// Most namespaces that are read: twice those of 110 pods and of as many leftovers.
const MOST: usize = 512;
/// Longest path that is reported.
const PATH: usize = 256;
/// Delay between a change of the mounts and the next read: each pod that starts mounts ten file systems.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Interval between two reads without a change of the mounts: a file that is not a mount point causes none.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same where changes of the mounts are not reported.
const UNWATCHED_INTERVAL: Duration = Duration::from_secs(1);
/// Age from which an unbound file counts as stale: a runtime creates the file and binds the namespace to it
/// within milliseconds.
const STALE_AGE: Duration = Duration::from_secs(10);
/// `NSFS_MAGIC`, include/uapi/linux/magic.h
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Paths of the namespaces, and their inode numbers.
type Names = BTreeMap<String, u32>;

/// Returns the inode numbers of the namespaces that are bound in the directory of the runtimes.
pub(crate) fn bound(settings: &Settings) -> BTreeSet<u32> {
    names(settings).into_values().collect()
}

fn names(settings: &Settings) -> Names {
    // In a container, the mounts of the host are those of its init process.
    let mounts = fs::read_to_string(mountinfo(settings)).unwrap_or_default();
    parse(&mounts, &settings.cni.netns())
}

fn mountinfo(settings: &Settings) -> &'static str {
    if settings.host_root == Path::new("/") { "/proc/self/mountinfo" } else { "/proc/1/mountinfo" }
}

/// Parses mountinfo (proc_pid_mountinfo(5)): the fourth field is the root (`net:[4026532177]`), the fifth the
/// mount point, and the type of the file system follows a single dash. The same mount may be listed below
/// /run and below /var/run, and once for each shared parent; it is returned once.
fn parse(mounts: &str, dir: &Path) -> Names {
    let namespace = |line: &str| {
        let mut fields = line.split(' ');
        let (root, point) = (fields.nth(3)?, Path::new(fields.next()?));
        let point = point.strip_prefix("/var").map_or(point.to_owned(), |rest| Path::new("/").join(rest));
        let dir = dir.strip_prefix("/var").map_or(dir.to_owned(), |rest| Path::new("/").join(rest));
        let is_nsfs = line.split(" - ").nth(1)?.starts_with("nsfs ");
        let inum = root.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()?;
        (point.starts_with(dir) && is_nsfs).then(|| (clean(point.as_os_str().as_bytes(), PATH), inum))
    };
    mounts.lines().filter_map(namespace).take(MOST).collect()
}

/// Returns what a path is on the host, and whether it is the same in the mount namespace of `seen_by`, the
/// process that passes it to a plugin; 0 if that is unknown.
pub(crate) fn look(settings: &Settings, path: &str, seen_by: u32) -> NetnsSeen {
    let path = Path::new(path);
    let here = settings.on_host(path);
    let inum = fs::metadata(&here).ok().filter(|_| is_nsfs(&here)).map(|file| file.ino());
    let Some(inum) = inum else {
        return if here.exists() { NetnsSeen::NoNamespace } else { NetnsSeen::Missing };
    };
    // `/proc/PID/root` resolves in the mount namespace of the process.
    let there = Path::new("/proc").join(seen_by.to_string()).join("root");
    let there = there.join(path.strip_prefix("/").unwrap_or(path));
    if seen_by != 0 && there.exists() && !is_nsfs(&there) {
        return NetnsSeen::Hidden;
    }
    NetnsSeen::Namespace { inum: u32::try_from(inum).unwrap_or(0) }
}

fn is_nsfs(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: all-zero bytes are a valid `statfs`.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is NUL-terminated, and `stat` is live and of the type that the call fills.
    let result = unsafe { libc::statfs(path.as_ptr(), &raw mut stat) };
    result == 0 && u64::try_from(stat.f_type) == Ok(NSFS_MAGIC)
}

/// Sends namespaces that are bound and unbound, and stale files. Runs forever.
pub(crate) async fn watch(settings: Arc<Settings>, feed: Feed) {
    let mut known = names(&settings);
    let mut stale = BTreeSet::new();
    // The kernel reports a change of mounts as an exceptional condition: proc_pid_mountinfo(5).
    let mounts = File::open(mountinfo(&settings)).ok();
    // SAFETY: a file owns its descriptor, keeps it until it is dropped, and always returns the same one.
    let register = |file| unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
    let mounts = mounts.and_then(|file| register(file).ok());
    loop {
        let mut changes = Vec::new();
        stale_files(&settings, &known, &mut stale, &mut changes);
        let now = names(&settings);
        for (path, inum) in known.iter().filter(|(path, inum)| now.get(*path) != Some(inum)) {
            changes.push(name(path, *inum, NameState::Unbound));
        }
        for (path, inum) in now.iter().filter(|(path, inum)| known.get(*path) != Some(inum)) {
            changes.push(name(path, *inum, NameState::Bound));
        }
        known = now;
        for observation in changes {
            if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                return;
            }
        }
        match &mounts {
            Some(mounts) => {
                let change = tokio::time::timeout(INTERVAL, mounts.ready(Interest::PRIORITY)).await;
                if let Ok(Ok(mut ready)) = change {
                    ready.clear_ready();
                    tokio::time::sleep(DEBOUNCE).await;
                }
            }
            None => tokio::time::sleep(UNWATCHED_INTERVAL).await,
        }
    }
}

fn name(path: &str, inum: u32, state: NameState) -> Observation {
    Observation::NetnsName(NetnsName { path: path.to_owned(), inum, state })
}

/// Reports files to which no namespace is bound, and those of `reported` that were removed or bound since.
/// They remain after a crash, or after a reboot if the directory is on a disk.
fn stale_files(
    settings: &Settings,
    names: &Names,
    reported: &mut BTreeSet<String>,
    changes: &mut Vec<Observation>,
) {
    let dir = settings.cni.netns();
    let entries = fs::read_dir(settings.on_host(&dir)).into_iter().flatten().flatten();
    let is_old = |entry: &fs::DirEntry| {
        let changed = entry.metadata().ok().filter(fs::Metadata::is_file)?.modified().ok()?;
        Some(changed.elapsed().is_ok_and(|age| age >= STALE_AGE))
    };
    let mut now = BTreeSet::new();
    for entry in entries.take(MOST).filter(|entry| is_old(entry).unwrap_or(false)) {
        let path = clean(dir.join(entry.file_name()).as_os_str().as_bytes(), PATH);
        let known = path.strip_prefix("/var").unwrap_or(&path);
        if names.contains_key(known) || is_nsfs(&entry.path()) {
            continue;
        }
        if !reported.contains(&path) {
            changes.push(name(&path, 0, NameState::Stale));
        }
        now.insert(path);
    }
    for path in reported.difference(&now) {
        changes.push(name(path, 0, NameState::Unbound));
    }
    *reported = now;
}

/// Maps the ids that the agent's own network namespace has for others to their inode numbers.
#[derive(Debug, Default)]
pub(super) struct Ids {
    known: BTreeMap<i32, u32>,
}

impl Ids {
    /// Returns the inode number of a namespace; 0 if it is not bound in the directory of the runtimes.
    pub(super) fn inum(&mut self, id: i32, settings: &Settings) -> u32 {
        if let Some(inum) = self.known.get(&id) {
            return *inum;
        }
        let resolved: BTreeSet<_> = self.known.values().copied().collect();
        for (path, inum) in names(settings) {
            if !resolved.contains(&inum)
                && let Some(id) = id_of(&settings.on_host(&PathBuf::from(path)))
            {
                self.known.insert(id, inum);
            }
        }
        if self.known.len() >= 2 * MOST {
            self.known.clear();
        }
        *self.known.entry(id).or_default()
    }

    /// Removes an id that the kernel has released.
    pub(super) fn remove(&mut self, id: i32) {
        self.known.remove(&id);
    }
}

/// Returns the id that the agent's own network namespace has for the one at `path`.
fn id_of(path: &Path) -> Option<i32> {
    let file = File::open(path).ok()?;
    let mut message = NsidMessage::default();
    message.attributes.push(NsidAttribute::Fd(file.as_raw_fd().unsigned_abs()));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(message));
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let response = netlink::ask(NETLINK_ROUTE, &bytes).ok()?;
    let response = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&response).ok()?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(response)) = response.payload else {
        return None;
    };
    response.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) => Some(*id).filter(|id| *id >= 0),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_each_bound_network_namespace_once() {
        let mounts = "\
            22 1 0:21 / / rw - ext4 /dev/vda rw\n\
            90 22 0:4 net:[4026532177] /run/netns/cni-1 rw shared:1 - nsfs nsfs rw\n\
            91 22 0:4 net:[4026532177] /var/run/netns/cni-1 rw shared:1 - nsfs nsfs rw\n\
            91 22 0:4 net:[4026532178] /var/run/netns/cni-2 rw - nsfs nsfs rw\n\
            92 22 0:4 mnt:[4026532179] /run/netns/x rw - nsfs nsfs rw\n\
            93 22 0:4 net:[4026532180] /elsewhere/y rw - nsfs nsfs rw\n\
            94 22 0:4 net:[nonsense] /run/netns/z rw - nsfs nsfs rw\n\
            cut off";
        let wanted = [("/run/netns/cni-1", 4_026_532_177), ("/run/netns/cni-2", 4_026_532_178)];
        let wanted: Names = wanted.into_iter().map(|(path, inum)| (path.to_owned(), inum)).collect();
        assert_eq!(parse(mounts, Path::new("/run/netns")), wanted);
        assert_eq!(parse(mounts, Path::new("/var/run/netns")), wanted);
    }

    #[test]
    fn distinguishes_a_namespace_from_a_file() {
        assert!(is_nsfs(Path::new("/proc/self/ns/net")));
        assert!(!is_nsfs(Path::new("/proc/self/status")) && !is_nsfs(Path::new("/nowhere")));
    }
}
