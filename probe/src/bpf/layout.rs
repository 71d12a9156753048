//! Which kernel fields the programs read, by the names of the kernel half's globals.

use std::collections::{BTreeMap, BTreeSet};

use super::btf::Btf;

/// One global of the kernel half, the struct, and the paths of the field, newest kernels first.
struct Field(&'static str, &'static str, &'static [&'static str]);

const FIELDS: &[Field] = &[
    Field("SOCK_DADDR", "sock", &["__sk_common.skc_daddr"]),
    Field("SOCK_RCV_SADDR", "sock", &["__sk_common.skc_rcv_saddr"]),
    Field("SOCK_DPORT", "sock", &["__sk_common.skc_dport"]),
    Field("SOCK_NUM", "sock", &["__sk_common.skc_num"]),
    Field("SOCK_FAMILY", "sock", &["__sk_common.skc_family"]),
    Field("SOCK_NET", "sock", &["__sk_common.skc_net.net"]),
    Field("SOCK_V6_DADDR", "sock", &["__sk_common.skc_v6_daddr"]),
    Field("SOCK_V6_RCV_SADDR", "sock", &["__sk_common.skc_v6_rcv_saddr"]),
    Field("SOCK_PROTOCOL", "sock", &["sk_protocol"]),
    Field("SOCK_ERR", "sock", &["sk_err"]),
    Field("SOCK_ERR_SOFT", "sock", &["sk_err_soft"]),
    Field("SOCK_ERROR_QUEUE_PREV", "sock", &["sk_error_queue.prev"]),
    Field("SOCK_ERROR_QUEUE_QLEN", "sock", &["sk_error_queue.qlen"]),
    Field("SK_BUFF_CB", "sk_buff", &["cb"]),
    Field("SK_BUFF_HEAD", "sk_buff", &["head"]),
    Field("SK_BUFF_NETWORK_HEADER", "sk_buff", &["network_header"]),
    Field("SK_BUFF_SK", "sk_buff", &["sk"]),
    Field("SK_BUFF_DEV", "sk_buff", &["dev"]),
    Field("FILENAME_NAME", "filename", &["name"]),
    Field("PATH_DENTRY", "path", &["dentry"]),
    Field("DENTRY_INODE", "dentry", &["d_inode"]),
    Field("INODE_NUMBER", "inode", &["i_ino"]),
    Field("INODE_MODE", "inode", &["i_mode"]),
    Field("FILE_INODE", "file", &["f_inode"]),
    Field("SOCK_EXTERR_EE", "sock_exterr_skb", &["ee"]),
    Field("NET_INUM", "net", &["ns.inum"]),
    Field("TASK_TGID", "task_struct", &["tgid"]),
    Field("TASK_COMM", "task_struct", &["comm"]),
    Field("TASK_GROUP_LEADER", "task_struct", &["group_leader"]),
    Field("TASK_REAL_PARENT", "task_struct", &["real_parent"]),
    Field("TASK_THREAD_PID", "task_struct", &["thread_pid"]),
    Field("PID_LEVEL", "pid", &["level"]),
    Field("TASK_NSPROXY", "task_struct", &["nsproxy"]),
    Field("TASK_SIGNAL", "task_struct", &["signal"]),
    Field("TASK_EXIT_CODE", "task_struct", &["exit_code"]),
    Field("TASK_MM", "task_struct", &["mm"]),
    Field("NSPROXY_NET", "nsproxy", &["net_ns"]),
    Field("NSPROXY_PID_NS", "nsproxy", &["pid_ns_for_children"]),
    Field("PID_NS_INUM", "pid_namespace", &["ns.inum"]),
    Field("TASK_CRED", "task_struct", &["cred"]),
    Field("CRED_CAP_EFFECTIVE", "cred", &["cap_effective"]),
    Field("CRED_USER_NS", "cred", &["user_ns"]),
    Field("USER_NS_LEVEL", "user_namespace", &["level"]),
    Field("SIGNAL_LIVE", "signal_struct", &["live"]),
    Field("SIGNAL_FLAGS", "signal_struct", &["flags"]),
    Field("SIGNAL_GROUP_EXIT_CODE", "signal_struct", &["group_exit_code"]),
    Field("MM_ENV_START", "mm_struct", &["env_start"]),
    Field("MM_ENV_END", "mm_struct", &["env_end"]),
    Field("BPRM_FILE", "linux_binprm", &["file"]),
    Field("FILE_DENTRY", "file", &["f_path.dentry"]),
    Field("DENTRY_SHORT_NAME", "dentry", &["d_shortname", "d_iname"]),
    Field("NLMSG_TYPE", "nlmsghdr", &["nlmsg_type"]),
    Field("NLMSG_LEN", "nlmsghdr", &["nlmsg_len"]),
    Field("EXTACK_TEXT", "netlink_ext_ack", &["_msg"]),
    Field("TASK_FILES", "task_struct", &["files"]),
    Field("FILES_FDT", "files_struct", &["fdt"]),
    Field("FDT_FD", "fdtable", &["fd"]),
    Field("KIOCB_FILE", "kiocb", &["ki_filp"]),
    Field("ITER_KIND", "iov_iter", &["iter_type", "type"]),
    Field("ITER_COUNT", "iov_iter", &["count"]),
    Field("ITER_IOV", "iov_iter", &["__iov", "iov"]),
    Field("TCP_BYTES_RECEIVED", "tcp_sock", &["bytes_received"]),
    Field("TCP_BYTES_ACKED", "tcp_sock", &["bytes_acked"]),
    Field("TCP_BYTES_SENT", "tcp_sock", &["bytes_sent"]),
    Field("TCP_SEGS_IN", "tcp_sock", &["segs_in"]),
    Field("SIGINFO_CODE", "kernel_siginfo", &["si_code"]),
    Field("QDISC_DEV_QUEUE", "Qdisc", &["dev_queue"]),
    Field("DEV_QUEUE_DEV", "netdev_queue", &["dev"]),
    Field("NET_DEVICE_NAME", "net_device", &["name"]),
    Field("NET_DEVICE_NET", "net_device", &["nd_net.net"]),
    // x86-64, arm64.
    Field("REGS_SYSCALL", "pt_regs", &["orig_ax", "syscallno"]),
];

