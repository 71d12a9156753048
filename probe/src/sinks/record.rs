//! Recordings of the input of the engine, for `probe replay`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use probe_engine::{BootTime, Line, Observation, RecordingHeader};

use super::Sink;

/// Writes each line with one write(2), so that the file contains only whole lines.
pub(crate) struct Recorder {
    file: File,
    /// The first failure; the command fails with it.
    pub(crate) broken: Option<io::Error>,
}

impl Recorder {
    /// Creates a recording. Fails if the file exists.
    pub(crate) fn create(path: &Path, header: &RecordingHeader) -> io::Result<Self> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(&line(header))?;
        Ok(Self { file, broken: None })
    }
}

impl Sink for Recorder {
    fn judged(&mut self, at: BootTime, observation: &Observation) {
        let bytes = line(&Line { at, observation: observation.clone() });
        if let (Err(error), None) = (self.file.write_all(&bytes), &self.broken) {
            self.broken = Some(error);
        }
    }
}

fn line(value: &impl serde::Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}
