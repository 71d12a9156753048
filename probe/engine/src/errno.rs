//! Numbers and names of errors.

use alloc::format;
use alloc::string::{String, ToString};

// include/uapi/asm-generic/errno-base.h and errno.h; the same on x86-64 and arm64.
pub(crate) const EPERM: u32 = 1;
pub(crate) const ENOENT: u32 = 2;
pub(crate) const ENOEXEC: u32 = 8;
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

/// Those that system calls of plugins, runtimes, kubelets and agents fail with, by errno(3).
const NAMES: &[(u32, &str)] = &[
    (EPERM, "EPERM"),
    (ENOENT, "ENOENT"),
    (3, "ESRCH"),
    (5, "EIO"),
    (7, "E2BIG"),
    (ENOEXEC, "ENOEXEC"),
    (11, "EAGAIN"),
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

/// Returns the name of a positive error number; `None` for one that is not expected anywhere.
pub fn errno_name(errno: u32) -> Option<&'static str> {
    NAMES.iter().find(|(known, _)| *known == errno).map(|(_, name)| *name)
}

/// Returns the name of a positive error number for people: `EMFILE`, `errno 512`.
pub fn errno_words(errno: u32) -> String {
    errno_name(errno).map_or_else(|| format!("errno {errno}"), ToString::to_string)
}
