//! Access to tracefs, where the kernel publishes the IDs of its tracepoints.

use std::ffi::CStr;
use std::io;
use std::path::Path;

/// Mount points of tracefs: the current one and the older one.
const MOUNT_POINTS: [&str; 2] = ["/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events"];

/// Makes tracefs visible to the calling thread and to threads that it starts later. If the host has not mounted it, it is
/// mounted in a new mount namespace, which receives later mounts of the host but does not propagate its own.
pub(super) fn ensure() -> io::Result<()> {
    if MOUNT_POINTS.iter().any(|path| Path::new(path).is_dir()) {
        return Ok(());
    }
    // SAFETY: no memory is involved.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    mount(c"none", c"/", c"none", libc::MS_REC | libc::MS_SLAVE)?;
    let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(c"tracefs", c"/sys/kernel/tracing", c"tracefs", flags)
}

fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: three NUL-terminated strings that live through the call, and no data.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
