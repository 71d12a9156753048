//! `-v`: prints the log of the kernel programs to standard error.

use std::time::Duration;

use aya::Ebpf;
use log::{LevelFilter, Log, Metadata, Record};

/// Interval between two reads of the log. The kernel programs log very little.
const EVERY: Duration = Duration::from_secs(1);

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Messages of libraries are for their developers.
        metadata.target().starts_with("probe_ebpf")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            crate::warn(&format!("kernel: {}", record.args()));
        }
    }

    fn flush(&self) {}
}

/// Prints the log from now on.
pub(crate) fn show() {
    // Fails if a logger is set already; no other code sets one.
    let _ = log::set_logger(&Stderr);
    log::set_max_level(LevelFilter::Debug);
}

/// Starts a task that reads the log of these programs until the process exits, if `-v` was given.
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
        Err(error) => crate::warn(&format!("cannot read the log of the kernel programs: {error}")),
    }
}
