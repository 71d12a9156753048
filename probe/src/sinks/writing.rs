//! Writes files on separate threads, so that a disk that does not respond blocks only the file on it.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;

use super::metrics::Shared;
use crate::threads::{Operation, named};

/// Interval between attempts to write what could not be written.
const RETRY: Duration = Duration::from_secs(5);
/// Timeout of the last write when the agent is stopped.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// A file that a thread writes. After it is dropped, the thread writes what is pending and ends.
pub(crate) struct FileWriter<T> {
    queue: Arc<Queue<T>>,
    ended: oneshot::Receiver<()>,
}

/// The queue of a thread.
struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    changed: Condvar,
    most: usize,
    dropped: Counter,
}

struct Waiting<T> {
    jobs: VecDeque<T>,
    closed: bool,
}

/// What is written, for messages and for the watchdog.
struct About {
    what: String,
    shared: Shared,
    operation: Arc<Operation>,
}

impl<T: Send + 'static> FileWriter<T> {
    /// Starts the thread. At most `most` jobs wait; a new one then replaces the oldest, which is counted as dropped. A failed write
    /// is logged once, reported by `/readyz`, and retried every 5 s until it succeeds.
    pub(crate) fn start(
        (name, what): (&str, String),
        (most, dropped): (usize, Counter),
        shared: &Shared,
        write: impl FnMut(&T) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let waiting = Mutex::new(Waiting { jobs: VecDeque::new(), closed: false });
        let queue = Arc::new(Queue { waiting, changed: Condvar::new(), most, dropped });
        let operation = shared.blocked.operation(what.clone());
        let about = About { what, shared: shared.clone(), operation };
        let (done, ended) = oneshot::channel();
        let jobs = Arc::clone(&queue);
        named(name).spawn(move || {
            jobs.run(&about, write);
            // The receiver may have been dropped.
            let _ = done.send(());
        })?;
        Ok(Self { queue, ended })
    }

    /// Queues a job. Never waits for the disk.
    pub(crate) fn put(&self, job: T) {
        self.queue.put(job);
    }

    /// Waits for the last write, with a timeout.
    pub(crate) async fn finish(mut self) {
        self.queue.close();
        // After a timeout the file keeps its previous content.
        let _ = tokio::time::timeout(LAST_WRITE, &mut self.ended).await;
    }
}

impl<T> Drop for FileWriter<T> {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl<T> Queue<T> {
    fn put(&self, job: T) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.jobs.len() >= self.most {
            waiting.jobs.pop_front();
            self.dropped.inc();
        }
        waiting.jobs.push_back(job);
        self.changed.notify_one();
    }

    fn close(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed.notify_one();
    }

    /// Puts a job back that could not be written.
    fn put_back(&self, job: T) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.jobs.len() >= self.most {
            self.dropped.inc();
        } else {
            waiting.jobs.push_front(job);
        }
    }

    /// Waits for the next job; `None` after the queue was closed and is empty.
    fn take(&self) -> Option<T> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let is_idle = |waiting: &mut Waiting<T>| waiting.jobs.is_empty() && !waiting.closed;
        let mut waiting = self.changed.wait_while(waiting, is_idle).unwrap_or_else(PoisonError::into_inner);
        waiting.jobs.pop_front()
    }

    /// Waits for the next attempt; false if the agent is being stopped.
    fn pause(&self) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = |waiting: &mut Waiting<T>| !waiting.closed;
        let (waiting, _) =
            self.changed.wait_timeout_while(waiting, RETRY, goes_on).unwrap_or_else(PoisonError::into_inner);
        !waiting.closed
    }

    fn run(&self, about: &About, mut write: impl FnMut(&T) -> io::Result<()>) {
        while let Some(job) = self.take() {
            about.operation.begins();
            let written = write(&job);
            about.operation.ends();
            match written {
                Ok(()) => about.shared.works(&about.what),
                Err(error) => {
                    about.shared.fails(&about.what, &format!("{error}; retrying every 5 s"));
                    self.put_back(job);
                    if !self.pause() {
                        return;
                    }
                }
            }
        }
    }
}

/// Mode of created files: members of the group may read reports, other users may not.
const MODE: u32 = 0o640;

/// Opens a regular file. Refuses a FIFO, which could block, a device, and a symbolic link, which may lead to another file.
pub(crate) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    const FLAGS: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    refuse_irregular(path)?;
    let file = options.mode(MODE).custom_flags(FLAGS).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(not_regular()) }
}

/// Fails if `path` exists and is not a regular file.
pub(super) fn refuse_irregular(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(not_regular()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn not_regular() -> io::Error {
    io::Error::other("not a regular file")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::metrics::Metrics;
    use super::*;

    #[tokio::test]
    async fn unresponsive_disk_does_not_block_and_newest_jobs_are_kept() {
        let shared = Metrics::new().shared();
        let (written, seen) = mpsc::channel();
        let (begun, under_way) = mpsc::channel();
        let (respond, responds) = mpsc::channel::<()>();
        let dropped = Counter::default();
        let write = move |job: &u32| {
            begun.send(()).expect("the test listens");
            responds.recv().map_err(io::Error::other)?;
            written.send(*job).map_err(io::Error::other)
        };
        let writing = FileWriter::start(("test", "write".to_owned()), (2, dropped.clone()), &shared, write)
            .expect("starts");
        writing.put(1);
        under_way.recv().expect("the thread writes");
        // The disk has the first; of the others two wait.
        (2..=5).for_each(|job| writing.put(job));
        assert_eq!(dropped.get(), 2);
        (0..3).for_each(|_| respond.send(()).expect("the thread listens"));
        writing.finish().await;
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [1, 4, 5]);
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        assert!(open(&at("file"), &mut options).is_ok() && open(&at("file"), &mut options).is_ok());
        let fifo = std::ffi::CString::new(at("fifo").to_str().expect("a text")).expect("no NUL");
        // SAFETY: the path is live and ends with a NUL.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        std::os::unix::fs::symlink(at("file"), at("link")).expect("makes a link");
        for name in ["fifo", "link", "."] {
            let error = open(&at(name), &mut options).expect_err("refuses");
            assert_eq!(error.to_string(), "not a regular file", "{name}");
        }
    }
}
