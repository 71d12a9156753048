//! Polls what runs out on a node or drifts (tables, descriptors, disks, credentials, sysctls, the wall
//! clock), and reports changes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use probe_engine::{CgroupDrivers, Credential, Limit, Observation, PacketsDropped, ProcessClass};

use super::discovery::Discovery;
use super::sysctls::Sysctls;
use super::{credentials, data_dirs, leases, processes};
use crate::clock;
use crate::feed::{Feed, Seen};
use crate::settings::Settings;
use crate::text::clean;

/// Interval between two polls of everything that takes only a few reads.
const POLL: Duration = Duration::from_secs(5);
/// A scan of `/proc`, and everything that takes many reads, is part of every twelfth poll.
const POLLS_PER_SCAN: u32 = 12;
/// Share of the maximum that is reported as a warning, before the limit is reached.
const NEAR_PERCENT: u64 = 90;
/// Smallest step of the wall clock that is reported, milliseconds. The kernel's own time keeping slews the
/// wall clock by at most 500 ppm (adjtimex(2)), 2.5 ms between two polls; a larger step means that it was
/// set.
const STEP_MS: i64 = 500;

/// Directories to which etcd, runtimes, the kubelet and plugins write by default, and the class that writes
/// there.
const DISKS: &[(&str, ProcessClass)] = &[
    ("/var/lib/etcd", ProcessClass::Etcd),
    ("/var/lib/containerd", ProcessClass::Runtime),
    ("/var/lib/containers", ProcessClass::Runtime),
    ("/run", ProcessClass::Runtime),
    ("/var/lib/kubelet", ProcessClass::Kubelet),
    // The leases of host-local and the results that libcni caches.
    ("/var/lib/cni", ProcessClass::CniAgent),
];
/// Most directories detected from open files that are polled: of an etcd one for its data and one for its
/// log, those of earlier instances, and as many of runtimes and kubelets.
const FOUND_DIRS: usize = 16;
/// Longest path that is reported.
const PATH: usize = 256;

