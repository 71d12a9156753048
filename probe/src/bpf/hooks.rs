//! The hook table: how each hook is attached, which signal it provides, and what is not observed without it.

use probe_common::Hook;
use probe_engine::Scope;

use super::layout::Abilities;

/// Which hooks to attach, by their cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum HookSet {
    /// All hooks that this kernel supports.
    #[default]
    Full,
    /// No tracepoints of system calls, which add 12 to 15 ns to every system call of the host.
    Lean,
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attach {
    /// To this tracepoint, by `tp_btf`.
    Btf(&'static str),
    /// To this raw tracepoint, whose arguments are not typed.
    Raw(&'static str),
    /// To the first of these functions that the kernel has, by `fentry`.
    Entry(&'static [&'static str]),
    /// To the first of these functions that the kernel has, by `fexit`.
    Exit(&'static [&'static str]),
    /// To this perf tracepoint of a system call. It slows down every system call of the host.
    Syscall(&'static str),
}

impl Attach {
    /// Returns the section name that is customary for this kind of program.
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

/// Returns the functions and typedefs that programs attach to, by their names in the kernel's BTF.
pub(super) fn attach_points() -> Vec<String> {
    let names = |attach| match attach {
        Attach::Btf(name) => vec![format!("btf_trace_{name}")],
        Attach::Entry(names) | Attach::Exit(names) => names.iter().map(ToString::to_string).collect(),
        Attach::Raw(_) | Attach::Syscall(_) => Vec::new(),
    };
    HOOKS.iter().flat_map(|row| row.sources).flat_map(|source| names(source.attach)).collect()
}

/// Kernel features that a program needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    Nothing,
    /// `bpf_loop`.
    Loop,
    /// Reading memory by address.
    Memory,
    /// Reading memory by address, and `bpf_task_pt_regs`.
    Registers,
}

impl Needs {
    /// Returns which feature this kernel lacks; `None` if it has all of them.
    pub(super) fn missing(self, abilities: Abilities) -> Option<&'static str> {
        match self {
            Self::Loop if !abilities.bpf_loop => Some("the kernel lacks the helper bpf_loop (Linux 5.17)"),
            Self::Registers if !abilities.task_pt_regs => {
                Some("the kernel lacks the helper bpf_task_pt_regs (Linux 5.15)")
            }
            Self::Registers | Self::Memory if !abilities.probe_read => {
                Some("the kernel forbids reading memory by address (lockdown=confidentiality)")
            }
            _ => None,
        }
    }
}

/// A program that implements a hook.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    /// The program's name in the object.
    pub(super) program: &'static str,
    /// How it is attached.
    pub(super) attach: Attach,
    pub(super) needs: Needs,
    /// Limitation against the preferred source: the signal, and an explanation.
    pub(super) limitation: Option<(&'static str, &'static str)>,
}

/// A row of the hook table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// The hook.
    pub(crate) hook: Hook,
    /// Programs that implement it, by preference. The first one that the kernel accepts is used.
    pub(super) sources: &'static [Source],
    /// The signal that it provides, as the gaps of verdicts name it.
    pub(crate) signal: &'static str,
    /// What must be read again after lost events.
    pub(crate) scope: Scope,
    /// What is not observed without it, and the fallback.
    pub(crate) cost: &'static str,
    /// There is no fallback.
    pub(crate) blind: bool,
}

const fn source(program: &'static str, attach: Attach, needs: Needs) -> Source {
    Source { program, attach, needs, limitation: None }
}

