//! The system calls that the running agent may use (seccomp(2)), grouped by purpose.

use std::collections::BTreeMap;
use std::io;

use anyhow::{Context as _, Result, bail};
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

const ARCH: TargetArch = if cfg!(target_arch = "aarch64") { TargetArch::aarch64 } else { TargetArch::x86_64 };

/// Memory.
const MEMORY: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
];

/// Threads, synchronization and signals. clone(2) is in [`LIMITED`].
const THREADS: &[c_long] = &[
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_membarrier,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
];

/// Time, random numbers, and information about the process and the host.
const INFORMATION: &[c_long] = &[
    libc::SYS_capget,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getrandom,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_nanosleep,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// Files. Most are only read; the agent writes its state, its journal, its lock and the file of its socket.
const FILES: &[c_long] = &[
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Waiting for descriptors, and watching files.
const WAITING: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
];

/// Sockets: netlink, the API server, the container runtime, name servers, the agent's HTTP server. socket(2) is in [`LIMITED`].
const SOCKETS: &[c_long] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
];

/// Older variants of the calls above, which exist only on some architectures and are used by their C libraries.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_epoll_wait,
    libc::SYS_mkdir,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// Further calls to start a program that provides a credential, and calls that such programs use: they inherit the filter, which
/// cannot be removed. None of these calls needs a capability.
const PROGRAMS: &[c_long] = &[
    libc::SYS_capset,
    libc::SYS_chdir,
    libc::SYS_copy_file_range,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fgetxattr,
    libc::SYS_futex_waitv,
    libc::SYS_get_mempolicy,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getgroups,
    libc::SYS_getitimer,
    libc::SYS_getpgid,
    libc::SYS_getpriority,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_getxattr,
    libc::SYS_kill,
    libc::SYS_linkat,
    libc::SYS_memfd_create,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pselect6,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getattr,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sendfile,
    libc::SYS_setitimer,
    libc::SYS_setpgid,
    libc::SYS_setrlimit,
    libc::SYS_setsid,
    libc::SYS_signalfd4,
    libc::SYS_splice,
    libc::SYS_symlinkat,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_times,
    libc::SYS_tkill,
    libc::SYS_truncate,
    libc::SYS_umask,
    libc::SYS_utimensat,
    libc::SYS_wait4,
    libc::SYS_waitid,
];

