//! Names of the hooks, and the reasons why a hook can fail to report an event.

macro_rules! hooks {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A place in the kernel that the probe observes; the number is the row in the skip counters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Hook { $($(#[$doc])* $variant,)* }

        impl Hook {
            /// Every hook, in order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Returns the kernel's name of the place: a tracepoint or a system call.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

hooks! {
    /// `tp_btf/inet_sock_set_state`: every TCP state change.
    InetSockSetState = "inet_sock_set_state",
    /// `tp_btf/tcp_receive_reset`: a reset was received.
    TcpReceiveReset = "tcp_receive_reset",
    /// `tp_btf/tcp_retransmit_skb`: a segment was retransmitted.
    TcpRetransmitSkb = "tcp_retransmit_skb",
    /// connect(2) failed before a packet was sent, or a plugin connected to a Unix socket.
    Connect = "connect",
    /// `tp_btf/sched_process_exec`: a program was executed.
    SchedProcessExec = "sched_process_exec",
    /// `tp_btf/sched_process_exit`: a thread exited.
    SchedProcessExit = "sched_process_exit",
    /// `tp_btf/signal_generate`: a signal was sent.
    SignalGenerate = "signal_generate",
    /// `tp_btf/mark_victim`: the out-of-memory killer chose a process.
    MarkVictim = "mark_victim",
    /// A plugin wrote to its standard output.
    Write = "write",
    /// A namespace was created by unshare(2).
    Unshare = "unshare",
    /// `tp_btf/task_newtask`: a namespace was created by clone(2).
    TaskNewtask = "task_newtask",
    /// The kernel rejected a change of a link, address, route or rule, or a route or rule was deleted.
    Rtnetlink = "rtnetlink",
    /// A watched process could not create an inotify instance.
    InotifyInit = "inotify_init",
    /// A watched process could not create a process or thread.
    Clone = "clone",
    /// `tp_btf/module_request`: the kernel requested a module.
    ModuleRequest = "module_request",
    /// `tp_btf/kfree_skb`: a packet was dropped, with the reason.
    KfreeSkb = "kfree_skb",
    /// A program could not be executed.
    Execve = "execve",
    /// A file could not be opened for writing because it is being executed.
    Openat = "openat",
    /// `tp_btf/qdisc_destroy`: the loopback device of a namespace under destruction was shut down.
    QdiscDestroy = "qdisc_destroy",
}

/// Reason why a hook did not report an event; the number is the column in the skip counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Skip {
    /// The ring buffer was full.
    RingFull,
    /// A map was full.
    MapFull,
    /// Memory could not be read.
    Unreadable,
    /// The process is not a component of the node, and the budget of its source is exhausted.
    Throttled,
}

impl Skip {
    /// Returns whether an event of the node's own components may have been lost.
    pub const fn is_loss(self) -> bool {
        !matches!(self, Self::Throttled)
    }

    /// Every reason, in order of its number.
    pub const ALL: [Self; 4] = [Self::RingFull, Self::MapFull, Self::Unreadable, Self::Throttled];

    /// Returns the index of the counter of this reason and `hook`.
    #[expect(clippy::cast_possible_truncation, reason = "two small tables")]
    pub const fn slot(self, hook: Hook) -> u32 {
        hook as u32 * Self::ALL.len() as u32 + self as u32
    }

    /// Number of counters.
    #[expect(clippy::cast_possible_truncation, reason = "two small tables")]
    pub const SLOTS: u32 = Hook::ALL.len() as u32 * Self::ALL.len() as u32;
}
