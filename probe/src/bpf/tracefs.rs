//! Where the kernel tells the numbers of its tracepoints.

use std::ffi::CStr;
use std::io;
use std::path::Path;

/// The place of the file system, and the older one.
const PLACES: [&str; 2] = ["/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events"];

/// Makes sure that this thread sees tracefs. On hosts that do not mount it, it is mounted for this thread
/// alone: in a mount namespace of its own that takes part in what the host mounts later, but not the other
/// way round. It is the calling thread's, and that of the threads which it starts later.
pub(super) fn ensure() -> io::Result<()> {
    if PLACES.iter().any(|place| Path::new(place).is_dir()) {
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
