//! One agent for each host: two would write the same conditions from different histories.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::sinks::writing;
use crate::threads;

/// How long an agent that is being stopped may still hold the lock; its last writes take up to 9 s.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the directory of the lock may take to respond after that.
const SLOW: Duration = Duration::from_secs(2);
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(100);

/// Why the lock was not taken.
#[derive(Debug)]
pub(crate) enum NotTaken {
    /// Another agent has it.
    Held(PathBuf),
    /// The lock file cannot be opened, or its disk does not respond.
    Failed(io::Error),
}

impl From<io::Error> for NotTaken {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Takes the lock beside the state file, on a thread of its own. It is held until the file is closed.
pub(crate) async fn take(state_file: &Path) -> Result<File, NotTaken> {
    let path = state_file.with_extension("lock");
    let (tell, told) = oneshot::channel();
    threads::named("lock").spawn(move || {
        // The program may have given up waiting.
        let _ = tell.send(wait(path));
    })?;
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the disk does not respond");
    tokio::time::timeout(PATIENCE + SLOW, told).await.map_err(late)?.map_err(io::Error::other)?
}

fn wait(path: PathBuf) -> Result<File, NotTaken> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let file = writing::open(&path, OpenOptions::new().write(true).create(true).truncate(false))?;
    let until = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < until => sleep(AGAIN),
            Err(TryLockError::WouldBlock) => return Err(NotTaken::Held(path)),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
}
