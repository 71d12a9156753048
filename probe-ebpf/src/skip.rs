//! Counts the events that a hook could not report.

use probe_common::{Hook, Skip};

use crate::maps::SKIPS;

/// Counts one event.
#[inline(always)]
pub(crate) fn count(hook: Hook, skip: Skip) {
    if let Some(counter) = SKIPS.get_ptr_mut(skip.slot(hook)) {
        // SAFETY: this CPU's live, aligned slot. A program that interrupts between load and store may lose an
        // increment: the count is a lower bound and is documented as one.
        unsafe { *counter += 1 };
    }
}
