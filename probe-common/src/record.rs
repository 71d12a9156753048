//! The records as they lie in the ring buffer.
#![expect(clippy::pub_underscore_fields, reason = "padding is named so that it can be seen and zeroed")]

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `TASK_COMM_LEN`, include/linux/sched.h: the kernel's own name of a thread, NUL-terminated.
pub const COMM_LEN: usize = 16;
/// Room for a plugin's path and for `CNI_PATH`. Longer ones are cut, and marked by a missing NUL.
pub const PATH_LEN: usize = 256;
/// Room for `CNI_CONTAINERID`: runtimes use 64 hex digits.
pub const CONTAINER_ID_LEN: usize = 80;
/// Room for `CNI_NETNS`, for example `/var/run/netns/cni-<uuid>` (54 bytes).
pub const NETNS_PATH_LEN: usize = 128;
/// `IFNAMSIZ`, include/uapi/linux/if.h.
pub const IFNAME_LEN: usize = 16;
/// Room for `CNI_ARGS`: the five keys of the kubelet take about 250 bytes, a namespace and a pod name may
/// add 63 + 253 (Kubernetes object name limits).
pub const ARGS_LEN: usize = 640;
/// Room for `CNI_COMMAND`; the longest is `VERSION`.
pub const COMMAND_LEN: usize = 16;
/// Most bytes taken from one write of a plugin to its standard output.
pub const STDOUT_LEN: usize = 4096;

/// What kind of record follows the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Code {
    /// [`ConnectEnd`]
    ConnectEnd = 1,
    /// [`ConnectError`]
    ConnectError = 2,
    /// [`Listen`]
    Listen = 3,
    /// [`CniExec`]
    CniExec = 4,
    /// [`ProcessExec`]
    ProcessExec = 5,
    /// [`Stdout`]
    Stdout = 6,
    /// [`Exit`]
    Exit = 7,
    /// [`Netns`]
    Netns = 8,
    /// [`ConnectionEnd`]
    ConnectionEnd = 9,
    /// [`UnixConnect`]
    UnixConnect = 10,
    /// [`Rtnetlink`]
    Rtnetlink = 11,
    /// [`LimitHit`]
    LimitHit = 12,
    /// [`ModuleRequest`]
    ModuleRequest = 13,
    /// [`FileRefused`]
    FileRefused = 14,
    /// [`Drops`]
    Drops = 15,
}

impl Code {
    /// Every code, in order of its number.
    pub const ALL: [Self; 15] = [
        Self::ConnectEnd,
        Self::ConnectError,
        Self::Listen,
        Self::CniExec,
        Self::ProcessExec,
        Self::Stdout,
        Self::Exit,
        Self::Netns,
        Self::ConnectionEnd,
        Self::UnixConnect,
        Self::Rtnetlink,
        Self::LimitHit,
        Self::ModuleRequest,
        Self::FileRefused,
        Self::Drops,
    ];
}

/// First part of every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Header {
    /// `CLOCK_BOOTTIME`, nanoseconds (`bpf_ktime_get_boot_ns`).
    pub at_ns: u64,
    /// A [`Code`], not yet checked.
    pub code: u16,
    /// Always zero.
    pub _pad: [u8; 6],
}

/// The task a record is about, as it was when the kernel saw it act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Task {
    /// Process id (kernel: `tgid`) in the initial pid namespace.
    pub tgid: u32,
    /// Thread id (kernel: `pid`).
    pub tid: u32,
    /// Process id of the parent (`real_parent->tgid`); 0 when it was not read.
    pub ppid: u32,
    /// Inode number of the network namespace; reused by the kernel as soon as a namespace ends.
    pub netns: u32,
    /// Real user ID in the initial user namespace.
    pub uid: u32,
    /// Depth of the PID namespace: 0 on the host, 1 or more in containers.
    pub pid_level: u32,
    /// Name of the process' main thread, cut to 15 bytes.
    pub comm: [u8; COMM_LEN],
}

