//! Lock that admits one agent per host: two would write the same conditions from different histories.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::sinks::writing;
use crate::threads;

/// How long an agent that is shutting down may still hold the lock; its last writes take up to 9 s.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much longer the disk of the lock file may take to respond.
const DISK_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval between two attempts.
const RETRY: Duration = Duration::from_millis(100);

/// Why the lock could not be acquired.
#[derive(Debug)]
pub(crate) enum LockError {
    /// Another agent holds the lock file at this path.
    Held(PathBuf),
    /// The lock file cannot be opened, or its disk does not respond.
    Failed(io::Error),
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Acquires the lock beside the state file, on a thread of its own. It is held until the returned file is closed.
///
/// # Errors
/// See [`LockError`].
pub(crate) async fn take(state_file: &Path) -> Result<File, LockError> {
    let path = state_file.with_extension("lock");
    let (done, result) = oneshot::channel();
    threads::named("lock").spawn(move || {
        // The receiver may have timed out.
        let _ = done.send(wait(path));
    })?;
    let timed_out = |_| io::Error::new(io::ErrorKind::TimedOut, "the disk does not respond");
    tokio::time::timeout(PATIENCE + DISK_TIMEOUT, result)
        .await
        .map_err(timed_out)?
        .map_err(io::Error::other)?
}

fn wait(path: PathBuf) -> Result<File, LockError> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let file = writing::open(&path, OpenOptions::new().write(true).create(true).truncate(false))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(RETRY),
            Err(TryLockError::WouldBlock) => return Err(LockError::Held(path)),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
}
