//! Records out of the ring buffer, in the order of their time.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use probe_common::decode;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// How long the reader lets records gather after a wake-up. The kernel wakes it only when it had read
/// everything, so this bounds the wake-ups to 500 a second however many events there are, and adds 2 ms to
/// an event's way to the trace (budget: a median of 5 ms).
const GATHER: Duration = Duration::from_millis(2);

/// Most records taken at once: bounds the memory of a batch to 4 MB of the largest record.
const BATCH: usize = 1024;

/// The ring buffer.
pub(crate) struct Reader {
    ring: AsyncFd<RingBuf<MapData>>,
    /// Copies of the records of one batch, with their times; kept to reuse their memory.
    batch: Vec<(u64, Vec<u8>)>,
    /// When a wake-up's records are to be taken. Kept here because the wait may be given up half-way, and
    /// the kernel does not wake a reader a second time for what it has not read.
    due: Option<Instant>,
    /// Records that were none: counted, never silent.
    pub(crate) undecodable: u64,
}

impl Reader {
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self> {
        let map = programs.take_map("EVENTS").context("find the map EVENTS")?;
        let ring = RingBuf::try_from(map)?;
        // SAFETY: the map owns its descriptor, keeps it until it is dropped, and always gives that one.
        let ring = unsafe { AsyncFd::register(ring) }.context("watch the ring buffer")?;
        Ok(Self { ring, batch: Vec::new(), due: None, undecodable: 0 })
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

    /// Takes up to one batch, sorted by time (CPUs write side by side, each a little after its clock was
    /// read). True when there may be more: the next wait is over at once then.
    pub(crate) fn take_batch(&mut self, mut each: impl FnMut(probe_common::Event<'_>)) -> bool {
        let ring = self.ring.get_mut();
        self.batch.clear();
        while self.batch.len() < BATCH
            && let Some(item) = ring.next()
        {
            match decode(&item) {
                Ok(event) => self.batch.push((event.at_ns(), item.to_vec())),
                Err(_) => self.undecodable += 1,
            }
        }
        self.batch.sort_by_key(|(at, _)| *at);
        for (_, bytes) in &self.batch {
            if let Ok(event) = decode(bytes) {
                each(event);
            }
        }
        let more = self.batch.len() == BATCH;
        if more {
            self.due = Some(Instant::now());
        }
        more
    }
}
