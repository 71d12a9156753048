//! Records about processes: CNI plugins and the processes on the watch list.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{COMM_LEN, Header, IFNAME_LEN, PATH_LEN, Task};

/// Room for `CNI_CONTAINERID`: runtimes use 64 hexadecimal digits.
pub const CONTAINER_ID_LEN: usize = 80;
/// Room for `CNI_NETNS`, for example `/var/run/netns/cni-<uuid>` (54 bytes).
pub const NETNS_PATH_LEN: usize = 128;
/// Room for `CNI_ARGS`: the five keys of the kubelet take about 250 bytes, a namespace and a pod name may
/// add 63 + 253 (Kubernetes object name limits).
pub const ARGS_LEN: usize = 640;
/// Room for `CNI_COMMAND`; the longest is `VERSION`.
pub const COMMAND_LEN: usize = 16;
/// Maximum number of bytes copied from one write of a plugin to its standard output.
pub const STDOUT_LEN: usize = 4096;

/// A program was executed with `CNI_COMMAND` in its environment.
///
/// Children inherit the environment, so the agent determines from `path`, `cni_path` and the parent whether
/// the program is the plugin, a delegate or a helper. Texts end with a NUL unless they were truncated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct CniExec {
    /// Time of the exec.
    pub header: Header,
    /// The process, after the kernel changed its name.
    pub task: Task,
    /// Path passed to execve(2); only the file name where user memory cannot be read.
    pub path: [u8; PATH_LEN],
    /// `CNI_COMMAND`; empty, as are all fields below, where user memory cannot be read.
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
    /// The process, after the kernel changed its name.
    pub task: Task,
    /// As [`CniExec::path`].
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
    /// Number of bytes passed to write(2); may exceed [`STDOUT_LEN`].
    pub asked: u64,
    /// Number of valid bytes in `data`.
    pub len: u32,
    /// Always zero.
    pub _pad: u32,
    /// The bytes written. Those after `len` are left over from earlier records.
    pub data: [u8; STDOUT_LEN],
}

/// The last thread of a watched or CNI process exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Exit {
    /// Time of the exit.
    pub header: Header,
    /// The process.
    pub task: Task,
    /// When the process called execve(2); clock as in [`Header`]; 0 if that was before the agent started.
    pub started_ns: u64,
    /// Wait status as in wait(2): exit code << 8 | signal.
    pub status: u32,
    /// The newest fatal signal that was sent to the process; 0 if none was.
    pub signal: u32,
    /// `si_code` of that signal: 0 kill(2), -6 tgkill(2), 128 kernel; include/uapi/asm-generic/siginfo.h.
    pub signal_code: i32,
    /// Process id of the sender.
    pub sender: u32,
    /// Name of the sender.
    pub sender_comm: [u8; COMM_LEN],
    /// 1 if the kernel's out-of-memory killer chose the process.
    pub oom: u8,
    /// 1: a CNI process, 0: a process on the watch list.
    pub cni: u8,
    /// Always zero.
    pub _pad: [u8; 6],
}

/// Room for the path of a Unix socket: `UNIX_PATH_MAX`, include/uapi/linux/un.h, and a NUL.
pub const UNIX_PATH_LEN: usize = 112;

/// A CNI or watched process called connect(2) on a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct UnixConnect {
    /// Time of the return to user space.
    pub header: Header,
    /// The caller.
    pub task: Task,
    /// Path passed to connect(2); starts with a NUL for an abstract name.
    pub path: [u8; UNIX_PATH_LEN],
    /// Positive errno; 0 for success.
    pub errno: u32,
    /// 1: a CNI process, 0: a process on the watch list.
    pub cni: u8,
    /// Always zero.
    pub _pad: [u8; 3],
}
