//! Detects kubelets and runtimes that make no progress. A process that is stopped, blocked in the kernel or
//! asleep forever keeps its sockets open, and no other source shows it.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use probe_engine::{Actor, Observation, ProcessClass, Stuck, StuckHow};
use tokio::sync::watch;

use super::processes::{self, RunState};
use super::{cri, endpoint};
use crate::clock;
use crate::feed::{Feed, Seen};

/// The watched processes, by PID.
pub(crate) type Watched = BTreeMap<u32, (Actor, ProcessClass)>;

/// Interval between two samples. The limits below are counted in samples and not in time, so that a suspend
/// of the machine does not make processes appear stuck.
const INTERVAL: Duration = Duration::from_secs(5);
/// Consecutive samples in which a process must be stopped: 10 s, to tolerate a debugger that attaches
/// briefly.
const STOPPED: u32 = 3;
/// Consecutive samples in uninterruptible sleep without progress: 20 s, to tolerate a slow disk.
const UNINTERRUPTIBLE: u32 = 5;
/// Consecutive samples asleep without progress: 30 s. A kubelet wakes many times a second.
const ASLEEP: u32 = 7;
/// Samples with progress before a sleep of the process is evaluated.
const MIN_ACTIVE: u32 = 3;
/// Most threads whose context switches are added up.
const THREADS: usize = 1024;

/// CPU time of a process in ticks, and voluntary context switches of its threads.
type Work = (u64, u64);

/// Progress of one process.
#[derive(Debug, Default)]
struct Progress {
    work: Work,
    /// Samples that showed progress.
    active: u32,
    /// Consecutive samples without progress.
    idle: u32,
    /// Consecutive samples in which the process was stopped.
    stopped: u32,
    /// How it is stuck, as reported last.
    how: Option<StuckHow>,
}

/// One sample of a process.
#[derive(Clone, Copy, Debug)]
struct Sample {
    state: RunState,
    work: Work,
    /// Progress is expected: of a runtime, only while a kubelet makes progress.
    expected: bool,
}

impl Progress {
    /// Adds a sample. Returns whether the process has become stuck, is stuck in another way, or makes
    /// progress again.
    fn add(&mut self, sample: Sample) -> bool {
        self.stopped = if sample.state == RunState::Stopped { self.stopped + 1 } else { 0 };
        if sample.work == self.work {
            self.idle += u32::from(sample.expected);
        } else {
            (self.work, self.idle, self.active) = (sample.work, 0, self.active + 1);
        }
        let how = match sample.state {
            RunState::Stopped if self.stopped >= STOPPED => Some(StuckHow::Stopped),
            RunState::Uninterruptible if self.idle >= UNINTERRUPTIBLE => Some(StuckHow::Uninterruptible),
            RunState::Other if self.idle >= ASLEEP && self.active >= MIN_ACTIVE => Some(StuckHow::Asleep),
            _ => None,
        };
        // A process that was continued counts as recovered only once it makes progress.
        let recovered = how.is_none() && self.idle == 0 && self.stopped == 0;
        let changed = how.is_some() && how != self.how || recovered && self.how.is_some();
        if changed {
            self.how = how;
        }
        changed
    }
}

/// Reports processes that stop making progress, and those that make progress again. Runs forever.
///
/// Runtimes that do not listen on the kubelet's endpoint do not count: Docker beside another runtime may be
/// idle for hours.
pub(crate) async fn watch(
    watched: watch::Receiver<Watched>,
    endpoints: watch::Receiver<Option<cri::Endpoint>>,
    feed: Feed,
) {
    let mut progress: BTreeMap<u32, Progress> = BTreeMap::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let mut watched = watched.borrow().clone();
        let socket = endpoints.borrow().as_ref().map(|endpoint| endpoint.socket.clone());
        let runtimes: Vec<_> = of_class(&watched, ProcessClass::Runtime).cloned().collect();
        let unused = endpoint::unused(socket.as_deref(), &runtimes);
        let mut changes = Vec::new();
        // A runtime may have been reported before the kubelet switched to another one.
        for pid in &unused {
            let Some((process, class)) = watched.remove(pid) else { continue };
            if progress.remove(pid).is_some_and(|progress| progress.how.is_some()) {
                changes.push(Stuck { process, class, how: None, for_ns: 0 });
            }
        }
        progress.retain(|pid, _| watched.contains_key(pid));
        // A kubelet calls its runtime many times a minute. Without a kubelet, a runtime may be idle.
        let mut kubelet_active = false;
        for class in [ProcessClass::Kubelet, ProcessClass::Runtime] {
            for process in of_class(&watched, class) {
                let progress = progress.entry(process.pid).or_default();
                let Some((state, work)) = sample(process.pid, progress.work.0) else { continue };
                let expected = class == ProcessClass::Kubelet || kubelet_active;
                let changed = progress.add(Sample { state, work, expected });
                kubelet_active |= class == ProcessClass::Kubelet && progress.idle == 0;
                if changed {
                    let samples = u64::from(progress.idle.max(progress.stopped));
                    let for_ns = INTERVAL.as_secs() * samples.saturating_sub(1) * 1_000_000_000;
                    changes.push(Stuck { process: process.clone(), class, how: progress.how, for_ns });
                }
            }
        }
        for stuck in changes {
            let observation = Observation::Stuck(stuck);
            if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                return;
            }
        }
    }
}

