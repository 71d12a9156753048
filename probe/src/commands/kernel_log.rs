//! `-v`: what the kernel half logs, on standard error.

use std::time::Duration;

use aya::Ebpf;
use log::{LevelFilter, Log, Metadata, Record};

/// The kernel half logs next to nothing; a second is soon enough.
const EVERY: Duration = Duration::from_secs(1);

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Only the kernel half: the libraries' own words are for their developers.
        metadata.target().starts_with("probe_ebpf")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            crate::warn(&format!("kernel: {}", record.args()));
        }
    }

    fn flush(&self) {}
}

/// Shows it from now on.
pub(crate) fn show() {
    // Fails when there is a logger already: this is the only place that sets one.
    let _ = log::set_logger(&Stderr);
    log::set_max_level(LevelFilter::Debug);
}

/// Reads the log of these programs for ever, when it is shown.
pub(crate) fn follow(programs: &mut Ebpf) {
    if log::max_level() == LevelFilter::Off {
        return;
    }
    match aya_log::EbpfLogger::init(programs) {
        Ok(mut logger) => {
            tokio::spawn(async move {
                loop {
                    logger.flush();
                    tokio::time::sleep(EVERY).await;
                }
            });
        }
        Err(error) => crate::warn(&format!("read the kernel half's log: {error}")),
    }
}
