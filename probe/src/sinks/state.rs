//! The state file: the newest report as JSON.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use probe_engine::{BootTime, Report};
use prometheus_client::metrics::counter::Counter;

use super::Sink;
use super::metrics::Shared;
use super::writing::{self, FileWriter};
use crate::report::{Context, Document};

/// Replaces the file atomically: a reader sees the old report or the new one.
pub(crate) struct StateFile {
    context: Context,
    writing: FileWriter<Vec<u8>>,
}

impl StateFile {
    /// Starts the thread that writes the file. Of several pending reports only the newest is written.
    pub(crate) fn start(path: PathBuf, context: Context, shared: &Shared) -> io::Result<Self> {
        let what = format!("write the state file {}", path.display());
        // Reports that a newer one replaced are not counted as dropped.
        let queue = (1, Counter::default());
        let write = move |bytes: &Vec<u8>| replace(&path, bytes);
        Ok(Self { context, writing: FileWriter::start(("state", what), queue, shared, write)? })
    }

    /// Waits for the last report to be written, with a timeout.
    pub(crate) async fn finish(self) {
        self.writing.finish().await;
    }
}

impl Sink for StateFile {
    fn report(&mut self, _at: BootTime, report: &Report) {
        if let Ok(bytes) = serde_json::to_vec_pretty(&Document::new(report, &self.context)) {
            self.writing.put(bytes);
        }
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    // Anything but a regular file belongs to another program: `/dev/null`, a FIFO.
    writing::refuse_irregular(path)?;
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = writing::open(&new, OpenOptions::new().write(true).create_new(true))?;
    file.write_all(bytes)?;
    fs::rename(new, path)
}
