//! Keys, values and sizes of the maps that the kernel programs and user space share.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::record::COMM_LEN;

/// Key of the map of addresses whose connects are reported: an exact address, or a port at any address if
/// `addr` is all zero.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct TargetKey {
    /// IPv4 in the first four bytes, the rest zero.
    pub addr: [u8; 16],
    /// Port, host byte order.
    pub port: u16,
    /// `AF_INET` = 2, `AF_INET6` = 10, 0 for any address.
    pub family: u16,
}

impl TargetKey {
    /// Returns the bytes that are stored in the map.
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        zerocopy::transmute!(self)
    }
}

impl ProcessState {
    /// Returns the bytes that are stored in the map.
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        zerocopy::transmute!(self)
    }

    /// Inverse of [`Self::to_bytes`].
    pub fn from_bytes(bytes: [u8; size_of::<Self>()]) -> Self {
        zerocopy::transmute!(bytes)
    }
}

/// State of a process whose exit is reported. The agent inserts the processes that were running before it
/// started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ProcessState {
    /// As [`crate::Exit::started_ns`].
    pub started_ns: u64,
    /// As [`crate::Exit::signal`].
    pub signal: u32,
    /// As [`crate::Exit::signal_code`].
    pub signal_code: i32,
    /// As [`crate::Exit::sender`].
    pub sender: u32,
    /// As [`crate::Exit::oom`].
    pub oom: u32,
    /// As [`crate::Exit::sender_comm`].
    pub sender_comm: [u8; COMM_LEN],
    /// As [`crate::Exit::cni`].
    pub cni: u32,
    /// 1 if the process can administer the host's network, or if the agent identified it as a component of
    /// the node: its events are not limited. 0 if not, or not yet.
    pub trusted: u32,
}

/// Words of the bit set of watched ports. Ports are looked up there first because it costs less than a hash
/// lookup.
pub const PORT_WORDS: u32 = 65536 / 64;

/// Maximum number of API addresses that are watched at once.
pub const MAX_TARGETS: u32 = 256;
/// Maximum number of processes that are watched at once; any beyond that are counted as lost.
pub const MAX_PROCESSES: u32 = 4096;
/// Bit of a name on the watch list: the name of a process to watch.
pub const NAME_OF_PROCESS: u8 = 1;
/// Bit of a name on the watch list: the name of a plugin. Plugins are recognised by their environment, and by
/// these names only where it cannot be read.
pub const NAME_OF_PLUGIN: u8 = 2;
/// Maximum number of names on the watch list.
pub const MAX_NAMES: u32 = 128;
/// Maximum number of sources with an event budget: users, and root in containers. Beyond that the source that
/// was idle longest is evicted.
pub const MAX_SOURCES: u32 = 4096;
/// Events that a source may cause in a burst: more than a pod whose many clients reconnect to the API server.
pub const BUDGET_EVENTS: u64 = 1024;
/// Interval after which one event of the budget is refilled, nanoseconds: 30 events per second. At this rate
/// the entries that a source keeps in a table for two minutes, the longest that a connect waits for a reply,
/// stay below the size of the table.
pub const BUDGET_INTERVAL_NS: u64 = 33_000_000;
/// Maximum number of devices whose dropped packets are counted; beyond that the device that was idle longest
/// is evicted.
pub const MAX_DEVICES: u32 = 256;
/// Number of slots for connects in progress; a power of two.
pub const CONNECT_SLOTS: u32 = 4096;
/// Maximum number of connects in progress whose slot is taken by another one; any beyond that are counted as
/// lost.
pub const MAX_CONNECTS: u32 = 4096;
/// Size of the ring buffer, bytes; a power of two. A CNI operation with four plugins takes about 23 KB, so it
/// holds about 90 operations, or 15,000 connects, between two reads. It is mapped twice, and counts as
/// resident memory.
pub const RING_BYTES: u32 = 2 << 20;
