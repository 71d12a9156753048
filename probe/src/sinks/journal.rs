//! What was said and when, kept on disk across restarts of the agent and of the host: two files of bounded size.
//!
//! Lines of an earlier boot are kept for people, and are no evidence: their clock is another one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use probe_engine::{Condition, Effect, Mono, Reason, Remembered};
use serde::{Deserialize, Serialize};

use super::Sink;
use crate::report::{Context, rfc3339};

/// One file is at most this long; the older of the two is replaced when the newer is full. About 4,000 changes
/// each: months of ordinary life, or half a day of a change every ten seconds.
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

/// See the module.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
    context: Context,
    /// The last verdict that was written: its evidence may change without it.
    verdict: Option<(Reason, String)>,
    said: bool,
}

impl Journal {
    /// Opens the newer file for appending, makes the directory when it is not there, and says that an agent
    /// starts.
    pub(crate) fn open(path: PathBuf, context: Context, at: Mono) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut file = OpenOptions::new().append(true).create(true).open(&path)?;
        let bytes = file.metadata()?.len();
        if bytes > 0 {
            // An agent that was killed may have left half a line.
            file.write_all(b"\n")?;
        }
        let mut journal = Self { path, file, bytes, context, verdict: None, said: false };
        journal.write(at, Entry::Started { version: env!("CARGO_PKG_VERSION").to_owned() })?;
        Ok(journal)
    }

    fn write(&mut self, at: Mono, entry: Entry) -> io::Result<()> {
        let line = Line { at: rfc3339(self.context.wall, at), boot_id: self.context.boot_id.clone(), entry };
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        let length = u64::try_from(bytes.len()).unwrap_or(FILE);
        if self.bytes + length > FILE {
            fs::rename(&self.path, older(&self.path))?;
            self.file = OpenOptions::new().append(true).create(true).open(&self.path)?;
            self.bytes = 0;
        }
        // One call: a reader sees whole lines.
        self.file.write_all(&bytes)?;
        self.bytes += length;
        Ok(())
    }
}

impl Sink for Journal {
    fn effect(&mut self, at: Mono, effect: &Effect) {
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
        if let Err(error) = self.write(at, entry)
            && !self.said
        {
            self.said = true;
            crate::warn(&format!(
                "write the journal {}: {error}; lines are missing there",
                self.path.display()
            ));
        }
    }
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("1.jsonl")
}

/// What the conditions said last on this boot, if an agent ran: not what it said while it learned or stopped.
/// A file that cannot be read, or lines that are none, are as if they were not there.
pub(crate) fn remembered(path: &Path, boot_id: &str) -> Remembered {
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
    if let Ok(file) = File::open(path) {
        // What could be read counts.
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

    fn condition(status: Status, reason: Reason, since: u64, message: &str) -> Effect {
        let condition = ConditionType::APIServerReachable;
        Effect::Condition(Condition {
            condition,
            status,
            reason,
            message: message.into(),
            since: Mono(since),
        })
    }

    #[test]
    fn what_was_said_last_on_this_boot_is_remembered() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state/journal.jsonl");
        let mut journal = Journal::open(path.clone(), context("old"), Mono(1)).expect("opens");
        journal.effect(Mono(2), &condition(Status::True, Reason::NetworkReady, 2, "fine"));
        let mut journal = Journal::open(path.clone(), context("new"), Mono(3)).expect("opens");
        assert_eq!(remembered(&path, "new").conditions, []);
        journal.effect(Mono(4), &condition(Status::False, Reason::APITimeout, 4, "no answer"));
        journal.effect(Mono(5), &condition(Status::Unknown, Reason::AgentStopping, 5, "stops"));
        // Half a line, as a killed agent leaves it.
        journal.file.write_all(b"{\"at\":\"2026").expect("writes");
        let mut journal = Journal::open(path.clone(), context("new"), Mono(6)).expect("opens");
        journal.effect(Mono(7), &condition(Status::Unknown, Reason::Learning, 7, ""));
        let known = remembered(&path, "new").conditions;
        assert_eq!(known.len(), 1);
        assert_eq!((known[0].status, known[0].since), (Status::False, Mono(4)));
        assert_eq!(remembered(&path, "old").conditions[0].since, Mono(2));
    }

    #[test]
    fn its_size_is_bounded_and_the_newest_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal.jsonl");
        let mut journal = Journal::open(path.clone(), context("b"), Mono(1)).expect("opens");
        let long = "x".repeat(500);
        for at in 0..6000 {
            journal.effect(Mono(at), &condition(Status::False, Reason::APITimeout, at, &long));
        }
        let sizes = [older(&path), path.clone()].map(|path| fs::metadata(path).expect("is there").len());
        assert!(sizes.iter().all(|size| *size <= FILE), "{sizes:?}");
        assert_eq!(remembered(&path, "b").conditions[0].since, Mono(5999));
        fs::write(&path, [0xff; 4096]).expect("writes");
        assert!(remembered(&path, "b").conditions[0].since < Mono(5999));
    }
}
