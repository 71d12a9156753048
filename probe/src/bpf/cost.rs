//! What the kernel says of the cost of a program.

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::Ebpf;
use aya::programs::Program;

/// Runs of one program, and the time that they took; zero while the kernel does not measure
/// (`kernel.bpf_stats_enabled`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// How often it ran.
    pub(crate) runs: u64,
    /// Nanoseconds of all runs together.
    pub(crate) ns: u64,
}

/// Reads it from `/proc/self/fdinfo` (5.1): the library gives the time and not the runs.
pub(crate) fn of(programs: &Ebpf, name: &str) -> Option<Cost> {
    let fd = match programs.program(name)? {
        Program::BtfTracePoint(program) => program.fd(),
        Program::RawTracePoint(program) => program.fd(),
        Program::TracePoint(program) => program.fd(),
        Program::FEntry(program) => program.fd(),
        Program::FExit(program) => program.fd(),
        _ => return None,
    };
    let fd = fd.ok()?.as_fd().as_raw_fd();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    let number = |key: &str| {
        info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().parse::<u64>().ok())
    };
    Some(Cost { runs: number("run_cnt")?, ns: number("run_time_ns")? })
}
