//! Lost events, by the state that they leave uncertain.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::ToString as _;

use super::Facts;
use crate::limits;
use crate::memory::Memory;
use crate::observation::{BootTime, Gap, Lost, Scope};

/// Losses of one scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Losses {
    /// Since when the state has to be read again; `None` once that was done.
    unread: Option<BootTime>,
    /// The first and the newest of consecutive losses.
    since: BootTime,
    last: BootTime,
}

impl Losses {
    /// Returns until when continued losses make the scope unknown; `None` if they have not continued for long enough.
    fn stands_until(&self) -> Option<BootTime> {
        (self.last >= self.since.plus(limits::LOSING)).then(|| self.last.plus(limits::LOSING_REST))
    }

    fn stands(&self, now: BootTime) -> bool {
        self.stands_until().is_some_and(|until| now < until)
    }

    /// Returns whether the state should have been read again by now.
    fn is_late(&self, now: BootTime) -> bool {
        self.unread.is_some_and(|lost| now.since(lost) >= limits::REREAD)
    }
}

/// Losses by scope.
#[derive(Clone, Debug, Default)]
pub(crate) struct LossLedger(BTreeMap<Scope, Losses>);

impl LossLedger {
    /// Takes a loss. Skipped runs do not count as continued losses: a busy kernel skips some at any time.
    fn take(&mut self, at: BootTime, lost: &Lost) {
        let new = Losses { unread: None, since: at, last: at };
        let losses = self.0.entry(lost.scope).or_insert(new);
        losses.unread.get_or_insert(at);
        if lost.left_out {
            return;
        }
        if at.since(losses.last) >= limits::LOSING_REST {
            losses.since = at;
        }
        losses.last = at;
    }

    fn reread(&mut self, scope: Scope) {
        if let Some(losses) = self.0.get_mut(&scope) {
            losses.unread = None;
        }
    }

    /// Returns whether a fact that holds since `since` may be the result of a loss: events were lost before that, or too long
    /// ago, and the state was not read again. A loss does not withdraw what was known before it, because the state is read
    /// again within milliseconds.
    pub(crate) fn may_explain(&self, scope: Scope, since: BootTime, now: BootTime) -> bool {
        self.0
            .get(&scope)
            .is_some_and(|losses| losses.unread.is_some_and(|lost| lost <= since) || losses.is_late(now))
    }

    /// Returns why the state of the scope is unknown: events keep being lost, or it was not read again in time.
    pub(crate) fn blinds(&self, scope: Scope, now: BootTime) -> Option<&'static str> {
        let losses = self.0.get(&scope)?;
        if losses.stands(now) {
            return Some("keep being lost");
        }
        losses.is_late(now).then_some("were lost and the state was not read again yet")
    }

    /// Returns a gap for each scope whose events keep being lost.
    pub(crate) fn gaps(&self, now: BootTime) -> impl Iterator<Item = Gap> {
        let standing = self.0.iter().filter(move |(_, losses)| losses.stands(now));
        standing.map(|(scope, losses)| {
            let seconds = losses.last.since(losses.since) / limits::SECOND;
            let why = format!("events of {} keep being lost, for {seconds} s now", scope.words());
            Gap { signal: Gap::EVENTS_LOST.to_string(), why, blind: true }
        })
    }
}

impl Memory for LossLedger {
    fn deadlines(&self, _now: BootTime, at: &mut dyn FnMut(BootTime)) {
        for losses in self.0.values() {
            losses.unread.iter().for_each(|since| at(since.plus(limits::REREAD)));
            losses.stands_until().into_iter().for_each(&mut *at);
        }
    }
}

impl Facts {
    pub(super) fn lost(&mut self, at: BootTime, lost: &Lost) {
        self.losses.take(at, lost);
        if matches!(lost.scope, Scope::Cni | Scope::Processes) {
            // Which runs ended is unknown: the agent reports those that continue once more. Components are long-lived, so for
            // them it reports the ones that exited instead.
            self.unsure.extend(self.running.keys());
        }
        self.line(at, Gap::EVENTS_LOST, format!("{}: {}", lost.hook, lost.words()));
    }

    pub(super) fn reread(&mut self, scope: Scope) {
        self.losses.reread(scope);
        if matches!(scope, Scope::Cni | Scope::Processes) {
            for gone in core::mem::take(&mut self.unsure) {
                self.running.remove(&gone);
            }
        }
    }
}
