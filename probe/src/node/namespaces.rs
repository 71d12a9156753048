//! Network namespaces that runtimes have bound to a name, from mountinfo, and the ids that this one has for them.

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

/// Most namespaces that are taken: 110 pods, and as many again for what is left over, twice.
const MOST: usize = 512;
/// Longest path that is kept.
const PATH: usize = 256;
/// How long changes may gather: mass starts of pods mount ten file systems each.
const GATHER: Duration = Duration::from_millis(20);
/// How often the names are read when the kernel reports nothing: files that are no mounts make no report.
const AGAIN: Duration = Duration::from_secs(10);
/// A runtime makes the file first and binds the namespace within milliseconds; a file that is older and bound
/// to nothing was left over.
const BINDING: Duration = Duration::from_secs(10);
/// `NSFS_MAGIC`, include/uapi/linux/magic.h
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// A name and the namespace behind it.
type Names = BTreeMap<String, u32>;

/// Inode numbers of the namespaces bound inside the directory where runtimes bind them.
pub(crate) fn bound(settings: &Settings) -> BTreeSet<u32> {
    names(settings).into_values().collect()
}

fn names(settings: &Settings) -> Names {
    // In a container the host's mounts are those of its first process.
    let mounts = fs::read_to_string(mountinfo(settings)).unwrap_or_default();
    parse(&mounts, &settings.cni.netns())
}

fn mountinfo(settings: &Settings) -> &'static str {
    if settings.host_root == Path::new("/") { "/proc/self/mountinfo" } else { "/proc/1/mountinfo" }
}

/// proc_pid_mountinfo(5): the fourth field is the root (`net:[4026532177]`), the fifth the mount point, and
/// the file system's type follows a lone dash. The same mount shows under /run and /var/run, and once more for
/// each shared parent: one name counts.
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

/// What a path is, seen from the host and from a process that hands it on.
pub(crate) fn look(settings: &Settings, path: &str, seen_by: u32) -> NetnsSeen {
    let path = Path::new(path);
    let here = settings.on_host(path);
    let inum = fs::metadata(&here).ok().filter(|_| is_nsfs(&here)).map(|file| file.ino());
    let Some(inum) = inum else {
        return if here.exists() { NetnsSeen::NoNamespace } else { NetnsSeen::Missing };
    };
    // Its root is where its own mount namespace has it.
    let there = Path::new("/proc").join(seen_by.to_string()).join("root");
    let there = there.join(path.strip_prefix("/").unwrap_or(path));
    if seen_by != 0 && there.exists() && !is_nsfs(&there) {
        return NetnsSeen::Hidden;
    }
    NetnsSeen::Namespace { inum: u32::try_from(inum).unwrap_or(0) }
}

fn is_nsfs(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: all zero is a valid value.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with a NUL, and `stat` is live and of the type that is filled.
    let answer = unsafe { libc::statfs(path.as_ptr(), &raw mut stat) };
    answer == 0 && u64::try_from(stat.f_type) == Ok(NSFS_MAGIC)
}

/// Sends names that come and go, and files that are left over. Runs for ever.
pub(crate) async fn watch(settings: Arc<Settings>, feed: Feed) {
    let mut known = names(&settings);
    let mut stale = BTreeSet::new();
    // The kernel reports a change of mounts as an exceptional condition: proc_pid_mountinfo(5).
    let mounts = File::open(mountinfo(&settings)).ok();
    // SAFETY: a file owns its descriptor, keeps it until it is dropped, and always gives that one.
    let register = |file| unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
    let mounts = mounts.and_then(|file| register(file).ok());
    loop {
        let mut seen = Vec::new();
        leftovers(&settings, &known, &mut stale, &mut seen);
        let now = names(&settings);
        for (path, inum) in known.iter().filter(|(path, inum)| now.get(*path) != Some(inum)) {
            seen.push(name(path, *inum, NameState::Unbound));
        }
        for (path, inum) in now.iter().filter(|(path, inum)| known.get(*path) != Some(inum)) {
            seen.push(name(path, *inum, NameState::Bound));
        }
        known = now;
        for observation in seen {
            if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                return;
            }
        }
        match &mounts {
            Some(mounts) => {
                if let Ok(Ok(mut ready)) = tokio::time::timeout(AGAIN, mounts.ready(Interest::PRIORITY)).await
                {
                    ready.clear_ready();
                    tokio::time::sleep(GATHER).await;
                }
            }
            None => tokio::time::sleep(AGAIN / 10).await,
        }
    }
}

fn name(path: &str, inum: u32, state: NameState) -> Observation {
    Observation::NetnsName(NetnsName { path: path.to_owned(), inum, state })
}

/// Files where names should be, bound to nothing: after a crash, or after a reboot where the directory is on a
/// disk.
fn leftovers(settings: &Settings, names: &Names, told: &mut BTreeSet<String>, seen: &mut Vec<Observation>) {
    let dir = settings.cni.netns();
    let entries = fs::read_dir(settings.on_host(&dir)).into_iter().flatten().flatten();
    let old = |entry: &fs::DirEntry| {
        let changed = entry.metadata().ok().filter(fs::Metadata::is_file)?.modified().ok()?;
        Some(changed.elapsed().is_ok_and(|age| age >= BINDING))
    };
    let mut now = BTreeSet::new();
    for entry in entries.take(MOST).filter(|entry| old(entry).unwrap_or(false)) {
        let path = clean(dir.join(entry.file_name()).as_os_str().as_bytes(), PATH);
        let known = path.strip_prefix("/var").unwrap_or(&path);
        if names.contains_key(known) || is_nsfs(&entry.path()) {
            continue;
        }
        if !told.contains(&path) {
            seen.push(name(&path, 0, NameState::Stale));
        }
        now.insert(path);
    }
    for path in told.difference(&now) {
        seen.push(name(path, 0, NameState::Unbound));
    }
    *told = now;
}

/// Which namespace an id stands for.
#[derive(Debug, Default)]
pub(super) struct Ids {
    known: BTreeMap<i32, u32>,
}

impl Ids {
    /// Its inode number; 0 when nobody has given it a name where runtimes do.
    pub(super) fn inum(&mut self, id: i32, settings: &Settings) -> u32 {
        if let Some(inum) = self.known.get(&id) {
            return *inum;
        }
        let taken: BTreeSet<_> = self.known.values().copied().collect();
        for (path, inum) in names(settings) {
            if !taken.contains(&inum)
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

    /// The kernel has taken it back.
    pub(super) fn gone(&mut self, id: i32) {
        self.known.remove(&id);
    }
}

/// The id that this namespace has for the one at `path`.
fn id_of(path: &Path) -> Option<i32> {
    let file = File::open(path).ok()?;
    let mut question = NsidMessage::default();
    question.attributes.push(NsidAttribute::Fd(file.as_raw_fd().unsigned_abs()));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let answer = netlink::ask(NETLINK_ROUTE, &bytes).ok()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).ok()?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) = answer.payload else {
        return None;
    };
    answer.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) => Some(*id).filter(|id| *id >= 0),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bound_network_namespaces_count() {
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
    fn a_file_is_told_from_a_namespace() {
        assert!(is_nsfs(Path::new("/proc/self/ns/net")));
        assert!(!is_nsfs(Path::new("/proc/self/status")) && !is_nsfs(Path::new("/nowhere")));
    }
}
