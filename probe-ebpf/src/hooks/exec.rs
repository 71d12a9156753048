//! Executions: of CNI plugins, recognised by their environment, and of the processes on the watch list,
//! recognised by their name.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_user_str};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use probe_common::{
    CniExec, Hook, NAME_OF_PLUGIN, NAME_OF_PROCESS, PATH_LEN, ProcessExec, ProcessState, Skip,
};

use super::run;
use crate::current::{self, now};
use crate::layout::{
    BPRM_FILE, FILE_DENTRY, FILE_INODE, HAVE_PROBE_READ, INODE_MODE, MM_ENV_END, MM_ENV_START, TASK_MM, get,
};
use crate::maps::{CNI_RUNNING, NAMES, PROCESSES, WALKS, Walk};
use crate::origin;
use crate::processes;
use crate::read::{file_of_current_task, pointer};
use crate::report::{Field, report};

/// Maximum number of chunks of the environment that are searched where `bpf_loop` exists: about 128 KB of it.
const MAX_CHUNKS: u32 = 4096;
/// The same where the verifier must follow every iteration: 44,000 instructions, most of the start time
/// there. The environment of a plugin has about fifty variables.
const MAX_CHUNKS_UNROLLED: u32 = 128;
/// Size of a chunk, bytes: most variables fit, and the stack of all frames has 512 bytes.
const CHUNK: usize = 128;
/// `STDIN_FILENO`, unistd.h.
const STDIN: usize = 0;
/// Mask of the file type in a mode, and the type of character devices: include/uapi/linux/stat.h.
const S_IFMT: u16 = 0o170_000;
const S_IFCHR: u16 = 0o020_000;

// Indices of the variables in `Walk::values`.
const COMMAND: usize = 0;
const CONTAINER_ID: usize = 1;
const NETNS: usize = 2;
const IFNAME: usize = 3;
const ARGS: usize = 4;
const PATH: usize = 5;

/// proto(v5.10): include/trace/events/sched.h:
/// (struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)
#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    run!(Hook::SchedProcessExec, try_exec(&ctx, walk_by_bpf_loop))
}

/// The same, for kernels without `bpf_loop` (before 5.17).
#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn sched_process_exec_unrolled(ctx: BtfTracePointContext) -> i32 {
    run!(Hook::SchedProcessExec, try_exec(&ctx, walk_unrolled))
}

#[inline(always)]
fn try_exec(ctx: &BtfTracePointContext, walk_all: impl Fn(&mut Walk)) -> Result<(), Skip> {
    let task: *const u8 = ctx.arg(0);
    let bprm: *const u8 = ctx.arg(2);
    // SAFETY: typed arguments; each pointer behind them is checked for null.
    let (at, end) = unsafe {
        let Some(mm) = pointer(task, &TASK_MM) else { return Ok(()) };
        (mm.field(&MM_ENV_START), mm.field(&MM_ENV_END))
    };
    // Not on the stack, where the verifier would follow every combination of variables found.
    let Some(walk) = WALKS.get_ptr_mut(0) else { return Ok(()) };
    // SAFETY: this CPU's live, aligned slot; the kernel does not run a program recursively on a CPU.
    let walk = unsafe { &mut *walk };
    walk.at = at;
    walk.end = end;
    walk.is_inside = 0;
    walk.values = [0; 6];
    // Runtimes start plugins as root with all capabilities.
    if get(&HAVE_PROBE_READ) != 0 && may_be_configured() && origin::is_admin() {
        walk_all(walk);
        if walk.values[COMMAND] != 0 {
            return cni_exec(walk, bprm);
        }
    }
    let comm = current::comm();
    // SAFETY: a live map value.
    let kind = NAMES.get_ptr(comm).map_or(0, |kind| unsafe { *kind });
    // Where the environment cannot be read, plugins are recognised by their names.
    if kind & NAME_OF_PLUGIN != 0 && get(&HAVE_PROBE_READ) == 0 && origin::is_admin() {
        return cni_exec(walk, bprm);
    }
    if kind & NAME_OF_PROCESS != 0 {
        return process_exec(end, bprm);
    }
    Ok(())
}

/// Returns whether the standard input may contain a configuration. Plugins get theirs there (CNI
/// specification, section 2). It cannot come from /dev/null or a terminal, which is the standard input of
/// most programs of a node, and this check takes a twentieth of the time of a search through the environment.
/// Also true if the mode of the file cannot be read.
#[inline(always)]
fn may_be_configured() -> bool {
    let Some(file) = file_of_current_task(STDIN) else { return false };
    // SAFETY: the pointer belongs to an open file and is checked for null.
    let mode = unsafe { file.pointer(&FILE_INODE).map_or(0, |inode| inode.field::<u16>(&INODE_MODE)) };
    mode & S_IFMT != S_IFCHR
}

#[inline(always)]
fn walk_by_bpf_loop(_walk: &mut Walk) {
    // The helper passes only pointers to the stack to its callback, so the callback looks the walk up.
    // SAFETY: the callback has the signature that the helper expects, and stops the loop by returning 1.
    unsafe { bpf_loop(MAX_CHUNKS, step as *mut c_void, core::ptr::null_mut(), 0) };
}

#[inline(always)]
fn walk_unrolled(walk: &mut Walk) {
    for _ in 0..MAX_CHUNKS_UNROLLED {
        if search_chunk(walk) != 0 {
            break;
        }
    }
}

