//! The socket: one report for each connection, for `probe check`.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use probe_engine::{BootTime, Report};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::sync::{oneshot, watch};

use super::Sink;
use super::metrics::Shared;
use crate::report::{Context, Document};
use crate::threads;

/// Timeout of writing a report to one client.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval between attempts to bind the socket.
const RETRY: Duration = Duration::from_secs(5);
/// Timeout of removing the socket when the agent is stopped.
const REMOVAL: Duration = Duration::from_secs(1);

/// Serves the newest report.
pub(crate) struct Socket {
    context: Context,
    newest: watch::Sender<Vec<u8>>,
    ended: oneshot::Receiver<()>,
}

impl Socket {
    /// Serves on `path`, mode 0600, on a separate thread until [`Self::finish`]. A stale socket is replaced. A socket that another
    /// agent serves is left alone, and replaced after that agent has exited.
    pub(crate) fn serve(path: PathBuf, context: Context, shared: &Shared) -> io::Result<Self> {
        let (newest, reports) = watch::channel(Vec::new());
        let for_thread = shared.clone();
        let ended = threads::run("socket", &shared.blocked, move |_| serve(path, reports, for_thread))?;
        Ok(Self { context, newest, ended })
    }

    /// Stops serving and removes the socket, with a timeout.
    pub(crate) async fn finish(self) {
        drop(self.newest);
        let _ = tokio::time::timeout(REMOVAL, self.ended).await;
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
            Err(error) => shared.fails(&what, &format!("{error}; retrying every 5 s")),
        }
        let stopped = async { while reports.changed().await.is_ok() {} };
        if tokio::time::timeout(RETRY, stopped).await.is_ok() {
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

/// Serves clients until the sender of reports is dropped.
async fn answer(listener: &UnixListener, mut reports: watch::Receiver<Vec<u8>>) {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((mut stream, _)) => {
                    let report = reports.borrow().clone();
                    // One client at a time: a write takes microseconds, and has a timeout.
                    let _ = tokio::time::timeout(CLIENT_TIMEOUT, stream.write_all(&report)).await;
                }
                // Out of descriptors (EMFILE): wait until some are closed.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            changed = reports.changed() => if changed.is_err() { return },
        }
    }
}

impl Sink for Socket {
    fn report(&mut self, _at: BootTime, report: &Report) {
        if let Ok(bytes) = serde_json::to_vec(&Document::new(report, &self.context)) {
            self.newest.send_replace(bytes);
        }
    }
}
