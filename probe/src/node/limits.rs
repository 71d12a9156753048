//! What fills up on a node, and what drifts: read now and then, told when it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use probe_engine::{CgroupDrivers, Limit, Observation, PacketsDropped, ProcessClass};

use super::discovery::Discovery;
use super::{credentials, leases, processes};
use crate::clock;
use crate::feed::{Feed, Seen};
use crate::settings::Settings;
use crate::text::clean;

/// Between two looks at what costs a few reads.
const LOOK: Duration = Duration::from_secs(5);
/// How many of those pass between two looks at what costs a walk through `/proc`, or many reads.
const RARELY: u32 = 12;
/// Of all there is, from which on it counts as near: a first word before it is full.
const NEAR_PERCENT: u64 = 90;
/// The kernel's own time keeping moves the wall clock by at most 500 ppm (adjtimex(2)), 2.5 ms between two
/// looks; more than this was set by somebody.
const STEP_MS: i64 = 500;

/// Where etcd, runtimes, the kubelet and plugins usually write to, and whose files lie there.
const DISKS: &[(&str, ProcessClass)] = &[
    ("/var/lib/etcd", ProcessClass::Etcd),
    ("/var/lib/containerd", ProcessClass::Runtime),
    ("/var/lib/containers", ProcessClass::Runtime),
    ("/run", ProcessClass::Runtime),
    ("/var/lib/kubelet", ProcessClass::Kubelet),
    // host-local and others keep addresses and results there.
    ("/var/lib/cni", ProcessClass::CniAgent),
];
/// Most directories that are found by open files and looked at: of an etcd one for its data and one for its log, those of
/// earlier ones, and as many of runtimes and kubelets.
const FOUND_DIRS: usize = 16;
/// Longest path that is told.
const PATH: usize = 256;
/// Settings that pod networks depend on.
const SYSCTLS: &[&str] = &[
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.forwarding",
    "net.bridge.bridge-nf-call-iptables",
    "net.ipv4.conf.all.rp_filter",
];

