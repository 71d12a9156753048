//! The causal chain: one root, its consequences, and independent faults.

use alloc::vec::Vec;

use crate::limits;
use crate::rules::Fault;

/// Faults in the order in which they are reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) root: Fault,
    /// Direct and indirect consequences of the root.
    pub(crate) consequences: Vec<Fault>,
    /// Faults with another cause.
    pub(crate) also: Vec<Fault>,
}

impl Chain {
    /// Returns the chain of `faults`, which are in the order of the contract; `None` without faults. The root is the ultimate
    /// cause of the first fault: a cause precedes its consequences, and of independent chains the one that reaches the lowest
    /// layer comes first.
    pub(crate) fn new(mut faults: Vec<Fault>) -> Option<Self> {
        let causes: Vec<_> = faults.iter().map(|fault| cause(fault, &faults)).collect();
        let top = |mut index: usize| {
            // Causes are acyclic, but an error in their table must not hang the agent.
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

    /// Returns all faults, the root first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Fault> {
        core::iter::once(&self.root).chain(&self.consequences).chain(&self.also)
    }

    /// Returns whether `fault` is a consequence of the root.
    pub(crate) fn follows(&self, fault: &Fault) -> bool {
        self.consequences.contains(fault)
    }
}

/// Returns the index of the first of `faults` that may be the cause of `fault`. A fault that began well after it is not.
fn cause(fault: &Fault, faults: &[Fault]) -> Option<usize> {
    let latest = fault.finding.since.plus(limits::CAUSE_SEEN_LATE);
    faults.iter().position(|other| {
        fault.causes.include(other.finding.reason) && other.finding.since <= latest && other != fault
    })
}
