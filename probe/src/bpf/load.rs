//! Loads and attaches all programs that this kernel accepts. Which ones it accepts is found by trying.

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

/// The kernel programs; empty in a build without them (see `build.rs`).
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probe-ebpf"));

/// The attached kernel programs. Dropping `programs` detaches them.
pub(crate) struct Kernel {
    /// Keeps the programs attached, and gives access to their log.
    pub(crate) programs: Ebpf,
    /// State of each hook, in the order of [`HOOKS`].
    pub(crate) hooks: Vec<HookStatus>,
    /// Limitations of the attached programs on this kernel: the signals, and an explanation of each.
    pub(crate) limitations: Vec<(&'static str, &'static str)>,
    /// Names of the reasons for which this kernel drops packets, by the kernel's numbers; empty if it reports none.
    pub(crate) drop_reasons: BTreeMap<u32, String>,
    /// Reader of the events.
    pub(crate) reader: Reader,
    /// Counters of events that were not reported.
    pub(crate) skips: Skips,
    /// The filter maps: which addresses, names and processes are watched.
    pub(crate) watch: Watch,
    /// Time from the start of this process to the last attached program.
    pub(crate) took: std::time::Duration,
}

/// Loads and attaches the hooks selected by `settings`. `verbose` adds the verifier's log to the errors of refused programs. A
/// hook that the kernel refuses is reported in [`Kernel::hooks`] and is not an error.
///
/// # Errors
/// [`Unsupported`] if no program can be loaded: no programs in this build, a missing capability, no BTF, no ring buffer.
pub(crate) fn load(settings: &Settings, verbose: bool) -> Result<Kernel> {
    if OBJECT.is_empty() {
        return Err(Unsupported::Stub.into());
    }
    check_capabilities()?;
    raise_limits();
    // A failure is reported by each hook that needs tracefs; the others work without it.
    let tracefs = tracefs::ensure();
    let data = std::fs::read(VMLINUX).map_err(|error| {
        Unsupported::Kernel(format!(
            "cannot read the kernel's BTF {VMLINUX}: {error}; the kernel needs CONFIG_DEBUG_INFO_BTF"
        ))
    })?;
    let layout = Layout::read(&data, can_read_memory(), &hooks::attach_points())
        .with_context(|| format!("read {VMLINUX}"))?;
    drop(data);
    let btf = Btf::parse(&layout.attach_points, Endianness::default())
        .context("read the attach points of programs")?;
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
        .map_err(|error| Unsupported::Kernel(format!("cannot load the eBPF object: {}", chain(&error))))?;
    drop(loader);

    let watch = Watch::take(&mut programs)?;
    let reader = Reader::take(&mut programs)?;
    let hooks = attach_all(
        &mut programs,
        &LoadContext { layout: &layout, btf: &btf, tracefs: &tracefs, set: settings.hooks },
    );
    if hooks.iter().all(|status| !status.attached()) {
        let why = hooks.iter().find_map(|status| match &status.state {
            HookState::Missing { why, .. } => Some(why.as_str()),
            HookState::Attached { .. } => None,
        });
        return Err(Unsupported::Kernel(format!(
            "cannot attach any eBPF program: {}",
            why.unwrap_or("no hook is enabled")
        ))
        .into());
    }
    drop(btf);
    let skips = Skips::take(&mut programs, &hooks)?;
    let took = clock::since_start();
    // Parsing the BTF took 10 MB for a moment, which the allocator would keep.
    // SAFETY: malloc_trim(3) has no preconditions.
    unsafe { libc::malloc_trim(0) };
    let of_attached = hooks.iter().filter_map(|status| match &status.state {
        HookState::Attached { limitation, .. } => *limitation,
        HookState::Missing { .. } => None,
    });
    let limitations = hooks::limitations(layout.abilities).into_iter().chain(of_attached).collect();
    let drop_reasons = layout.drop_reasons;
    Ok(Kernel { programs, hooks, limitations, drop_reasons, reader, skips, watch, took })
}

/// Creates a loader that has not read the kernel's BTF. The library reads it whenever a loader is created, into objects of
/// 20 MB, and uses it only for relocations, which the programs do not have: their offsets are globals. Therefore the loader is
/// created by a thread that cannot open files. If the kernel lacks seccomp, the loader is as large as usual.
fn loader() -> Result<EbpfLoader<'static>> {
    let create = || {
        // Without seccomp the loader only takes more memory.
        let _ = privileges::forbid_files();
        EbpfLoader::new()
    };
    std::thread::spawn(create).join().map_err(|_| anyhow!("the thread that creates the loader panicked"))
}

/// Divisor: this fraction of the process table is for processes that are not known to be components of the node.
const LIMITED_SHARE: u32 = 4;
/// Descriptors that an agent may need: 114 with every hook attached (Linux 6.18), plus those of its clients and helpers.
const DESCRIPTORS: libc::rlim_t = 1024;
/// How many programs are verified in parallel: verification takes most of the start, and nodes have at least two CPUs.
const VERIFIERS: usize = 2;

/// What every attempt to load a program needs.
#[derive(Clone, Copy)]
struct LoadContext<'a> {
    layout: &'a Layout,
    btf: &'a Btf,
    tracefs: &'a std::io::Result<()>,
    set: HookSet,
}

/// A hook that is being attached: the sources that have not been tried yet, and the errors of the others.
struct Attempt<'a> {
    row: &'static Row,
    untried: VecDeque<(usize, &'a mut Program)>,
    errors: Vec<String>,
}

