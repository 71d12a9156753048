//! The running task and the time.

use aya_ebpf::helpers::generated::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_boot_ns,
};
use probe_common::{COMM_LEN, Task};

use crate::layout::{
    NET_INUM, NSPROXY_NET, PID_LEVEL, TASK_NSPROXY, TASK_REAL_PARENT, TASK_TGID, TASK_THREAD_PID,
};
use crate::read::KernelPtr;

/// Returns the time of `CLOCK_BOOTTIME`, nanoseconds.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: no precondition.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Returns the process ID of the running task.
#[inline(always)]
pub(crate) fn tgid() -> u32 {
    // SAFETY: no precondition. The upper half is the process ID.
    (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
}

/// Returns the inode number of the running task's network namespace; 0 while the task exits.
#[inline(always)]
pub(crate) fn netns() -> u32 {
    // SAFETY: the pointers start at the running task, and each is checked for null.
    unsafe {
        let net = KernelPtr::current_task()
            .pointer(&TASK_NSPROXY)
            .and_then(|nsproxy| nsproxy.pointer(&NSPROXY_NET));
        net.map_or(0, |net| net.field(&NET_INUM))
    }
}

/// Returns the process ID of the running task's parent.
#[inline(always)]
pub(crate) fn ppid() -> u32 {
    // SAFETY: the pointer belongs to the running task and is checked for null.
    unsafe {
        KernelPtr::current_task().pointer(&TASK_REAL_PARENT).map_or(0, |parent| parent.field(&TASK_TGID))
    }
}

/// Returns the depth of the running task's PID namespace.
#[inline(always)]
pub(crate) fn pid_level() -> u32 {
    // SAFETY: the pointer belongs to the running task and is checked for null.
    unsafe { KernelPtr::current_task().pointer(&TASK_THREAD_PID).map_or(0, |pid| pid.field(&PID_LEVEL)) }
}

/// Returns the name of the running task.
#[inline(always)]
pub(crate) fn comm() -> [u8; COMM_LEN] {
    // Words, because a copy of bytes without alignment takes two instructions for each byte. Zeroed, because the
    // helper of some kernels, Linux 6.1 among them, writes nothing behind the NUL of a name, and the whole array
    // is the key of a map.
    let mut comm = [0_u64; COMM_LEN / 8];
    // SAFETY: the buffer has `COMM_LEN` bytes.
    unsafe {
        bpf_get_current_comm(comm.as_mut_ptr().cast(), COMM_LEN as u32);
        core::mem::transmute(comm)
    }
}

/// Returns the running task as records describe it.
#[inline(always)]
pub(crate) fn task() -> Task {
    task_in(netns())
}

/// As [`task`], with a network namespace other than that of the task.
#[inline(always)]
pub(crate) fn task_in(netns: u32) -> Task {
    // SAFETY: no precondition.
    let (id, owner) = unsafe { (bpf_get_current_pid_tgid(), bpf_get_current_uid_gid()) };
    Task {
        tgid: (id >> 32) as u32,
        tid: id as u32,
        ppid: ppid(),
        netns,
        uid: owner as u32,
        pid_level: pid_level(),
        comm: comm(),
    }
}
