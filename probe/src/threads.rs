//! The threads of the program. What can block has a thread of its own, so that it holds up nothing else: the thread that
//! judges reads no file, starts no program and waits for no other process.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use probe_engine::Mono;
use tokio::runtime::{self, Handle, Runtime};
use tokio::sync::oneshot;

use crate::clock;

/// Stack of each thread; only what is used takes memory. The deepest stacks are those of a parser of YAML and of TLS.
const STACK: usize = 1 << 20;
/// Most threads that read files at once; further reads wait.
const READERS: usize = 4;
/// How often a thread shows that it is not blocked.
const BEAT: Duration = Duration::from_secs(1);
/// How long an operation may take until it is reported as blocked. The kernel reports a hung task after 120 s; a busy disk
/// takes a second or two.
const BLOCKED: Duration = Duration::from_secs(10);

/// Where tasks run.
#[derive(Clone)]
pub(crate) struct Threads {
    /// Reads and watches the node: files, netlink, `/proc`.
    pub(crate) node: Handle,
    /// Talks to other programs: API server, container runtime, name servers.
    pub(crate) net: Handle,
    /// Writes to the Node object.
    pub(crate) writer: Handle,
}

impl Threads {
    /// All of them on the current runtime.
    pub(crate) fn here() -> Self {
        let here = Handle::current();
        Self { node: here.clone(), net: here.clone(), writer: here }
    }

    /// Starts one thread each, until the process exits.
    pub(crate) fn start(blocked: &Blocked) -> io::Result<Self> {
        Ok(Self {
            node: start("node", blocked)?,
            net: start("net", blocked)?,
            writer: start("writer", blocked)?,
        })
    }
}

/// Has all threads take their memory from one arena: by default glibc makes one for each, and what a thread frees is of no use
/// to the others. Before there are threads.
pub(crate) fn share_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers. It fails for other numbers, and then memory is as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Starts a thread that runs tasks, and returns where to give them to it.
pub(crate) fn start(name: &'static str, blocked: &Blocked) -> io::Result<Handle> {
    let runtime = runtime()?;
    let handle = runtime.handle().clone();
    let operation = blocked.operation(thread(name));
    named(name).spawn(move || runtime.block_on(beat(operation)))?;
    Ok(handle)
}

/// Runs one future on a thread of its own; the future is given what shows whether that is blocked. What is returned resolves
/// to its output.
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
        runtime.spawn(beat(Arc::clone(&operation)));
        let output = runtime.block_on(future(Arc::clone(&operation)));
        operation.ends();
        // Nobody may wait for it.
        let _ = done.send(output);
        runtime.shutdown_background();
    })?;
    Ok(ended)
}

/// Restarts an operation for ever: it takes long when its thread does nothing else.
async fn beat(operation: Arc<Operation>) {
    loop {
        operation.begins();
        tokio::time::sleep(BEAT).await;
    }
}

fn thread(name: &str) -> String {
    format!("the thread {name}")
}

/// A thread with a small stack; the kernel keeps 15 bytes of its name.
pub(crate) fn named(name: &str) -> Builder {
    Builder::new().name(format!("probe-{name}")).stack_size(STACK)
}

/// A runtime of one thread, and a few that read files for it.
pub(crate) fn runtime() -> io::Result<Runtime> {
    runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(READERS)
        .thread_stack_size(STACK)
        .thread_name("probe-file")
        .build()
}

/// Operations that can block, and since when each is under way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocked(Arc<Mutex<Vec<Arc<Operation>>>>);

/// See [`Blocked`].
#[derive(Debug)]
pub(crate) struct Operation {
    what: String,
    /// Boot clock, nanoseconds; 0 while nothing is under way.
    since: AtomicU64,
}

impl Blocked {
    /// A kind of operation, for as long as the process runs.
    pub(crate) fn operation(&self, what: String) -> Arc<Operation> {
        let operation = Arc::new(Operation { what, since: AtomicU64::new(0) });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&operation));
        operation
    }

    /// Returns what has not come to its end for too long, one line each.
    pub(crate) fn lines(&self) -> Vec<String> {
        let operations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        operations.iter().filter_map(|operation| operation.line()).collect()
    }
}

impl Operation {
    /// It is under way from now on.
    pub(crate) fn begins(&self) {
        self.began(clock::now());
    }

    /// It has been under way since then.
    pub(crate) fn began(&self, at: Mono) {
        self.since.store(at.0, Ordering::Relaxed);
    }

    /// It is over.
    pub(crate) fn ends(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// Returns what is blocked; `None` while it is not.
    pub(crate) fn line(&self) -> Option<String> {
        let since = self.since.load(Ordering::Relaxed);
        let took = Duration::from_nanos(clock::now().0.saturating_sub(since));
        (since != 0 && took >= BLOCKED).then(|| format!("{} is blocked", self.what))
    }
}
