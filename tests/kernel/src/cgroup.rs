//! Cgroups with an eBPF program at connect(2) that denies or rewrites connects as Service implementations do, with a
//! memory limit, or with the path of a pod.

use std::fs::File;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

// include/uapi/linux/bpf.h
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
/// `r0 = 0; exit`: connect(2) returns EPERM.
const DENY: [u64; 2] = [0xb7, 0x95];

/// `*(u32 *)(r1 + 4) = ip; *(u32 *)(r1 + 24) = port; r0 = 1; exit`: `user_ip4` and `user_port` of
/// `struct bpf_sock_addr`, both in network byte order.
fn rewrite(to: SocketAddrV4) -> [u64; 6] {
    // An instruction: opcode, registers (destination in the low half), offset, constant.
    let insn = |code: u64, registers: u64, offset: u64, constant: u32| {
        code | registers << 8 | offset << 16 | u64::from(constant) << 32
    };
    let ip = u32::from_ne_bytes(to.ip().octets());
    let port = u32::from(to.port().to_be());
    [
        insn(0xb4, 2, 0, ip),
        insn(0x63, 0x21, 4, 0),
        insn(0xb4, 2, 0, port),
        insn(0x63, 0x21, 24, 0),
        insn(0xb7, 0, 0, 1),
        insn(0x95, 0, 0, 0),
    ]
}

/// First part of `union bpf_attr` for `BPF_PROG_LOAD`, up to `expected_attach_type`.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The same for `BPF_PROG_ATTACH`.
#[repr(C)]
#[derive(Default)]
struct Attach {
    target_fd: u32,
    bpf_fd: u32,
    kind: u32,
    flags: u32,
}

/// A cgroup; removed when dropped, provided that its processes have exited.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// Creates a cgroup whose processes cannot connect.
    pub fn denying_connects() -> Result<Self> {
        Self::with_program(&DENY)
    }

    /// Creates a cgroup whose processes connect to `to`, whatever address they pass to connect(2).
    pub fn rewriting_connects_to(to: SocketAddrV4) -> Result<Self> {
        Self::with_program(&rewrite(to))
    }

    /// Creates a cgroup with a memory limit in bytes.
    pub fn with_memory_limit(bytes: u64) -> Result<Self> {
        // cgroup v1 has a separate hierarchy for memory.
        let (root, limit) = match mounted(" - cgroup ", "memory") {
            Some(root) => (root, "memory.limit_in_bytes"),
            None => (cgroup2().context("find a cgroup2 mount")?, "memory.max"),
        };
        if limit == "memory.max" {
            std::fs::write(root.join("cgroup.subtree_control"), "+memory").context("limit memory")?;
        }
        let cgroup = Self::new(&root)?;
        std::fs::write(cgroup.dir.join(limit), bytes.to_string()).context("limit memory")?;
        Ok(cgroup)
    }

    /// Creates a cgroup under the host's cgroup2 root and attaches the program.
    fn with_program(program: &[u64]) -> Result<Self> {
        let root = cgroup2().context("find a cgroup2 mount")?;
        let created = Self::new(&root)?;
        unlock_memory();
        let license = c"GPL";
        let load = Load {
            prog_type: BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
            insn_cnt: u32::try_from(program.len())?,
            insns: program.as_ptr() as u64,
            license: license.as_ptr() as u64,
            expected_attach_type: BPF_CGROUP_INET4_CONNECT,
            ..Load::default()
        };
        let program = bpf(BPF_PROG_LOAD, &load).context("load the program of a cgroup")?;
        // SAFETY: bpf(2) has just returned this new descriptor.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        let cgroup = File::open(&created.dir)?;
        let attach = Attach {
            target_fd: cgroup.as_raw_fd().unsigned_abs(),
            bpf_fd: program.as_raw_fd().unsigned_abs(),
            kind: BPF_CGROUP_INET4_CONNECT,
            ..Attach::default()
        };
        bpf(BPF_PROG_ATTACH, &attach).context("attach the program of a cgroup")?;
        Ok(created)
    }

    /// Creates a cgroup named like that of a pod: `pod` and a UID.
    pub fn for_pod() -> Result<Self> {
        let root = cgroup2().or_else(|| mounted(" - cgroup ", "pids")).context("find a mount of cgroups")?;
        let number = std::process::id();
        let dir = root.join(format!("pod{number:08x}-0000-4000-8000-000000000000"));
        std::fs::create_dir(&dir).with_context(|| format!("create the cgroup {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// Creates the cgroup of a service of Talos, where the kernel has the unified hierarchy.
    pub fn for_talos_service(service: &str) -> Result<Self> {
        let dir = cgroup2().context("find a cgroup2 mount")?.join("podruntime").join(service);
        std::fs::create_dir_all(&dir).with_context(|| format!("create the cgroup {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// Creates an empty cgroup below `root`.
    fn new(root: &Path) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = root.join(format!("nrlab-{}-{number}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("create the cgroup {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// Returns the directory of the cgroup. A process enters by writing to `cgroup.procs` in it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.dir);
        if let Some(parent) = self.dir.parent().filter(|parent| parent.ends_with("podruntime")) {
            let _ = std::fs::remove_dir(parent);
        }
    }
}

/// Lifts the limit of locked memory, which eBPF programs count against before Linux 5.11.
fn unlock_memory() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is live.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

fn bpf<T>(command: libc::c_long, attr: &T) -> Result<i32> {
    // SAFETY: `attr` is a live prefix of the union, and its size is passed.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}

fn cgroup2() -> Option<PathBuf> {
    mounted(" - cgroup2 ", "")
}

/// Returns the mount point of the first file system of this type with this option; any options match an empty one.
fn mounted(kind: &str, option: &str) -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let has = |line: &&str| {
        line.contains(kind) && line.split([' ', ',']).any(|word| option.is_empty() || word == option)
    };
    let line = mounts.lines().find(has)?;
    line.split(' ').nth(4).map(PathBuf::from)
}
