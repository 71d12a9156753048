//! The history of verdicts and conditions, kept on disk across restarts of the agent and of the host in two files of bounded
//! size.
//!
//! Lines of an earlier boot are kept for people only. They are not evidence, because boot time starts anew.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use probe_engine::{BootTime, Condition, Effect, Reason, Remembered};
use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::Sink;
use super::metrics::Shared;
use super::writing::{self, FileWriter};
use crate::report::{Context, rfc3339};

/// Largest size of one file, in bytes. The older file is replaced when the newer one is full. One file holds about 4,000 changes:
/// months of ordinary operation, or half a day with a change every ten seconds.
const FILE: u64 = 1 << 20;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    at: String,
    boot_id: String,
    #[serde(flatten)]
    entry: Entry,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
enum Entry {
    Started { version: String },
    Condition(Condition),
    Verdict { reason: Reason, subject: String, message: String },
}

/// Maximum number of lines that wait for the disk: half an hour with a change every ten seconds.
const WAITING: usize = 256;

/// The sink.
pub(crate) struct Journal {
    /// The last verdict that was written. A change of its evidence alone is not written.
    verdict: Option<(Reason, String)>,
    writing: FileWriter<(BootTime, Entry)>,
}

impl Journal {
    /// Starts the thread that writes the journal. It first reads the last conditions of an earlier agent on this boot, which it
    /// returns by the channel, and then writes a line about the start. `dropped` counts lines that were dropped while the disk
    /// did not respond.
    pub(crate) fn start(
        path: PathBuf,
        context: Context,
        at: BootTime,
        shared: &Shared,
        dropped: Counter,
    ) -> io::Result<(Self, oneshot::Receiver<Remembered>)> {
        let what = format!("write the journal {}", path.display());
        let (sender, known) = oneshot::channel();
        let mut sender = Some(sender);
        let mut lines = Lines { path, context, file: None };
        let write = move |(at, entry): &(BootTime, Entry)| {
            // Read before this agent writes its first line.
            if let Some(sender) = sender.take() {
                let _ = sender.send(remembered(&lines.path, &lines.context.boot_id));
            }
            lines.write(*at, entry)
        };
        let writing = FileWriter::start(("journal", what), (WAITING, dropped), shared, write)?;
        writing.put((at, Entry::Started { version: env!("CARGO_PKG_VERSION").to_owned() }));
        Ok((Self { verdict: None, writing }, known))
    }

    /// Waits for the last line to be written, with a timeout.
    pub(crate) async fn finish(self) {
        self.writing.finish().await;
    }
}

/// The two files, used by the thread that writes them.
struct Lines {
    path: PathBuf,
    context: Context,
    /// The newer file and its length in bytes; `None` until it is opened, and after a failure.
    file: Option<(File, u64)>,
}

impl Lines {
    /// Returns the newer file, opened for appending. Creates its directory if needed.
    fn open(&mut self) -> io::Result<&mut (File, u64)> {
        if self.file.is_none() {
            if let Some(dir) = self.path.parent() {
                fs::create_dir_all(dir)?;
            }
            let mut file = writing::open(&self.path, OpenOptions::new().append(true).create(true))?;
            let bytes = file.metadata()?.len();
            if bytes > 0 {
                // A killed agent or a full disk may have left an incomplete line.
                file.write_all(b"\n")?;
            }
            self.file = Some((file, bytes));
        }
        self.file.as_mut().ok_or_else(|| io::Error::other("not open"))
    }

    fn write(&mut self, at: BootTime, entry: &Entry) -> io::Result<()> {
        let boot_id = self.context.boot_id.clone();
        let line = Line { at: rfc3339(self.context.wall, at), boot_id, entry: entry.clone() };
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        let written = self.append(&bytes);
        if written.is_err() {
            self.file = None;
        }
        written
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let more = u64::try_from(bytes.len()).unwrap_or(FILE);
        if self.open()?.1 + more > FILE {
            fs::rename(&self.path, older(&self.path))?;
            self.file = None;
        }
        let (file, length) = self.open()?;
        // One write(2) per line, so that readers see whole lines.
        file.write_all(bytes)?;
        *length += more;
        Ok(())
    }
}