/// Older variants of the calls in [`PROGRAMS`].
#[cfg(target_arch = "x86_64")]
const OLDER_PROGRAMS: &[c_long] = &[
    libc::SYS_alarm,
    libc::SYS_chown,
    libc::SYS_creat,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_eventfd,
    libc::SYS_fork,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_time,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER_PROGRAMS: &[c_long] = &[libc::SYS_getrlimit];

/// A call that is allowed only with certain values of an argument.
struct Limited {
    call: c_long,
    /// Index of the argument.
    argument: u8,
    length: SeccompCmpArgLen,
    allowed: Allowed,
    /// Allowed with any arguments if the agent may start programs that provide credentials.
    any_for_programs: bool,
}

/// Allowed values of an argument.
enum Allowed {
    /// One of these values.
    OneOf(&'static [u64]),
    /// Values without any of these bits.
    Without(u64),
}

/// Flags of clone(2) that create namespaces.
const NAMESPACES: u64 = (libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS) as u64;

/// Commands of bpf(2) (`enum bpf_cmd`) that read and change map elements. `BPF_PROG_LOAD` and `BPF_MAP_CREATE` are not needed once
/// everything is loaded.
const MAP_COMMANDS: &[u64] = &[1, 2, 3, 4];

/// Operations of prctl(2): `PR_SET_NAME` for new threads, `PR_GET_NAME`, and `PR_SET_VMA`, with which the allocator names its
/// memory.
const NAME_OPERATIONS: &[u64] = &[15, 16, 0x5356_4d41];

/// Address families of socket(2).
const FAMILIES: &[u64] =
    &[libc::AF_UNIX as u64, libc::AF_INET as u64, libc::AF_INET6 as u64, libc::AF_NETLINK as u64];

const LIMITED: &[Limited] = &[
    Limited {
        call: libc::SYS_bpf,
        argument: 0,
        length: SeccompCmpArgLen::Dword,
        allowed: Allowed::OneOf(MAP_COMMANDS),
        any_for_programs: false,
    },
    Limited {
        call: libc::SYS_clone,
        argument: 0,
        length: SeccompCmpArgLen::Qword,
        allowed: Allowed::Without(NAMESPACES),
        any_for_programs: false,
    },
    Limited {
        call: libc::SYS_prctl,
        argument: 0,
        length: SeccompCmpArgLen::Dword,
        allowed: Allowed::OneOf(NAME_OPERATIONS),
        any_for_programs: true,
    },
    // Limits may be read, but not set: the third argument points to the new limit.
    Limited {
        call: libc::SYS_prlimit64,
        argument: 2,
        length: SeccompCmpArgLen::Qword,
        allowed: Allowed::OneOf(&[0]),
        any_for_programs: true,
    },
    Limited {
        call: libc::SYS_socket,
        argument: 0,
        length: SeccompCmpArgLen::Dword,
        allowed: Allowed::OneOf(FAMILIES),
        any_for_programs: false,
    },
];

impl Limited {
    fn rules(&self) -> Result<Vec<SeccompRule>> {
        let rule = |operator, value| {
            let condition = SeccompCondition::new(self.argument, self.length.clone(), operator, value)?;
            SeccompRule::new(vec![condition])
        };
        Ok(match self.allowed {
            Allowed::OneOf(values) => {
                values.iter().map(|value| rule(SeccompCmpOp::Eq, *value)).collect::<Result<_, _>>()?
            }
            Allowed::Without(bits) => vec![rule(SeccompCmpOp::MaskedEq(bits), 0)?],
        })
    }
}

/// Returns the filters of the running agent, in the order in which they are installed. `runs_programs`: the agent may have to start
/// programs that provide credentials.
pub(super) fn filters(runs_programs: bool) -> Result<[Filter; 2]> {
    // The flags of clone3(2) are in memory, which a filter cannot read. C libraries fall back to clone(2) on ENOSYS.
    let without_clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let without_clone3 =
        SeccompFilter::new(without_clone3, SeccompAction::Allow, refused(libc::ENOSYS), ARCH)?;
    let mut allowed: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let always = [MEMORY, THREADS, INFORMATION, FILES, WAITING, SOCKETS, OLDER];
    let programs = [PROGRAMS, OLDER_PROGRAMS].into_iter().filter(|_| runs_programs);
    for call in always.into_iter().chain(programs).flatten() {
        allowed.insert(*call, Vec::new());
    }
    for limited in LIMITED {
        let rules = if runs_programs && limited.any_for_programs { Vec::new() } else { limited.rules()? };
        allowed.insert(limited.call, rules);
    }
    let allowed = SeccompFilter::new(allowed, refused(libc::EPERM), SeccompAction::Allow, ARCH)?;
    // Refused calls are logged by the kernel with the audit type 1326 (`AUDIT_SECCOMP`), except for clone3(2), whose refusal is
    // expected.
    Ok([(without_clone3.try_into()?, 0), (allowed.try_into()?, libc::SECCOMP_FILTER_FLAG_LOG)])
}

/// Returns a filter that allows everything except opening files.
pub(super) fn no_files() -> Result<BpfProgram> {
    let calls = BTreeMap::from([(libc::SYS_openat, Vec::new())]);
    Ok(SeccompFilter::new(calls, SeccompAction::Allow, refused(libc::EPERM), ARCH)?.try_into()?)
}

fn refused(errno: libc::c_int) -> SeccompAction {
    SeccompAction::Errno(errno.unsigned_abs())
}

/// A filter, and its flags for seccomp(2).
pub(super) type Filter = (BpfProgram, libc::c_ulong);

/// Installs a filter for all threads of this process.
pub(super) fn install((filter, flags): &Filter) -> Result<()> {
    // Speculation need not be restricted, because the agent runs no untrusted code (spec_ctrl.rst in the kernel's
    // documentation).
    let flags = flags | libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).context("the filter is too long")?,
        filter: filter.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `program` points to the instructions of `filter`, which have the expected layout; the kernel only reads them.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match result {
        0 => Ok(()),
        ..0 => Err(io::Error::last_os_error().into()),
        thread => bail!("thread {thread} has a filter of its own"),
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::null;

    use super::*;

    /// Returns the errno of a call in a child process with these filters; 0 if it succeeds.
    fn errno_of(filters: &[Filter], call: impl FnOnce() -> c_long) -> i32 {
        // SAFETY: until it exits, the child only makes system calls and allocates nothing.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: no memory is involved.
            let mut is_ready = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } == 0;
            for filter in filters {
                is_ready &= install(filter).is_ok();
            }
            let failed = || io::Error::last_os_error().raw_os_error().unwrap_or(255);
            let errno = match () {
                () if !is_ready => 255,
                () if call() < 0 => failed(),
                () => 0,
            };
            // SAFETY: _exit(2) has no preconditions.
            unsafe { libc::_exit(errno) };
        }
        let mut status = 0;
        // SAFETY: `status` is live.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(libc::WIFEXITED(status), "{status:#x}");
        libc::WEXITSTATUS(status)
    }

    fn call(number: c_long, arguments: [u64; 4]) -> impl FnOnce() -> c_long + Copy {
        let [first, second, third, fourth] = arguments;
        // SAFETY: the arguments below are numbers, or invalid pointers, which the kernel rejects.
        move || unsafe { libc::syscall(number, first, second, third, fourth) }
    }

    /// Calls that the filters forbid, with their names and arguments.
    const FORBIDDEN: &[(&str, c_long, [u64; 4])] = &[
        ("ptrace(PTRACE_TRACEME)", libc::SYS_ptrace, [0; 4]),
        ("process_vm_writev of nothing", libc::SYS_process_vm_writev, [1 << 30, 0, 0, 0]),
        ("keyctl(KEYCTL_GET_KEYRING_ID)", libc::SYS_keyctl, [0, 0, 0, 0]),
        ("unshare of nothing", libc::SYS_unshare, [0; 4]),
        ("setns", libc::SYS_setns, [u64::MAX, 0, 0, 0]),
        ("mount", libc::SYS_mount, [0; 4]),
        ("init_module", libc::SYS_init_module, [0; 4]),
        ("kexec_load", libc::SYS_kexec_load, [0, u64::MAX, 0, 0]),
        ("perf_event_open", libc::SYS_perf_event_open, [0; 4]),
        ("userfaultfd", libc::SYS_userfaultfd, [u64::MAX, 0, 0, 0]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [0; 4]),
        ("personality", libc::SYS_personality, [0xffff_ffff, 0, 0, 0]),
        ("bpf(BPF_PROG_LOAD)", libc::SYS_bpf, [5, 0, 0, 0]),
        ("clone(CLONE_NEWUSER)", libc::SYS_clone, [libc::CLONE_NEWUSER as u64, u64::MAX, 0, 0]),
        ("socket(AF_PACKET)", libc::SYS_socket, [libc::AF_PACKET as u64, u64::MAX, 0, 0]),
    ];

    #[test]
    fn forbids_opening_files_on_calling_thread_only() {
        let open = || std::fs::File::open("/proc/self/status").map(drop).map_err(|error| error.kind());
        let forbidden = std::thread::spawn(move || {
            crate::privileges::forbid_files().expect("has seccomp");
            open()
        });
        assert_eq!(forbidden.join().expect("does not panic"), Err(io::ErrorKind::PermissionDenied));
        assert_eq!(open(), Ok(()));
    }

    #[test]
    fn forbidden_calls_fail() {
        for runs_programs in [false, true] {
            let filters = filters(runs_programs).expect("filters");
            for (what, number, arguments) in FORBIDDEN {
                let errno = errno_of(&filters, call(*number, *arguments));
                assert_eq!(errno, libc::EPERM, "{what}, runs_programs: {runs_programs}");
            }
            let errno = errno_of(&filters, call(libc::SYS_clone3, [0; 4]));
            assert_eq!(errno, libc::ENOSYS, "clone3, runs_programs: {runs_programs}");
        }
    }

    #[test]
    fn starting_programs_is_forbidden_unless_needed() {
        let execute = call(libc::SYS_execve, [0; 4]);
        for (runs_programs, wanted) in [(false, libc::EPERM), (true, libc::EFAULT)] {
            assert_eq!(errno_of(&filters(runs_programs).expect("filters"), execute), wanted);
        }
    }

    #[test]
    fn allowed_calls_work_as_without_filter() {
        let open = || {
            // SAFETY: the path is NUL-terminated.
            unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, c"/proc/self/stat".as_ptr(), 0) }
        };
        // A command that reads a map, without attributes.
        let read_map = call(libc::SYS_bpf, [1, 0, 0, 0]);
        let socket = call(libc::SYS_socket, [libc::AF_NETLINK as u64, libc::SOCK_RAW as u64, 0, 0]);
        let limits = call(libc::SYS_prlimit64, [0, 7, 0, 0]);
        let filters = filters(false).expect("filters");
        assert_eq!(errno_of(&filters, open), 0);
        assert_eq!(errno_of(&filters, socket), 0);
        assert_eq!(errno_of(&filters, limits), 0);
        assert_eq!(errno_of(&filters, read_map), errno_of(&[], read_map));
        let raise = || {
            // SAFETY: no memory is read: the address is not mapped.
            unsafe { libc::syscall(libc::SYS_prlimit64, 0, 7, 8, null::<u8>()) }
        };
        assert_eq!(errno_of(&filters, raise), libc::EPERM);
    }
}