/// Globals for the arguments of a system call: a member of `struct pt_regs`, and bytes behind its start.
#[cfg(not(target_arch = "aarch64"))]
const ARGUMENTS: [(&str, &str, u32); 3] =
    [("REGS_ARG1", "di", 0), ("REGS_ARG2", "si", 0), ("REGS_ARG3", "dx", 0)];
/// The first register holds the answer when a system call returns; the kernel keeps what was given.
#[cfg(target_arch = "aarch64")]
const ARGUMENTS: [(&str, &str, u32); 3] =
    [("REGS_ARG1", "orig_x0", 0), ("REGS_ARG2", "regs", 8), ("REGS_ARG3", "regs", 16)];

/// The reference count of a network namespace: 6.18, 5.11, before.
const NET_COUNT: Field = Field("NET_COUNT", "net", &["ns.__ns_ref", "ns.count", "count"]);
/// User memory in one piece: 6.0 and later.
const ITER_UBUF: Field = Field("ITER_UBUF", "iov_iter", &["ubuf"]);
const MARK_VICTIM: &str = "btf_trace_mark_victim";
const DROP_REASONS: &str = "skb_drop_reason";
/// What every name of a reason starts with.
const DROP_PREFIX: &str = "SKB_DROP_REASON_";

/// Values for the kernel half's globals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// Name and value.
    pub(super) globals: Vec<(&'static str, u32)>,
    /// Fields that this kernel does not have under any known name.
    pub(super) missing: Vec<&'static str>,
    /// What programs need beyond that.
    pub(super) abilities: Abilities,
    /// Names of the reasons for which this kernel drops packets; the numbers are its own.
    pub(super) drop_reasons: BTreeMap<u32, String>,
    /// What programs attach to, as a type section of its own: see [`Btf::skeleton`].
    pub(super) places: Vec<u8>,
}

