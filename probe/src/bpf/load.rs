//! Loads and attaches every program that this kernel takes, by trying.

use std::collections::{BTreeMap, VecDeque};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::programs::{Program, ProgramError, ProgramType};
use aya::{Btf, Ebpf, EbpfLoader, Endianness, VerifierLogLevel};

use super::btf::VMLINUX;
use super::hooks::{self, Attach, HOOKS, HookSet, Row, Source};
use super::layout::{self, Layout};
use super::{HookState, HookStatus, Reader, Skips, Unsupported, Watch, tracefs};
use crate::settings::Settings;
use crate::{clock, privileges};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probe-ebpf"));

/// The kernel half at work. Dropping `programs` detaches it.
pub(crate) struct Kernel {
    /// Keeps the programs attached; also where the kernel half's own log is read from.
    pub(crate) programs: Ebpf,
    /// What became of each hook, in the order of [`HOOKS`].
    pub(crate) hooks: Vec<HookStatus>,
    /// What attached programs cannot see on this kernel: the signal, and why.
    pub(crate) less: Vec<(&'static str, &'static str)>,
    /// Names of the reasons for which this kernel drops packets, by its own numbers; empty when it tells none.
    pub(crate) drop_reasons: BTreeMap<u32, String>,
    /// The events.
    pub(crate) reader: Reader,
    /// What was not reported.
    pub(crate) skips: Skips,
    /// What is looked at.
    pub(crate) watch: Watch,
    /// From the start of the process to the last attached program.
    pub(crate) took: std::time::Duration,
}

/// Loads everything that `set` names; `verbose` keeps the verifier's words on what it refuses. A hook that the kernel refuses is a row in `hooks`, not an error.
///
/// # Errors
/// [`Unsupported`] when nothing can be loaded here: no privilege, no type information, no ring buffer.
pub(crate) fn load(settings: &Settings, verbose: bool) -> Result<Kernel> {
    privilege()?;
    raise_limits();
    // Without it every tracepoint below says so, and the rest works.
    let tracefs = tracefs::ensure();
    let data = std::fs::read(VMLINUX).map_err(|error| {
        Unsupported::Kernel(format!(
            "read the kernel's type information {VMLINUX}: {error}; the kernel needs CONFIG_DEBUG_INFO_BTF"
        ))
    })?;
    let layout =
        Layout::read(&data, probe_read(), &hooks::places()).with_context(|| format!("read {VMLINUX}"))?;
    drop(data);
    let btf = Btf::parse(&layout.places, Endianness::default()).context("read the places of programs")?;
    let mut loader = loader()?;

    let log = if verbose { VerifierLogLevel::VERBOSE } else { VerifierLogLevel::DISABLE };
    loader.verifier_log_level(log).map_max_entries("EVENTS", settings.ring_bytes);
    loader.map_max_entries("PROCESSES", settings.max_processes);
    for (name, value) in &layout.globals {
        loader.override_global(name, value, true);
    }
    let limited = settings.max_processes / LIMITED_SHARE;
    loader.override_global(layout::MAX_LIMITED, &limited, true);
    let mut programs = loader
        .load(OBJECT)
        .map_err(|error| Unsupported::Kernel(format!("load the eBPF object: {}", chain(&error))))?;
    drop(loader);

    let watch = Watch::take(&mut programs)?;
    let reader = Reader::take(&mut programs)?;
    let hooks = attach_all(
        &mut programs,
        &Ground { layout: &layout, btf: &btf, tracefs: &tracefs, set: settings.hooks },
    );
    if hooks.iter().all(|status| !status.attached()) {
        let why = hooks.iter().find_map(|status| match &status.state {
            HookState::Missing { why, .. } => Some(why.as_str()),
            HookState::Attached { .. } => None,
        });
        return Err(Unsupported::Kernel(format!(
            "attach any eBPF program: {}",
            why.unwrap_or("none was tried")
        ))
        .into());
    }
    drop(btf);
    let skips = Skips::take(&mut programs, &hooks)?;
    let took = clock::since_start();
    // The kernel's type information took 10 MB for a moment; the allocator keeps them unless it is told.
    // SAFETY: no precondition.
    unsafe { libc::malloc_trim(0) };
    let in_use = hooks.iter().filter_map(|status| match &status.state {
        HookState::Attached { less, .. } => *less,
        HookState::Missing { .. } => None,
    });
    let less = hooks::less(layout.abilities).into_iter().chain(in_use).collect();
    let drop_reasons = layout.drop_reasons;
    Ok(Kernel { programs, hooks, less, drop_reasons, reader, skips, watch, took })
}

