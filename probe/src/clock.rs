//! The one place that reads clocks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use probe_engine::Mono;

use crate::node::processes;

/// Now, on `CLOCK_BOOTTIME`: the clock of the kernel's events.
pub(crate) fn now() -> Mono {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a live, writable timespec; the clock id is a constant that Linux has since 2.6.39.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    debug_assert_eq!(failed, 0);
    Mono(u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Since 1970, by the wall clock; nothing on a host whose clock stands before that.
pub(crate) fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

/// The same in whole seconds: what certificates, tokens and events count in.
pub(crate) fn unix_now() -> i64 {
    i64::try_from(unix().as_secs()).unwrap_or(i64::MAX)
}

/// Waits until a time of the boot clock; for ever when there is none. The timer's own clock stands still
/// while the machine sleeps: it may be late then, never early.
pub(crate) async fn reached(deadline: Option<Mono>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(Duration::from_nanos(deadline.since(now()))).await,
        None => std::future::pending().await,
    }
}

/// How long this process has been there; exact to the clock tick that the kernel keeps (10 ms).
pub(crate) fn since_start() -> Duration {
    let started = processes::stat("self").map_or_else(now, |stat| stat.started);
    Duration::from_nanos(now().since(started))
}

/// Turns boot time into wall time, as the two stood to each other when it was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wall {
    /// Wall clock minus boot clock, nanoseconds since 1970.
    pub(crate) offset_ns: u64,
}

impl Wall {
    /// As the clocks stand now.
    pub(crate) fn here() -> Self {
        let wall_ns = u64::try_from(unix().as_nanos()).unwrap_or(u64::MAX);
        Self { offset_ns: wall_ns.saturating_sub(now().0) }
    }

    /// As the clocks stand now when the wall clock was set since; else the same, so that the same time stays the same
    /// to the second.
    pub(crate) fn refreshed(self) -> Self {
        /// Far above the noise of reading two clocks, and far below a step that matters.
        const STEP_NS: u64 = 500_000_000;
        let now = Self::here();
        if now.offset_ns.abs_diff(self.offset_ns) > STEP_NS { now } else { self }
    }

    /// The wall time of `at`.
    pub(crate) fn at(self, at: Mono) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.offset_ns.saturating_add(at.0))
    }
}
