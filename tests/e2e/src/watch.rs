//! Samples the agent's reports while a fault lasts, and checks every sample.

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

/// Interval of samples. The agent writes its state whenever it changes.
const EVERY: Duration = Duration::from_millis(100);
/// Columns of the table, in seconds since the fault; the last one is how long each fault is kept up.
pub(crate) const SAMPLE_TIMES: [u64; 5] = [2, 10, 30, 60, 90];

/// Reason of a healthy node.
const HEALTHY: &str = "NetworkReady";

/// The parts of the agent's state that a scene checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Reason of the root cause.
    root: String,
    /// Message of the root cause.
    message: String,
    /// Conditions that are False.
    broken: BTreeSet<String>,
    /// Reasons of consequences and of independent faults.
    others: BTreeSet<String>,
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
            others: rows("consequences").chain(rows("also")).filter_map(|row| text(&row["reason"])).collect(),
        })
    }

    /// Returns whether no fault is reported and no condition is False.
    fn is_healthy(&self) -> bool {
        self.root == HEALTHY && self.broken.is_empty() && self.others.is_empty()
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}); False: {:?}; others: {:?}", self.root, self.message, self.broken, self.others)
    }
}

/// Changes of the state, each with the time at which it was read.
type Samples = Arc<Mutex<Vec<(Instant, Sample)>>>;

/// Samples the agent's state until dropped.
pub(crate) struct Watch {
    samples: Samples,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    from: Instant,
}

impl Watch {
    /// Starts to sample this state file.
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

    /// Returns every change since the start, in order.
    pub(crate) fn samples(&self) -> Vec<(Duration, Sample)> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.iter().map(|(at, sample)| (at.duration_since(self.from), sample.clone())).collect()
    }

    /// Returns the newest sample.
    pub(crate) fn now(&self) -> Option<Sample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).last().map(|(_, sample)| sample.clone())
    }

    /// Returns the time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.from.elapsed()
    }

    /// Fails if this reason was reported at any time.
    pub(crate) fn check_never_reported(&self, reason: &str) -> Result<()> {
        let samples = self.samples();
        let reported = |sample: &Sample| sample.root == reason || sample.others.contains(reason);
        let wrong = samples.iter().any(|(_, sample)| reported(sample));
        ensure!(!wrong, "{reason} was reported:\n{}", format_samples(&samples));
        Ok(())
    }

    /// Fails if a condition was False at any time.
    pub(crate) fn check_no_condition_was_false(&self) -> Result<()> {
        let samples = self.samples();
        let wrong = samples.iter().find(|(_, sample)| !sample.broken.is_empty());
        ensure!(wrong.is_none(), "a condition of a healthy node was False:\n{}", format_samples(&samples));
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

/// The expected reports while a fault lasts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// Name of the fault in the table.
    pub(crate) what: &'static str,
    /// Conditions that become False; no other condition may.
    pub(crate) conditions: &'static [&'static str],
    /// Reasons of the root cause, in the order in which they may be reported; the last one must stay.
    roots: &'static [&'static str],
    /// Reasons that may be listed as a consequence or as an independent fault.
    allowed: &'static [&'static str],
    /// A part of the root cause's message.
    words: &'static str,
    /// Whether the Node object can be written while the fault lasts.
    pub(crate) written: bool,
    /// Time after which the root cause must not change: an intermittent fault is recognized after several occurrences.
    steady: Duration,
}