/// Makes a loader that has not read the kernel's type information. The library reads it whenever it makes one, into objects that
/// take 20 MB, and uses it only for relocations, which the programs do not have: their offsets are globals. So the thread that
/// makes the loader cannot open files. Where the kernel has no seccomp, the loader is a larger one.
fn loader() -> Result<EbpfLoader<'static>> {
    let make = || {
        let _ = privileges::forbid_files();
        EbpfLoader::new()
    };
    std::thread::spawn(make).join().map_err(|_| anyhow!("the thread that makes the loader panicked"))
}

/// One place in so many of the process table is for processes that are not known to be components of the node.
const LIMITED_SHARE: u32 = 4;
/// Descriptors that an agent may need: 114 with every hook attached (Linux 6.18), and those of its clients and helpers.
const DESCRIPTORS: libc::rlim_t = 1024;
/// How many programs are verified side by side: verification is most of the start, and nodes have two CPUs
/// at the least.
const VERIFIERS: usize = 2;

/// What every attempt to load needs to know.
#[derive(Clone, Copy)]
struct Ground<'a> {
    layout: &'a Layout,
    btf: &'a Btf,
    tracefs: &'a std::io::Result<()>,
    set: HookSet,
}

/// One hook on its way: the sources that were not tried yet, and why the others do not work.
struct Attempt<'a> {
    row: &'static Row,
    left: VecDeque<(usize, &'a mut Program)>,
    why: Vec<String>,
}

impl Attempt<'_> {
    /// Loads the first source that the kernel takes; it stays at the front.
    fn load(&mut self, ground: &Ground<'_>) {
        while let Some((index, program)) = self.left.front_mut() {
            let source = &self.row.sources[*index];
            match refused(source, ground) {
                None => match try_load(source, program, ground.btf) {
                    Ok(()) => return,
                    Err(error) => {
                        self.why.push(format!("{}: {}", source.attach.name(), chain(error.as_ref())));
                    }
                },
                Some(why) => self.why.push(format!("{}: {why}", source.attach.name())),
            }
            self.left.pop_front();
        }
    }

    /// Attaches what was loaded, or the next that can be.
    fn attach(mut self, ground: &Ground<'_>) -> HookStatus {
        let hook = self.row.hook;
        while let Some((index, program)) = self.left.pop_front() {
            let source = &self.row.sources[index];
            match try_attach(source, program) {
                Ok(()) => {
                    let state = HookState::Attached {
                        source: source.attach.name(),
                        program: source.program,
                        stand_in: index > 0,
                        less: source.less,
                    };
                    return HookStatus { hook, state };
                }
                Err(error) => self.why.push(format!("{}: {}", source.attach.name(), chain(error.as_ref()))),
            }
            self.load(ground);
        }
        HookStatus { hook, state: HookState::Missing { why: self.why.join("; "), cost: self.row.cost } }
    }
}

/// Loads every program, side by side, then attaches them in the order of the table.
fn attach_all(programs: &mut Ebpf, ground: &Ground<'_>) -> Vec<HookStatus> {
    let mut by_name: BTreeMap<&str, &mut Program> = programs.programs_mut().collect();
    let mut attempts: Vec<_> = HOOKS
        .iter()
        .map(|row| {
            let sources = row.sources.iter().enumerate();
            let left = sources.filter_map(|(index, source)| Some((index, by_name.remove(source.program)?)));
            Attempt { row, left: left.collect(), why: Vec::new() }
        })
        .collect();
    let share = attempts.len().div_ceil(VERIFIERS);
    std::thread::scope(|scope| {
        for share in attempts.chunks_mut(share) {
            scope.spawn(move || share.iter_mut().for_each(|attempt| attempt.load(ground)));
        }
    });
    attempts.into_iter().map(|attempt| attempt.attach(ground)).collect()
}

