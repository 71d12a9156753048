//! Which kernel fields the programs read, by the names of the kernel half's globals.

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
    Field("SOCK_EXTERR_EE", "sock_exterr_skb", &["ee"]),
    Field("NET_INUM", "net", &["ns.inum"]),
    Field("TASK_TGID", "task_struct", &["tgid"]),
    Field("TASK_COMM", "task_struct", &["comm"]),
    Field("TASK_GROUP_LEADER", "task_struct", &["group_leader"]),
    Field("TASK_REAL_PARENT", "task_struct", &["real_parent"]),
    Field("TASK_NSPROXY", "task_struct", &["nsproxy"]),
    Field("TASK_SIGNAL", "task_struct", &["signal"]),
    Field("TASK_EXIT_CODE", "task_struct", &["exit_code"]),
    Field("TASK_MM", "task_struct", &["mm"]),
    Field("NSPROXY_NET", "nsproxy", &["net_ns"]),
    Field("SIGNAL_LIVE", "signal_struct", &["live"]),
    Field("SIGNAL_FLAGS", "signal_struct", &["flags"]),
    Field("SIGNAL_GROUP_EXIT_CODE", "signal_struct", &["group_exit_code"]),
    Field("MM_ENV_START", "mm_struct", &["env_start"]),
    Field("MM_ENV_END", "mm_struct", &["env_end"]),
    Field("BPRM_FILENAME", "linux_binprm", &["filename"]),
    Field("SIGINFO_CODE", "kernel_siginfo", &["si_code"]),
    Field("QDISC_DEV_QUEUE", "Qdisc", &["dev_queue"]),
    Field("DEV_QUEUE_DEV", "netdev_queue", &["dev"]),
    Field("NET_DEVICE_NAME", "net_device", &["name"]),
    Field("NET_DEVICE_NET", "net_device", &["nd_net.net"]),
    #[cfg(target_arch = "x86_64")]
    Field("REGS_ARG1", "pt_regs", &["di"]),
    #[cfg(target_arch = "x86_64")]
    Field("REGS_ARG2", "pt_regs", &["si"]),
    #[cfg(target_arch = "x86_64")]
    Field("REGS_ARG3", "pt_regs", &["dx"]),
];

/// The reference count of a network namespace: 6.18, 5.11, before.
const NET_COUNT: Field = Field("NET_COUNT", "net", &["ns.__ns_ref", "ns.count", "count"]);

/// Values for the kernel half's globals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// Name and value.
    pub(super) globals: Vec<(&'static str, u32)>,
    /// Fields that this kernel does not have under any known name.
    pub(super) missing: Vec<&'static str>,
    /// `bpf_loop` exists (5.17).
    pub(super) bpf_loop: bool,
    /// `bpf_task_pt_regs` exists (5.15).
    pub(super) task_pt_regs: bool,
}

impl Layout {
    /// From the kernel's type information. `readable` says whether kernel memory may be read by address.
    pub(super) fn read(data: &[u8], readable: bool) -> Result<Self, super::btf::BtfError> {
        let mut structs: Vec<_> = FIELDS.iter().map(|field| field.1).collect();
        structs.push("bpf_func_id");
        let btf = Btf::parse(data, &structs)?;
        let find = |field: &Field| field.2.iter().find_map(|path| btf.offset(field.1, path));
        let helper = |name| btf.has_enumerator("bpf_func_id", name);

        let mut layout = Self {
            bpf_loop: helper("BPF_FUNC_loop"),
            task_pt_regs: helper("BPF_FUNC_task_pt_regs"),
            ..Self::default()
        };
        for field in FIELDS {
            match find(field) {
                Some(offset) => layout.globals.push((field.0, offset)),
                None => layout.missing.push(field.0),
            }
        }
        if let Some(offset) = find(&NET_COUNT) {
            layout.globals.extend([(NET_COUNT.0, offset), ("HAVE_NET_COUNT", 1)]);
        }
        layout.globals.extend([
            ("HAVE_TASK_BTF", u32::from(helper("BPF_FUNC_get_current_task_btf"))),
            ("HAVE_TASK_PT_REGS", u32::from(layout.task_pt_regs)),
            ("HAVE_PROBE_READ_KERNEL", u32::from(readable)),
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
        let layout = Layout::read(&data, true).expect("parses");
        assert_eq!(layout.missing, Vec::<&str>::new());
        assert!(layout.globals.contains(&("HAVE_NET_COUNT", 1)));
    }
}
