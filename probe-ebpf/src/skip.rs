//! No silent drop: what a hook could not report is counted.

use probe_common::{Hook, Skip};

use crate::maps::SKIPS;

/// Counts one.
#[inline(always)]
pub(crate) fn count(hook: Hook, skip: Skip) {
    if let Some(counter) = SKIPS.get_ptr_mut(skip.slot(hook)) {
        // SAFETY: this CPU's live, aligned slot. Another program may interrupt between load and store and
        // one increment may be lost: the count is a lower bound and is documented as one.
        unsafe { *counter += 1 };
    }
}
