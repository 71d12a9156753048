//! A cgroup whose processes may not connect: a real eBPF program that says no.

use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

// include/uapi/linux/bpf.h
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
/// `r0 = 0; exit`: connect(2) answers EPERM.
const DENY: [u64; 2] = [0xb7, 0x95];

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

/// The cgroup; removed when dropped, when its processes have ended.
#[derive(Debug)]
pub struct Denied {
    dir: PathBuf,
}

impl Denied {
    /// Makes the cgroup under the host's cgroup2 root and attaches the program.
    pub fn new() -> Result<Self> {
        let root = cgroup2().context("find a cgroup2 mount")?;
        let dir = root.join(format!("nrlab-{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("make the cgroup {}", dir.display()))?;
        let denied = Self { dir };
        let license = c"GPL";
        let load = Load {
            prog_type: BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
            insn_cnt: 2,
            insns: DENY.as_ptr() as u64,
            license: license.as_ptr() as u64,
            expected_attach_type: BPF_CGROUP_INET4_CONNECT,
            ..Load::default()
        };
        let program = bpf(BPF_PROG_LOAD, &load).context("load the program that denies")?;
        // SAFETY: bpf(2) has just answered with this new descriptor.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        let cgroup = File::open(&denied.dir)?;
        let attach = Attach {
            target_fd: cgroup.as_raw_fd().unsigned_abs(),
            bpf_fd: program.as_raw_fd().unsigned_abs(),
            kind: BPF_CGROUP_INET4_CONNECT,
            ..Attach::default()
        };
        bpf(BPF_PROG_ATTACH, &attach).context("attach the program that denies")?;
        Ok(denied)
    }

    /// Where a process enters it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Denied {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.dir);
    }
}

fn bpf<T>(command: libc::c_long, attr: &T) -> Result<i32> {
    // SAFETY: `attr` is a live prefix of the union, of the size that is given.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    match i32::try_from(answer) {
        Ok(answer) if answer >= 0 => Ok(answer),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}

fn cgroup2() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    line.split(' ').nth(4).map(PathBuf::from)
}