/// Why a source cannot work here, whatever the kernel says to its program.
fn refused(source: &Source, ground: &Ground<'_>) -> Option<String> {
    if let Some(why) = source.needs.missing(ground.layout.abilities) {
        return Some(why.to_owned());
    }
    match (source.attach, ground.set, ground.tracefs) {
        (Attach::Syscall(_), HookSet::Lean, _) => Some("left out by --hooks lean".to_owned()),
        (Attach::Syscall(_), _, Err(error)) => Some(format!("mount tracefs: {error}")),
        _ => None,
    }
}

fn try_load(source: &Source, program: &mut Program, btf: &Btf) -> Result<()> {
    match (program, source.attach) {
        (Program::BtfTracePoint(program), Attach::Btf(tracepoint)) => Ok(program.load(tracepoint, btf)?),
        (Program::RawTracePoint(program), Attach::Raw(_)) => Ok(program.load()?),
        (Program::TracePoint(program), Attach::Syscall(_)) => Ok(program.load()?),
        (Program::FEntry(program), Attach::Entry(names)) => first(names, |name| program.load(name, btf)),
        (Program::FExit(program), Attach::Exit(names)) => first(names, |name| program.load(name, btf)),
        _ => bail!("the object has a program of another kind under this name"),
    }
}

/// The first of several names that works; the error of the last.
fn first(names: &[&str], mut load: impl FnMut(&str) -> Result<(), ProgramError>) -> Result<()> {
    let mut last = None;
    for name in names {
        match load(name) {
            Ok(()) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| anyhow!("no function is named"), Into::into))
}

fn try_attach(source: &Source, program: &mut Program) -> Result<()> {
    match (program, source.attach) {
        (Program::BtfTracePoint(program), Attach::Btf(_)) => _ = program.attach()?,
        (Program::RawTracePoint(program), Attach::Raw(name)) => _ = program.attach(name)?,
        (Program::TracePoint(program), Attach::Syscall(name)) => _ = program.attach("syscalls", name)?,
        (Program::FEntry(program), Attach::Entry(_)) => _ = program.attach()?,
        (Program::FExit(program), Attach::Exit(_)) => _ = program.attach()?,
        _ => bail!("the object has a program of another kind under this name"),
    }
    Ok(())
}

/// Everything an error says, on one line; of the verifier's log the end, where the reason stands.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    const LOG_LINES: usize = 4;
    if let Some(ProgramError::LoadError { io_error, verifier_log }) = error.downcast_ref() {
        let log = verifier_log.to_string();
        let lines: Vec<_> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        let end = &lines[lines.len().saturating_sub(LOG_LINES)..];
        let log = if end.is_empty() { String::new() } else { format!("; the verifier: {}", end.join(" | ")) };
        return format!("the kernel refuses the program: {io_error}{log}");
    }
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
         CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
        missing.join(" and ")
    )))
}

/// Raises the limits that loading needs more of than a session may have. Where they cannot be raised, what fails names the errno.
fn raise_limits() {
    // Before 5.11 the kernel counts maps and programs as locked memory.
    raise_limit(libc::RLIMIT_MEMLOCK, libc::RLIM_INFINITY);
    raise_limit(libc::RLIMIT_NOFILE, DESCRIPTORS);
}

fn raise_limit(which: libc::__rlimit_resource_t, least: libc::rlim_t) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is live.
    if unsafe { libc::getrlimit(which, &raw mut limit) } != 0 || limit.rlim_cur >= least {
        return;
    }
    let raised = libc::rlimit { rlim_cur: least, rlim_max: limit.rlim_max.max(least) };
    // SAFETY: `raised` is live.
    if unsafe { libc::setrlimit(which, &raw const raised) } != 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` is live.
        unsafe { libc::setrlimit(which, &raw const limit) };
    }
}

/// Under `lockdown=confidentiality` the helpers that read kernel memory by address are refused, and the
/// library then replaces those that read user memory by one that is refused, too.
fn probe_read() -> bool {
    let helper = aya::sys::BpfHelper::BPF_FUNC_probe_read_kernel;
    matches!(aya::sys::is_helper_supported(ProgramType::TracePoint, helper), Ok(true))
}
