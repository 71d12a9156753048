//! Everything that is kept in the kernel.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use probe_common::{
    COMM_LEN, CONNECT_SLOTS, MAX_CONNECTS, MAX_DEVICES, MAX_NAMES, MAX_PROCESSES, MAX_SOURCES, MAX_TARGETS,
    PORT_WORDS, ProcessState, RING_BYTES, Skip, TargetKey, Task,
};

/// Records on their way to user space; the loader may make it smaller.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// What could not be reported, by [`Skip::slot`]. Per CPU: a shared counter would bounce one cache line.
#[map]
pub(crate) static SKIPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Skip::SLOTS, 0);

/// Bit set of the ports that occur in `TARGETS`, so that most connects cost one array look-up.
#[map]
pub(crate) static PORTS: Array<u64> = Array::with_max_entries(PORT_WORDS, 0);

/// Addresses whose connects are reported.
#[map]
pub(crate) static TARGETS: HashMap<TargetKey, u8> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// Names (as `comm`) of processes that are watched from their exec on, and of plugins.
#[map]
pub(crate) static NAMES: HashMap<[u8; COMM_LEN], u8> = HashMap::with_max_entries(MAX_NAMES, 0);

/// Watched and CNI processes by process id, until they end. Not one that makes room by itself: that forgets whoever was
/// quiet, without a word, and long before it is full where there are many CPUs, each of which keeps 128 places for itself.
#[map]
pub(crate) static PROCESSES: HashMap<u32, ProcessState> = HashMap::with_max_entries(MAX_PROCESSES, 0);

/// How many processes in `PROCESSES` are limited.
#[map]
pub(crate) static LIMITED: Array<u64> = Array::with_max_entries(1, 0);

/// Budgets of the sources whose events are limited: see [`crate::origin`].
#[map]
pub(crate) static SOURCES: LruHashMap<u64, Source> = LruHashMap::with_max_entries(MAX_SOURCES, 0);

/// How many CNI processes there are: while none is, write(2) costs next to nothing.
#[map]
pub(crate) static CNI_RUNNING: Array<u64> = Array::with_max_entries(1, 0);

/// A place for each connect by the address of its `struct sock`: see [`crate::connects`].
#[map]
pub(crate) static SLOTS: Array<Slot> = Array::with_max_entries(CONNECT_SLOTS, 0);

/// How many connects are in `CONNECTS`.
#[map]
pub(crate) static ELSEWHERE: Array<u64> = Array::with_max_entries(1, 0);

/// Those whose slot another one has.
#[map]
pub(crate) static CONNECTS: HashMap<u64, Pending> = HashMap::with_max_entries(MAX_CONNECTS, 0);

/// Devices on which the reverse path filter drops, by the address of their `struct net_device`.
#[map]
pub(crate) static DEVICES: LruHashMap<u64, Dropping> = LruHashMap::with_max_entries(MAX_DEVICES, 0);

/// Working memory of the walk through a new program's environment.
#[map]
pub(crate) static WALKS: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

/// A walk through the environment block of a new program.
#[repr(C)]
pub(crate) struct Walk {
    /// Next byte to read, and the end.
    pub(crate) at: u64,
    pub(crate) end: u64,
    /// User addresses of the values found, by the indices in `hooks/exec.rs`; 0 for none.
    pub(crate) values: [u64; 6],
    /// The piece before this one did not end its variable.
    pub(crate) inside: u64,
}

/// See [`crate::connects`].
#[repr(C)]
pub(crate) struct Slot {
    /// The low 48 bits of the socket's address above a count of claims; 0 when the slot is free.
    pub(crate) owner: u64,
    pub(crate) pending: Pending,
}

/// A connect between `SYN_SENT` and its end, then the connection that came of it until it ends.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Pending {
    pub(crate) started_ns: u64,
    /// 0 while it is under way.
    pub(crate) established_ns: u64,
    pub(crate) task: Task,
    /// As in `ConnectEnd`; a family of 0 when it is not known.
    pub(crate) asked: [u8; 16],
    pub(crate) asked_port: u16,
    pub(crate) asked_family: u16,
    /// Since it started, then since it is established.
    pub(crate) retransmits: u16,
    pub(crate) rst: u16,
    /// Remote port, host byte order.
    pub(crate) dport: u16,
    /// Local port, host byte order; 0 until the connection is established.
    pub(crate) sport: u16,
    /// As in `ConnectEnd`.
    pub(crate) dropped: u32,
}

/// What a source has spent of its budget.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Source {
    /// When its budget was last refilled; clock as in `Header`.
    pub(crate) at_ns: u64,
    /// Events since then, less what was refilled.
    pub(crate) spent: u64,
}

/// What is remembered of a device.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Dropping {
    pub(crate) told_ns: u64,
    /// Packets since then.
    pub(crate) count: u64,
}
