//! Whether kubelet and runtime make progress: a process that is stopped, hangs in the kernel or sleeps for ever keeps its
//! sockets, and nothing else shows it.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use probe_engine::{Actor, Observation, ProcessClass, Stuck, StuckHow};
use tokio::sync::watch;

use super::processes::{self, RunState};
use super::{cri, endpoint};
use crate::clock;
use crate::feed::{Feed, Seen};

/// The processes that are watched, by process id.
pub(crate) type Watched = BTreeMap<u32, (Actor, ProcessClass)>;

/// Between two looks. Counted in looks and not in time, a machine that was suspended makes no process stuck.
const LOOK: Duration = Duration::from_secs(5);
/// How many looks in a row must find a process stopped: 10 s, for a debugger that attaches for a moment.
const STOPPED: u32 = 3;
/// The same for one that hangs in the kernel: 20 s, for a disk that is slow.
const UNINTERRUPTIBLE: u32 = 5;
/// The same for one that sleeps: 30 s. A kubelet wakes many times a second.
const ASLEEP: u32 = 7;
/// In how many looks one must have been seen to make progress before its sleep means anything.
const WAS_AWAKE: u32 = 3;
/// Most threads whose switches are added up.
const THREADS: usize = 1024;

/// What a process has done so far: processor time in ticks, and how often its threads went to sleep.
type Work = (u64, u64);

/// What is remembered of one process.
#[derive(Debug, Default)]
struct Pulse {
    work: Work,
    /// Looks in which it had made progress.
    awake: u32,
    /// Looks in a row in which it had not, and in which it was found stopped.
    idle: u32,
    stopped: u32,
    /// How it is stuck, as reported last.
    how: Option<StuckHow>,
}

/// What one look shows.
#[derive(Clone, Copy, Debug)]
struct Beat {
    state: RunState,
    work: Work,
    /// Somebody who makes progress needs it to.
    needed: bool,
}

impl Pulse {
    /// Answers whether it is stuck in another way than before, or no longer.
    fn look(&mut self, beat: Beat) -> bool {
        self.stopped = if beat.state == RunState::Stopped { self.stopped + 1 } else { 0 };
        if beat.work == self.work {
            self.idle += u32::from(beat.needed);
        } else {
            (self.work, self.idle, self.awake) = (beat.work, 0, self.awake + 1);
        }
        let how = match beat.state {
            RunState::Stopped if self.stopped >= STOPPED => Some(StuckHow::Stopped),
            RunState::Uninterruptible if self.idle >= UNINTERRUPTIBLE => Some(StuckHow::Uninterruptible),
            RunState::Other if self.idle >= ASLEEP && self.awake >= WAS_AWAKE => Some(StuckHow::Asleep),
            _ => None,
        };
        // A process that was continued has yet to do something: it is reported as running only then.
        let ends = how.is_none() && self.idle == 0 && self.stopped == 0;
        let is_news = how.is_some() && how != self.how || ends && self.how.is_some();
        if is_news {
            self.how = how;
        }
        is_news
    }
}

