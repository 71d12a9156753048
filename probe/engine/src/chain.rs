//! From faults to one root with what follows from it.

use alloc::vec::Vec;

use crate::limits;
use crate::rules::Fault;

/// Faults in their order of telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) root: Fault,
    /// What the root is the cause of, also by way of others.
    pub(crate) consequences: Vec<Fault>,
    /// What has another cause.
    pub(crate) also: Vec<Fault>,
}

impl Chain {
    /// Of faults in the order of the contract. The root is the last cause of the first of them: a cause beats its
    /// consequences, and of independent ones the one whose consequences reach nearest to the ground is told.
    pub(crate) fn new(mut faults: Vec<Fault>) -> Option<Self> {
        let causes: Vec<_> = faults.iter().map(|fault| cause(fault, &faults)).collect();
        let top = |mut index: usize| {
            // Causes never run in a ring, but a wrong row must not hang a node's agent.
            for _ in 0..faults.len() {
                let Some(next) = causes[index] else { break };
                index = next;
            }
            index
        };
        let root = (!faults.is_empty()).then(|| top(0))?;
        let (mut consequences, mut also) = (Vec::new(), Vec::new());
        for (index, fault) in faults.iter().enumerate().filter(|(index, _)| *index != root) {
            if top(index) == root { &mut consequences } else { &mut also }.push(fault.clone());
        }
        Some(Self { root: faults.swap_remove(root), consequences, also })
    }

    /// Every fault, the root first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Fault> {
        core::iter::once(&self.root).chain(&self.consequences).chain(&self.also)
    }

    /// Is this what follows from the root?
    pub(crate) fn follows(&self, fault: &Fault) -> bool {
        self.consequences.contains(fault)
    }
}

/// The first of `faults` that may be the cause of this one. What began well after it is none.
fn cause(fault: &Fault, faults: &[Fault]) -> Option<usize> {
    let latest = fault.finding.since.plus(limits::CAUSE_SEEN_LATE);
    faults.iter().position(|other| {
        fault.causes.contains(&other.finding.reason) && other.finding.since <= latest && other != fault
    })
}
