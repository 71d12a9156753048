//! Offsets of kernel fields and abilities of the running kernel: written by the loader before the programs
//! are verified, so the verifier knows them as constants and never looks at a branch that they rule out.

macro_rules! from_loader {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $($(#[$doc])* #[unsafe(no_mangle)] pub(crate) static $name: u32 = 0;)*
    };
}

from_loader! {
    SOCK_DADDR SOCK_RCV_SADDR SOCK_DPORT SOCK_NUM SOCK_FAMILY SOCK_NET SOCK_V6_DADDR SOCK_V6_RCV_SADDR
    SOCK_PROTOCOL SOCK_ERR SOCK_ERR_SOFT SOCK_ERROR_QUEUE_PREV SOCK_ERROR_QUEUE_QLEN
    SK_BUFF_CB SK_BUFF_HEAD SK_BUFF_NETWORK_HEADER SK_BUFF_SK SK_BUFF_DEV SOCK_EXTERR_EE
    FILENAME_NAME PATH_DENTRY DENTRY_INODE INODE_NUMBER INODE_MODE FILE_INODE
    NET_INUM NET_COUNT
    TASK_TGID TASK_COMM TASK_GROUP_LEADER TASK_REAL_PARENT TASK_THREAD_PID PID_LEVEL TASK_NSPROXY TASK_SIGNAL TASK_EXIT_CODE TASK_MM
    NLMSG_TYPE NLMSG_LEN EXTACK_TEXT
    TASK_CRED CRED_CAP_EFFECTIVE CRED_USER_NS USER_NS_LEVEL NSPROXY_PID_NS PID_NS_INUM
    NSPROXY_NET SIGNAL_LIVE SIGNAL_FLAGS SIGNAL_GROUP_EXIT_CODE
    MM_ENV_START MM_ENV_END BPRM_FILENAME SIGINFO_CODE
    QDISC_DEV_QUEUE DEV_QUEUE_DEV NET_DEVICE_NAME NET_DEVICE_NET
    REGS_ARG1 REGS_ARG2 REGS_ARG3 REGS_SYSCALL
    TCP_BYTES_RECEIVED TCP_BYTES_ACKED TCP_BYTES_SENT TCP_SEGS_IN
    BPRM_FILE FILE_DENTRY DENTRY_SHORT_NAME
    TASK_FILES FILES_FDT FDT_FD KIOCB_FILE ITER_KIND ITER_COUNT ITER_UBUF ITER_IOV
    /// Numbers of the kinds of `struct iov_iter` that carry user memory; `ITER_KIND_MASK` takes the direction
    /// off, which shared the field before 5.14.
    ITER_IS_UBUF ITER_IS_IOVEC ITER_KIND_MASK
    /// `__NR_connect` of this architecture.
    NR_CONNECT
    /// `SKB_DROP_REASON_IP_RPFILTER` (5.18) of this kernel.
    DROP_RPFILTER
    /// `mark_victim` gives a task and not a process id (6.9, and the stable kernels that took it over).
    MARK_VICTIM_TASK
    /// `NET_COUNT` was found: a namespace's end can be told from its loopback going down.
    HAVE_NET_COUNT
    /// `bpf_task_pt_regs` exists (5.15).
    HAVE_TASK_PT_REGS
    /// Places of the process table for processes that are limited.
    MAX_LIMITED
    /// Memory may be read by address (not under `lockdown=confidentiality`).
    HAVE_PROBE_READ
}

/// The loader's value of one of these.
#[inline(always)]
pub(crate) fn get(value: &'static u32) -> usize {
    // SAFETY: a live static. Volatile, because the compiler knows the initial value and the loader another.
    unsafe { core::ptr::read_volatile(value) as usize }
}