/// Polls the node forever and sends what has changed. With `count_drops`, also sends how many packets the
/// reverse path filter dropped, from the kernel's counter, which does not identify the link.
pub(crate) async fn watch(settings: Arc<Settings>, feed: Feed, count_drops: bool) {
    let mut poller = Poller {
        reported: Reported::default(),
        sysctls: Sysctls::default(),
        discovery: Discovery::default(),
        leases: leases::Monitor::default(),
        dirs: BTreeMap::new(),
        wall: wall_offset_ms(),
        polls: 0,
        dropped: reverse_path_drops(),
    };
    loop {
        // A scan of /proc takes long on a busy node and must not delay events.
        let shared = Arc::clone(&settings);
        let poll = tokio::task::spawn_blocking(move || {
            let changes = poller.poll(&shared, count_drops);
            (poller, changes)
        });
        let Ok((back, changes)) = poll.await else { return };
        poller = back;
        for observation in changes {
            if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// State that is kept between two polls.
struct Poller {
    reported: Reported,
    sysctls: Sysctls,
    /// What the node used at the last scan of `/proc`.
    discovery: Discovery,
    leases: leases::Monitor,
    /// Data directories of etcd, runtimes and kubelets. They are kept after the process has exited: a full
    /// disk may be why it did.
    dirs: BTreeMap<String, ProcessClass>,
    /// Wall clock minus boot time at the last poll, milliseconds.
    wall: i64,
    polls: u32,
    /// Packets that the reverse path filter had dropped at the last poll.
    dropped: Option<u64>,
}

impl Poller {
    /// Returns what has changed since the last poll.
    fn poll(&mut self, settings: &Settings, count_drops: bool) -> Vec<Observation> {
        let mut changes = Vec::new();
        let processes = self.polls.is_multiple_of(POLLS_PER_SCAN).then(|| processes::scan(settings));
        self.polls = self.polls.wrapping_add(1);
        if let Some(processes) = &processes {
            self.leases.find_dirs(settings);
            self.discovery = Discovery::of(settings, processes);
            self.find_dirs(settings, processes);
        }
        self.leases.poll(settings, &mut changes);
        self.disks(settings, &mut changes);
        for limit in frequent_limits() {
            self.reported.limit(limit, &mut changes);
        }
        // At every poll, as these are few small files: an operator who replaces an expired one waits for it.
        for credential in credentials::find(settings, &self.discovery.kubelet) {
            self.reported.credential(credential, &mut changes);
        }
        if let Some(processes) = &processes {
            for limit in scanned_limits(processes) {
                self.reported.limit(limit, &mut changes);
            }
            self.sysctls.poll(&mut changes);
        }
        // At every poll, because the runtime's own report takes precedence once it is known.
        let drivers = self.discovery.cgroup_drivers(settings);
        if self.reported.drivers != drivers {
            self.reported.drivers.clone_from(&drivers);
            changes.extend(drivers.map(Observation::CgroupDrivers));
        }
        if count_drops {
            self.drops(&mut changes);
        }
        let now = wall_offset_ms();
        if (now - self.wall).abs() >= STEP_MS {
            changes.push(Observation::ClockStep { by_ms: now - self.wall });
        }
        self.wall = now;
        changes
    }

    /// Detects data directories from the files that processes have open, and from the kubelet's
    /// configuration.
    fn find_dirs(&mut self, settings: &Settings, processes: &[processes::Found]) {
        let open = processes.iter().flat_map(|process| {
            let dirs = data_dirs::of(settings, process.actor.pid, process.class);
            dirs.into_iter().map(|dir| (dir, process.class))
        });
        let root = self.discovery.kubelet.root.as_ref().and_then(|dir| dir.value.to_str().map(str::to_owned));
        let found = open.chain(root.map(|dir| (dir, ProcessClass::Kubelet)));
        self.dirs.extend(found.take(FOUND_DIRS.saturating_sub(self.dirs.len())));
    }

    /// Reports each file system by the first directory on it, and the one of etcd separately.
    fn disks(&mut self, settings: &Settings, changes: &mut Vec<Observation>) {
        let found = self.dirs.iter().map(|(dir, class)| (dir.as_str(), *class));
        let mut devices = BTreeSet::new();
        for (path, class) in found.chain(DISKS.iter().copied()) {
            let on_host = settings.on_host(Path::new(path));
            let Ok(metadata) = fs::metadata(&on_host) else { continue };
            if class != ProcessClass::Etcd && !devices.insert(metadata.dev()) {
                continue;
            }
            for limit in disk(&on_host, &clean(path.as_bytes(), PATH)) {
                self.reported.limit(Limit { class: Some(class), ..limit }, changes);
            }
        }
    }

    /// Reports the packets that the reverse path filter has dropped since the last poll.
    fn drops(&mut self, changes: &mut Vec<Observation>) {
        let Some(now) = reverse_path_drops() else { return };
        let count = now.saturating_sub(self.dropped.unwrap_or(now));
        if count > 0 {
            let reason = "IP_RPFILTER".to_owned();
            let dropped = PacketsDropped { reason, device: String::new(), count };
            changes.push(Observation::PacketsDropped(dropped));
        }
        self.dropped = Some(now);
    }
}

/// How much of a limit is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Below,
    /// At least [`NEAR_PERCENT`].
    Near,
    Full,
}

/// The state of a credential as far as a change of it is reported.
#[derive(Clone, Copy, Debug)]
struct Validity {
    not_yet_valid: bool,
    expired: bool,
    /// End of the lifetime, minutes since 1970: the remaining time and the clock are not read at the same
    /// moment.
    expiry_min: i64,
}

impl Validity {
    fn of(credential: &Credential) -> Self {
        let expires_at = clock::unix_now().saturating_add(credential.expires_in_s);
        Self {
            not_yet_valid: credential.valid_in_s > 0,
            expired: credential.expires_in_s <= 0,
            expiry_min: expires_at / 60,
        }
    }

    fn is_same(self, other: Self) -> bool {
        (self.not_yet_valid, self.expired) == (other.not_yet_valid, other.expired)
            && (self.expiry_min - other.expiry_min).abs() <= 1
    }
}

/// What was reported last.
#[derive(Default)]
struct Reported {
    /// By what is limited, and of which subject.
    limits: BTreeMap<(String, String), Level>,
    /// By file.
    credentials: BTreeMap<String, Validity>,
    drivers: Option<CgroupDrivers>,
}

impl Reported {
    /// Reports a limit whose level has changed.
    fn limit(&mut self, limit: Limit, changes: &mut Vec<Observation>) {
        if limit.max == 0 {
            return;
        }
        let level = if limit.is_full() {
            Level::Full
        } else if limit.used.saturating_mul(100) >= limit.max.saturating_mul(NEAR_PERCENT) {
            Level::Near
        } else {
            Level::Below
        };
        let key = (limit.what.clone(), limit.subject.clone());
        if self.limits.insert(key, level).unwrap_or(Level::Below) != level {
            changes.push(Observation::Limit(limit));
        }
    }

    /// Reports a credential that was replaced by another, has become valid, or has expired.
    fn credential(&mut self, credential: Credential, changes: &mut Vec<Observation>) {
        let validity = Validity::of(&credential);
        if !self.credentials.get(&credential.file).is_some_and(|known| known.is_same(validity)) {
            self.credentials.insert(credential.file.clone(), validity);
            changes.push(Observation::Credential(credential));
        }
    }
}

/// Returns the limits that take only a few reads.
fn frequent_limits() -> Vec<Limit> {
    let mut found = Vec::new();
    let conntrack = "/proc/sys/net/netfilter/nf_conntrack_";
    if let (Some(used), Some(max)) =
        (number(&format!("{conntrack}count")), number(&format!("{conntrack}max")))
    {
        found.push(limit("conntrack", "", used, max));
    }
    if let (Some(used), Some(max)) = (tasks(), number("/proc/sys/kernel/pid_max")) {
        found.push(limit("processes", "", used, max));
    }
    found
}

/// Returns the limits that need a scan of `/proc`.
fn scanned_limits(processes: &[processes::Found]) -> Vec<Limit> {
    let mut found = Vec::new();
    for process in processes {
        if !matches!(process.class, ProcessClass::Kubelet | ProcessClass::Runtime | ProcessClass::CniAgent) {
            continue;
        }
        let pid = process.actor.pid;
        let used = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
        let max = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok());
        if let Some(max) = max {
            found.push(limit("files", &process.actor.name, used as u64, max));
        }
    }
    if let Some(max) = number("/proc/sys/fs/inotify/max_user_instances") {
        found.push(limit("inotify", "", inotify_instances(), max));
    }
    found
}

fn limit(what: &str, subject: &str, used: u64, max: u64) -> Limit {
    Limit { what: what.to_owned(), subject: subject.to_owned(), class: None, used, max }
}

/// Returns the counter `IPReversePathFilter` of this network namespace. `/proc/net/netstat` has a line of
/// names, then one of numbers.
fn reverse_path_drops() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/net/netstat").ok()?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let index = lines.next()?.split(' ').position(|name| name == "IPReversePathFilter")?;
    lines.next()?.split(' ').nth(index)?.parse().ok()
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Returns the number of threads on the machine: the 1234 of `0.00 0.01 0.05 1/1234 567` (proc_loadavg(5)).
fn tasks() -> Option<u64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

/// Returns the use of bytes and inodes of the file system at `path`, `shown` being the path that is reported.
/// What is reserved for root counts as free: runtimes, kubelets and etcd run as root.
fn disk(path: &Path, shown: &str) -> Vec<Limit> {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return Vec::new() };
    // SAFETY: all-zero bytes are a valid `statvfs`.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is NUL-terminated, and `stat` is live and of the type that the call fills.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) } != 0 {
        return Vec::new();
    }
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    vec![
        limit("disk", shown, bytes(stat.f_blocks - stat.f_bfree), bytes(stat.f_blocks)),
        // File systems without a fixed number of inodes report 0.
        limit("inodes", shown, stat.f_files - stat.f_ffree, stat.f_files),
    ]
}