/// What a kernel can do for a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Abilities {
    /// `bpf_loop` exists (5.17).
    pub(super) bpf_loop: bool,
    /// `bpf_task_pt_regs` exists (5.15).
    pub(super) task_pt_regs: bool,
    /// Memory may be read by address.
    pub(super) probe_read: bool,
}

impl Layout {
    /// From the kernel's type information. `probe_read` says whether memory may be read by address; `places` are
    /// the functions and typedefs that programs attach to.
    pub(super) fn read(
        data: &[u8],
        probe_read: bool,
        places: &[String],
    ) -> Result<Self, super::btf::BtfError> {
        let mut wanted: BTreeSet<_> = FIELDS.iter().map(|field| field.1).collect();
        wanted.extend(["bpf_func_id", "iter_type", DROP_REASONS, MARK_VICTIM]);
        wanted.extend(places.iter().map(String::as_str));
        let btf = Btf::parse(data, &wanted)?;
        let find = |field: &Field| field.2.iter().find_map(|path| btf.offset(field.1, path));
        let helper = |name| btf.enumerator("bpf_func_id", name).is_some();

        let abilities = Abilities {
            bpf_loop: helper("BPF_FUNC_loop"),
            task_pt_regs: helper("BPF_FUNC_task_pt_regs"),
            probe_read,
        };
        let mut layout = Self { abilities, places: btf.skeleton(), ..Self::default() };
        for field in FIELDS {
            match find(field) {
                Some(offset) => layout.globals.push((field.0, offset)),
                None => layout.missing.push(field.0),
            }
        }
        for (global, member, behind) in ARGUMENTS {
            match btf.offset("pt_regs", member) {
                Some(offset) => layout.globals.push((global, offset + behind)),
                None => layout.missing.push(global),
            }
        }
        if let Some(offset) = find(&NET_COUNT) {
            layout.globals.extend([(NET_COUNT.0, offset), ("HAVE_NET_COUNT", 1)]);
        }
        if let Some(offset) = find(&ITER_UBUF) {
            layout.globals.push((ITER_UBUF.0, offset));
        }
        let kind = |name| btf.enumerator("iter_type", name).unwrap_or(u32::MAX);
        // Before 5.14 the lowest bit of the kind was the direction.
        let reasons = btf.enumerators(DROP_REASONS).into_iter();
        let named = reasons.filter_map(|(name, number)| Some((number, name.strip_prefix(DROP_PREFIX)?)));
        layout.drop_reasons = named.map(|(number, name)| (number, name.to_owned())).collect();
        let rpfilter = layout.drop_reasons.iter().find(|(_, name)| *name == "IP_RPFILTER");
        let has_direction = btf.offset("iov_iter", "iter_type").is_none();
        layout.globals.extend([
            ("ITER_IS_UBUF", kind("ITER_UBUF")),
            ("ITER_IS_IOVEC", kind("ITER_IOVEC")),
            ("ITER_KIND_MASK", if has_direction { !1 } else { !0 }),
            ("DROP_RPFILTER", rpfilter.map_or(u32::MAX, |(number, _)| *number)),
            ("NR_CONNECT", u32::try_from(libc::SYS_connect).unwrap_or(u32::MAX)),
            ("MARK_VICTIM_TASK", u32::from(btf.takes_pointer(MARK_VICTIM).unwrap_or(false))),
            ("HAVE_TASK_PT_REGS", u32::from(abilities.task_pt_regs)),
            ("HAVE_PROBE_READ", u32::from(probe_read)),
        ]);
        Ok(layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_every_field() {
        let data = std::fs::read(super::super::btf::VMLINUX).expect("type information of this kernel");
        let layout = Layout::read(&data, true, &[]).expect("parses");
        assert_eq!(layout.missing, Vec::<&str>::new());
        assert!(layout.globals.contains(&("HAVE_NET_COUNT", 1)));
    }
}
