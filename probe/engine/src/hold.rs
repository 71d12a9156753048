//! Damping of the two conditions. The verdict changes at once; a condition changes only when that is worth a write.

use alloc::string::String;

use crate::config::Config;
use crate::observation::BootTime;
use crate::reason::{Reason, Status};
use crate::verdict::{Condition, ConditionType};

/// What a condition should show by the undamped verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) status: Status,
    pub(crate) reason: Reason,
    pub(crate) message: String,
    /// Whether it holds by itself, so that no hold time applies.
    pub(crate) at_once: bool,
    /// Since when the fault holds.
    pub(crate) since: BootTime,
    /// When it may be shown at the earliest: a fault of a component in its grace period may disappear.
    pub(crate) not_before: BootTime,
}

/// A condition with what its next change depends on.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) condition: Condition,
    /// The wanted status and since when it has been wanted, if it differs from the shown one.
    pending: Option<(Status, BootTime)>,
    changed: Option<BootTime>,
    /// The status that the previous agent showed last, and since when; until this agent shows a status of its own.
    before: Option<(Status, BootTime)>,
}

impl Held {
    pub(crate) fn new(condition: ConditionType, start: BootTime) -> Self {
        let condition = Condition {
            condition,
            status: Status::Unknown,
            reason: Reason::Learning,
            message: String::new(),
            since: start,
        };
        Self { condition, pending: None, changed: None, before: None }
    }

    /// Takes what the previous agent showed last. A restart of the agent is not a change and does not shorten hold times.
    pub(crate) fn remember(&mut self, condition: &Condition, now: BootTime) {
        if condition.condition == self.condition.condition && self.changed.is_none() {
            self.before = Some((condition.status, condition.since.min(now)));
        }
    }

    /// Takes what is wanted at `now`. Returns whether the condition changed.
    pub(crate) fn update(&mut self, now: BootTime, wanted: &Wanted, config: &Config) -> bool {
        if wanted.status == self.condition.status {
            self.pending = None;
            return self.explain(wanted);
        }
        let since = match self.pending {
            Some((status, since)) if status == wanted.status => since,
            _ => self.pending.insert((wanted.status, now)).1,
        };
        if now < self.due(since, wanted, config) {
            return false;
        }
        self.condition.status = wanted.status;
        self.condition.since = match self.before.take() {
            Some((status, since)) if status == wanted.status => since,
            _ => now,
        };
        self.changed = Some(now);
        self.pending = None;
        self.explain(wanted);
        true
    }

    /// Shows the wanted reason and message. Returns whether they are new.
    fn explain(&mut self, wanted: &Wanted) -> bool {
        let new = self.condition.reason != wanted.reason || self.condition.message != wanted.message;
        if new {
            self.condition.reason = wanted.reason;
            self.condition.message.clone_from(&wanted.message);
        }
        new
    }

    /// Returns when the wanted status may be shown.
    fn due(&self, since: BootTime, wanted: &Wanted, config: &Config) -> BootTime {
        let (shown, changed) = match self.before {
            // The same status is not a change.
            Some((status, since)) => (status, (status != wanted.status).then_some(since)),
            // The first status after a start is not a change.
            None => (self.condition.status, self.changed),
        };
        let held = match (shown, wanted.status) {
            (_, Status::False) if wanted.at_once => since.max(wanted.not_before),
            (_, Status::False) => wanted.since.plus(config.fail_hold_ns).max(wanted.not_before),
            // After a fault the node has to be clean for a while.
            (Status::False, _) => since.plus(config.clean_ns),
            _ => since,
        };
        changed.map_or(held, |changed| held.max(changed.plus(config.min_change_ns)))
    }

    /// Returns when [`Self::update`] may change the condition although nothing else is wanted.
    pub(crate) fn next_deadline(&self, wanted: &Wanted, config: &Config) -> Option<BootTime> {
        let (_, since) = self.pending?;
        Some(self.due(since, wanted, config))
    }
}
