//! Records out of the ring buffer, in the order of their time.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use probe_common::{Event, decode, made_at};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// How long the reader lets records gather after a wake-up. The kernel wakes it only when it had read
/// everything, so this bounds the wake-ups to 500 a second however many events there are, and adds 2 ms to
/// an event's way to the trace (budget: a median of 5 ms).
const GATHER: Duration = Duration::from_millis(2);

/// Most records taken at once: bounds the memory of a batch to 4 MB of the largest record.
const BATCH: usize = 1024;

/// Memory that stays between batches: that of a full one of connects.
const KEPT: usize = BATCH * size_of::<probe_common::ConnectEnd>();

/// The ring buffer.
pub(crate) struct Reader {
    ring: AsyncFd<RingBuf<MapData>>,
    /// Copies of the records of one batch, one behind the other, and the time and place of each; kept to reuse their memory.
    bytes: Vec<u8>,
    batch: Vec<(u64, Range<usize>)>,
    /// When a wake-up's records are to be taken. Kept here because the wait may be given up half-way, and
    /// the kernel does not wake a reader a second time for what it has not read.
    due: Option<Instant>,
    /// Records since the last [`Self::take_undecodable`] that could not be decoded.
    undecodable: u64,
}

impl Reader {
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self> {
        let map = programs.take_map("EVENTS").context("find the map EVENTS")?;
        let ring = RingBuf::try_from(map)?;
        // SAFETY: the map owns its descriptor, keeps it until it is dropped, and always gives that one.
        let ring = unsafe { AsyncFd::register(ring) }.context("watch the ring buffer")?;
        Ok(Self { ring, bytes: Vec::new(), batch: Vec::new(), due: None, undecodable: 0 })
    }

    /// Waits until there are records. May be dropped at any time and called again.
    pub(crate) async fn wait(&mut self) -> Result<()> {
        let due = if let Some(due) = self.due {
            due
        } else {
            self.ring.readable_mut().await.context("wait for the ring buffer")?.clear_ready();
            *self.due.insert(Instant::now() + GATHER)
        };
        // A timer rounds up to its next tick, also when it is over.
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        self.due = None;
        Ok(())
    }

    /// Returns how many records could not be decoded since the last call. None, if the programs are those of this build.
    pub(crate) fn take_undecodable(&mut self) -> u64 {
        std::mem::take(&mut self.undecodable)
    }

    /// Takes up to one batch, sorted by time (CPUs write side by side, each a little after its clock was
    /// read). True when there may be more: the next wait is over at once then.
    pub(crate) fn take_batch(&mut self, mut each: impl FnMut(&Event<'_>)) -> bool {
        let ring = self.ring.get_mut();
        self.batch.clear();
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
        while self.batch.len() < BATCH
            && let Some(item) = ring.next()
        {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(&item);
            // What has no time is no record, and is counted as such below.
            self.batch.push((made_at(&item).unwrap_or(0), start..self.bytes.len()));
        }
        self.batch.sort_by_key(|(at, _)| *at);
        for (_, place) in &self.batch {
            match decode(&self.bytes[place.clone()]) {
                Ok(event) => each(&event),
                Err(_) => self.undecodable += 1,
            }
        }
        let more = self.batch.len() == BATCH;
        if more {
            self.due = Some(Instant::now());
        }
        more
    }
}
