//! The state file: the newest report, for everything that reads files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use probe_engine::{Mono, Report};

use super::Sink;
use crate::report::{Context, Document};

/// Replaces the file whole: a reader sees the old report or the new one.
pub(crate) struct StateFile {
    path: PathBuf,
    context: Context,
    said: bool,
}

impl StateFile {
    /// Makes the directory and tries it.
    pub(crate) fn create(path: PathBuf, context: Context) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
            let trial = path.with_extension("try");
            fs::write(&trial, b"")?;
            fs::remove_file(trial)?;
        }
        Ok(Self { path, context, said: false })
    }
}

impl Sink for StateFile {
    fn report(&mut self, _at: Mono, report: &Report) {
        let Ok(bytes) = serde_json::to_vec_pretty(&Document::new(report, &self.context)) else { return };
        if let Err(error) = replace(&self.path, &bytes)
            && !self.said
        {
            self.said = true;
            crate::warn(&format!(
                "write the state file {}: {error}; it is not written any more",
                self.path.display()
            ));
        }
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    fs::rename(new, path)
}