fn of_class(watched: &Watched, class: ProcessClass) -> impl Iterator<Item = &Actor> {
    watched.values().filter(move |(_, known)| *known == class).map(|(process, _)| process)
}

/// Returns the state of a process and its work. Context switches are read only if the process has used no CPU
/// time since `ticks`; they are 0 otherwise. `None` if the process has exited.
fn sample(pid: u32, ticks: u64) -> Option<(RunState, Work)> {
    let stat = processes::stat(pid)?;
    let switches = if stat.ticks == ticks { switches(pid) } else { 0 };
    Some((stat.state, (stat.ticks, switches)))
}

/// Returns the sum of the voluntary context switches of the threads of a process.
fn switches(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().take(THREADS);
    let of_thread = |status: String| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse().ok()
    };
    threads.filter_map(|thread| of_thread(fs::read_to_string(thread.path().join("status")).ok()?)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what is reported, with the index of the sample.
    fn reported(samples: impl IntoIterator<Item = Sample>) -> Vec<(usize, Option<StuckHow>)> {
        let mut progress = Progress::default();
        let samples = samples.into_iter().enumerate();
        samples.filter_map(|(at, sample)| progress.add(sample).then_some((at, progress.how))).collect()
    }

    fn in_state(state: RunState, work: u64) -> Sample {
        Sample { state, work: (work, 0), expected: true }
    }

    #[test]
    fn stopped_process_is_reported_after_10_s_and_until_it_makes_progress() {
        let stopped = [in_state(RunState::Stopped, 5); 4];
        let running = [6, 7].map(|work| in_state(RunState::Other, work));
        let changes = reported(stopped.into_iter().chain(running));
        assert_eq!(changes, [(2, Some(StuckHow::Stopped)), (4, None)]);
        let briefly =
            [in_state(RunState::Other, 4), in_state(RunState::Stopped, 5), in_state(RunState::Other, 6)];
        assert_eq!(reported(briefly), []);
    }

    #[test]
    fn process_that_was_active_and_sleeps_for_30_s_is_stuck() {
        let active = (1..=4).map(|work| in_state(RunState::Other, work));
        let asleep = [in_state(RunState::Other, 4); 8];
        let changes = reported(active.chain(asleep).chain([in_state(RunState::Other, 5)]));
        assert_eq!(changes, [(10, Some(StuckHow::Asleep)), (12, None)]);
    }

    #[test]
    fn process_that_was_never_active_or_is_not_needed_is_not_stuck() {
        assert_eq!(reported([in_state(RunState::Other, 0); 100]), []);
        let active = (1..=4).map(|work| in_state(RunState::Other, work));
        let idle = [Sample { expected: false, ..in_state(RunState::Other, 4) }; 100];
        assert_eq!(reported(active.chain(idle)), []);
    }

    #[test]
    fn uninterruptible_process_is_stuck_only_without_progress() {
        let changes = reported([in_state(RunState::Uninterruptible, 9); 8]);
        assert_eq!(changes, [(5, Some(StuckHow::Uninterruptible))]);
        assert_eq!(reported((0..100).map(|work| in_state(RunState::Uninterruptible, work))), []);
    }

    #[test]
    fn samples_this_process() {
        let (_, before) = sample(std::process::id(), u64::MAX).expect("it runs");
        let (state, after) = sample(std::process::id(), before.0).expect("it runs");
        assert!(state == RunState::Other && (after.0 > before.0 || after.1 > 0));
    }
}
