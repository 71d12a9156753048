//! Reports which process opens, writes, renames or removes files in the CNI configuration directory, with
//! fanotify(7).
//!
//! Only this directory is marked, so that accesses to other files have no overhead.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use caps::Capability;
use probe_engine::{Access, Actor, ConfAccess, Gap, Observation, ProcessClass};
use tokio::io::unix::AsyncFd;

use super::{processes, provenance};
use crate::clock;
use crate::feed::{Feed, Seen};
use crate::privileges;
use crate::settings::Settings;
use crate::text::clean;

/// Read buffer, bytes. A read returns whole events, of which the longest has a name of 255 bytes.
const BUFFER: usize = 8192;
/// Delay between two attempts to mark a directory that does not exist.
const RETRY: Duration = Duration::from_secs(2);
/// Longest file name that is kept.
const NAME: usize = 255;

// include/uapi/linux/fanotify.h. libc defines them with differing types.
const FAN_OPEN: u64 = 0x20;
const FAN_CLOSE_WRITE: u64 = 0x08;
const FAN_MOVED_FROM: u64 = 0x40;
const FAN_MOVED_TO: u64 = 0x80;
const FAN_CREATE: u64 = 0x100;
const FAN_DELETE: u64 = 0x200;
const FAN_DELETE_SELF: u64 = 0x400;
const FAN_MOVE_SELF: u64 = 0x800;
const FAN_Q_OVERFLOW: u64 = 0x4000;
const FAN_ONDIR: u64 = 0x4000_0000;
const FAN_EVENT_ON_CHILD: u64 = 0x0800_0000;
const INFO_DFID_NAME: u8 = 2;
/// Size of `struct fanotify_event_metadata`, bytes.
const METADATA: usize = 24;

/// What the kernel reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// All accesses with file names, and changes of the directory itself: Linux 5.9, and a file system that
    /// supports file handles.
    Names,
    /// Only opened and written files, by descriptor.
    Files,
}

/// Reports accesses forever. If fanotify is unavailable, reports a gap and returns.
pub(crate) async fn watch(settings: Arc<Settings>, feed: Feed) {
    let mut gap: Option<String> = None;
    loop {
        // Subscribed before the read, so that no change of the directory in between is missed.
        let dir_changed = settings.cni.changed();
        let conf = settings.cni.conf();
        let dir = settings.on_host(&conf);
        let marked = Mark::new(&dir);
        let missing = match &marked {
            Ok(Mark { mode: Mode::Names, .. }) => None,
            Ok(_) => Some(format!(
                "fanotify reports no names for {}: processes that rename or remove files in it are not observed, \
                 only those that open or write them",
                conf.display()
            )),
            // A missing directory is reported with the configuration.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(format!(
                "cannot watch {} with fanotify: {error}; processes that read or write files in it are not observed",
                conf.display()
            )),
        };
        if let Some(why) = missing
            && gap.as_ref() != Some(&why)
        {
            let signal = "cni.config.access".to_owned();
            let observation = Observation::Gap(Gap { signal, why: why.clone(), blind: false });
            gap = Some(why);
            if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                return;
            }
        }
        match marked {
            Ok(mark) => {
                tokio::select! {
                    followed = mark.follow(&settings, &feed) => if followed.is_err() { return },
                    () = dir_changed => {}
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => tokio::time::sleep(RETRY).await,
            Err(_) => return,
        }
    }
}

/// A mark on the directory that is currently at the path.
struct Mark {
    group: AsyncFd<OwnedFd>,
    mode: Mode,
    dir: PathBuf,
}

