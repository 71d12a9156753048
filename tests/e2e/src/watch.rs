//! Samples what the agent reports while a fault lasts, and checks every sample.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::agent::read_state;

/// Between two samples. The agent writes its state when it changes.
const EVERY: Duration = Duration::from_millis(100);
/// The columns of the table, in seconds since the fault; the last is how long each fault is kept up.
pub(crate) const MOMENTS: [u64; 5] = [2, 10, 30, 60, 90];

/// The reason of a healthy node.
const WELL: &str = "NetworkReady";

/// The parts of the agent's state that a scene checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Reason of the verdict.
    root: String,
    /// Its message.
    message: String,
    /// The conditions that are False.
    broken: BTreeSet<String>,
    /// Reasons of the consequences, and of what is wrong besides.
    beside: BTreeSet<String>,
}

impl Sample {
    fn of(state: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let rows = |name: &str| state[name].as_array().into_iter().flatten();
        let broken = rows("conditions").filter(|row| row["status"] == "False");
        Some(Self {
            root: text(&state["verdict"]["reason"])?,
            message: text(&state["verdict"]["message"])?,
            broken: broken
                .filter_map(|row| Some(row["type"].as_str()?.rsplit('/').next()?.to_owned()))
                .collect(),
            beside: rows("consequences").chain(rows("also")).filter_map(|row| text(&row["reason"])).collect(),
        })
    }

    /// Returns whether nothing is wrong and no condition is False any more.
    fn is_well(&self) -> bool {
        self.root == WELL && self.broken.is_empty() && self.beside.is_empty()
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}); False: {:?}; besides: {:?}", self.root, self.message, self.broken, self.beside)
    }
}

/// Changes of the state, each with the time at which it was seen.
type Samples = Arc<Mutex<Vec<(Instant, Sample)>>>;

/// Samples the state until dropped.
pub(crate) struct Watch {
    samples: Samples,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    from: Instant,
}

impl Watch {
    /// Starts sampling this state file.
    pub(crate) fn start(file: PathBuf) -> Self {
        let (samples, stop) = (Samples::default(), Arc::new(AtomicBool::new(false)));
        let (theirs, until) = (Arc::clone(&samples), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let sample = read_state(&file).ok().and_then(|state| Sample::of(&state));
                let mut samples = theirs.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(sample) = sample.filter(|new| samples.last().is_none_or(|(_, last)| last != new))
                {
                    samples.push((Instant::now(), sample));
                }
                drop(samples);
                std::thread::sleep(EVERY);
            }
        });
        Self { samples, stop, thread: Some(thread), from: Instant::now() }
    }

    /// Returns every change since it was started, in order.
    pub(crate) fn samples(&self) -> Vec<(Duration, Sample)> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.iter().map(|(at, sample)| (at.duration_since(self.from), sample.clone())).collect()
    }

    /// Returns the newest sample.
    pub(crate) fn now(&self) -> Option<Sample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).last().map(|(_, sample)| sample.clone())
    }

    /// Returns for how long it has been sampling.
    pub(crate) fn lasts(&self) -> Duration {
        self.from.elapsed()
    }

    /// Fails if this reason was reported at any time.
    pub(crate) fn never_said(&self, reason: &str) -> Result<()> {
        let samples = self.samples();
        let said = |sample: &Sample| sample.root == reason || sample.beside.contains(reason);
        let wrong = samples.iter().any(|(_, sample)| said(sample));
        ensure!(!wrong, "{reason} was reported:\n{}", listing(&samples));
        Ok(())
    }

    /// Fails if a condition was False at any time.
    pub(crate) fn was_well(&self) -> Result<()> {
        let samples = self.samples();
        let wrong = samples.iter().find(|(_, sample)| !sample.broken.is_empty());
        ensure!(wrong.is_none(), "a condition of a healthy node was False:\n{}", listing(&samples));
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What must be reported while a fault lasts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// The fault, for the table.
    pub(crate) what: &'static str,
    /// The conditions that become False; no other may.
    pub(crate) conditions: &'static [&'static str],
    /// The root cause, last, after the reasons that may precede it.
    roots: &'static [&'static str],
    /// Reasons that may be listed as a consequence or as an independent fault.
    beside: &'static [&'static str],
    /// A part of the root's message.
    words: &'static str,
    /// Whether the Node object can be written while the fault lasts.
    pub(crate) written: bool,
    /// From when on the root must stay: a fault that comes in bursts is recognized after a few of them.
    steady: Duration,
}

