//! Damping of the two conditions: the verdict shows at once, a condition changes when it is worth a write.

use alloc::string::String;

use crate::config::Config;
use crate::observation::Mono;
use crate::reason::{Reason, Status};
use crate::verdict::{Condition, ConditionType};

/// What the undamped verdict wants a condition to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) status: Status,
    pub(crate) reason: Reason,
    pub(crate) message: String,
    /// False for a state: no hold time.
    pub(crate) at_once: bool,
    /// Since when the fault holds.
    pub(crate) since: Mono,
    /// A fault that may go away by itself is not shown earlier.
    pub(crate) not_before: Mono,
}

/// One condition and its memory.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) condition: Condition,
    /// Since when the wanted status differs from the shown one, and which it is.
    pending: Option<(Status, Mono)>,
    changed: Option<Mono>,
    /// The status that an earlier agent showed last, and since when, until this one shows a status of its own.
    before: Option<(Status, Mono)>,
}

impl Held {
    pub(crate) fn new(condition: ConditionType, start: Mono) -> Self {
        let condition = Condition {
            condition,
            status: Status::Unknown,
            reason: Reason::Learning,
            message: String::new(),
            since: start,
        };
        Self { condition, pending: None, changed: None, before: None }
    }

    /// Takes what an earlier agent showed last. A restart of the agent is not a change, and does not shorten hold times.
    pub(crate) fn remember(&mut self, condition: &Condition, now: Mono) {
        if condition.condition == self.condition.condition && self.changed.is_none() {
            self.before = Some((condition.status, condition.since.min(now)));
        }
    }

    /// Takes what is wanted at `now`; true when the condition says something new.
    pub(crate) fn update(&mut self, now: Mono, wanted: &Wanted, config: &Config) -> bool {
        if wanted.status == self.condition.status {
            self.pending = None;
            return self.say(wanted);
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
        self.say(wanted);
        true
    }

    fn say(&mut self, wanted: &Wanted) -> bool {
        let new = self.condition.reason != wanted.reason || self.condition.message != wanted.message;
        if new {
            self.condition.reason = wanted.reason;
            self.condition.message.clone_from(&wanted.message);
        }
        new
    }

    /// When the wanted status may be shown.
    fn due(&self, since: Mono, wanted: &Wanted, config: &Config) -> Mono {
        let (shown, changed) = match self.before {
            // The same status is not a change.
            Some((status, since)) => (status, (status != wanted.status).then_some(since)),
            // The first status after the start changes nothing that was shown.
            None => (self.condition.status, self.changed),
        };
        let held = match (shown, wanted.status) {
            (_, Status::False) if wanted.at_once => since.max(wanted.not_before),
            (_, Status::False) => wanted.since.plus(config.fail_hold_ns).max(wanted.not_before),
            // After a fault: clean for a while.
            (Status::False, _) => since.plus(config.clean_ns),
            _ => since,
        };
        changed.map_or(held, |changed| held.max(changed.plus(config.min_change_ns)))
    }

    /// When [`Self::update`] would answer differently by time alone.
    pub(crate) fn next_deadline(&self, wanted: &Wanted, config: &Config) -> Option<Mono> {
        let (_, since) = self.pending?;
        Some(self.due(since, wanted, config))
    }
}
