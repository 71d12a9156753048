//! The socket: one report for each connection, for `probe check`.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use probe_engine::{Mono, Report};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::sync::{oneshot, watch};

use super::Sink;
use super::metrics::Shared;
use crate::report::{Context, Document};
use crate::threads;

/// A reader that is slower than this is left.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries to serve.
const AGAIN: Duration = Duration::from_secs(5);
/// How long its removal may take when the agent is stopped.
const LAST: Duration = Duration::from_secs(1);

/// Keeps the newest report ready.
pub(crate) struct Socket {
    context: Context,
    newest: watch::Sender<Vec<u8>>,
    ended: oneshot::Receiver<()>,
}

impl Socket {
    /// Serves on `path`, mode 0600, on a thread of its own, until [`Self::finish`]. A socket that nobody serves any more is
    /// replaced; one that is served belongs to another agent, and is taken over when that is gone.
    pub(crate) fn serve(path: PathBuf, context: Context, shared: &Shared) -> io::Result<Self> {
        let (newest, reports) = watch::channel(Vec::new());
        let told = shared.clone();
        let ended = threads::run("socket", &shared.blocked, move |_| serve(path, reports, told))?;
        Ok(Self { context, newest, ended })
    }

    /// Removes the socket.
    pub(crate) async fn finish(self) {
        drop(self.newest);
        let _ = tokio::time::timeout(LAST, self.ended).await;
    }
}

async fn serve(path: PathBuf, mut reports: watch::Receiver<Vec<u8>>, shared: Shared) {
    let what = format!("serve on {}", path.display());
    loop {
        match bind(&path) {
            Ok(listener) => {
                shared.works(&what);
                answer(&listener, reports).await;
                let _ = std::fs::remove_file(&path);
                return;
            }
            Err(error) => shared.fails(&what, &format!("{error}; it is tried again every 5 s")),
        }
        let stopped = async { while reports.changed().await.is_ok() {} };
        if tokio::time::timeout(AGAIN, stopped).await.is_ok() {
            return;
        }
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another agent serves it"));
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until there are no more reports.
async fn answer(listener: &UnixListener, mut reports: watch::Receiver<Vec<u8>>) {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((mut stream, _)) => {
                    let report = reports.borrow().clone();
                    // One at a time: a reader takes microseconds, and a slow one is left.
                    let _ = tokio::time::timeout(PATIENCE, stream.write_all(&report)).await;
                }
                // Out of descriptors: wait for some to come back.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            changed = reports.changed() => if changed.is_err() { return },
        }
    }
}

impl Sink for Socket {
    fn report(&mut self, _at: Mono, report: &Report) {
        if let Ok(bytes) = serde_json::to_vec(&Document::new(report, &self.context)) {
            self.newest.send_replace(bytes);
        }
    }
}