/// A TCP connect left `SYN_SENT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ConnectEnd {
    /// Time of the transition.
    pub header: Header,
    /// Who called connect(2), remembered when the socket entered `SYN_SENT`: the end runs in any context.
    pub task: Task,
    /// When the socket entered `SYN_SENT`; clock as in [`Header`].
    pub started_ns: u64,
    /// Local address; IPv4 in the first four bytes, the rest zero; IPv6 may be IPv4-mapped.
    pub saddr: [u8; 16],
    /// Address on the socket; layout as `saddr`.
    pub daddr: [u8; 16],
    /// Address that connect(2) was called with, layout as `saddr`; with flag `ASKED`. An eBPF program of a
    /// Service implementation may have put another one on the socket.
    pub asked: [u8; 16],
    /// Local port, host byte order; 0 when the kernel had released it already.
    pub sport: u16,
    /// Remote port, host byte order.
    pub dport: u16,
    /// `AF_INET` = 2 or `AF_INET6` = 10.
    pub family: u16,
    /// `enum tcp_state`, include/net/tcp_states.h: the state entered (1 established, 7 closed).
    pub state: u8,
    /// Bits [`ConnectEnd::RST`], [`ConnectEnd::BY_CALLER`], [`ConnectEnd::ICMP`], [`ConnectEnd::ICMP_FROM`].
    pub flags: u8,
    /// `sk->sk_err` at the transition: positive errno or 0.
    pub sk_err: u32,
    /// `sk->sk_err_soft` at the transition: positive errno or 0.
    pub sk_err_soft: u32,
    /// SYN retransmissions that the kernel reported for this socket.
    pub retransmits: u32,
    /// `ee_origin`, `ee_type`, `ee_code` of the newest entry in the socket's error queue; with flag `ICMP`.
    pub icmp_origin: u8,
    /// See `icmp_origin`.
    pub icmp_type: u8,
    /// See `icmp_origin`.
    pub icmp_code: u8,
    /// Always zero.
    pub _pad: u8,
    /// IPv4 source of that ICMP message, network byte order; with flag `ICMP_FROM`.
    pub icmp_from: [u8; 4],
    /// Port that connect(2) was called with, host byte order; with flag `ASKED`.
    pub asked_port: u16,
    /// Family that connect(2) was called with, as `family`; with flag `ASKED`.
    pub asked_family: u16,
    /// `enum skb_drop_reason`, include/net/dropreason-core.h: why this host dropped the newest of its own
    /// packets; 0 when it dropped none. The numbers are each kernel's own.
    pub dropped: u32,
    /// Always zero.
    pub _pad2: u32,
}

impl ConnectEnd {
    /// A TCP reset arrived on this socket before the transition.
    pub const RST: u8 = 1;
    /// The transition ran in the context of the process that owns the socket: it closed it itself.
    pub const BY_CALLER: u8 = 2;
    /// The `icmp_*` fields were read.
    pub const ICMP: u8 = 4;
    /// `icmp_from` was read.
    pub const ICMP_FROM: u8 = 8;
    /// `asked`, `asked_port` and `asked_family` were read.
    pub const ASKED: u8 = 16;
}

/// An established connection to a watched address left `ESTABLISHED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ConnectionEnd {
    /// Time of the transition.
    pub header: Header,
    /// Who called connect(2).
    pub task: Task,
    /// When it became established; clock as in [`Header`].
    pub established_ns: u64,
    /// Address on the socket; layout as in [`ConnectEnd`].
    pub daddr: [u8; 16],
    /// Remote port, host byte order.
    pub dport: u16,
    /// `AF_INET` = 2 or `AF_INET6` = 10.
    pub family: u16,
    /// `enum tcp_state`: 4 `FIN_WAIT1` (this side closed first), 7 `CLOSE`, 8 `CLOSE_WAIT` (the other side did).
    pub state: u8,
    /// Bits [`ConnectEnd::RST`], [`ConnectEnd::BY_CALLER`] and [`ConnectEnd::ASKED`].
    pub flags: u8,
    /// Local port, host byte order.
    pub sport: u16,
    /// `sk->sk_err` at the transition: positive errno or 0.
    pub sk_err: u32,
    /// Segments sent again since it was established.
    pub retransmits: u32,
    /// `tp->bytes_received`; counts the other side's FIN as one.
    pub bytes_received: u64,
    /// `tp->bytes_acked`; counts the SYN as one.
    pub bytes_acked: u64,
    /// `tp->bytes_sent`, what was sent again counted again.
    pub bytes_sent: u64,
    /// As [`ConnectEnd::asked`]; with flag [`ConnectEnd::ASKED`].
    pub asked: [u8; 16],
    /// As [`ConnectEnd::asked_port`].
    pub asked_port: u16,
    /// As [`ConnectEnd::asked_family`].
    pub asked_family: u16,
    /// Always zero.
    pub _pad: [u8; 4],
}

