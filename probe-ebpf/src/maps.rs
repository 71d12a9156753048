//! The maps of the programs.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use probe_common::{
    COMM_LEN, CONNECT_SLOTS, MAX_CONNECTS, MAX_DEVICES, MAX_NAMES, MAX_PROCESSES, MAX_SOURCES, MAX_TARGETS,
    PORT_WORDS, ProcessState, RING_BYTES, Skip, TargetKey, Task,
};

/// Records for user space. The loader sets the size, [`RING_BYTES`] by default.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// Number of events that could not be reported, by [`Skip::slot`]. Per CPU, because CPUs would contend for
/// the cache line of a shared counter.
#[map]
pub(crate) static SKIPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Skip::SLOTS, 0);

/// Bit set of the ports that occur in `TARGETS`, so that most connects cost one array lookup.
#[map]
pub(crate) static PORTS: Array<u64> = Array::with_max_entries(PORT_WORDS, 0);

/// Addresses whose connects are reported.
#[map]
pub(crate) static TARGETS: HashMap<TargetKey, u8> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// Names (as `comm`) of processes that are watched from execve(2) on, and of plugins.
#[map]
pub(crate) static NAMES: HashMap<[u8; COMM_LEN], u8> = HashMap::with_max_entries(MAX_NAMES, 0);

/// Watched and CNI processes by process ID, until they exit. Not an LRU map: eviction would silently drop
/// idle processes, on machines with many CPUs long before the map is full, because each CPU reserves 128
/// entries.
#[map]
pub(crate) static PROCESSES: HashMap<u32, ProcessState> = HashMap::with_max_entries(MAX_PROCESSES, 0);

/// Number of processes in `PROCESSES` whose events are limited.
#[map]
pub(crate) static LIMITED: Array<u64> = Array::with_max_entries(1, 0);

/// Budgets of the sources whose events are limited; see [`crate::origin`].
#[map]
pub(crate) static SOURCES: LruHashMap<u64, Source> = LruHashMap::with_max_entries(MAX_SOURCES, 0);

/// Number of running CNI processes. While it is 0, the program for write(2) returns at once.
#[map]
pub(crate) static CNI_RUNNING: Array<u64> = Array::with_max_entries(1, 0);

/// Entries of connects by the address of their `struct sock`; see [`crate::connects`].
#[map]
pub(crate) static SLOTS: Array<Slot> = Array::with_max_entries(CONNECT_SLOTS, 0);

/// Number of connects in `CONNECTS`.
#[map]
pub(crate) static OVERFLOWED: Array<u64> = Array::with_max_entries(1, 0);

/// Entries of connects whose slot is taken by another one.
#[map]
pub(crate) static CONNECTS: HashMap<u64, Pending> = HashMap::with_max_entries(MAX_CONNECTS, 0);

/// Devices on which the reverse path filter drops, by the address of their `struct net_device`.
#[map]
pub(crate) static DEVICES: LruHashMap<u64, Dropping> = LruHashMap::with_max_entries(MAX_DEVICES, 0);

/// Working memory of the search through a new program's environment.
#[map]
pub(crate) static WALKS: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

/// A search through the environment of a new program.
#[repr(C)]
pub(crate) struct Walk {
    /// Address of the next byte to read, and of the end.
    pub(crate) at: u64,
    pub(crate) end: u64,
    /// User addresses of the values found, by the indices in `hooks/exec.rs`; 0 if not found.
    pub(crate) values: [u64; 6],
    /// 1 if the previous chunk ended inside a variable.
    pub(crate) is_inside: u64,
}

/// A slot for the entry of a connect; see [`crate::connects`].
#[repr(C)]
pub(crate) struct Slot {
    /// The low 48 bits of the socket's address, shifted left, and the number of claims; 0 if the slot is
    /// free.
    pub(crate) owner: u64,
    pub(crate) pending: Pending,
}

/// A connect from `SYN_SENT` to its end, then the resulting connection until it ends.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Pending {
    pub(crate) started_ns: u64,
    /// 0 while the connect is in progress.
    pub(crate) established_ns: u64,
    pub(crate) task: Task,
    /// As in `ConnectEnd`; the family is 0 if they are not known.
    pub(crate) asked: [u8; 16],
    pub(crate) asked_port: u16,
    pub(crate) asked_family: u16,
    /// Since the connect started, then since the connection was established.
    pub(crate) retransmits: u16,
    pub(crate) rst: u16,
    /// Remote port, host byte order.
    pub(crate) dport: u16,
    /// Local port, host byte order; 0 until the connection is established.
    pub(crate) sport: u16,
    /// As in `ConnectEnd`.
    pub(crate) dropped: u32,
}

/// The budget of a source.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Source {
    /// Time of the last refill; clock as in `Header`.
    pub(crate) at_ns: u64,
    /// Events charged to the budget, less what was refilled.
    pub(crate) spent: u64,
}

/// Drops of a device since its last record.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Dropping {
    /// Time of the last record; clock as in `Header`.
    pub(crate) reported_ns: u64,
    /// Packets since then.
    pub(crate) count: u64,
}
