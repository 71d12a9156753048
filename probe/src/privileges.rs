//! Reduces the privileges of the running agent: capabilities and system calls.

mod calls;

use anyhow::{Context as _, Result};
use caps::{CapSet, Capability, CapsHashSet};

/// The capabilities that the agent uses; README.md documents their purposes.
const USED: [Capability; 9] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_BROADCAST,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_SYS_RESOURCE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_DAC_OVERRIDE,
];

/// Drops all capabilities except [`USED`] from this thread, and forbids new privileges and memory dumps, which would contain
/// credentials. Threads inherit these privileges when they are started, so this must run before.
///
/// # Errors
/// If the kernel refuses a step; the steps before it remain in effect.
pub(crate) fn confine() -> Result<()> {
    let used = CapsHashSet::from(USED);
    let kept: CapsHashSet = caps::read(None, CapSet::Permitted)?.intersection(&used).copied().collect();
    for other in caps::all().difference(&used) {
        // Without CAP_SETPCAP the bounding set cannot be changed. It affects only programs that gain privileges at exec.
        let _ = caps::drop(None, CapSet::Bounding, *other);
    }
    caps::clear(None, CapSet::Inheritable).context("clear the inheritable capabilities")?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept).with_context(|| format!("reduce the {set:?} capabilities"))?;
    }
    let check = |what: &'static str, result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()).context(what),
    };
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` is live.
    check("set the core limit", unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) })?;
    // SAFETY: no memory is involved.
    check("forbid memory dumps", unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
    // SAFETY: no memory is involved.
    check("forbid new privileges", unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
}

/// Returns whether this thread lacks a capability.
pub(crate) fn lacks(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).is_ok_and(|has| !has)
}

/// Forbids this thread to open files, until it exits.
///
/// # Errors
/// If the kernel has no seccomp.
pub(crate) fn forbid_files() -> Result<()> {
    Ok(seccompiler::apply_filter(&calls::no_files()?)?)
}

/// Forbids all threads the system calls that the agent does not use once the kernel programs are attached. `runs_programs`: the
/// agent may have to start programs that provide credentials.
///
/// # Errors
/// If the kernel has no seccomp, or a thread has a filter of its own.
pub(crate) fn limit_calls(runs_programs: bool) -> Result<()> {
    calls::filters(runs_programs)?.iter().try_for_each(calls::install)
}