extern "C" fn step(_index: u32, _context: *mut c_void) -> i64 {
    // SAFETY: as in `try_exec`.
    WALKS.get_ptr_mut(0).map_or(1, |walk| search_chunk(unsafe { &mut *walk }))
}

/// Searches one chunk. Returns 1 at the end of the environment, else 0.
#[inline(always)]
fn search_chunk(walk: &mut Walk) -> i64 {
    if walk.at >= walk.end {
        return 1;
    }
    // Not zeroed: the verifier would have to follow a loop of 128 iterations.
    let mut chunk = MaybeUninit::<[u64; CHUNK / 8]>::uninit();
    // SAFETY: the buffer is `CHUNK` bytes; the helper checks the address.
    let read =
        unsafe { bpf_probe_read_user_str(chunk.as_mut_ptr().cast(), CHUNK as u32, walk.at as *const c_void) };
    if read <= 0 {
        return 1;
    }
    if walk.is_inside == 0 {
        // SAFETY: the helper filled the buffer, with zeroes after the text.
        compare(walk, unsafe { chunk.assume_init_ref() });
    }
    // The helper always ends the piece with a NUL: a full one was cut one byte before.
    let full = read >= CHUNK as i64;
    walk.is_inside = u64::from(full);
    walk.at += if full { CHUNK as u64 - 1 } else { read as u64 };
    0
}

const fn word(text: [u8; 8]) -> u64 {
    u64::from_ne_bytes(text)
}

/// Stores the address of a variable's value, that of the first occurrence (as getenv(3) does).
#[inline(always)]
fn compare(walk: &mut Walk, chunk: &[u64; CHUNK / 8]) {
    let second = chunk[1].to_ne_bytes();
    let (index, skip) = if chunk[0] == const { word(*b"CNI_COMM") } && second[0] == b'A' && second[3] == b'='
    {
        (COMMAND, 12)
    } else if chunk[0] == const { word(*b"CNI_CONT") } && chunk[1] == const { word(*b"AINERID=") } {
        (CONTAINER_ID, 16)
    } else if chunk[0] == const { word(*b"CNI_NETN") } && second[0] == b'S' && second[1] == b'=' {
        (NETNS, 10)
    } else if chunk[0] == const { word(*b"CNI_IFNA") } && second[2] == b'=' {
        (IFNAME, 11)
    } else if chunk[0] == const { word(*b"CNI_ARGS") } && second[0] == b'=' {
        (ARGS, 9)
    } else if chunk[0] == const { word(*b"CNI_PATH") } && second[0] == b'=' {
        (PATH, 9)
    } else {
        return;
    };
    if walk.values[index] == 0 {
        walk.values[index] = walk.at + skip;
    }
}

/// Writes the value of a variable, an empty text if the variable was not found.
#[inline(always)]
fn value<const N: usize>(to: Field<'_, N>, address: u64) {
    if address == 0 { to.empty() } else { to.user_text(address) }
}

/// Writes the path that was passed to execve(2). The kernel keeps it on the new program's stack, directly
/// behind the environment (`AT_EXECFN`, fs/exec.c). Where user memory cannot be read, the path is the file
/// name, which the kernel keeps inside the directory entry up to 31 bytes.
#[inline(always)]
fn path(to: Field<'_, PATH_LEN>, env_end: u64, bprm: *const u8) {
    if get(&HAVE_PROBE_READ) != 0 {
        return to.user_text(env_end);
    }
    // SAFETY: the typed argument; each pointer is checked for null.
    match unsafe { pointer(bprm, &BPRM_FILE).and_then(|file| file.pointer(&FILE_DENTRY)) } {
        Some(dentry) => to.short_name(dentry),
        None => to.empty(),
    }
}

#[inline(always)]
fn cni_exec(walk: &Walk, bprm: *const u8) -> Result<(), Skip> {
    let tgid = current::tgid();
    if PROCESSES.get_ptr(tgid).is_none()
        && let Some(running) = CNI_RUNNING.get_ptr_mut(0)
    {
        // SAFETY: a live map value; see `exit::count_cni_exit`.
        unsafe { *running += 1 };
    }
    let state = ProcessState { started_ns: now(), cni: 1, trusted: 1, ..ProcessState::default() };
    processes::insert(tgid, &state)?;
    report!(CniExec {
        task: current::task(),
        path(to): path(to, walk.end, bprm),
        command(to): value(to, walk.values[COMMAND]),
        container_id(to): value(to, walk.values[CONTAINER_ID]),
        netns(to): value(to, walk.values[NETNS]),
        ifname(to): value(to, walk.values[IFNAME]),
        args(to): value(to, walk.values[ARGS]),
        cni_path(to): value(to, walk.values[PATH]),
    })
}

#[inline(always)]
fn process_exec(env_end: u64, bprm: *const u8) -> Result<(), Skip> {
    let is_admin = origin::is_admin();
    if !is_admin {
        origin::spend()?;
    }
    let tgid = current::tgid();
    let state = ProcessState { started_ns: now(), trusted: u32::from(is_admin), ..ProcessState::default() };
    processes::insert(tgid, &state)?;
    report!(ProcessExec {
        task: current::task(),
        path(to): path(to, env_end, bprm),
    })
}
