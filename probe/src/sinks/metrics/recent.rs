//! A family whose last used metric is at hand.

use std::hash::Hash;

use prometheus_client::metrics::family::Family;

/// What comes thousands of times a second comes with the same labels: they are compared, not looked up.
pub(super) struct Recent<L, M> {
    family: Family<L, M>,
    last: Option<(L, M)>,
}

impl<L: Clone + Hash + Eq, M: Clone> Recent<L, M> {
    pub(super) fn of(family: Family<L, M>) -> Self {
        Self { family, last: None }
    }

    /// For the registry; the metrics are shared.
    pub(super) fn family(&self) -> Family<L, M> {
        self.family.clone()
    }

    pub(super) fn get(&mut self, labels: L) -> &M {
        let metric = match self.last.take() {
            Some((known, metric)) if known == labels => metric,
            _ => self.family.get_or_create(&labels).clone(),
        };
        &self.last.insert((labels, metric)).1
    }
}
