//! Reads the records of the ring buffer, in the order of their timestamps.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use probe_common::{Event, decode, recorded_at};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// How long the reader waits after a wake-up for further records. The kernel wakes it only if it had read all records, so
/// this limits the wake-ups to 500 a second whatever the event rate, and adds 2 ms to the latency of the trace (budget: a
/// median of 5 ms).
const GATHER: Duration = Duration::from_millis(2);

/// Maximum records in a batch, which limits its memory to 4 MB with the largest record.
const BATCH: usize = 1024;

/// Memory that is kept between batches, bytes: that of a full batch of connects.
const KEPT: usize = BATCH * size_of::<probe_common::ConnectEnd>();

/// Reader of the ring buffer.
pub(crate) struct Reader {
    ring: AsyncFd<RingBuf<MapData>>,
    /// The records of one batch, concatenated, and the timestamp and range of each. Fields only so that their memory is reused.
    bytes: Vec<u8>,
    batch: Vec<(u64, Range<usize>)>,
    /// When the records of a wake-up are due to be read. A field because the future of [`Self::wait`] may be dropped, and the
    /// kernel does not wake a reader a second time for records that it has not read.
    due: Option<Instant>,
    /// Records since the last [`Self::take_undecodable`] that could not be decoded.
    undecodable: u64,
}

impl Reader {
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self> {
        let map = programs.take_map("EVENTS").context("find the map EVENTS")?;
        let ring = RingBuf::try_from(map)?;
        // SAFETY: the map owns its descriptor, keeps it open until it is dropped, and always returns the same one.
        let ring = unsafe { AsyncFd::register(ring) }.context("watch the ring buffer")?;
        Ok(Self { ring, bytes: Vec::new(), batch: Vec::new(), due: None, undecodable: 0 })
    }

    /// Waits until there are records. Cancel safe.
    pub(crate) async fn wait(&mut self) -> Result<()> {
        let due = if let Some(due) = self.due {
            due
        } else {
            self.ring.readable_mut().await.context("wait for the ring buffer")?.clear_ready();
            *self.due.insert(Instant::now() + GATHER)
        };
        // A timer rounds up to its next tick, even if its deadline has passed.
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        self.due = None;
        Ok(())
    }

    /// Returns how many records could not be decoded since the last call. Always 0 if the programs are those of this build.
    pub(crate) fn take_undecodable(&mut self) -> u64 {
        std::mem::take(&mut self.undecodable)
    }

    /// Passes up to one batch of records to `each`, sorted by time: CPUs write concurrently, and each some time after it has
    /// read its clock. Returns whether there may be more records; the next [`Self::wait`] returns at once in that case.
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
            // Data without a timestamp is not a record, and is counted as undecodable below.
            self.batch.push((recorded_at(&item).unwrap_or(0), start..self.bytes.len()));
        }
        self.batch.sort_by_key(|(at, _)| *at);
        for (_, range) in &self.batch {
            match decode(&self.bytes[range.clone()]) {
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