impl Source {
    const fn limited(mut self, signal: &'static str, why: &'static str) -> Self {
        self.limitation = Some((signal, why));
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

/// All hooks, in the order in which they are attached: exits before executions, so that no process is recorded whose exit
/// would be missed; the end of connects before their start for the same reason.
pub(crate) const HOOKS: &[Row] = &[
    row(
        Hook::TcpReceiveReset,
        raw!("tcp_receive_reset"),
        "tcp.reset",
        Scope::Sockets,
        false,
        "whether a connect was refused by a reset or by ICMP; fallback for IPv4: the error queue",
    ),
    row(
        Hook::TcpRetransmitSkb,
        raw!("tcp_retransmit_skb"),
        "tcp.retransmit",
        Scope::Sockets,
        false,
        "how often a SYN was retransmitted; fallback: the time that has passed",
    ),
    row(
        Hook::InetSockSetState,
        btf!("inet_sock_set_state"),
        "tcp.connect",
        Scope::Sockets,
        false,
        "how connects of the clients end; fallback: the agent's own requests",
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
        "connects that fail before a packet is sent; fallback: the agent's own requests",
    ),
    row(
        Hook::SignalGenerate,
        btf!("signal_generate"),
        "process.signal",
        Scope::Processes,
        false,
        "which process sent a signal to another; fallback: the exit status",
    ),
    row(
        Hook::MarkVictim,
        btf!("mark_victim"),
        "process.oom",
        Scope::Processes,
        false,
        "whether the OOM killer killed a process; fallback: the signal in its exit status",
    ),
    row(
        Hook::SchedProcessExit,
        btf!("sched_process_exit"),
        "process.exit",
        Scope::Processes,
        false,
        "how processes and plugins exit; fallback for processes: /proc",
    ),
    row(
        Hook::Write,
        &[
            source("pipe_write", Attach::Entry(&["anon_pipe_write", "pipe_write"]), Needs::Memory),
            source("sys_enter_write", Attach::Syscall("sys_enter_write"), Needs::Memory).limited(
                "cni.stdout.writev",
                "fentry programs do not load on this kernel: plugin output written with writev(2) is not observed",
            ),
        ],
        "cni.stdout",
        Scope::Cni,
        false,
        "error messages of plugins; fallback: the exit code",
    ),
    row(
        Hook::SchedProcessExec,
        &[
            source("sched_process_exec", Attach::Btf("sched_process_exec"), Needs::Loop),
            source("sched_process_exec_unrolled", Attach::Btf("sched_process_exec"), Needs::Nothing).limited(
                "cni.exec.environment",
                "the kernel lacks the helper bpf_loop (Linux 5.17): only the first 128 environment variables of a \
                 program are examined",
            ),
        ],
        "cni.exec",
        Scope::Processes,
        true,
        "CNI operations and their failures",
    ),
    row(
        Hook::TaskNewtask,
        btf!("task_newtask"),
        "netns.clone",
        Scope::Links,
        false,
        "network namespaces created by clone(2); container runtimes use unshare(2)",
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
        "network namespaces created by unshare(2)",
    ),
    row(
        Hook::Rtnetlink,
        &[
            source("rtnetlink_rcv_msg", Attach::Exit(&["rtnetlink_rcv_msg"]), Needs::Nothing),
            source("netlink_extack", Attach::Raw("netlink_extack"), Needs::Memory).limited(
                "link.error.errno",
                "fexit programs do not load on this kernel: of refused links and routes only the kernel's message is \
                 observed, if there is one, and not the errno; which process removed a route is known only by the \
                 port ID of its request",
            ),
        ],
        "link.error",
        Scope::Links,
        false,
        "why the kernel refuses links, addresses and routes, and which process requested them",
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
        "a container runtime or kubelet that cannot create an inotify instance; fallback: the number of instances",
    ),
    row(
        Hook::Clone,
        &[source("kernel_clone", Attach::Exit(&["kernel_clone"]), Needs::Nothing)],
        "limit.processes",
        Scope::Processes,
        false,
        "a container runtime or kubelet that cannot create a process; fallback: the number of processes",
    ),
    row(
        Hook::ModuleRequest,
        &[source("module_request", Attach::Raw("module_request"), Needs::Memory)],
        "module.request",
        Scope::Links,
        false,
        "modules that the kernel requests; fallback: the kernel's messages on refused links",
    ),
    row(
        Hook::KfreeSkb,
        btf!("kfree_skb"),
        "packet.drop",
        Scope::Links,
        false,
        "why this host drops packets (Linux 5.17); fallback for connects: no SYN is retransmitted",
    ),
    row(
        Hook::Execve,
        &[
            source("sys_execve", Attach::Exit(&["__x64_sys_execve", "__arm64_sys_execve"]), Needs::Memory),
            source("do_open_execat", Attach::Exit(&["do_open_execat"]), Needs::Memory).limited(
                "cni.exec.format",
                "fexit programs do not load on this system call: a plugin of another architecture or without its \
                 interpreter is recognized by its file only",
            ),
            source("sys_exit_execve", Attach::Syscall("sys_exit_execve"), Needs::Registers),
        ],
        "cni.exec.refused",
        Scope::Cni,
        false,
        "a plugin that cannot be executed; fallback: examining its file",
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
        "a plugin file that cannot be replaced because the plugin is running (ETXTBSY)",
    ),
    row(Hook::QdiscDestroy, btf!("qdisc_destroy"), "netns.end", Scope::Links, false, "the removal of network namespaces"),
];

/// Returns the limitations on this kernel of programs that load on every kernel: the signals, and an explanation of each.
pub(super) fn limitations(abilities: Abilities) -> Vec<(&'static str, &'static str)> {
    let mut limitations = Vec::new();
    if !abilities.probe_read {
        limitations.push((
            "cni.exec.environment",
            "the kernel forbids reading memory by address: plugins are recognized by the names of the installed ones, \
             and their environment is read from /proc while they run",
        ));
        limitations.push((
            "link.error.text",
            "the kernel forbids reading memory by address: of a refused request the errno and the process are \
             observed, but neither the kernel's message nor the link or route",
        ));
    }
    if !abilities.probe_read || !abilities.task_pt_regs {
        limitations.push((
            "tcp.connect.asked",
            "the address passed to connect(2) cannot be read: where eBPF redirects a Service, only the backend is \
             observed",
        ));
    }
    limitations
}
