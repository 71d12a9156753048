//! The socket: one report for each connection, for `probe check`.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use probe_engine::{Mono, Report};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::Sink;
use crate::report::{Context, Document};

/// A reader that is slower than this is left.
const PATIENCE: Duration = Duration::from_secs(2);

/// Keeps the newest report ready.
pub(crate) struct Socket {
    context: Context,
    newest: watch::Sender<Vec<u8>>,
    path: PathBuf,
}

impl Socket {
    /// Serves on `path`, mode 0600. A socket that nobody serves any more is replaced; one that is served
    /// belongs to another agent.
    pub(crate) fn serve(path: &Path, context: Context) -> io::Result<Self> {
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
        let (newest, reports) = watch::channel(Vec::new());
        tokio::spawn(answer(listener, reports));
        Ok(Self { context, newest, path: path.to_owned() })
    }
}

async fn answer(listener: UnixListener, reports: watch::Receiver<Vec<u8>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let report = reports.borrow().clone();
        // One at a time: a reader takes microseconds, and a slow one is left.
        let _ = tokio::time::timeout(PATIENCE, stream.write_all(&report)).await;
    }
}

impl Sink for Socket {
    fn report(&mut self, _at: Mono, report: &Report) {
        if let Ok(bytes) = serde_json::to_vec(&Document::new(report, &self.context)) {
            self.newest.send_replace(bytes);
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