/// Returns how many inotify instances the processes of root hold: the limit is per user, and runtimes and
/// kubelets run as root.
fn inotify_instances() -> u64 {
    let mut count = 0;
    for pid in processes::pids_of_root() {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let inotify = descriptors.filter(|entry| {
            fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:inotify")
        });
        count += inotify.count() as u64;
    }
    count
}

/// Returns the wall clock minus boot time, which cannot be set, in milliseconds.
fn wall_offset_ms() -> i64 {
    let boot = u128::from(clock::now().0 / 1_000_000);
    i64::try_from(clock::unix().as_millis()).unwrap_or(i64::MAX) - i64::try_from(boot).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_only_changes_of_level() {
        let mut reported = Reported::default();
        let mut changes = Vec::new();
        for used in [1, 50, 89, 90, 95, 99, 100, 40] {
            reported.limit(limit("conntrack", "", used, 100), &mut changes);
        }
        let used: Vec<_> = changes
            .iter()
            .map(|change| match change {
                Observation::Limit(limit) => limit.used,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(used, [90, 99, 40]);
    }

    #[test]
    fn reads_the_limits_of_this_machine() {
        assert!(reverse_path_drops().is_some());
        assert!(tasks().is_some_and(|tasks| tasks > 0));
        let disk = disk(Path::new("/"), "/");
        assert!(disk[0].max > 0 && disk[0].used <= disk[0].max);
    }
}