impl Attempt<'_> {
    /// Loads the first untried source that the kernel accepts, and leaves it at the front.
    fn load(&mut self, context: &LoadContext<'_>) {
        while let Some((index, program)) = self.untried.front_mut() {
            let source = &self.row.sources[*index];
            let error = match unusable(source, context) {
                Some(why) => why,
                None => match try_load(source, program, context.btf) {
                    Ok(()) => return,
                    Err(error) => chain(error.as_ref()),
                },
            };
            self.errors.push(format!("{}: {error}", source.attach.name()));
            self.untried.pop_front();
        }
    }

    /// Attaches the loaded source, or the next one that can be loaded and attached.
    fn attach(mut self, context: &LoadContext<'_>) -> HookStatus {
        let hook = self.row.hook;
        while let Some((index, program)) = self.untried.pop_front() {
            let source = &self.row.sources[index];
            match try_attach(source, program) {
                Ok(()) => {
                    let state = HookState::Attached {
                        source: source.attach.name(),
                        program: source.program,
                        is_fallback: index > 0,
                        limitation: source.limitation,
                    };
                    return HookStatus { hook, state };
                }
                Err(error) => {
                    self.errors.push(format!("{}: {}", source.attach.name(), chain(error.as_ref())));
                }
            }
            self.load(context);
        }
        HookStatus { hook, state: HookState::Missing { why: self.errors.join("; "), cost: self.row.cost } }
    }
}

/// Loads all programs in parallel, then attaches them in the order of the table.
fn attach_all(programs: &mut Ebpf, context: &LoadContext<'_>) -> Vec<HookStatus> {
    let mut by_name: BTreeMap<&str, &mut Program> = programs.programs_mut().collect();
    let mut attempts: Vec<_> = HOOKS
        .iter()
        .map(|row| {
            let sources = row.sources.iter().enumerate();
            let untried =
                sources.filter_map(|(index, source)| Some((index, by_name.remove(source.program)?)));
            Attempt { row, untried: untried.collect(), errors: Vec::new() }
        })
        .collect();
    let share = attempts.len().div_ceil(VERIFIERS);
    std::thread::scope(|scope| {
        for share in attempts.chunks_mut(share) {
            scope.spawn(move || share.iter_mut().for_each(|attempt| attempt.load(context)));
        }
    });
    attempts.into_iter().map(|attempt| attempt.attach(context)).collect()
}

/// Returns why a source cannot be used on this host, without trying to load it; `None` if nothing is known against it.
fn unusable(source: &Source, context: &LoadContext<'_>) -> Option<String> {
    if let Some(why) = source.needs.missing(context.layout.abilities) {
        return Some(why.to_owned());
    }
    match (source.attach, context.set, context.tracefs) {
        (Attach::Syscall(_), HookSet::Lean, _) => Some("disabled by --hooks lean".to_owned()),
        (Attach::Syscall(_), _, Err(error)) => Some(format!("cannot mount tracefs: {error}")),
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

/// Calls `load` with each name until it succeeds; returns the error of the last one.
fn first(names: &[&str], mut load: impl FnMut(&str) -> Result<(), ProgramError>) -> Result<()> {
    let mut last = None;
    for name in names {
        match load(name) {
            Ok(()) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| anyhow!("no function name is given"), Into::into))
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

/// Returns an error with its sources on one line. Of the verifier's log only the end is kept, which holds the reason.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    const LOG_LINES: usize = 4;
    if let Some(ProgramError::LoadError { io_error, verifier_log }) = error.downcast_ref() {
        let log = verifier_log.to_string();
        let lines: Vec<_> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        let end = &lines[lines.len().saturating_sub(LOG_LINES)..];
        let log = if end.is_empty() { String::new() } else { format!("; verifier: {}", end.join(" | ")) };
        return format!("the kernel refuses the program: {io_error}{log}");
    }
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let message = error.to_string();
        // The library's messages repeat their source; one copy is enough.
        if !text.contains(&message) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&message.replace('\n', " "));
        }
        next = error.source();
    }
    text
}

/// Checks for the capabilities without which every load would fail with `EPERM`, so that the error can name them.
fn check_capabilities() -> Result<(), Unsupported> {
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
        "cannot load eBPF programs: {} is missing; run as root, or grant the process CAP_BPF, CAP_PERFMON, \
         CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
        missing.join(" and ")
    )))
}

/// Raises resource limits that may be too low for loading in a usual session. If one cannot be raised, the operation that
/// exceeds it fails with its errno.
fn raise_limits() {
    // Before 5.11 the kernel accounts maps and programs as locked memory.
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

/// Returns whether programs may read memory by address. Under `lockdown=confidentiality` the kernel refuses the helpers that
/// read kernel memory, and the library then replaces those that read user memory by one that is refused as well.
fn can_read_memory() -> bool {
    let helper = aya::sys::BpfHelper::BPF_FUNC_probe_read_kernel;
    matches!(aya::sys::is_helper_supported(ProgramType::TracePoint, helper), Ok(true))
}

#[cfg(test)]
mod tests {
    use object::{Object as _, ObjectSymbol as _};

    use super::*;

    #[test]
    #[cfg_attr(without_kernel_programs, ignore = "needs the kernel programs: run `cargo xtask setup`")]
    fn object_has_the_program_of_every_source() {
        let object = object::File::parse(OBJECT).expect("an ELF file");
        let symbols: Vec<_> = object.symbols().filter_map(|symbol| symbol.name().ok()).collect();
        for source in HOOKS.iter().flat_map(|row| row.sources) {
            assert!(symbols.contains(&source.program), "no program {}", source.program);
        }
    }
}