impl Sink for Journal {
    fn effect(&mut self, at: BootTime, effect: &Effect) {
        let entry = match effect {
            Effect::Condition(condition) => Entry::Condition(condition.clone()),
            Effect::Verdict(report) => {
                let now = (report.verdict.reason, report.verdict.subject.clone());
                if self.verdict.as_ref() == Some(&now) {
                    return;
                }
                self.verdict = Some(now);
                let verdict = report.verdict.clone();
                Entry::Verdict { reason: verdict.reason, subject: verdict.subject, message: verdict.message }
            }
            Effect::Reread(_) | Effect::Ask(_) => return,
        };
        self.writing.put((at, entry));
    }
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("1.jsonl")
}

/// Returns the last state of each condition on this boot, except while an agent was learning or stopping. Files that cannot be
/// read and malformed lines are skipped.
fn remembered(path: &Path, boot_id: &str) -> Remembered {
    let mut last: Vec<Condition> = Vec::new();
    for path in [older(path), path.to_owned()] {
        for line in read(&path).split(|byte| *byte == b'\n') {
            let Ok(Line { boot_id: of, entry: Entry::Condition(condition), .. }) =
                serde_json::from_slice(line)
            else {
                continue;
            };
            if of != boot_id || matches!(condition.reason, Reason::Learning | Reason::AgentStopping) {
                continue;
            }
            last.retain(|known| known.condition != condition.condition);
            last.push(condition);
        }
    }
    Remembered { conditions: last }
}

fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = writing::open(path, OpenOptions::new().read(true)) {
        // After an error, the part that was read is used.
        let _ = file.take(2 * FILE).read_to_end(&mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use probe_engine::{ConditionType, Status};

    use super::*;
    use crate::clock::Wall;

    fn context(boot_id: &str) -> Context {
        Context { node: "n".into(), boot_id: boot_id.into(), wall: Wall { offset_ns: 0 } }
    }

    fn lines(path: &Path, boot_id: &str) -> Lines {
        Lines { path: path.to_owned(), context: context(boot_id), file: None }
    }

    fn condition(status: Status, reason: Reason, since: u64, message: &str) -> Entry {
        let condition = ConditionType::APIServerReachable;
        Entry::Condition(Condition {
            condition,
            status,
            reason,
            message: message.into(),
            since: BootTime(since),
        })
    }

    #[test]
    fn last_conditions_of_this_boot_are_remembered() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state/journal.jsonl");
        let mut journal = lines(&path, "old");
        journal
            .write(BootTime(2), &condition(Status::True, Reason::NetworkReady, 2, "fine"))
            .expect("writes");
        let mut journal = lines(&path, "new");
        assert_eq!(remembered(&path, "new").conditions, []);
        journal
            .write(BootTime(4), &condition(Status::False, Reason::APITimeout, 4, "no answer"))
            .expect("writes");
        journal
            .write(BootTime(5), &condition(Status::Unknown, Reason::AgentStopping, 5, "stops"))
            .expect("writes");
        // An incomplete line, as a killed agent leaves it.
        journal.open().expect("is open").0.write_all(b"{\"at\":\"2026").expect("writes");
        let mut journal = lines(&path, "new");
        journal.write(BootTime(7), &condition(Status::Unknown, Reason::Learning, 7, "")).expect("writes");
        let known = remembered(&path, "new").conditions;
        assert_eq!(known.len(), 1);
        assert_eq!((known[0].status, known[0].since), (Status::False, BootTime(4)));
        assert_eq!(remembered(&path, "old").conditions[0].since, BootTime(2));
    }

    #[test]
    fn size_is_bounded_and_newest_lines_are_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal.jsonl");
        let mut journal = lines(&path, "b");
        let long = "x".repeat(500);
        for at in 0..6000 {
            journal
                .write(BootTime(at), &condition(Status::False, Reason::APITimeout, at, &long))
                .expect("writes");
        }
        let sizes = [older(&path), path.clone()].map(|path| fs::metadata(path).expect("is there").len());
        assert!(sizes.iter().all(|size| *size <= FILE), "{sizes:?}");
        assert_eq!(remembered(&path, "b").conditions[0].since, BootTime(5999));
        fs::write(&path, [0xff; 4096]).expect("writes");
        assert!(remembered(&path, "b").conditions[0].since < BootTime(5999));
    }
}
