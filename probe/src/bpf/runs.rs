//! The kernel's counters of a program's runs.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::FileExt as _;

use aya::Ebpf;
use aya::programs::Program;

/// Counters of one program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs {
    /// How often it ran; 0 unless `kernel.bpf_stats_enabled` is set.
    pub(crate) count: u64,
    /// Total time of all runs, nanoseconds; 0 unless `kernel.bpf_stats_enabled` is set.
    pub(crate) ns: u64,
    /// Skipped runs (Linux 5.12): on a CPU where a run of a program is interrupted, the kernel does not start another run of
    /// the same program. Always counted.
    pub(crate) skipped: u64,
}

/// The file with the counters of a program, in `/proc/self/fdinfo`. The library exposes only the total time.
pub(crate) struct RunCounters(File);

impl RunCounters {
    /// Opens the counters of the program with this name; `None` if they are not available.
    pub(super) fn open(programs: &Ebpf, name: &str) -> Option<Self> {
        let fd = match programs.program(name)? {
            Program::BtfTracePoint(program) => program.fd(),
            Program::RawTracePoint(program) => program.fd(),
            Program::TracePoint(program) => program.fd(),
            Program::FEntry(program) => program.fd(),
            Program::FExit(program) => program.fd(),
            _ => return None,
        };
        let fd = fd.ok()?.as_fd().as_raw_fd();
        Some(Self(File::open(format!("/proc/self/fdinfo/{fd}")).ok()?))
    }

    /// Reads the current values.
    pub(crate) fn read(&self) -> Option<Runs> {
        // The file has about a dozen lines of one word and one number each.
        let mut text = [0; 1024];
        let size = self.0.read_at(&mut text, 0).ok()?;
        let text = str::from_utf8(text.get(..size)?).ok()?;
        let counter = |key: &str| {
            text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().parse().ok())
        };
        Some(Runs {
            count: counter("run_cnt")?,
            ns: counter("run_time_ns")?,
            skipped: counter("recursion_misses").unwrap_or(0),
        })
    }
}
