//! What the kernel counts of the runs of a program.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::FileExt as _;

use aya::Ebpf;
use aya::programs::Program;

/// Runs of one program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs {
    /// How often it ran; zero while the kernel does not measure (`kernel.bpf_stats_enabled`).
    pub(crate) count: u64,
    /// Nanoseconds of all runs together; as above.
    pub(crate) ns: u64,
    /// How often it should have run and did not (Linux 5.12): on a CPU where one run was interrupted the kernel begins no
    /// other of the same program. Counted always.
    pub(crate) left_out: u64,
}

/// Where the kernel tells them: `/proc/self/fdinfo` of the program. The library gives the time alone.
pub(crate) struct RunCounters(File);

impl RunCounters {
    /// Those of the program of this name.
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

    /// As they are now.
    pub(crate) fn read(&self) -> Option<Runs> {
        // A dozen lines of a word and a number each.
        let mut text = [0; 1024];
        let size = self.0.read_at(&mut text, 0).ok()?;
        let text = str::from_utf8(text.get(..size)?).ok()?;
        let number = |key: &str| {
            text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().parse().ok())
        };
        Some(Runs {
            count: number("run_cnt")?,
            ns: number("run_time_ns")?,
            left_out: number("recursion_misses").unwrap_or(0),
        })
    }
}
