//! Records about the network of the host: namespaces, rtnetlink(7) and dropped packets.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Header, IFNAME_LEN, Task};

/// A network namespace was created or destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Netns {
    /// Time of the change.
    pub header: Header,
    /// The task that created the namespace. For a destruction, the task that was running (usually a kernel
    /// worker).
    pub task: Task,
    /// Inode number of the namespace; see [`Task::netns`].
    pub inum: u32,
    /// 1: created; 0: destroyed.
    pub up: u8,
    /// Always zero.
    pub _pad: [u8; 3],
}

/// Room for the kernel's explanation of an error; the longest have about 80 bytes.
pub const EXTACK_LEN: usize = 128;
/// Room for the start of a request: its header, its object and the attributes that identify the object.
pub const REQUEST_LEN: usize = 256;

/// The kernel replied to a request of rtnetlink(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Rtnetlink {
    /// Time of the reply.
    pub header: Header,
    /// The task that sent the request.
    pub task: Task,
    /// Positive errno; 0 for success, or if only the text is known.
    pub errno: u32,
    /// `nlmsg_type`, include/uapi/linux/rtnetlink.h; 0 if only the text is known.
    pub kind: u16,
    /// 1 if a CNI process sent the request.
    pub cni: u8,
    /// Always zero.
    pub _pad: u8,
    /// Number of valid bytes in `request`.
    pub len: u32,
    /// Always zero.
    pub _pad2: u32,
    /// The kernel's explanation; ends with a NUL unless it was truncated.
    pub text: [u8; EXTACK_LEN],
    /// The first bytes of the request, from its header on. Those after `len` are left over from earlier
    /// records.
    pub request: [u8; REQUEST_LEN],
}

/// The reverse path filter dropped incoming packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Drops {
    /// Time of the newest drop.
    pub header: Header,
    /// Number of packets since the previous record about this device.
    pub count: u64,
    /// Inode number of the network namespace of the device.
    pub netns: u32,
    /// `enum skb_drop_reason`, as [`crate::ConnectEnd::dropped`].
    pub reason: u32,
    /// Name of the device.
    pub device: [u8; IFNAME_LEN],
}
