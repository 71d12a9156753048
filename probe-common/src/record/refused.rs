//! Records about what the kernel refused or lacked: limits, modules and files.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Header, PATH_LEN, Task};

/// A watched process hit a limit of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct LimitHit {
    /// Time of the return.
    pub header: Header,
    /// The caller.
    pub task: Task,
    /// Positive errno: `EMFILE` for inotify instances, `EAGAIN` for processes.
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

/// The kernel requested a module from user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ModuleRequest {
    /// Time of the request.
    pub header: Header,
    /// The task whose system call needs the module.
    pub task: Task,
    /// Name or alias, for example `rtnl-link-geneve`; ends with a NUL unless it was truncated.
    pub name: [u8; MODULE_LEN],
}

/// A program could not be executed, or a running program could not be opened for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct FileRefused {
    /// Time of the return.
    pub header: Header,
    /// The caller.
    pub task: Task,
    /// Positive errno: `ETXTBSY`, `EACCES`, `EPERM`, `ENOEXEC`, `ENOENT` (of an interpreter), …
    pub errno: u32,
    /// 1: the file was opened for writing; 0: it was executed.
    pub write: u8,
    /// Always zero.
    pub _pad: [u8; 3],
    /// Inode number of the file; 0 if it was not read.
    pub inode: u64,
    /// Path passed to the system call, or the name without its directory; ends with a NUL unless it was
    /// truncated.
    pub path: [u8; PATH_LEN],
}
