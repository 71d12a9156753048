//! The hook table: what each hook shows, what is lost without it.

use probe_common::Hook;
use probe_engine::Scope;

use super::layout::Abilities;

/// How much may be spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum HookSet {
    /// Everything that this kernel offers.
    #[default]
    Full,
    /// Without tracepoints of system calls, which cost every system call of the machine 12 to 15 ns.
    Lean,
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attach {
    /// `tp_btf` of this tracepoint.
    Btf(&'static str),
    /// Raw tracepoint, whose arguments have no types.
    Raw(&'static str),
    /// `fentry` of the first of these functions that the kernel has.
    Entry(&'static [&'static str]),
    /// `fexit`, as above.
    Exit(&'static [&'static str]),
    /// Perf tracepoint of a system call: taxes every system call of the machine.
    Syscall(&'static str),
}

impl Attach {
    /// As people write it.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Btf(name) => format!("tp_btf/{name}"),
            Self::Raw(name) => format!("raw_tp/{name}"),
            Self::Entry(names) => format!("fentry/{}", names.join("|")),
            Self::Exit(names) => format!("fexit/{}", names.join("|")),
            Self::Syscall(name) => format!("tracepoint/syscalls/{name}"),
        }
    }
}

/// Functions and typedefs of the kernel that programs attach to, by the names of its type information.
pub(super) fn places() -> Vec<String> {
    let names = |attach| match attach {
        Attach::Btf(name) => vec![format!("btf_trace_{name}")],
        Attach::Entry(names) | Attach::Exit(names) => names.iter().map(ToString::to_string).collect(),
        Attach::Raw(_) | Attach::Syscall(_) => Vec::new(),
    };
    HOOKS.iter().flat_map(|row| row.sources).flat_map(|source| names(source.attach)).collect()
}

/// What a program needs beyond the kernel's consent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    Nothing,
    /// `bpf_loop`.
    Loop,
    /// Memory that may be read by address.
    Memory,
    /// That, and `bpf_task_pt_regs`.
    Registers,
}

impl Needs {
    /// Why this kernel does not do.
    pub(super) fn missing(self, abilities: Abilities) -> Option<&'static str> {
        match self {
            Self::Loop if !abilities.bpf_loop => Some("the helper bpf_loop (Linux 5.17) is not there"),
            Self::Registers if !abilities.task_pt_regs => {
                Some("the helper bpf_task_pt_regs (Linux 5.15) is not there")
            }
            Self::Registers | Self::Memory if !abilities.probe_read => {
                Some("memory may not be read by address (lockdown=confidentiality)")
            }
            _ => None,
        }
    }
}

/// One way to watch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    /// The program's name in the object.
    pub(super) program: &'static str,
    /// How it is attached.
    pub(super) attach: Attach,
    pub(super) needs: Needs,
    /// What the better source sees and this one does not: the signal, and why.
    pub(super) less: Option<(&'static str, &'static str)>,
}

/// One hook.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// Which one.
    pub(crate) hook: Hook,
    /// The ways to watch it, the best first: the first that the kernel takes is used.
    pub(super) sources: &'static [Source],
    /// The signal that it feeds, as verdicts name it in their gaps.
    pub(crate) signal: &'static str,
    /// What must be read again when it lost events.
    pub(crate) scope: Scope,
    /// What is not seen without it, and what stands in.
    pub(crate) cost: &'static str,
    /// Nothing stands in.
    pub(crate) blind: bool,
}

const fn source(program: &'static str, attach: Attach, needs: Needs) -> Source {
    Source { program, attach, needs, less: None }
}

impl Source {
    const fn less(mut self, signal: &'static str, why: &'static str) -> Self {
        self.less = Some((signal, why));
        self
    }
}

macro_rules! btf {
    ($name:literal) => {
        &[source($name, Attach::Btf($name), Needs::Nothing)]
    };
}

macro_rules! raw {
    ($name:literal) => {
        &[source($name, Attach::Raw($name), Needs::Nothing)]
    };
}

const fn row(
    hook: Hook,
    sources: &'static [Source],
    signal: &'static str,
    scope: Scope,
    blind: bool,
    cost: &'static str,
) -> Row {
    Row { hook, sources, signal, scope, cost, blind }
}

