//! Who opens, writes, renames and removes files in the CNI configuration directory: fanotify(7).
//!
//! Only this directory is marked, so nothing else on the machine pays for it.

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

/// The kernel never gives less than one event; the longest has a name of 255 bytes.
const BUFFER: usize = 8192;
/// Between two tries to mark a directory that is not there.
const AGAIN: Duration = Duration::from_secs(2);
/// Longest file name that is kept.
const NAME: usize = 255;

// include/uapi/linux/fanotify.h; libc has them, with types of their own each.
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
/// `struct fanotify_event_metadata`.
const METADATA: usize = 24;

/// What can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Names, and changes of the directory itself: 5.9, and a file system with file handles.
    Names,
    /// Only what is opened and written, by its open file.
    Files,
}

/// Runs for ever; without fanotify it says so once and ends.
pub(crate) async fn watch(settings: Arc<Settings>, feed: Feed) {
    let mut gap: Option<String> = None;
    loop {
        // Asked for before it is read: what changes in between is not missed.
        let elsewhere = settings.cni.changed();
        let conf = settings.cni.conf();
        let dir = settings.on_host(&conf);
        let marked = Mark::new(&dir);
        let missing = match &marked {
            Ok(Mark { mode: Mode::Names, .. }) => None,
            Ok(_) => Some(
                "who renamed or removed a file in it is not seen, only who opened or wrote one".to_owned(),
            ),
            // It is told elsewhere that it is not there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(format!("{error}; who reads and writes it is not seen")),
        };
        if let Some(why) = missing
            && gap.as_ref() != Some(&why)
        {
            let text = format!("watch {} by fanotify: {why}", conf.display());
            let observation =
                Observation::Gap(Gap { signal: "cni.config.access".to_owned(), why: text, blind: false });
            gap = Some(why);
            if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                return;
            }
        }
        match marked {
            Ok(mark) => {
                tokio::select! {
                    followed = mark.follow(&settings, &feed) => if followed.is_err() { return },
                    () = elsewhere => {}
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => tokio::time::sleep(AGAIN).await,
            Err(_) => return,
        }
    }
}

/// The directory as it is now.
struct Mark {
    group: AsyncFd<OwnedFd>,
    mode: Mode,
    dir: PathBuf,
}

impl Mark {
    fn new(dir: &Path) -> io::Result<Self> {
        // From Linux 5.13 on a directory can be watched without it, and events do not name the process.
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
            // Without it nothing is told of the directory itself.
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
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::fanotify_init(flags, files) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fanotify_init(2) has just answered with this new descriptor.
        let group = unsafe { OwnedFd::from_raw_fd(fd) };
        let path = CString::new(dir.as_os_str().as_bytes())?;
        let add = libc::FAN_MARK_ADD | libc::FAN_MARK_ONLYDIR;
        // SAFETY: `path` is live and ends with a NUL.
        if unsafe { libc::fanotify_mark(fd, add, mask, libc::AT_FDCWD, path.as_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor owns itself, lives as long as this does, and is always the same one.
        let group = unsafe { AsyncFd::register(group)? };
        Ok(Self { group, mode, dir: dir.to_owned() })
    }

    /// Tells what happens until the directory is replaced; an error when nobody listens any more.
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
            // Without names, its own end is not told either: it is looked for.
            if replaced || (self.mode == Mode::Files && !self.dir.is_dir()) {
                return Ok(());
            }
        }
    }
}

/// What one event means; `None` for our own reading and for what nobody asks.
fn observation(settings: &Settings, mask: u64, pid: i32, file: &[u8]) -> Option<Observation> {
    let pid = u32::try_from(pid).unwrap_or(0);
    if pid == std::process::id() {
        return None;
    }
    // Several may be merged into one: the one that changes most counts.
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

/// Name of an open file, without its directory.
fn name_of(fd: &OwnedFd) -> Vec<u8> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default();
    path.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default()
}

struct Event {
    mask: u64,
    pid: i32,
    name: Option<Vec<u8>>,
    fd: Option<OwnedFd>,
}

/// The events in what was read; ends at the first that is cut off.
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
        // SAFETY: a descriptor that is not negative was opened for this event and belongs to its reader.
        let fd = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
        Some(Event { mask, pid, name: name_in(&event[METADATA..]), fd })
    }
}

/// The name in the records that follow an event: header, file system id, file handle, name and a NUL.
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
    fn a_name_is_read_and_no_length_is_believed() {
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
