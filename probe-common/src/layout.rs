//! The globals of the kernel programs that the loader sets: offsets of kernel fields, and abilities of the
//! running kernel.

/// Calls the macro `$declare` with the list of globals, each declared only here: the kernel programs define
/// them as statics, the loader resolves and sets them.
///
/// - `fields`: offset of a field, with the struct and the paths under which kernels have the field, newest
///   kernels first. A path may have a number of bytes added to its offset.
/// - `optional`: likewise, but a kernel may lack the field; the global is 0 then.
/// - `values`: any other value.
#[macro_export]
macro_rules! kernel_globals {
    ($declare:ident) => {
        $declare! {
            fields {
                SOCK_DADDR: "sock" ["__sk_common.skc_daddr"]
                SOCK_RCV_SADDR: "sock" ["__sk_common.skc_rcv_saddr"]
                SOCK_DPORT: "sock" ["__sk_common.skc_dport"]
                SOCK_NUM: "sock" ["__sk_common.skc_num"]
                SOCK_FAMILY: "sock" ["__sk_common.skc_family"]
                SOCK_NET: "sock" ["__sk_common.skc_net.net"]
                SOCK_V6_DADDR: "sock" ["__sk_common.skc_v6_daddr"]
                SOCK_V6_RCV_SADDR: "sock" ["__sk_common.skc_v6_rcv_saddr"]
                SOCK_PROTOCOL: "sock" ["sk_protocol"]
                SOCK_ERR: "sock" ["sk_err"]
                SOCK_ERR_SOFT: "sock" ["sk_err_soft"]
                SOCK_ERROR_QUEUE_PREV: "sock" ["sk_error_queue.prev"]
                SOCK_ERROR_QUEUE_QLEN: "sock" ["sk_error_queue.qlen"]
                SK_BUFF_CB: "sk_buff" ["cb"]
                SK_BUFF_HEAD: "sk_buff" ["head"]
                SK_BUFF_NETWORK_HEADER: "sk_buff" ["network_header"]
                SK_BUFF_SK: "sk_buff" ["sk"]
                SK_BUFF_DEV: "sk_buff" ["dev"]
                FILENAME_NAME: "filename" ["name"]
                PATH_DENTRY: "path" ["dentry"]
                DENTRY_INODE: "dentry" ["d_inode"]
                INODE_NUMBER: "inode" ["i_ino"]
                INODE_MODE: "inode" ["i_mode"]
                FILE_INODE: "file" ["f_inode"]
                SOCK_EXTERR_EE: "sock_exterr_skb" ["ee"]
                NET_INUM: "net" ["ns.inum"]
                TASK_TGID: "task_struct" ["tgid"]
                TASK_GROUP_LEADER: "task_struct" ["group_leader"]
                TASK_REAL_PARENT: "task_struct" ["real_parent"]
                TASK_THREAD_PID: "task_struct" ["thread_pid"]
                PID_LEVEL: "pid" ["level"]
                TASK_NSPROXY: "task_struct" ["nsproxy"]
                TASK_SIGNAL: "task_struct" ["signal"]
                TASK_EXIT_CODE: "task_struct" ["exit_code"]
                TASK_MM: "task_struct" ["mm"]
                NSPROXY_NET: "nsproxy" ["net_ns"]
                NSPROXY_PID_NS: "nsproxy" ["pid_ns_for_children"]
                PID_NS_INUM: "pid_namespace" ["ns.inum"]
                TASK_CRED: "task_struct" ["cred"]
                CRED_CAP_EFFECTIVE: "cred" ["cap_effective"]
                CRED_USER_NS: "cred" ["user_ns"]
                USER_NS_LEVEL: "user_namespace" ["level"]
                SIGNAL_LIVE: "signal_struct" ["live"]
                SIGNAL_FLAGS: "signal_struct" ["flags"]
                SIGNAL_GROUP_EXIT_CODE: "signal_struct" ["group_exit_code"]
                MM_ENV_START: "mm_struct" ["env_start"]
                MM_ENV_END: "mm_struct" ["env_end"]
                BPRM_FILE: "linux_binprm" ["file"]
                FILE_DENTRY: "file" ["f_path.dentry"]
                DENTRY_SHORT_NAME: "dentry" ["d_shortname", "d_iname"]
                NLMSG_TYPE: "nlmsghdr" ["nlmsg_type"]
                NLMSG_LEN: "nlmsghdr" ["nlmsg_len"]
                EXTACK_TEXT: "netlink_ext_ack" ["_msg"]
                TASK_FILES: "task_struct" ["files"]
                FILES_FDT: "files_struct" ["fdt"]
                FDT_FD: "fdtable" ["fd"]
                KIOCB_FILE: "kiocb" ["ki_filp"]
                ITER_KIND: "iov_iter" ["iter_type", "type"]
                ITER_COUNT: "iov_iter" ["count"]
                ITER_IOV: "iov_iter" ["__iov", "iov"]
                TCP_BYTES_RECEIVED: "tcp_sock" ["bytes_received"]
                TCP_BYTES_ACKED: "tcp_sock" ["bytes_acked"]
                TCP_BYTES_SENT: "tcp_sock" ["bytes_sent"]
                TCP_SEGS_IN: "tcp_sock" ["segs_in"]
                SIGINFO_CODE: "kernel_siginfo" ["si_code"]
                QDISC_DEV_QUEUE: "Qdisc" ["dev_queue"]
                DEV_QUEUE_DEV: "netdev_queue" ["dev"]
                NET_DEVICE_NAME: "net_device" ["name"]
                NET_DEVICE_NET: "net_device" ["nd_net.net"]
                /// Number of the system call: x86-64, arm64.
                REGS_SYSCALL: "pt_regs" ["orig_ax", "syscallno"]
                /// First argument of a system call: x86-64, arm64. On arm64 the first register holds the
                /// return value when the system call returns, and `orig_x0` keeps the argument.
                REGS_ARG1: "pt_regs" ["di", "orig_x0"]
                /// Second argument of a system call: x86-64, arm64.
                REGS_ARG2: "pt_regs" ["si", "regs" + 8]
            }
            optional {
                /// Reference count of a network namespace: 6.18, 5.11, before.
                NET_COUNT: "net" ["ns.__ns_ref", "ns.count", "count"]
                /// User memory in one piece (6.0).
                ITER_UBUF: "iov_iter" ["ubuf"]
            }
            values {
                /// Number of the kind of `struct iov_iter` that holds one piece of user memory.
                ITER_IS_UBUF
                /// Number of the kind of `struct iov_iter` that holds several pieces of user memory.
                ITER_IS_IOVEC
                /// Bits of the kind; the others are the direction, which shared the field before 5.14.
                ITER_KIND_MASK
                /// `__NR_connect` of this architecture.
                NR_CONNECT
                /// `SKB_DROP_REASON_IP_RPFILTER` (5.18) of this kernel.
                DROP_RPFILTER
                /// 1 if the first argument of `mark_victim` is a task and not a process ID (6.9, and stable
                /// kernels with the backport).
                MARK_VICTIM_TASK
                /// 1 if `NET_COUNT` was found: the destruction of a namespace can be recognised when its
                /// loopback device is shut down.
                HAVE_NET_COUNT
                /// 1 if `bpf_task_pt_regs` exists (5.15).
                HAVE_TASK_PT_REGS
                /// Number of entries of the process table for processes whose events are limited.
                MAX_LIMITED
                /// 1 if memory may be read by address (not under `lockdown=confidentiality`).
                HAVE_PROBE_READ
            }
        }
    };
}
