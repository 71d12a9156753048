//! Records into the ring buffer.

use aya_ebpf::helpers::bpf_get_current_comm;
use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_boot_ns,
};
use aya_ebpf::maps::ring_buf::RingBufEntry;
use probe_common::{Code, Header, Skip, Task};

use crate::layout::{
    NET_INUM, NSPROXY_NET, PID_LEVEL, TASK_NSPROXY, TASK_REAL_PARENT, TASK_TGID, TASK_THREAD_PID,
};
use crate::maps::EVENTS;
use crate::origin;
use crate::read::Far;

/// Room for one record, with its header written. The caller writes every other field: the memory is not
/// zeroed, and the fields are written one by one because a whole one would first stand on the stack, which has 512 bytes.
#[inline(always)]
pub(crate) fn record<T: 'static>(code: Code) -> Result<RingBufEntry<T>, Skip> {
    let mut entry = EVENTS.reserve::<T>(0).ok_or(Skip::RingFull)?;
    let header = entry.as_mut_ptr().cast::<Header>();
    // SAFETY: every record starts with a `Header` and the entry is as large as the record.
    unsafe {
        (&raw mut (*header).at_ns).write(now());
        (&raw mut (*header).code).cast::<u64>().write(code as u64);
    }
    Ok(entry)
}

/// As [`record`], for an event of the running task, which is charged for it.
#[inline(always)]
pub(crate) fn record_of_current<T: 'static>(code: Code) -> Result<RingBufEntry<T>, Skip> {
    origin::charge()?;
    record(code)
}

/// `CLOCK_BOOTTIME`, nanoseconds.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: no precondition.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Process id of the running task.
#[inline(always)]
pub(crate) fn current_tgid() -> u32 {
    // SAFETY: no precondition. The upper half is the process id.
    (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
}

/// Inode number of the running task's network namespace; 0 while it exits.
#[inline(always)]
pub(crate) fn current_netns() -> u32 {
    // SAFETY: the chain hangs from the running task and each link is checked.
    unsafe {
        let net = Far::current().pointer(&TASK_NSPROXY).and_then(|nsproxy| nsproxy.pointer(&NSPROXY_NET));
        net.map_or(0, |net| net.field(&NET_INUM))
    }
}

/// Process id of the running task's parent.
#[inline(always)]
pub(crate) fn current_ppid() -> u32 {
    // SAFETY: the chain hangs from the running task and is checked.
    unsafe { Far::current().pointer(&TASK_REAL_PARENT).map_or(0, |parent| parent.field(&TASK_TGID)) }
}

/// Depth of the running task's PID namespace.
#[inline(always)]
pub(crate) fn current_pid_level() -> u32 {
    // SAFETY: the chain hangs from the running task and is checked.
    unsafe { Far::current().pointer(&TASK_THREAD_PID).map_or(0, |pid| pid.field(&PID_LEVEL)) }
}

/// Writes the running task into a record.
///
/// # Safety
/// `task` points into a reserved record.
#[inline(always)]
pub(crate) unsafe fn write_current(task: *mut Task, netns: u32) {
    // SAFETY: by the caller; the helpers have no precondition.
    unsafe {
        let id = bpf_get_current_pid_tgid();
        (&raw mut (*task).tgid).write((id >> 32) as u32);
        (&raw mut (*task).tid).write(id as u32);
        (&raw mut (*task).ppid).write(current_ppid());
        (&raw mut (*task).netns).write(netns);
        (&raw mut (*task).uid).write(bpf_get_current_uid_gid() as u32);
        (&raw mut (*task).pid_level).write(current_pid_level());
        let comm = bpf_get_current_comm().unwrap_or_default();
        (&raw mut (*task).comm).cast::<[u64; 2]>().write(core::mem::transmute::<[u8; 16], [u64; 2]>(comm));
    }
}