/// Room for the path of a Unix socket: `UNIX_PATH_MAX`, include/uapi/linux/un.h, and a NUL.
pub const UNIX_PATH_LEN: usize = 112;

/// A CNI or watched process called connect(2) for a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct UnixConnect {
    /// Time of the return.
    pub header: Header,
    /// The caller.
    pub task: Task,
    /// Path as given; starts with a NUL for an abstract name.
    pub path: [u8; UNIX_PATH_LEN],
    /// Positive errno, 0 when it is connected.
    pub errno: u32,
    /// 1: a CNI process, 0: one of the watch list.
    pub cni: u8,
    /// Always zero.
    pub _pad: [u8; 3],
}

/// connect(2) returned an error that no socket state shows: nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ConnectError {
    /// Time of the return to user space.
    pub header: Header,
    /// The caller.
    pub task: Task,
    /// Address asked for; IPv4 in the first four bytes.
    pub daddr: [u8; 16],
    /// Port asked for, host byte order.
    pub dport: u16,
    /// `AF_INET` = 2 or `AF_INET6` = 10.
    pub family: u16,
    /// Positive errno.
    pub errno: u32,
}

/// A listening TCP socket came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Listen {
    /// Time of the transition.
    pub header: Header,
    /// The process that called listen(2), or that closed the socket or died with it.
    pub task: Task,
    /// Local address; IPv4 in the first four bytes; all zero for the wildcard.
    pub addr: [u8; 16],
    /// Local port, host byte order.
    pub port: u16,
    /// `AF_INET` = 2 or `AF_INET6` = 10.
    pub family: u16,
    /// 1: listens now; 0: does not any more.
    pub up: u8,
    /// Always zero.
    pub _pad: [u8; 3],
}

/// A program was executed with `CNI_COMMAND` in its environment.
///
/// Children inherit the environment: whether this is the plugin, a delegate or a helper is for user space
/// to tell, from `path`, `cni_path` and the parent. Texts end with a NUL unless they were cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct CniExec {
    /// Time of the exec.
    pub header: Header,
    /// The program, already under its new name.
    pub task: Task,
    /// Path as given to execve(2); only the executable's name where user memory cannot be read.
    pub path: [u8; PATH_LEN],
    /// `CNI_COMMAND`; empty, with all that follows, where user memory cannot be read.
    pub command: [u8; COMMAND_LEN],
    /// `CNI_CONTAINERID`
    pub container_id: [u8; CONTAINER_ID_LEN],
    /// `CNI_NETNS`
    pub netns: [u8; NETNS_PATH_LEN],
    /// `CNI_IFNAME`
    pub ifname: [u8; IFNAME_LEN],
    /// `CNI_ARGS`
    pub args: [u8; ARGS_LEN],
    /// `CNI_PATH`
    pub cni_path: [u8; PATH_LEN],
}

/// A process whose name is on the watch list was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ProcessExec {
    /// Time of the exec.
    pub header: Header,
    /// The process, already under its new name.
    pub task: Task,
    /// Path as given to execve(2).
    pub path: [u8; PATH_LEN],
}

/// A CNI process wrote to its standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Stdout {
    /// Time of the write.
    pub header: Header,
    /// The writer.
    pub task: Task,
    /// Bytes that the process asked to write; may exceed [`STDOUT_LEN`].
    pub asked: u64,
    /// Bytes of `data` that are valid.
    pub len: u32,
    /// Always zero.
    pub _pad: u32,
    /// The bytes.
    pub data: [u8; STDOUT_LEN],
}

/// The last thread of a watched or CNI process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Exit {
    /// Time of the end.
    pub header: Header,
    /// The process.
    pub task: Task,
    /// When it was executed; clock as in [`Header`]; 0 when that was before the agent started.
    pub started_ns: u64,
    /// As wait(2) gives it: exit code << 8 | signal.
    pub status: u32,
    /// The newest deadly signal that was sent to it, 0 for none.
    pub signal: u32,
    /// `si_code` of that signal: 0 kill(2), -6 tgkill(2), 128 the kernel; include/uapi/asm-generic/siginfo.h.
    pub signal_code: i32,
    /// Process id of the sender.
    pub sender: u32,
    /// Name of the sender.
    pub sender_comm: [u8; COMM_LEN],
    /// The kernel's out-of-memory killer chose it.
    pub oom: u8,
    /// 1: a CNI process, 0: one of the watch list.
    pub cni: u8,
    /// Always zero.
    pub _pad: [u8; 6],
}

