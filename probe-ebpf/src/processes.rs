//! The table of watched processes. A quarter of it is for processes whose events are limited; see
//! [`crate::origin`].

use probe_common::{ProcessState, Skip};

use crate::layout::{MAX_LIMITED, get};
use crate::maps::{LIMITED, PROCESSES};

/// Watches a process from execve(2) on, and replaces an earlier entry of the process.
#[inline(always)]
pub(crate) fn insert(tgid: u32, state: &ProcessState) -> Result<(), Skip> {
    // SAFETY: a live map value.
    let was_limited = PROCESSES.get_ptr(tgid).is_some_and(|state| unsafe { (*state).trusted } == 0);
    if was_limited {
        leave();
    }
    if state.trusted == 0 {
        enter()?;
    }
    PROCESSES.insert(tgid, state, 0).map_err(|_| Skip::MapFull)
}

/// Removes a process that has exited.
#[inline(always)]
pub(crate) fn remove(tgid: u32, state: *const ProcessState) {
    // SAFETY: a live map value.
    if unsafe { (*state).trusted } == 0 {
        leave();
    }
    let _ = PROCESSES.remove(tgid);
}

/// Counts a limited process if there is room for it. Concurrent programs can miscount; the agent recounts
/// when there is no room.
#[inline(always)]
fn enter() -> Result<(), Skip> {
    let Some(count) = LIMITED.get_ptr_mut(0) else { return Err(Skip::MapFull) };
    // SAFETY: a live map value.
    unsafe {
        if *count >= get(&MAX_LIMITED) as u64 {
            return Err(Skip::Throttled);
        }
        *count += 1;
    }
    Ok(())
}

/// Counts a limited process as removed.
#[inline(always)]
fn leave() {
    if let Some(count) = LIMITED.get_ptr_mut(0) {
        // SAFETY: a live map value.
        unsafe {
            if *count > 0 {
                *count -= 1;
            }
        }
    }
}
