//! Reads files of untrusted origin.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Largest file that is read, bytes; real configuration files have a few kilobytes.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// Reads a regular file of at most [`MAX_BYTES`].
///
/// # Errors
/// If it cannot be read, is longer, or is a FIFO, a device or a directory, on which the read never blocks.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Without O_NONBLOCK, open(2) of a FIFO waits for a writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    if metadata.len() > MAX_BYTES {
        return Err(io::Error::other(format!(
            "{} bytes, more than the limit of {MAX_BYTES}",
            metadata.len()
        )));
    }
    let mut bytes = Vec::new();
    // The file may grow while it is read.
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns whether an operation failed for want of descriptors or memory, which proves nothing about its
/// object.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// Returns whether an operation on a file failed because of a limitation of this process: [`is_shortage`], or
/// a missing permission.
pub(super) fn is_own(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied || is_shortage(error)
}

/// Reads a text file as [`read`] does; `None` if it cannot be read or is not UTF-8.
pub(crate) fn read_text(path: &Path) -> Option<String> {
    String::from_utf8(read(path).ok()?).ok()
}
