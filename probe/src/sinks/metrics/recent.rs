//! A metric family that caches the metric that was used last.

use std::hash::Hash;

use prometheus_client::metrics::family::Family;

/// Events that occur thousands of times a second mostly have the same labels as the previous one. Comparing the labels is cheaper
/// than a lookup in the family.
pub(super) struct Recent<L, M> {
    family: Family<L, M>,
    last: Option<(L, M)>,
}

impl<L: Clone + Hash + Eq, M: Clone> Recent<L, M> {
    pub(super) fn of(family: Family<L, M>) -> Self {
        Self { family, last: None }
    }

    /// Returns the family, for the registry. It shares the metrics.
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
