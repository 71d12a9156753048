//! Sandboxes that are removed soon after their network was set up: what failed came after CNI.

use alloc::string::String;

use crate::limits;
use crate::memory::{Bounded, Memory};
use crate::observation::{BootTime, Pod, Sandbox, Step, StepKind};

/// Sandboxes of one pod (one UID) that were removed soon after their network was set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GivenUp {
    /// How many in a row.
    pub(crate) times: u32,
    /// `CNI_CONTAINERID` of the newest of them.
    newest: String,
    /// The longest that one of them lived, nanoseconds.
    longest_ns: u64,
    /// Since when there is one that was not removed yet.
    lives: Option<BootTime>,
    pub(crate) since: BootTime,
    /// When the newest was removed.
    last: BootTime,
}

impl GivenUp {
    const fn new(at: BootTime) -> Self {
        Self { times: 0, newest: String::new(), longest_ns: 0, lives: None, since: at, last: at }
    }
}

/// By pod. A sandbox that works, of any pod, ends the evidence of those before it, and so does a pod that is not tried again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sandboxes(Bounded<Pod, GivenUp, { limits::FULL }>);

impl Sandboxes {
    /// Takes a sandbox whose network was set up.
    pub(super) fn take(&mut self, at: BootTime, pod: &Pod, sandbox: &Sandbox) {
        let Some(known) = self.0.get_or_insert_with(pod.clone(), || GivenUp::new(at)) else { return };
        let removed = sandbox.steps.iter().any(|step: &Step| step.step == StepKind::Del && step.ok);
        if !removed {
            known.lives = Some(at);
        } else if known.newest != sandbox.container_id {
            known.lives = None;
            known.last = at;
            known.newest.clone_from(&sandbox.container_id);
            if sandbox.took_ns < limits::GIVEN_UP {
                known.times = known.times.saturating_add(1);
                known.longest_ns = known.longest_ns.max(sandbox.took_ns);
            } else {
                known.times = 0;
            }
        }
    }

    pub(super) fn forget(&mut self, pod: &Pod) {
        self.0.remove(pod);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns pods whose sandboxes are removed repeatedly, in no meaningful order.
    pub(crate) fn given_up(&self, now: BootTime) -> impl Iterator<Item = (&Pod, &GivenUp)> {
        let working = self.newest_working(now);
        self.0.iter().filter(move |(_, known)| counts(known, working, now))
    }

    /// Returns how long a sandbox must live to count as one that works, nanoseconds: longer than any that was removed.
    fn works_after(&self) -> u64 {
        let longest = self.0.values().map(|known| known.longest_ns).max().unwrap_or_default();
        limits::SANDBOX_WORKS.max(longest.saturating_add(limits::SANDBOX_WORKS / 2))
    }

    /// Returns since when the newest sandbox that works lives.
    fn newest_working(&self, now: BootTime) -> Option<BootTime> {
        let after = self.works_after();
        let lives = self.0.values().filter_map(|known| known.lives);
        lives.filter(|since| now.since(*since) >= after).max()
    }
}

fn counts(known: &GivenUp, working: Option<BootTime>, now: BootTime) -> bool {
    let is_tried = known.lives.is_some() || now.since(known.last) < limits::SANDBOX_RETRY;
    is_tried && working.is_none_or(|working| known.last > working)
}

impl Memory for Sandboxes {
    fn expire(&mut self, now: BootTime) {
        let working = self.newest_working(now);
        self.0.retain(|_, known| counts(known, working, now));
    }

    fn deadlines(&self, _now: BootTime, at: &mut dyn FnMut(BootTime)) {
        let after = self.works_after();
        self.0.values().for_each(|known| {
            at(match known.lives {
                Some(since) => since.plus(after),
                None => known.last.plus(limits::SANDBOX_RETRY),
            });
        });
    }
}