impl Expected {
    /// Expects this root and these conditions, and nothing else.
    pub(crate) const fn new(
        what: &'static str,
        conditions: &'static [&'static str],
        roots: &'static [&'static str],
    ) -> Self {
        Self { what, conditions, roots, beside: &[], words: "", written: true, steady: Duration::ZERO }
    }

    /// Allows these reasons besides.
    pub(crate) const fn beside(self, beside: &'static [&'static str]) -> Self {
        Self { beside, ..self }
    }

    /// Requires these words in the message.
    pub(crate) const fn says(self, words: &'static str) -> Self {
        Self { words, ..self }
    }

    /// The Node object cannot be written while it lasts: an event reports it later.
    pub(crate) const fn unwritten(self) -> Self {
        Self { written: false, ..self }
    }

    /// The fault comes in bursts, and is recognized after this many seconds.
    pub(crate) const fn steady_after(self, seconds: u64) -> Self {
        Self { steady: Duration::from_secs(seconds), ..self }
    }

    /// Returns the root cause.
    pub(crate) fn root(&self) -> &'static str {
        self.roots.last().copied().unwrap_or(WELL)
    }

    /// Returns whether the root is reported and the conditions are False.
    pub(crate) fn is_said_by(&self, sample: &Sample) -> bool {
        sample.root == self.root()
            && self.conditions.iter().all(|condition| sample.broken.contains(*condition))
    }

    fn admits(&self, sample: &Sample) -> bool {
        let only = |said: &BTreeSet<String>, may: &[&str]| said.iter().all(|one| may.contains(&one.as_str()));
        let root = sample.root == WELL || self.roots.contains(&sample.root.as_str());
        // A consequence may be seen before its cause.
        let beside = only(&sample.beside, self.beside) || only(&sample.beside, self.roots);
        (root || self.beside.contains(&sample.root.as_str()))
            && beside
            && only(&sample.broken, self.conditions)
    }

    /// Checks every sample: nothing but the fault is reported, and once reported it stays.
    pub(crate) fn check(&self, samples: &[(Duration, Sample)]) -> Result<()> {
        let all = || listing(samples);
        ensure!(
            samples.iter().all(|(_, sample)| self.admits(sample)),
            "another reason or condition was reported:\n{}",
            all()
        );
        // What was reported last before that lasts.
        let from = samples.iter().rposition(|(at, _)| *at <= self.steady).unwrap_or_default();
        let named = samples[from..].iter().position(|(_, sample)| sample.root == self.root());
        let named = named.with_context(|| format!("{} was not reported:\n{}", self.root(), all()))?;
        let stays = samples[from + named..].iter().all(|(_, sample)| sample.root == self.root());
        ensure!(stays, "{} did not stay:\n{}", self.root(), all());
        let last = &samples[samples.len() - 1].1;
        ensure!(self.is_said_by(last), "a condition did not become False:\n{}", all());
        ensure!(last.message.contains(self.words), "the message lacks {:?}:\n{}", self.words, all());
        Ok(())
    }
}

/// One row of the table.
pub(crate) struct Row {
    expected: Expected,
    /// The root at each of [`MOMENTS`].
    said: Vec<String>,
    /// When the root was first reported.
    first: Option<Duration>,
    /// From the repair until nothing is reported and both conditions are True.
    recovered: Duration,
}

impl Row {
    /// Makes the row of a fault from its samples.
    pub(crate) fn new(expected: Expected, samples: &[(Duration, Sample)], recovered: Duration) -> Self {
        let at = |moment| {
            let moment = Duration::from_secs(moment);
            let last = samples.iter().take_while(|(at, _)| *at <= moment).last();
            last.map_or_else(String::new, |(_, sample)| sample.root.clone())
        };
        let first = samples.iter().find(|(_, sample)| sample.root == expected.root());
        Self { expected, said: MOMENTS.map(at).to_vec(), first: first.map(|(at, _)| *at), recovered }
    }

    /// The table of these.
    pub(crate) fn table(rows: &[Self]) -> String {
        let mut text =
            String::from("\n| fault | expected | first | 2 s | 10 s | 30 s | 60 s | 90 s | recovery |\n");
        text.push_str("|---|---|---|---|---|---|---|---|---|\n");
        for Self { expected, said, first, recovered } in rows {
            let root = expected.root();
            let said = said.iter().map(|said| match said.as_str() {
                right if right == root => "right",
                WELL => "–",
                other => other,
            });
            let said: Vec<_> = said.collect();
            let first = first.map(|first| format!("{:.1} s", first.as_secs_f32())).unwrap_or_default();
            text.push_str(&format!(
                "| {} | {root} | {first} | {} | {:.1} s |\n",
                expected.what,
                said.join(" | "),
                recovered.as_secs_f32()
            ));
        }
        text
    }
}

/// Waits until the node is healthy again and returns when that was, since the watch began. Until then nothing but the fault may
/// be reported.
pub(crate) fn recovers(watch: &Watch, expected: Expected, patience: Duration) -> Result<Duration> {
    let took = crate::cluster::until("the node is healthy again", patience, || {
        Ok(watch.now().is_some_and(|sample| sample.is_well()).then(|| watch.lasts()))
    });
    let took = took.with_context(|| listing(&watch.samples()))?;
    let samples = watch.samples();
    ensure!(
        samples.iter().all(|(_, sample)| expected.admits(sample)),
        "another reason was reported after the repair:\n{}",
        listing(&samples)
    );
    Ok(took)
}

/// The samples, one on each line.
pub(crate) fn listing(samples: &[(Duration, Sample)]) -> String {
    let lines = samples.iter().map(|(at, sample)| format!("  {:>6.1} s  {sample}", at.as_secs_f32()));
    lines.collect::<Vec<_>>().join("\n")
}