/// Every hook, in the order in which they are attached: exits before executions, so that no process is
/// entered whose end would be missed; the end of connects before their start for the same reason.
pub(crate) const HOOKS: &[Row] = &[
    row(
        Hook::TcpReceiveReset,
        raw!("tcp_receive_reset"),
        "tcp.reset",
        Scope::Sockets,
        false,
        "a reset and an ICMP refusal look alike; the error queue stands in for IPv4",
    ),
    row(
        Hook::TcpRetransmitSkb,
        raw!("tcp_retransmit_skb"),
        "tcp.retransmit",
        Scope::Sockets,
        false,
        "how often a SYN was sent again; the time that passed stands in",
    ),
    row(
        Hook::InetSockSetState,
        btf!("inet_sock_set_state"),
        "tcp.connect",
        Scope::Sockets,
        false,
        "how the clients' connects end; the agent's own questions stand in",
    ),
    row(
        Hook::Connect,
        &[
            source("sys_connect_file", Attach::Exit(&["__sys_connect_file"]), Needs::Nothing),
            source("sys_exit_connect", Attach::Syscall("sys_exit_connect"), Needs::Registers),
        ],
        "tcp.connect.early",
        Scope::Sockets,
        false,
        "connects that fail before a packet leaves; the agent's own questions stand in",
    ),
    row(
        Hook::SignalGenerate,
        btf!("signal_generate"),
        "process.signal",
        Scope::Processes,
        false,
        "who ended a process; its exit status stands in",
    ),
    row(
        Hook::MarkVictim,
        btf!("mark_victim"),
        "process.oom",
        Scope::Processes,
        false,
        "whether the out-of-memory killer ended a process; the signal stands in",
    ),
    row(
        Hook::SchedProcessExit,
        btf!("sched_process_exit"),
        "process.exit",
        Scope::Processes,
        false,
        "how processes and plugins end; /proc stands in for processes",
    ),
    row(
        Hook::Write,
        &[
            source("pipe_write", Attach::Entry(&["anon_pipe_write", "pipe_write"]), Needs::Memory),
            source("sys_enter_write", Attach::Syscall("sys_enter_write"), Needs::Memory).less(
                "cni.stdout.writev",
                "fentry does not load here; what plugins write by writev(2) is not seen",
            ),
        ],
        "cni.stdout",
        Scope::Cni,
        false,
        "the plugin's own error message; its exit code stands in",
    ),
    row(
        Hook::SchedProcessExec,
        &[
            source("sched_process_exec", Attach::Btf("sched_process_exec"), Needs::Loop),
            source("sched_process_exec_unrolled", Attach::Btf("sched_process_exec"), Needs::Nothing).less(
                "cni.exec.environment",
                "bpf_loop (Linux 5.17) is not there; only the first 128 variables of a program are looked at",
            ),
        ],
        "cni.exec",
        Scope::Processes,
        true,
        "CNI runs and their failures",
    ),
    row(
        Hook::TaskNewtask,
        btf!("task_newtask"),
        "netns.clone",
        Scope::Links,
        false,
        "namespaces made by clone(2); runtimes use unshare(2)",
    ),
    row(
        Hook::Unshare,
        &[
            source("ksys_unshare", Attach::Exit(&["ksys_unshare"]), Needs::Nothing),
            source("sys_exit_unshare", Attach::Syscall("sys_exit_unshare"), Needs::Registers),
        ],
        "netns.create",
        Scope::Links,
        false,
        "namespaces made by unshare(2)",
    ),
    row(
        Hook::Rtnetlink,
        &[
            source("rtnetlink_rcv_msg", Attach::Exit(&["rtnetlink_rcv_msg"]), Needs::Nothing),
            source("netlink_extack", Attach::Raw("netlink_extack"), Needs::Memory).less(
                "link.error.errno",
                "fexit does not load here; of refused links and routes only the kernel's text is seen, where there is \
                 one, and not the errno; who takes routes away is told by the port id of the request",
            ),
        ],
        "link.error",
        Scope::Links,
        false,
        "why the kernel refuses links, addresses and routes, and who asked",
    ),
    row(
        Hook::InotifyInit,
        &[
            source("do_inotify_init", Attach::Exit(&["do_inotify_init"]), Needs::Nothing),
            source("sys_exit_inotify_init1", Attach::Syscall("sys_exit_inotify_init1"), Needs::Nothing),
        ],
        "limit.inotify",
        Scope::Processes,
        false,
        "a runtime or kubelet that gets no inotify instance; how many there are stands in",
    ),
    row(
        Hook::Clone,
        &[source("kernel_clone", Attach::Exit(&["kernel_clone"]), Needs::Nothing)],
        "limit.processes",
        Scope::Processes,
        false,
        "a runtime or kubelet that gets no process; how many there are stands in",
    ),
    row(
        Hook::ModuleRequest,
        &[source("module_request", Attach::Raw("module_request"), Needs::Memory)],
        "module.request",
        Scope::Links,
        false,
        "modules that the kernel asks for; the kernel's words on refused links stand in",
    ),
    row(
        Hook::KfreeSkb,
        btf!("kfree_skb"),
        "packet.drop",
        Scope::Links,
        false,
        "why this host drops packets (Linux 5.17); that it drops those of a connect shows by their silence",
    ),
    row(
        Hook::Execve,
        &[
            source("sys_execve", Attach::Exit(&["__x64_sys_execve", "__arm64_sys_execve"]), Needs::Memory),
            source("do_open_execat", Attach::Exit(&["do_open_execat"]), Needs::Memory).less(
                "cni.exec.format",
                "fexit does not load on the system call; a plugin of another architecture or without its interpreter is \
                 seen by its file only",
            ),
            source("sys_exit_execve", Attach::Syscall("sys_exit_execve"), Needs::Registers),
        ],
        "cni.exec.refused",
        Scope::Cni,
        false,
        "a plugin that cannot be executed; what its file shows stands in",
    ),
    row(
        Hook::Openat,
        &[
            source("vfs_open", Attach::Exit(&["vfs_open"]), Needs::Nothing),
            source("sys_exit_openat", Attach::Syscall("sys_exit_openat"), Needs::Registers),
        ],
        "cni.binary.busy",
        Scope::Cni,
        false,
        "a plugin that cannot be replaced because it runs",
    ),
    row(Hook::QdiscDestroy, btf!("qdisc_destroy"), "netns.end", Scope::Links, false, "the end of namespaces"),
];

/// What programs that load everywhere cannot see with less: the ability, the signal, and why.
pub(super) fn less(abilities: Abilities) -> Vec<(&'static str, &'static str)> {
    let mut less = Vec::new();
    if !abilities.probe_read {
        less.push((
            "cni.exec.environment",
            "memory may not be read by address; plugins are known by the names of the installed ones, and what \
             they were told is read from /proc while they run",
        ));
    }
    if !abilities.probe_read {
        less.push((
            "link.error.text",
            "memory may not be read by address; of what the kernel refuses the errno and the process are seen, not \
             its words and not the link or route",
        ));
    }
    if !abilities.probe_read || !abilities.task_pt_regs {
        less.push((
            "tcp.connect.asked",
            "the address that connect(2) was called with cannot be read; where eBPF sends a Service on, only the \
             backend is seen",
        ));
    }
    less
}
