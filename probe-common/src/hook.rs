//! Names of the hooks and of the ways in which one can fail to report.

macro_rules! hooks {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A place in the kernel where the probe watches; the number is the row in the skip counters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Hook { $($(#[$doc])* $variant,)* }

        impl Hook {
            /// Every hook, in order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The kernel's name of what is watched: a tracepoint, or a system call.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

hooks! {
    /// `tp_btf/inet_sock_set_state`: every TCP state change.
    InetSockSetState = "inet_sock_set_state",
    /// `tp_btf/tcp_receive_reset`: a reset arrived.
    TcpReceiveReset = "tcp_receive_reset",
    /// `tp_btf/tcp_retransmit_skb`: a segment was sent again.
    TcpRetransmitSkb = "tcp_retransmit_skb",
    /// connect(2) failed before a packet left, or a plugin connected to a Unix socket.
    Connect = "connect",
    /// `tp_btf/sched_process_exec`: a program was executed.
    SchedProcessExec = "sched_process_exec",
    /// `tp_btf/sched_process_exit`: a thread ended.
    SchedProcessExit = "sched_process_exit",
    /// `tp_btf/signal_generate`: a signal was sent.
    SignalGenerate = "signal_generate",
    /// `tp_btf/mark_victim`: the out-of-memory killer chose a process.
    MarkVictim = "mark_victim",
    /// A plugin writes its result.
    Write = "write",
    /// A namespace was made by unshare(2).
    Unshare = "unshare",
    /// `tp_btf/task_newtask`: a namespace was made by clone(2).
    TaskNewtask = "task_newtask",
    /// The kernel refused a change of a link, address, route or rule, or took a route or rule away.
    Rtnetlink = "rtnetlink",
    /// A watched process asked for an inotify instance and got none.
    InotifyInit = "inotify_init",
    /// A watched process asked for a process or thread and got none.
    Clone = "clone",
    /// `tp_btf/module_request`: the kernel asked for a module.
    ModuleRequest = "module_request",
    /// `tp_btf/kfree_skb`: a packet was dropped, and why.
    KfreeSkb = "kfree_skb",
    /// A program could not be executed.
    Execve = "execve",
    /// A file could not be opened for writing because it runs.
    Openat = "openat",
    /// `tp_btf/qdisc_destroy`: the loopback device of a dying namespace goes.
    QdiscDestroy = "qdisc_destroy",
}

/// Why a hook did not report what it saw; the number is the column in the skip counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Skip {
    /// The ring buffer had no room.
    RingFull,
    /// A map had no room.
    MapFull,
    /// Memory that should be readable was not.
    Unreadable,
    /// The process is not one of the node's own and has caused more events than its budget allows.
    Throttled,
}

impl Skip {
    /// Returns whether something of the node's own may have been lost.
    pub const fn is_loss(self) -> bool {
        !matches!(self, Self::Throttled)
    }

    /// Every reason, in order of its number.
    pub const ALL: [Self; 4] = [Self::RingFull, Self::MapFull, Self::Unreadable, Self::Throttled];

    /// Row and column as one index into the counters.
    #[expect(clippy::cast_possible_truncation, reason = "two small tables")]
    pub const fn slot(self, hook: Hook) -> u32 {
        hook as u32 * Self::ALL.len() as u32 + self as u32
    }

    /// Number of counters.
    #[expect(clippy::cast_possible_truncation, reason = "two small tables")]
    pub const SLOTS: u32 = Hook::ALL.len() as u32 * Self::ALL.len() as u32;
}