impl Mark {
    fn new(dir: &Path) -> io::Result<Self> {
        // Since Linux 5.13 a directory can be watched without it, but events then do not contain the PID.
        if privileges::lacks(Capability::CAP_SYS_ADMIN) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "CAP_SYS_ADMIN is missing"));
        }
        let all = FAN_OPEN
            | FAN_CLOSE_WRITE
            | FAN_MOVED_FROM
            | FAN_MOVED_TO
            | FAN_CREATE
            | FAN_DELETE
            | FAN_DELETE_SELF
            | FAN_MOVE_SELF
            // Without it, events of the directory itself are not reported.
            | FAN_ONDIR
            | FAN_EVENT_ON_CHILD;
        let names = Self::with(dir, Mode::Names, libc::FAN_REPORT_DFID_NAME, all);
        match names {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Self::with(dir, Mode::Files, 0, FAN_OPEN | FAN_CLOSE_WRITE | FAN_EVENT_ON_CHILD)
            }
            other => other,
        }
    }

    fn with(dir: &Path, mode: Mode, report: u32, mask: u64) -> io::Result<Self> {
        let flags = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | report;
        let files = (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK).unsigned_abs();
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::fanotify_init(flags, files) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fanotify_init(2) has just returned this descriptor, which nothing else owns.
        let group = unsafe { OwnedFd::from_raw_fd(fd) };
        let path = CString::new(dir.as_os_str().as_bytes())?;
        let add = libc::FAN_MARK_ADD | libc::FAN_MARK_ONLYDIR;
        // SAFETY: `path` is live and NUL-terminated.
        if unsafe { libc::fanotify_mark(fd, add, mask, libc::AT_FDCWD, path.as_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: an `OwnedFd` keeps its descriptor open until it is dropped, and always returns it.
        let group = unsafe { AsyncFd::register(group)? };
        Ok(Self { group, mode, dir: dir.to_owned() })
    }

    /// Reports accesses until the directory is replaced.
    ///
    /// # Errors
    /// If the mark cannot be read, or the receiver of the feed is closed.
    async fn follow(self, settings: &Settings, feed: &Feed) -> Result<(), ()> {
        let mut buffer = vec![0_u8; BUFFER];
        loop {
            let Ok(mut ready) = self.group.readable().await else { return Err(()) };
            let read = ready.try_io(|group| {
                // SAFETY: the buffer is live and of this length.
                let size = unsafe { libc::read(group.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
                usize::try_from(size).map_err(|_| io::Error::last_os_error())
            });
            let size = match read {
                Ok(Ok(size)) => size,
                Ok(Err(_)) => return Err(()),
                Err(_would_block) => continue,
            };
            let at = clock::now();
            let mut replaced = false;
            for event in Events(&buffer[..size]) {
                let file = event.fd.map(|fd| name_of(&fd)).or(event.name).unwrap_or_default();
                if event.mask & (FAN_DELETE_SELF | FAN_MOVE_SELF | FAN_Q_OVERFLOW) != 0 {
                    replaced = true;
                }
                if let Some(observation) = observation(settings, event.mask, event.pid, &file)
                    && feed.send(Seen { at, observation }).await.is_err()
                {
                    return Err(());
                }
            }
            // Without names, the removal of the directory is not reported either.
            if replaced || (self.mode == Mode::Files && !self.dir.is_dir()) {
                return Ok(());
            }
        }
    }
}

/// Returns the observation of an event; `None` for an access of the agent itself, and for events that are not
/// reported.
fn observation(settings: &Settings, mask: u64, pid: i32, file: &[u8]) -> Option<Observation> {
    let pid = u32::try_from(pid).unwrap_or(0);
    if pid == std::process::id() {
        return None;
    }
    // The kernel may merge several events into one: the greatest change is reported.
    let access = [
        (FAN_DELETE_SELF | FAN_MOVE_SELF, Access::DirectoryReplaced),
        (FAN_DELETE, Access::Removed),
        (FAN_MOVED_FROM, Access::RenamedFrom),
        (FAN_MOVED_TO, Access::RenamedTo),
        (FAN_CLOSE_WRITE, Access::Written),
        (FAN_CREATE, Access::Created),
        (FAN_OPEN, Access::Opened),
    ];
    let (_, access) = access.into_iter().find(|(bits, _)| mask & bits != 0)?;
    if access == Access::Opened && mask & FAN_ONDIR != 0 {
        return None;
    }
    let name = processes::name(pid);
    let class: Option<ProcessClass> = provenance::class_of(settings, pid, &name);
    Some(Observation::ConfAccess(ConfAccess {
        process: Actor { pid, name },
        class,
        file: clean(file, NAME),
        access,
    }))
}

/// Returns the name of an open file, without its directory.
fn name_of(fd: &OwnedFd) -> Vec<u8> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default();
    path.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default()
}

struct Event {
    mask: u64,
    pid: i32,
    /// In [`Mode::Names`].
    name: Option<Vec<u8>>,
    /// The open file, in [`Mode::Files`].
    fd: Option<OwnedFd>,
}

/// Iterates over the events in a buffer, up to the first that is truncated.
struct Events<'a>(&'a [u8]);

impl Iterator for Events<'_> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let head = self.0.get(..METADATA)?;
        let word = |at: usize| head.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        let length = usize::try_from(word(0)?).ok().filter(|length| *length >= METADATA)?;
        let event = self.0.get(..length)?;
        let mask = u64::from_ne_bytes(head.get(8..16)?.try_into().ok()?);
        let fd = i32::from_ne_bytes(head.get(16..20)?.try_into().ok()?);
        let pid = i32::from_ne_bytes(head.get(20..24)?.try_into().ok()?);
        self.0 = &self.0[length..];
        // SAFETY: a descriptor that is not negative was opened for this event and is owned by its reader.
        let fd = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
        Some(Event { mask, pid, name: name_in(&event[METADATA..]), fd })
    }
}

/// Returns the name in the records that follow an event: header, file system id, file handle, name and a NUL.
pub(super) fn name_in(mut records: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 4;
    const FSID: usize = 8;
    const HANDLE: usize = 8;
    while let [kind, _, low, high, ..] = records {
        let length = usize::from(u16::from_ne_bytes([*low, *high]));
        let record = records.get(..length).filter(|record| record.len() > HEADER + FSID + HANDLE)?;
        if *kind == INFO_DFID_NAME {
            let handle = record.get(HEADER + FSID..HEADER + FSID + 4)?;
            let bytes = usize::try_from(u32::from_ne_bytes(handle.try_into().ok()?)).ok()?;
            let name = record.get((HEADER + FSID + HANDLE).checked_add(bytes)?..)?;
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            return Some(name[..end].to_vec());
        }
        records = &records[length..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_name_and_rejects_invalid_lengths() {
        let mut record = vec![INFO_DFID_NAME, 0, 0, 0];
        record.extend([0; 8]);
        record.extend(4_u32.to_ne_bytes());
        record.extend(1_i32.to_ne_bytes());
        record.extend([9, 9, 9, 9]);
        record.extend(b"10-calico.conflist\0\0");
        let length = u16::try_from(record.len()).expect("short").to_ne_bytes();
        record[2..4].copy_from_slice(&length);
        assert_eq!(name_in(&record).as_deref(), Some(&b"10-calico.conflist"[..]));
        for cut in 0..record.len() {
            let _ = name_in(&record[..cut]);
        }
        record[12..16].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(name_in(&record), None);
        let cut = [255, 0, 0, 0, 3, 0, 24, 0];
        assert!(Events(&cut).next().is_none());
    }
}
