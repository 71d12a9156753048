//! Names of error numbers and signals, and what they mean for a Unix socket.

use alloc::format;
use alloc::string::{String, ToString};

// include/uapi/asm-generic/errno-base.h and errno.h; the values are the same on x86-64 and arm64.
pub(crate) const EPERM: u32 = 1;
pub(crate) const ENOENT: u32 = 2;
pub(crate) const ENOEXEC: u32 = 8;
pub(crate) const EAGAIN: u32 = 11;
pub(crate) const EACCES: u32 = 13;
pub(crate) const EEXIST: u32 = 17;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ETXTBSY: u32 = 26;
pub(crate) const EADDRINUSE: u32 = 98;
pub(crate) const EADDRNOTAVAIL: u32 = 99;
pub(crate) const ENETUNREACH: u32 = 101;
pub(crate) const ETIMEDOUT: u32 = 110;
pub(crate) const ECONNREFUSED: u32 = 111;
pub(crate) const EHOSTUNREACH: u32 = 113;

/// The error numbers with which system calls of plugins, runtimes, kubelets and agents fail, errno(3).
const NAMES: &[(u32, &str)] = &[
    (EPERM, "EPERM"),
    (ENOENT, "ENOENT"),
    (3, "ESRCH"),
    (5, "EIO"),
    (7, "E2BIG"),
    (ENOEXEC, "ENOEXEC"),
    (EAGAIN, "EAGAIN"),
    (12, "ENOMEM"),
    (EACCES, "EACCES"),
    (16, "EBUSY"),
    (EEXIST, "EEXIST"),
    (19, "ENODEV"),
    (20, "ENOTDIR"),
    (EINVAL, "EINVAL"),
    (23, "ENFILE"),
    (24, "EMFILE"),
    (ETXTBSY, "ETXTBSY"),
    (28, "ENOSPC"),
    (34, "ERANGE"),
    (40, "ELOOP"),
    (80, "ELIBBAD"),
    (95, "EOPNOTSUPP"),
    (97, "EAFNOSUPPORT"),
    (EADDRINUSE, "EADDRINUSE"),
    (EADDRNOTAVAIL, "EADDRNOTAVAIL"),
    (ENETUNREACH, "ENETUNREACH"),
    (ETIMEDOUT, "ETIMEDOUT"),
    (ECONNREFUSED, "ECONNREFUSED"),
    (EHOSTUNREACH, "EHOSTUNREACH"),
];

/// Returns the name of a positive error number; `None` for a number that no watched system call returns.
pub fn errno_name(errno: u32) -> Option<&'static str> {
    NAMES.iter().find(|(known, _)| *known == errno).map(|(_, name)| *name)
}

/// Returns the name of a positive error number, or the number itself where it has no known name: `EMFILE`, `errno 512`.
pub fn errno_words(errno: u32) -> String {
    errno_name(errno).map_or_else(|| format!("errno {errno}"), ToString::to_string)
}

/// Returns the result of connect(2) on a Unix socket, to follow the path: `does not exist (ENOENT)`. `errno` is
/// positive.
pub fn socket_words(errno: u32) -> String {
    let name = errno_words(errno);
    match errno {
        ENOENT => format!("does not exist ({name})"),
        ECONNREFUSED => format!("has no listener ({name})"),
        EAGAIN => format!("has a full accept queue ({name})"),
        EPERM | EACCES => format!("denies access ({name})"),
        _ => format!("does not accept connections ({name})"),
    }
}

/// Standard signals, signal(7); the numbers are the same on x86-64 and arm64 (include/uapi/asm-generic/signal.h).
const SIGNALS: &[(u8, &str)] = &[
    (1, "SIGHUP"),
    (SIGINT, "SIGINT"),
    (3, "SIGQUIT"),
    (4, "SIGILL"),
    (5, "SIGTRAP"),
    (6, "SIGABRT"),
    (7, "SIGBUS"),
    (8, "SIGFPE"),
    (SIGKILL, "SIGKILL"),
    (10, "SIGUSR1"),
    (11, "SIGSEGV"),
    (12, "SIGUSR2"),
    (13, "SIGPIPE"),
    (14, "SIGALRM"),
    (SIGTERM, "SIGTERM"),
    (16, "SIGSTKFLT"),
    (24, "SIGXCPU"),
    (25, "SIGXFSZ"),
    (31, "SIGSYS"),
];
pub(crate) const SIGINT: u8 = 2;
pub(crate) const SIGKILL: u8 = 9;
pub(crate) const SIGTERM: u8 = 15;

/// Returns the name of a signal, or its number where it has no known name: `SIGKILL`, `signal 34`.
pub(crate) fn signal_words(signal: u8) -> String {
    let name = SIGNALS.iter().find(|(known, _)| *known == signal);
    name.map_or_else(|| format!("signal {signal}"), |(_, name)| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_numbers_are_shown_as_numbers() {
        assert_eq!((errno_words(24), errno_words(512)), ("EMFILE".into(), "errno 512".into()));
        assert_eq!((signal_words(9), signal_words(34)), ("SIGKILL".into(), "signal 34".into()));
    }

    #[test]
    fn names_are_sorted_by_number() {
        assert!(
            NAMES.is_sorted_by_key(|(errno, _)| *errno) && SIGNALS.is_sorted_by_key(|(signal, _)| *signal)
        );
    }
}
