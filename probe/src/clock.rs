//! The only module that reads clocks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use probe_engine::BootTime;

use crate::node::processes;

/// Returns the current boot time (`CLOCK_BOOTTIME`), the clock of the kernel's events.
pub(crate) fn now() -> BootTime {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a live, writable timespec; the clock ID is a constant that Linux has known since 2.6.39.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    debug_assert_eq!(failed, 0);
    BootTime(
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Returns the wall-clock time since 1970; zero if the clock is set to an earlier time.
pub(crate) fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

/// Returns the wall-clock time in whole seconds since 1970, the unit of certificates, tokens and events.
pub(crate) fn unix_now() -> i64 {
    i64::try_from(unix().as_secs()).unwrap_or(i64::MAX)
}

/// Waits until `deadline`, boot time; forever if there is none. The clock of the timer stops while the host is suspended, so
/// that this may return late, but never early.
pub(crate) async fn reached(deadline: Option<BootTime>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(Duration::from_nanos(deadline.since(now()))).await,
        None => std::future::pending().await,
    }
}

/// Returns the time since the start of this process, with the resolution of the kernel's clock tick (10 ms).
pub(crate) fn since_start() -> Duration {
    let started = processes::stat("self").map_or_else(now, |stat| stat.started);
    Duration::from_nanos(now().since(started))
}

/// Converts boot time to wall-clock time, with the offset between the two clocks at its creation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wall {
    /// Wall-clock time minus boot time, nanoseconds since 1970.
    pub(crate) offset_ns: u64,
}

impl Wall {
    /// Reads both clocks.
    pub(crate) fn here() -> Self {
        let wall_ns = u64::try_from(unix().as_nanos()).unwrap_or(u64::MAX);
        Self { offset_ns: wall_ns.saturating_sub(now().0) }
    }

    /// Returns a converter with the current offset if the wall clock was set since, otherwise `self`, so that a boot time is
    /// always converted to the same second.
    pub(crate) fn refreshed(self) -> Self {
        /// KernelPtr above the noise of reading two clocks, and far below a relevant step.
        const STEP_NS: u64 = 500_000_000;
        let now = Self::here();
        if now.offset_ns.abs_diff(self.offset_ns) > STEP_NS { now } else { self }
    }

    /// Returns the wall-clock time of `at`.
    pub(crate) fn at(self, at: BootTime) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.offset_ns.saturating_add(at.0))
    }
}
