//! Reading files that anybody may have put there.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Largest configuration file that is read; real ones have a few kilobytes.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// Reads a regular file of at most [`MAX_BYTES`]. Never blocks: a FIFO, a device or a directory in place of
/// a file is an error.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Without O_NONBLOCK the open of a FIFO waits for its writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if metadata.len() > MAX_BYTES {
        return Err(io::Error::other(format!("it has {} bytes, more than {MAX_BYTES}", metadata.len())));
    }
    let mut bytes = Vec::new();
    // It may grow while it is read.
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns whether an operation failed because this process has no descriptor or memory left, which shows nothing of what it was
/// for.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// Returns whether an operation on a file failed because of a limitation of this process: [`is_shortage`], or a missing
/// permission.
pub(super) fn is_own(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied || is_shortage(error)
}

/// As [`read`], as text; `None` when it is not there or is no text.
pub(crate) fn read_text(path: &Path) -> Option<String> {
    String::from_utf8(read(path).ok()?).ok()
}