/// A network namespace was created or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Netns {
    /// Time of the change.
    pub header: Header,
    /// Who created it; for an end, whoever ran then (mostly a kernel worker).
    pub task: Task,
    /// Inode number of the namespace; see [`Task::netns`].
    pub inum: u32,
    /// 1: created; 0: ended.
    pub up: u8,
    /// Always zero.
    pub _pad: [u8; 3],
}

/// Room for the text with which the kernel explains an error; the longest have about 80 bytes.
pub const EXTACK_LEN: usize = 128;
/// Room for the head of a request: its header, its object and the attributes that name it.
pub const REQUEST_LEN: usize = 256;

/// The kernel answered a request of rtnetlink(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Rtnetlink {
    /// Time of the answer.
    pub header: Header,
    /// Who asked.
    pub task: Task,
    /// Positive errno; 0 for success, and where only the text is known.
    pub errno: u32,
    /// `nlmsg_type`, include/uapi/linux/rtnetlink.h; 0 where only the text is known.
    pub kind: u16,
    /// 1: a CNI process asked.
    pub cni: u8,
    /// Always zero.
    pub _pad: u8,
    /// Bytes of `request` that are valid.
    pub len: u32,
    /// Always zero.
    pub _pad2: u32,
    /// The kernel's explanation; ends with a NUL unless it was cut.
    pub text: [u8; EXTACK_LEN],
    /// The request from its header on, cut.
    pub request: [u8; REQUEST_LEN],
}

/// A watched process did not get what it asked the kernel for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct LimitHit {
    /// Time of the answer.
    pub header: Header,
    /// Who asked.
    pub task: Task,
    /// Positive errno: EMFILE for inotify instances, EAGAIN for processes.
    pub errno: u32,
    /// [`LimitHit::INOTIFY`] or [`LimitHit::PROCESSES`].
    pub what: u32,
}

impl LimitHit {
    /// `fs.inotify.max_user_instances`, or descriptors.
    pub const INOTIFY: u32 = 1;
    /// `kernel.pid_max`, `RLIMIT_NPROC` or a cgroup's `pids.max`.
    pub const PROCESSES: u32 = 2;
}

/// `MODULE_NAME_LEN`, include/linux/module.h.
pub const MODULE_LEN: usize = 56;

/// The kernel asked user space for a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ModuleRequest {
    /// Time of the request.
    pub header: Header,
    /// Whose doing needs it.
    pub task: Task,
    /// Name or alias, for example `rtnl-link-geneve`; ends with a NUL unless it was cut.
    pub name: [u8; MODULE_LEN],
}

/// A program could not be executed, or a running one could not be opened for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct FileRefused {
    /// Time of the answer.
    pub header: Header,
    /// Who tried.
    pub task: Task,
    /// Positive errno: ETXTBSY, EACCES, EPERM, ENOEXEC, ENOENT (of an interpreter), …
    pub errno: u32,
    /// 1: it was to be opened for writing; 0: it was to be executed.
    pub write: u8,
    /// Always zero.
    pub _pad: [u8; 3],
    /// Inode number of the file; 0 when it was not read.
    pub inode: u64,
    /// As it was given, or the name without its directory; ends with a NUL unless it was cut.
    pub path: [u8; PATH_LEN],
}

/// Packets that came in and were dropped by the reverse path filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Drops {
    /// Time of the newest.
    pub header: Header,
    /// How many since the last record about this device.
    pub count: u64,
    /// Inode number of the device's namespace.
    pub netns: u32,
    /// `enum skb_drop_reason`, as [`ConnectEnd::dropped`].
    pub reason: u32,
    /// Name of the device.
    pub device: [u8; IFNAME_LEN],
}

