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
    /// What an earlier agent said last, and since when.
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

    /// Takes what an earlier agent said last: a status that this one comes to first, too, has not changed.
    pub(crate) fn remember(&mut self, condition: &Condition) {
        if condition.condition == self.condition.condition && self.changed.is_none() {
            self.before = Some((condition.status, condition.since));
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
            Some((status, since)) if status == wanted.status => since.min(now),
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
        let held = match (self.condition.status, wanted.status) {
            (_, Status::False) if wanted.at_once => since.max(wanted.not_before),
            (_, Status::False) => wanted.since.plus(config.fail_hold_ns).max(wanted.not_before),
            // After a fault: clean for a while. At start there was none.
            (Status::False, _) => since.plus(config.clean_ns),
            _ => since,
        };
        // The first answer after the start is not a change of anything that was shown.
        match self.changed {
            Some(changed) => held.max(changed.plus(config.min_change_ns)),
            None => held,
        }
    }

    /// When [`Self::update`] would answer differently by time alone.
    pub(crate) fn next_deadline(&self, wanted: &Wanted, config: &Config) -> Option<Mono> {
        let (_, since) = self.pending?;
        Some(self.due(since, wanted, config))
    }
}