impl Expected {
    /// Expects this root cause and these conditions, and nothing else.
    pub(crate) const fn new(
        what: &'static str,
        conditions: &'static [&'static str],
        roots: &'static [&'static str],
    ) -> Self {
        Self { what, conditions, roots, allowed: &[], words: "", written: true, steady: Duration::ZERO }
    }

    /// Allows these additional reasons.
    pub(crate) const fn allowing(self, allowed: &'static [&'static str]) -> Self {
        Self { allowed, ..self }
    }

    /// Requires these words in the message.
    pub(crate) const fn message_contains(self, words: &'static str) -> Self {
        Self { words, ..self }
    }

    /// The Node object cannot be written while the fault lasts, so an event reports it afterwards.
    pub(crate) const fn unwritten(self) -> Self {
        Self { written: false, ..self }
    }

    /// The fault is intermittent, and recognized after this many seconds.
    pub(crate) const fn steady_after(self, seconds: u64) -> Self {
        Self { steady: Duration::from_secs(seconds), ..self }
    }

    /// Returns the reason of the root cause that must stay.
    pub(crate) fn root(&self) -> &'static str {
        self.roots.last().copied().unwrap_or(HEALTHY)
    }

    /// Returns whether a sample has the root cause and all conditions are False.
    pub(crate) fn is_reported_in(&self, sample: &Sample) -> bool {
        sample.root == self.root()
            && self.conditions.iter().all(|condition| sample.broken.contains(*condition))
    }

    /// Returns whether a sample contains nothing unexpected.
    fn admits(&self, sample: &Sample) -> bool {
        let only = |found: &BTreeSet<String>, expected: &[&str]| {
            found.iter().all(|one| expected.contains(&one.as_str()))
        };
        let root = sample.root == HEALTHY || self.roots.contains(&sample.root.as_str());
        // A consequence may be seen before its cause.
        let others_allowed = only(&sample.others, self.allowed) || only(&sample.others, self.roots);
        (root || self.allowed.contains(&sample.root.as_str()))
            && others_allowed
            && only(&sample.broken, self.conditions)
    }

    /// Checks that samples contain nothing but the fault, and that it stays once it is reported.
    pub(crate) fn check(&self, samples: &[(Duration, Sample)]) -> Result<()> {
        let all = || format_samples(samples);
        ensure!(
            samples.iter().all(|(_, sample)| self.admits(sample)),
            "another reason or condition was reported:\n{}",
            all()
        );
        // The report at that time is the last change before it.
        let from = samples.iter().rposition(|(at, _)| *at <= self.steady).unwrap_or_default();
        let named = samples[from..].iter().position(|(_, sample)| sample.root == self.root());
        let named = named.with_context(|| format!("{} was not reported:\n{}", self.root(), all()))?;
        let stays = samples[from + named..].iter().all(|(_, sample)| sample.root == self.root());
        ensure!(stays, "{} did not stay:\n{}", self.root(), all());
        let last = &samples[samples.len() - 1].1;
        ensure!(self.is_reported_in(last), "a condition did not become False:\n{}", all());
        ensure!(last.message.contains(self.words), "{:?} is missing in the message:\n{}", self.words, all());
        Ok(())
    }
}

/// One row of the table.
pub(crate) struct Row {
    expected: Expected,
    /// Root cause at each of [`SAMPLE_TIMES`].
    roots: Vec<String>,
    /// Time at which the root cause was first reported.
    first: Option<Duration>,
    /// Time from the repair until no fault is reported and both conditions are True.
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
        Self { expected, roots: SAMPLE_TIMES.map(at).to_vec(), first: first.map(|(at, _)| *at), recovered }
    }

    /// Returns the table of these rows, in Markdown.
    pub(crate) fn table(rows: &[Self]) -> String {
        let mut text =
            String::from("\n| fault | expected | first | 2 s | 10 s | 30 s | 60 s | 90 s | recovery |\n");
        text.push_str("|---|---|---|---|---|---|---|---|---|\n");
        for Self { expected, roots, first, recovered } in rows {
            let expected_root = expected.root();
            let cells = roots.iter().map(|root| match root.as_str() {
                right if right == expected_root => "right",
                HEALTHY => "–",
                other => other,
            });
            let cells: Vec<_> = cells.collect();
            let first = first.map(|first| format!("{:.1} s", first.as_secs_f32())).unwrap_or_default();
            text.push_str(&format!(
                "| {} | {expected_root} | {first} | {} | {:.1} s |\n",
                expected.what,
                cells.join(" | "),
                recovered.as_secs_f32()
            ));
        }
        text
    }
}

/// Waits until the node is healthy again, and returns the time since the start of `watch`. Until then nothing but the fault
/// may be reported.
pub(crate) fn wait_for_recovery(watch: &Watch, expected: Expected, patience: Duration) -> Result<Duration> {
    let took = crate::cluster::until("the node is healthy again", patience, || {
        Ok(watch.now().is_some_and(|sample| sample.is_healthy()).then(|| watch.elapsed()))
    });
    let took = took.with_context(|| format_samples(&watch.samples()))?;
    let samples = watch.samples();
    ensure!(
        samples.iter().all(|(_, sample)| expected.admits(sample)),
        "another reason was reported after the repair:\n{}",
        format_samples(&samples)
    );
    Ok(took)
}

/// Formats samples, one a line.
pub(crate) fn format_samples(samples: &[(Duration, Sample)]) -> String {
    let lines = samples.iter().map(|(at, sample)| format!("  {:>6.1} s  {sample}", at.as_secs_f32()));
    lines.collect::<Vec<_>>().join("\n")
}