// The sizes are part of the contract: a change here is a change of the wire.
const _: () = assert!(size_of::<Header>() == 16);
const _: () = assert!(size_of::<Task>() == 40);
const _: () = assert!(size_of::<ConnectEnd>() == 152);
const _: () = assert!(size_of::<ConnectError>() == 80);
const _: () = assert!(size_of::<Listen>() == 80);
const _: () = assert!(size_of::<CniExec>() == 56 + 256 + 16 + 80 + 128 + 16 + 640 + 256);
const _: () = assert!(size_of::<ProcessExec>() == 56 + 256);
const _: () = assert!(size_of::<Stdout>() == 56 + 16 + 4096);
const _: () = assert!(size_of::<Exit>() == 56 + 8 + 16 + 16 + 8);
const _: () = assert!(size_of::<Netns>() == 64);
const _: () = assert!(size_of::<ConnectionEnd>() == 144);
const _: () = assert!(size_of::<LimitHit>() == 64);
const _: () = assert!(size_of::<ModuleRequest>() == 56 + 56);
const _: () = assert!(size_of::<Rtnetlink>() == 56 + 16 + 128 + 256);
const _: () = assert!(size_of::<UnixConnect>() == 56 + 112 + 8);
const _: () = assert!(size_of::<FileRefused>() == 56 + 16 + 256);
const _: () = assert!(size_of::<Drops>() == 16 + 16 + 16);

/// Key of the map of addresses whose connects are reported: exact, or a port at any address when `addr`
/// is all zero.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct TargetKey {
    /// IPv4 in the first four bytes, the rest zero.
    pub addr: [u8; 16],
    /// Host byte order.
    pub port: u16,
    /// `AF_INET` = 2, `AF_INET6` = 10, 0 for any address.
    pub family: u16,
}

impl TargetKey {
    /// As it lies in the map.
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        zerocopy::transmute!(self)
    }
}

impl ProcessState {
    /// As it lies in the map.
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        zerocopy::transmute!(self)
    }

    /// As [`Self::to_bytes`] wrote it.
    pub fn from_bytes(bytes: [u8; size_of::<Self>()]) -> Self {
        zerocopy::transmute!(bytes)
    }
}

/// What the kernel side keeps of a process whose end is to be reported; user space puts in those that were
/// there before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ProcessState {
    /// As [`Exit::started_ns`].
    pub started_ns: u64,
    /// As [`Exit::signal`].
    pub signal: u32,
    /// As [`Exit::signal_code`].
    pub signal_code: i32,
    /// As [`Exit::sender`].
    pub sender: u32,
    /// As [`Exit::oom`].
    pub oom: u32,
    /// As [`Exit::sender_comm`].
    pub sender_comm: [u8; COMM_LEN],
    /// As [`Exit::cni`].
    pub cni: u32,
    /// 1: it can administer the host's network, or user space found it to be a component of the node; its events are not
    /// limited. 0: not, or not yet.
    pub trusted: u32,
}

/// Ports are looked up in a bit set first, which costs less than any hash: words of it.
pub const PORT_WORDS: u32 = 65536 / 64;

/// Most API addresses that can be watched at once.
pub const MAX_TARGETS: u32 = 256;
/// Most processes that can be watched at once; more are counted as missed.
pub const MAX_PROCESSES: u32 = 4096;
/// Bit of a name on the watch list that belongs to a process that is watched.
pub const NAME_OF_PROCESS: u8 = 1;
/// Bit of a name that belongs to a plugin; plugins are known by their environment, and by these names only
/// where it cannot be read.
pub const NAME_OF_PLUGIN: u8 = 2;
/// Most names on the watch list.
pub const MAX_NAMES: u32 = 128;
/// Most sources whose events are limited that are remembered: users, and root in containers. Beyond that the one that was idle
/// longest is forgotten.
pub const MAX_SOURCES: u32 = 4096;
/// Events that such a source may cause at once: more than a pod whose many clients connect to the API server again.
pub const BUDGET_EVENTS: u64 = 1024;
/// Time in which one event of its budget is refilled, nanoseconds: 30 a second. What it keeps in a table for two minutes, the
/// longest that a connect waits for an answer, stays below the size of that table with this.
pub const BUDGET_INTERVAL_NS: u64 = 33_000_000;
/// Most devices whose dropped packets are counted; the one that was quiet longest is forgotten beyond that.
pub const MAX_DEVICES: u32 = 256;
/// Slots for connects under way; a power of two.
pub const CONNECT_SLOTS: u32 = 4096;
/// Most connects under way whose slot another one has; more are counted as missed.
pub const MAX_CONNECTS: u32 = 4096;
/// Bytes of the ring buffer, a power of two. A CNI operation with four plugins takes about 23 KB, so this
/// holds about 90 of them, or 15,000 connects, between two reads. It is mapped twice, and counts as resident memory.
pub const RING_BYTES: u32 = 2 << 20;
