//! The threads of the program. Every operation that can block runs on a thread of its own, so that it delays nothing else: the
//! thread of the judge reads no file, starts no program and waits for no other process.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use probe_engine::BootTime;
use tokio::runtime::{self, Handle, Runtime};
use tokio::sync::oneshot;

use crate::clock;

/// Stack size of each thread, bytes; only the used part takes memory. Parsing YAML and TLS need the deepest stacks.
const STACK: usize = 1 << 20;
/// Maximum number of threads that read files; further reads wait.
const READERS: usize = 4;
/// How often a thread reports that it is not blocked.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long an operation may take before it is reported as blocked. The kernel reports a hung task after 120 s; a busy disk
/// takes one or two seconds.
const BLOCKED: Duration = Duration::from_secs(10);

/// Handles of the threads that run tasks.
#[derive(Clone)]
pub(crate) struct Threads {
    /// Reads and watches the node: files, netlink, `/proc`.
    pub(crate) node: Handle,
    /// Sends requests to the API server, the container runtime and name servers.
    pub(crate) net: Handle,
    /// Writes to the Node object.
    pub(crate) writer: Handle,
}

impl Threads {
    /// Returns handles that all refer to the current runtime.
    pub(crate) fn here() -> Self {
        let here = Handle::current();
        Self { node: here.clone(), net: here.clone(), writer: here }
    }

    /// Starts a thread for each. They run until the process exits.
    pub(crate) fn start(blocked: &Blocked) -> io::Result<Self> {
        Ok(Self {
            node: start("node", blocked)?,
            net: start("net", blocked)?,
            writer: start("writer", blocked)?,
        })
    }
}

/// Makes all threads allocate from one arena: by default glibc creates one per thread, and memory that a thread frees is not
/// available to the others. Must be called before threads are started.
pub(crate) fn share_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two numbers; for unsupported ones it fails and changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Starts a thread that runs tasks; returns the handle to spawn them.
pub(crate) fn start(name: &'static str, blocked: &Blocked) -> io::Result<Handle> {
    let runtime = runtime()?;
    let handle = runtime.handle().clone();
    let operation = blocked.operation(thread(name));
    named(name).spawn(move || runtime.block_on(heartbeat(operation)))?;
    Ok(handle)
}

/// Runs a future on a thread of its own. The future receives the operation that shows whether the thread is blocked. Returns a
/// receiver of the future's output.
pub(crate) fn run<F: Future>(
    name: &'static str,
    blocked: &Blocked,
    future: impl FnOnce(Arc<Operation>) -> F + Send + 'static,
) -> io::Result<oneshot::Receiver<F::Output>>
where
    F::Output: Send + 'static,
{
    let runtime = runtime()?;
    let operation = blocked.operation(thread(name));
    let (done, ended) = oneshot::channel();
    named(name).spawn(move || {
        runtime.spawn(heartbeat(Arc::clone(&operation)));
        let output = runtime.block_on(future(Arc::clone(&operation)));
        operation.ends();
        // The receiver may have been dropped.
        let _ = done.send(output);
        runtime.shutdown_background();
    })?;
    Ok(ended)
}

/// Restarts an operation forever. It appears to take long only if its thread is blocked.
async fn heartbeat(operation: Arc<Operation>) {
    loop {
        operation.begins();
        tokio::time::sleep(HEARTBEAT).await;
    }
}

fn thread(name: &str) -> String {
    format!("the thread {name}")
}

/// Returns a builder of a thread with a small stack. The kernel keeps 15 bytes of its name.
pub(crate) fn named(name: &str) -> Builder {
    Builder::new().name(format!("probe-{name}")).stack_size(STACK)
}

/// Creates a runtime with one thread, and a few more that read files for it.
pub(crate) fn runtime() -> io::Result<Runtime> {
    runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(READERS)
        .thread_stack_size(STACK)
        .thread_name("probe-file")
        .build()
}

/// Operations that can block, and since when each is in progress.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocked(Arc<Mutex<Vec<Arc<Operation>>>>);

/// An operation that can block, see [`Blocked`].
#[derive(Debug)]
pub(crate) struct Operation {
    what: String,
    /// Start of the operation in progress, boot time in nanoseconds; 0 if there is none.
    since: AtomicU64,
}

impl Blocked {
    /// Registers a kind of operation for the lifetime of the process. `what` names it in reports.
    pub(crate) fn operation(&self, what: String) -> Arc<Operation> {
        let operation = Arc::new(Operation { what, since: AtomicU64::new(0) });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&operation));
        operation
    }

    /// Returns the operations that are blocked, one line each.
    pub(crate) fn lines(&self) -> Vec<String> {
        let operations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        operations.iter().filter_map(|operation| operation.line()).collect()
    }
}

impl Operation {
    /// Records that the operation starts now.
    pub(crate) fn begins(&self) {
        self.began(clock::now());
    }

    /// Records that the operation started at `at`.
    pub(crate) fn began(&self, at: BootTime) {
        self.since.store(at.0, Ordering::Relaxed);
    }

    /// Records that the operation has finished.
    pub(crate) fn ends(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// Returns a report if the operation is blocked; otherwise `None`.
    pub(crate) fn line(&self) -> Option<String> {
        let since = self.since.load(Ordering::Relaxed);
        let took = Duration::from_nanos(clock::now().0.saturating_sub(since));
        (since != 0 && took >= BLOCKED).then(|| format!("{} is blocked", self.what))
    }
}
