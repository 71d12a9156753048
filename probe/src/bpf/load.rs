//! Loads and attaches every program that this kernel takes, by trying.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, anyhow, bail};
use aya::programs::{Program, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader, Endianness, VerifierLogLevel};
use probe_common::Hook;

use super::btf::VMLINUX;
use super::hooks::{Attach, HOOKS, Row};
use super::layout::Layout;
use crate::clock;

use super::{HookState, HookStatus, Reader, Skips, Unsupported, Watch, tracefs};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probe-ebpf"));

/// The kernel half at work. Dropping `programs` detaches it.
pub(crate) struct Kernel {
    /// Keeps the programs attached; also where the kernel half's own log is read from.
    pub(crate) programs: Ebpf,
    /// What became of each hook, in the order of [`HOOKS`].
    pub(crate) hooks: Vec<HookStatus>,
    /// The events.
    pub(crate) reader: Reader,
    /// What was not reported.
    pub(crate) skips: Skips,
    /// What is looked at.
    pub(crate) watch: Watch,
    /// From the start of the process to the last attached program.
    pub(crate) took: std::time::Duration,
}

/// Loads everything. A hook that the kernel refuses is a row in `hooks`, not an error.
///
/// # Errors
/// [`Unsupported`] when nothing can be loaded here: no privilege, no type information, no ring buffer.
pub(crate) fn load(ring_bytes: u32) -> Result<Kernel> {
    privilege()?;
    // Without it every tracepoint below says so, and the rest works.
    let tracefs = tracefs::ensure();
    let data = std::fs::read(VMLINUX).map_err(|error| {
        Unsupported::Kernel(format!(
            "read the kernel's type information {VMLINUX}: {error}; the kernel needs CONFIG_DEBUG_INFO_BTF"
        ))
    })?;
    // Three passes over the same type information, two of them inside the library: side by side.
    let (mut loader, layout, btf) = std::thread::scope(|scope| {
        let btf = scope.spawn(|| Btf::parse(&data, Endianness::default()));
        let layout = scope.spawn(|| Layout::read(&data, kernel_readable()));
        let loader = EbpfLoader::new();
        let lost = |_| anyhow!("a loader thread ended early");
        Ok::<_, anyhow::Error>((loader, layout.join().map_err(lost)??, btf.join().map_err(lost)??))
    })
    .with_context(|| format!("read {VMLINUX}"))?;
    drop(data);

    loader.verifier_log_level(VerifierLogLevel::DISABLE).map_max_entries("EVENTS", ring_bytes);
    for (name, value) in &layout.globals {
        loader.override_global(name, value, true);
    }
    let mut programs = loader
        .load(OBJECT)
        .map_err(|error| Unsupported::Kernel(format!("load the eBPF object: {}", chain(&error))))?;
    drop(loader);

    let watch = Watch::take(&mut programs)?;
    let reader = Reader::take(&mut programs)?;
    let skips = Skips::take(&mut programs)?;
    let hooks = attach_all(&mut programs, &layout, &btf, &tracefs)?;
    if hooks.iter().all(|status| status.state != HookState::Attached) {
        let why = hooks.iter().find_map(|status| match &status.state {
            HookState::Missing { why, .. } => Some(why.as_str()),
            HookState::Attached => None,
        });
        return Err(Unsupported::Kernel(format!(
            "attach any eBPF program: {}",
            why.unwrap_or("none was tried")
        ))
        .into());
    }
    drop(btf);
    let took = clock::since_start();
    // The kernel's type information took 20 MB for a moment; the allocator keeps them unless it is told.
    // SAFETY: no precondition.
    unsafe { libc::malloc_trim(0) };
    Ok(Kernel { programs, hooks, reader, skips, watch, took })
}

/// How many programs are verified side by side: verification is most of the start, and nodes have two CPUs
/// at the least.
const VERIFIERS: usize = 2;