/// Reports processes that stop making progress, and those that make progress again. Runs forever.
///
/// Runtimes that do not listen on the kubelet's endpoint do not count: Docker beside another runtime may be idle for hours.
pub(crate) async fn watch(
    watched: watch::Receiver<Watched>,
    endpoints: watch::Receiver<Option<cri::Endpoint>>,
    feed: Feed,
) {
    let mut pulses: BTreeMap<u32, Pulse> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let mut watched = watched.borrow().clone();
        let socket = endpoints.borrow().as_ref().map(|endpoint| endpoint.socket.clone());
        let runtimes: Vec<_> = of_class(&watched, ProcessClass::Runtime).cloned().collect();
        let unused = endpoint::unused(socket.as_deref(), &runtimes);
        let mut seen = Vec::new();
        // One that was reported before the kubelet came to use another.
        for pid in &unused {
            let Some((process, class)) = watched.remove(pid) else { continue };
            if pulses.remove(pid).is_some_and(|pulse| pulse.how.is_some()) {
                seen.push(Stuck { process, class, how: None, for_ns: 0 });
            }
        }
        pulses.retain(|pid, _| watched.contains_key(pid));
        // A kubelet calls its runtime many times a minute. Without one a runtime may be idle.
        let mut kubelet_works = false;
        for class in [ProcessClass::Kubelet, ProcessClass::Runtime] {
            for process in of_class(&watched, class) {
                let pulse = pulses.entry(process.pid).or_default();
                let Some((state, work)) = look(process.pid, pulse.work.0) else { continue };
                let needed = class == ProcessClass::Kubelet || kubelet_works;
                let is_news = pulse.look(Beat { state, work, needed });
                kubelet_works |= class == ProcessClass::Kubelet && pulse.idle == 0;
                if is_news {
                    let looks = u64::from(pulse.idle.max(pulse.stopped));
                    let for_ns = LOOK.as_secs() * looks.saturating_sub(1) * 1_000_000_000;
                    seen.push(Stuck { process: process.clone(), class, how: pulse.how, for_ns });
                }
            }
        }
        for stuck in seen {
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

/// The state of a process and what it has done; its threads are asked only when it has used no processor time since
/// `ticks`.
fn look(pid: u32, ticks: u64) -> Option<(RunState, Work)> {
    let stat = processes::stat(pid)?;
    let switches = if stat.ticks == ticks { switches(pid) } else { 0 };
    Some((stat.state, (stat.ticks, switches)))
}

/// How often the threads of a process went to sleep by themselves.
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

    /// What is reported, by the number of the look.
    fn reported(beats: impl IntoIterator<Item = Beat>) -> Vec<(usize, Option<StuckHow>)> {
        let mut pulse = Pulse::default();
        let looks = beats.into_iter().enumerate();
        looks.filter_map(|(at, beat)| pulse.look(beat).then_some((at, pulse.how))).collect()
    }

    fn beat(state: RunState, work: u64) -> Beat {
        Beat { state, work: (work, 0), needed: true }
    }

    #[test]
    fn a_stopped_process_is_reported_after_ten_seconds_and_until_it_works() {
        let stopped = [beat(RunState::Stopped, 5); 4];
        let works = [6, 7].map(|work| beat(RunState::Other, work));
        let said = reported(stopped.into_iter().chain(works));
        assert_eq!(said, [(2, Some(StuckHow::Stopped)), (4, None)]);
        let for_a_moment = [beat(RunState::Other, 4), beat(RunState::Stopped, 5), beat(RunState::Other, 6)];
        assert_eq!(reported(for_a_moment), []);
    }

    #[test]
    fn a_process_that_was_awake_and_sleeps_for_half_a_minute_is_stuck() {
        let awake = (1..=4).map(|work| beat(RunState::Other, work));
        let asleep = [beat(RunState::Other, 4); 8];
        let said = reported(awake.chain(asleep).chain([beat(RunState::Other, 5)]));
        assert_eq!(said, [(10, Some(StuckHow::Asleep)), (12, None)]);
    }

    #[test]
    fn a_process_that_never_does_anything_or_that_nobody_needs_is_not_stuck() {
        assert_eq!(reported([beat(RunState::Other, 0); 100]), []);
        let awake = (1..=4).map(|work| beat(RunState::Other, work));
        let idle = [Beat { needed: false, ..beat(RunState::Other, 4) }; 100];
        assert_eq!(reported(awake.chain(idle)), []);
    }

    #[test]
    fn a_process_that_hangs_in_the_kernel_is_reported_and_one_that_only_writes_much_is_not() {
        let said = reported([beat(RunState::Uninterruptible, 9); 8]);
        assert_eq!(said, [(5, Some(StuckHow::Uninterruptible))]);
        assert_eq!(reported((0..100).map(|work| beat(RunState::Uninterruptible, work))), []);
    }

    #[test]
    fn what_this_process_does_can_be_seen() {
        let (_, before) = look(std::process::id(), u64::MAX).expect("it runs");
        let (state, after) = look(std::process::id(), before.0).expect("it runs");
        assert!(state == RunState::Other && (after.0 > before.0 || after.1 > 0));
    }
}
