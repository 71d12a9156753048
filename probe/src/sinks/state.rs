//! The state file: the newest report, for everything that reads files.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use probe_engine::{Mono, Report};
use prometheus_client::metrics::counter::Counter;

use super::Sink;
use super::metrics::Shared;
use super::writing::{self, Writing};
use crate::report::{Context, Document};

/// Has the file replaced whole: a reader sees the old report or the new one.
pub(crate) struct StateFile {
    context: Context,
    writing: Writing<Vec<u8>>,
}

impl StateFile {
    /// Starts the thread that writes the file. Of several reports that wait only the newest is written.
    pub(crate) fn start(path: PathBuf, context: Context, shared: &Shared) -> io::Result<Self> {
        let what = format!("write the state file {}", path.display());
        // A report that gave way to a newer one is not missed.
        let queue = (1, Counter::default());
        let write = move |bytes: &Vec<u8>| replace(&path, bytes);
        Ok(Self { context, writing: Writing::start(("state", what), queue, shared, write)? })
    }

    /// Waits a while for the last report to be written.
    pub(crate) async fn finish(self) {
        self.writing.finish().await;
    }
}

impl Sink for StateFile {
    fn report(&mut self, _at: Mono, report: &Report) {
        if let Ok(bytes) = serde_json::to_vec_pretty(&Document::new(report, &self.context)) {
            self.writing.put(bytes);
        }
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    // What else is there has an owner: `/dev/null`, somebody's FIFO.
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
