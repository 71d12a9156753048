//! The records as they are laid out in the ring buffer.
#![expect(clippy::pub_underscore_fields, reason = "padding is named so that it is visible and written")]

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

mod network;
mod process;
mod refused;
mod tcp;

pub use network::{Drops, EXTACK_LEN, Netns, REQUEST_LEN, Rtnetlink};
pub use process::{
    ARGS_LEN, COMMAND_LEN, CONTAINER_ID_LEN, CniExec, Exit, NETNS_PATH_LEN, ProcessExec, STDOUT_LEN, Stdout,
    UNIX_PATH_LEN, UnixConnect,
};
pub use refused::{FileRefused, LimitHit, MODULE_LEN, ModuleRequest};
pub use tcp::{ConnectEnd, ConnectError, ConnectionEnd, Listen};

/// `TASK_COMM_LEN`, include/linux/sched.h: size of the kernel's name of a thread, NUL-terminated.
pub const COMM_LEN: usize = 16;
/// `IFNAMSIZ`, include/uapi/linux/if.h.
pub const IFNAME_LEN: usize = 16;
/// Room for the path of an executable or a file, and for `CNI_PATH`. A longer path is truncated, which a
/// missing NUL shows.
pub const PATH_LEN: usize = 256;

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

/// The task a record is about, as it was when the kernel observed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Task {
    /// Process ID (kernel: `tgid`) in the initial PID namespace.
    pub tgid: u32,
    /// Thread ID (kernel: `pid`).
    pub tid: u32,
    /// Process ID of the parent (`real_parent->tgid`); 0 when it was not read.
    pub ppid: u32,
    /// Inode number of the network namespace. The kernel reuses it as soon as the namespace is destroyed.
    pub netns: u32,
    /// Real user ID in the initial user namespace.
    pub uid: u32,
    /// Depth of the PID namespace: 0 on the host, 1 or more in containers.
    pub pid_level: u32,
    /// Name of the process' main thread, truncated to 15 bytes.
    pub comm: [u8; COMM_LEN],
}

/// A record of the ring buffer: a struct of aligned fields without implicit padding that starts with a
/// [`Header`].
pub trait Record: IntoBytes {
    /// The code in its header.
    const CODE: Code;
}

macro_rules! records {
    ($($record:ident = $code:literal, $size:expr;)*) => {
        /// What kind of record follows the header.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Code {
            $(#[doc = concat!("[`", stringify!($record), "`]")] $record = $code,)*
        }

        impl Code {
            /// Every code, in order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$record,)*];
        }

        $(
            impl Record for $record {
                const CODE: Code = Code::$record;
            }
            const _: () = assert!(size_of::<$record>() == $size);
        )*
    };
}

// Codes and sizes are part of the wire layout.
records! {
    ConnectEnd = 1, 152;
    ConnectError = 2, 80;
    Listen = 3, 80;
    CniExec = 4, 56 + 256 + 16 + 80 + 128 + 16 + 640 + 256;
    ProcessExec = 5, 56 + 256;
    Stdout = 6, 56 + 16 + 4096;
    Exit = 7, 56 + 8 + 16 + 16 + 8;
    Netns = 8, 64;
    ConnectionEnd = 9, 144;
    UnixConnect = 10, 56 + 112 + 8;
    Rtnetlink = 11, 56 + 16 + 128 + 256;
    LimitHit = 12, 64;
    ModuleRequest = 13, 56 + 56;
    FileRefused = 14, 56 + 16 + 256;
    Drops = 15, 16 + 16 + 16;
}
const _: () = assert!(size_of::<Header>() == 16);
const _: () = assert!(size_of::<Task>() == 40);