/// With `count_drops`, also how many packets the reverse path filter dropped, by the kernel's counter, which
/// does not say where. Runs for ever.
pub(crate) async fn watch(settings: Arc<Settings>, feed: Feed, count_drops: bool) {
    let mut look = Look {
        told: Told::default(),
        discovery: Discovery::default(),
        leases: leases::Told::default(),
        dirs: BTreeMap::new(),
        wall: wall_offset_ms(),
        turn: 0,
        dropped: reverse_path_drops(),
    };
    loop {
        // A walk through /proc takes long on a busy node, and events do not wait.
        let shared = Arc::clone(&settings);
        let turn = tokio::task::spawn_blocking(move || {
            let seen = look.turn(&shared, count_drops);
            (look, seen)
        });
        let Ok((back, seen)) = turn.await else { return };
        look = back;
        for observation in seen {
            if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What is remembered between two looks.
struct Look {
    told: Told,
    /// What the node used at the last walk through `/proc`.
    discovery: Discovery,
    leases: leases::Told,
    /// Where etcd, runtimes and kubelets keep their data, also when they have exited since: that may be because there is no
    /// room.
    dirs: BTreeMap<String, ProcessClass>,
    wall: i64,
    turn: u32,
    dropped: Option<u64>,
}

impl Look {
    fn turn(&mut self, settings: &Settings, count_drops: bool) -> Vec<Observation> {
        let mut seen = Vec::new();
        let processes = self.turn.is_multiple_of(RARELY).then(|| processes::scan(settings));
        if let Some(processes) = &processes {
            self.leases.configured(settings);
            let open = processes.iter().flat_map(|process| {
                let dirs = data_dirs(settings, process.actor.pid, process.class);
                dirs.into_iter().map(|dir| (dir, process.class))
            });
            self.discovery = Discovery::of(settings, processes);
            let root =
                self.discovery.kubelet.root.as_ref().and_then(|dir| dir.value.to_str().map(str::to_owned));
            let found: Vec<_> = open.chain(root.map(|dir| (dir, ProcessClass::Kubelet))).collect();
            let room = FOUND_DIRS.saturating_sub(self.dirs.len());
            self.dirs.extend(found.into_iter().take(room));
        }
        self.leases.look(settings, &mut seen);
        self.disks(settings, &mut seen);
        for limit in often() {
            self.told.limit(limit, &mut seen);
        }
        // A few small files: whoever replaces one that is over waits for this.
        for credential in credentials::find(settings, &self.discovery.kubelet) {
            self.told.credential(credential, &mut seen);
        }
        if let Some(processes) = &processes {
            for limit in rarely(processes) {
                self.told.limit(limit, &mut seen);
            }
            self.told.sysctls(&mut seen);
        }
        // Each time: what the runtime reports takes precedence as soon as it is known.
        let drivers = self.discovery.cgroup_drivers(settings);
        if self.told.drivers != drivers {
            self.told.drivers.clone_from(&drivers);
            seen.extend(drivers.map(Observation::CgroupDrivers));
        }
        self.turn = self.turn.wrapping_add(1);
        if let (true, Some(now)) = (count_drops, reverse_path_drops()) {
            let count = now.saturating_sub(self.dropped.unwrap_or(now));
            if count > 0 {
                let reason = "IP_RPFILTER".to_owned();
                seen.push(Observation::PacketsDropped(PacketsDropped {
                    reason,
                    device: String::new(),
                    count,
                }));
            }
            self.dropped = Some(now);
        }
        let now = wall_offset_ms();
        if (now - self.wall).abs() >= STEP_MS {
            seen.push(Observation::ClockStep { by_ms: now - self.wall });
        }
        self.wall = now;
        seen
    }
}

impl Look {
    /// Reports each file system by the first directory on it, and the one of etcd separately.
    fn disks(&mut self, settings: &Settings, seen: &mut Vec<Observation>) {
        let found = self.dirs.iter().map(|(dir, class)| (dir.as_str(), *class));
        let mut devices = BTreeSet::new();
        for (path, class) in found.chain(DISKS.iter().copied()) {
            let on_host = settings.on_host(Path::new(path));
            let Ok(metadata) = fs::metadata(&on_host) else { continue };
            if class != ProcessClass::Etcd && !devices.insert(metadata.dev()) {
                continue;
            }
            for limit in disk(&on_host, &clean(path.as_bytes(), PATH)) {
                self.told.limit(Limit { class: Some(class), ..limit }, seen);
            }
        }
    }
}

/// What was told last.
#[derive(Default)]
struct Told {
    /// Below, near, or full.
    limits: BTreeMap<(String, String), u8>,
    credentials: BTreeMap<String, (bool, bool, i64)>,
    sysctls: BTreeMap<String, String>,
    drivers: Option<CgroupDrivers>,
}

impl Told {
    fn limit(&mut self, limit: Limit, seen: &mut Vec<Observation>) {
        if limit.max == 0 {
            return;
        }
        let level = if limit.is_full() {
            2
        } else {
            u8::from(limit.used.saturating_mul(100) >= limit.max.saturating_mul(NEAR_PERCENT))
        };
        let key = (limit.what.clone(), limit.subject.clone());
        if self.limits.insert(key, level).unwrap_or(0) != level {
            seen.push(Observation::Limit(limit));
        }
    }

    /// When it changes: another file in the same place, or a border that was crossed.
    fn credential(&mut self, credential: probe_engine::Credential, seen: &mut Vec<Observation>) {
        let expires_at = clock::unix_now().saturating_add(credential.expires_in_s);
        // To the minute: the remaining time and the clock are not read at the same moment.
        let state = (credential.valid_in_s > 0, credential.expires_in_s <= 0, expires_at / 60);
        let near = |known: &(bool, bool, i64)| {
            (known.0, known.1) == (state.0, state.1) && (known.2 - state.2).abs() <= 1
        };
        if !self.credentials.get(&credential.file).is_some_and(near) {
            self.credentials.insert(credential.file.clone(), state);
            seen.push(Observation::Credential(credential));
        }
    }

    fn sysctls(&mut self, seen: &mut Vec<Observation>) {
        for name in sysctl_names() {
            let path = Path::new("/proc/sys")
                .join(name.replace('/', "\u{0}").replace('.', "/").replace('\u{0}', "."));
            let Ok(value) = fs::read_to_string(path) else { continue };
            let value = value.trim().to_owned();
            if self.sysctls.get(&name) != Some(&value) {
                self.sysctls.insert(name.clone(), value.clone());
                seen.push(Observation::Sysctl { name, value });
            }
        }
    }
}

/// The fixed ones, and the reverse path filter of links that a CNI made. A dot in a link's name is written as
/// a slash, as sysctl(8) does.
fn sysctl_names() -> Vec<String> {
    let links = fs::read_dir("/proc/sys/net/ipv4/conf").into_iter().flatten().flatten();
    let of_cni = links.filter_map(|entry| {
        let name = entry.file_name().to_str()?.to_owned();
        let ours =
            ["cilium_", "lxc", "cali", "cni", "flannel", "ovn"].iter().any(|known| name.starts_with(known));
        ours.then(|| format!("net.ipv4.conf.{}.rp_filter", name.replace('.', "/")))
    });
    SYSCTLS.iter().map(|name| (*name).to_owned()).chain(of_cni.take(64)).collect()
}

/// Where on the host an etcd keeps its data and its log, and containerd its images and containers, by the files that they
/// have open.
fn data_dirs(settings: &Settings, pid: u32, class: ProcessClass) -> Vec<String> {
    const OF_CONTAINERD: &str = "io.containerd.metadata.v1.bolt/meta.db";
    let is_data = |path: &Path| match class {
        ProcessClass::Etcd => path.ends_with("member/snap/db") || path.extension() == Some("wal".as_ref()),
        ProcessClass::Runtime => path.ends_with(OF_CONTAINERD),
        _ => false,
    };
    if !matches!(class, ProcessClass::Etcd | ProcessClass::Runtime) {
        return Vec::new();
    }
    // Opened at its start, so among the lowest numbers; its clients are thousands.
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().take(256);
    let dir_of = |open: fs::DirEntry| {
        let path = fs::read_link(open.path()).ok()?;
        if !is_data(&path) {
            return None;
        }
        let is_it = |other: &fs::Metadata, this: &fs::Metadata| {
            (other.dev(), other.ino()) == (this.dev(), this.ino())
        };
        let this = fs::metadata(open.path()).ok()?;
        // Inside a container the host's directories may lie deeper.
        let path = path.to_str()?;
        let mut ends = path.match_indices('/').map(|(at, _)| Path::new(&path[at..]));
        let on_host =
            |path: &&Path| fs::metadata(settings.on_host(path)).is_ok_and(|other| is_it(&other, &this));
        let dir = ends.find(on_host)?.parent()?;
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

fn often() -> Vec<Limit> {
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

/// Needs a walk through `/proc`.
fn rarely(processes: &[processes::Found]) -> Vec<Limit> {
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

/// `IPReversePathFilter` of this namespace: proc_net_netstat has a line of names, then one of numbers.
fn reverse_path_drops() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/net/netstat").ok()?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let index = lines.next()?.split(' ').position(|name| name == "IPReversePathFilter")?;
    lines.next()?.split(' ').nth(index)?.parse().ok()
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Threads of the whole machine: `0.00 0.01 0.05 1/1234 567`, proc(5).
fn tasks() -> Option<u64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

/// Blocks and inodes. What is reserved for root counts as free: runtimes, kubelets and etcd are root's.
fn disk(path: &Path, shown: &str) -> Vec<Limit> {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return Vec::new() };
    // SAFETY: all zero is a valid value.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with a NUL, and `stat` is live and of the type that is filled.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) } != 0 {
        return Vec::new();
    }
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    vec![
        limit("disk", shown, bytes(stat.f_blocks - stat.f_bfree), bytes(stat.f_blocks)),
        // File systems without a fixed number say 0.
        limit("inodes", shown, stat.f_files - stat.f_ffree, stat.f_files),
    ]
}

/// inotify instances of root's processes: runtimes and kubelets are root's.
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

/// The wall clock against the boot clock, which nobody can set.
fn wall_offset_ms() -> i64 {
    let boot = u128::from(clock::now().0 / 1_000_000);
    i64::try_from(clock::unix().as_millis()).unwrap_or(i64::MAX) - i64::try_from(boot).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_change_of_level_is_told() {
        let mut told = Told::default();
        let mut seen = Vec::new();
        for used in [1, 50, 89, 90, 95, 99, 100, 40] {
            told.limit(limit("conntrack", "", used, 100), &mut seen);
        }
        let used: Vec<_> = seen
            .iter()
            .map(|seen| match seen {
                Observation::Limit(limit) => limit.used,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(used, [90, 99, 40]);
    }

    #[test]
    fn this_machine_can_be_read() {
        assert!(reverse_path_drops().is_some());
        assert!(tasks().is_some_and(|tasks| tasks > 0));
        let disk = disk(Path::new("/"), "/");
        assert!(disk[0].max > 0 && disk[0].used <= disk[0].max);
        assert!(sysctl_names().iter().any(|name| name == "net.ipv4.ip_forward"));
    }
}