/// Loads every program, side by side, then attaches them in the order of the table.
fn attach_all(
    programs: &mut Ebpf,
    layout: &Layout,
    btf: &Btf,
    tracefs: &std::io::Result<()>,
) -> Result<Vec<HookStatus>> {
    let mut wanted: Vec<_> = programs
        .programs_mut()
        .filter_map(|(name, program)| Some((row_of(name, layout)?, program)))
        .collect();
    let share = wanted.len().div_ceil(VERIFIERS);
    let (mine, others) = wanted.split_at_mut(share);
    let load = |(row, program): &mut (usize, &mut Program)| (*row, try_load(&HOOKS[*row], program, btf));
    let mut loaded: BTreeMap<usize, Result<()>> = std::thread::scope(|scope| {
        let others = scope.spawn(|| others.iter_mut().map(load).collect::<Vec<_>>());
        let mine: Vec<_> = mine.iter_mut().map(load).collect();
        let others = others.join().map_err(|_| anyhow!("a loader thread ended early"))?;
        Ok::<_, anyhow::Error>(mine.into_iter().chain(others).collect())
    })?;
    let mut by_row: BTreeMap<usize, &mut Program> = wanted.into_iter().collect();
    let status = |(index, row): (usize, &Row)| {
        let done = match (refused(row, layout, tracefs), loaded.remove(&index), by_row.get_mut(&index)) {
            (Some(why), ..) => Err(anyhow!(why)),
            (None, Some(Ok(())), Some(program)) => try_attach(row, program),
            (None, Some(Err(error)), _) => Err(error),
            _ => Err(ProgramError::InvalidName { name: row.hook.name().to_owned() }.into()),
        };
        let missing =
            |error: anyhow::Error| HookState::Missing { why: chain(error.as_ref()), cost: row.cost };
        HookStatus { hook: row.hook, state: done.map_or_else(missing, |()| HookState::Attached) }
    };
    Ok(HOOKS.iter().enumerate().map(status).collect())
}

/// The row that a program of the object belongs to on this kernel.
fn row_of(program: &str, layout: &Layout) -> Option<usize> {
    let name = |row: &Row| match row.hook {
        Hook::SchedProcessExec if !layout.bpf_loop => "sched_process_exec_unrolled",
        hook => hook.name(),
    };
    HOOKS.iter().position(|row| name(row) == program)
}

/// Why a hook cannot work here, whatever the kernel says to its program.
fn refused(row: &Row, layout: &Layout, tracefs: &std::io::Result<()>) -> Option<String> {
    match (tracefs, row.attach) {
        (Err(error), Attach::Tracepoint(..)) => Some(format!("mount tracefs: {error}")),
        _ if !layout.task_pt_regs && matches!(row.hook, Hook::SysExitConnect | Hook::SysExitUnshare) => {
            Some("the helper bpf_task_pt_regs (Linux 5.15) is not there".to_owned())
        }
        _ => None,
    }
}

fn try_load(row: &Row, program: &mut Program, btf: &Btf) -> Result<()> {
    match (program, row.attach) {
        (Program::BtfTracePoint(program), Attach::Btf(tracepoint)) => Ok(program.load(tracepoint, btf)?),
        (Program::TracePoint(program), Attach::Tracepoint(..)) => Ok(program.load()?),
        _ => bail!("the object has a program of another kind under this name"),
    }
}

fn try_attach(row: &Row, program: &mut Program) -> Result<()> {
    match (program, row.attach) {
        (Program::BtfTracePoint(program), Attach::Btf(_)) => {
            program.attach()?;
        }
        (Program::TracePoint(program), Attach::Tracepoint(category, name)) => {
            program.attach(category, name)?;
        }
        _ => bail!("the object has a program of another kind under this name"),
    }
    Ok(())
}

/// Everything an error says, on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let words = error.to_string();
        // The library's messages repeat their source; one copy is enough.
        if !text.contains(&words) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&words.replace('\n', " "));
        }
        next = error.source();
    }
    text
}

/// Fails early, and with words, where every load would fail with `EPERM`.
fn privilege() -> Result<(), Unsupported> {
    // include/uapi/linux/capability.h
    const SYS_ADMIN: u32 = 21;
    const PERFMON: u32 = 38;
    const BPF: u32 = 39;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let has = |bit: u32| effective.is_none_or(|set| set >> bit & 1 == 1);
    let missing: Vec<_> = [(BPF, "CAP_BPF"), (PERFMON, "CAP_PERFMON")]
        .into_iter()
        .filter(|(bit, _)| !has(*bit) && !has(SYS_ADMIN))
        .map(|(_, name)| name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Unsupported::Privilege(format!(
        "load eBPF programs: {} is missing; run as root, or give the process CAP_BPF, CAP_PERFMON, \
         CAP_NET_ADMIN, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
        missing.join(" and ")
    )))
}

/// Under `lockdown=confidentiality` the helpers that read kernel memory by address are refused.
fn kernel_readable() -> bool {
    std::fs::read_to_string("/sys/kernel/security/lockdown")
        .map_or(true, |mode| !mode.contains("[confidentiality]"))
}
