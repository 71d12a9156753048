//! The hook table: what each hook shows, what is lost without it.

use probe_common::Hook;
use probe_engine::Scope;

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attach {
    /// `tp_btf` of this tracepoint.
    Btf(&'static str),
    /// Perf tracepoint: category and name.
    Tracepoint(&'static str, &'static str),
}

/// One hook.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// Which one.
    pub(crate) hook: Hook,
    /// How it is attached.
    pub(super) attach: Attach,
    /// The signal that it feeds, as verdicts name it in their gaps.
    pub(crate) signal: &'static str,
    /// What must be read again when it lost events.
    pub(crate) scope: Scope,
    /// What is not seen without it, and what stands in.
    pub(crate) cost: &'static str,
    /// Nothing stands in.
    pub(crate) blind: bool,
}

const fn row(
    hook: Hook,
    attach: Attach,
    signal: &'static str,
    scope: Scope,
    blind: bool,
    cost: &'static str,
) -> Row {
    Row { hook, attach, signal, scope, cost, blind }
}

/// Every hook, in the order in which they are attached: exits before executions, so that no process is
/// entered whose end would be missed; the end of connects before their start for the same reason.
pub(crate) const HOOKS: &[Row] = &[
    row(
        Hook::TcpReceiveReset,
        Attach::Btf("tcp_receive_reset"),
        "tcp.reset",
        Scope::Sockets,
        false,
        "a reset and an ICMP refusal look alike; the error queue stands in for IPv4",
    ),
    row(
        Hook::TcpRetransmitSkb,
        Attach::Btf("tcp_retransmit_skb"),
        "tcp.retransmit",
        Scope::Sockets,
        false,
        "how often a SYN was sent again; the time that passed stands in",
    ),
    row(
        Hook::InetSockSetState,
        Attach::Btf("inet_sock_set_state"),
        "tcp.connect",
        Scope::Sockets,
        false,
        "how the clients' connects end; the agent's own questions stand in",
    ),
    row(
        Hook::SysExitConnect,
        Attach::Tracepoint("syscalls", "sys_exit_connect"),
        "tcp.connect.early",
        Scope::Sockets,
        false,
        "connects that fail before a packet leaves; the agent's own questions stand in",
    ),
    row(
        Hook::SignalGenerate,
        Attach::Btf("signal_generate"),
        "process.signal",
        Scope::Processes,
        false,
        "who ended a process; its exit status stands in",
    ),
    row(
        Hook::MarkVictim,
        Attach::Tracepoint("oom", "mark_victim"),
        "process.oom",
        Scope::Processes,
        false,
        "whether the out-of-memory killer ended a process; the signal stands in",
    ),
    row(
        Hook::SchedProcessExit,
        Attach::Btf("sched_process_exit"),
        "process.exit",
        Scope::Processes,
        false,
        "how processes and plugins end; /proc stands in for processes",
    ),
    row(
        Hook::SysEnterWrite,
        Attach::Tracepoint("syscalls", "sys_enter_write"),
        "cni.stdout",
        Scope::Cni,
        false,
        "the plugin's own error message; its exit code stands in",
    ),
    row(
        Hook::SchedProcessExec,
        Attach::Btf("sched_process_exec"),
        "cni.exec",
        Scope::Cni,
        true,
        "CNI runs and their failures",
    ),
    row(
        Hook::TaskNewtask,
        Attach::Btf("task_newtask"),
        "netns.clone",
        Scope::Links,
        false,
        "namespaces made by clone(2); runtimes use unshare(2)",
    ),
    row(
        Hook::SysExitUnshare,
        Attach::Tracepoint("syscalls", "sys_exit_unshare"),
        "netns.create",
        Scope::Links,
        false,
        "namespaces made by unshare(2)",
    ),
    row(
        Hook::QdiscDestroy,
        Attach::Btf("qdisc_destroy"),
        "netns.end",
        Scope::Links,
        false,
        "the end of namespaces",
    ),
];
