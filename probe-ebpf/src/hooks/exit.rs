//! Exits of watched and CNI processes, and the senders of signals.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::debug;
use probe_common::{Exit, Hook, ProcessState, Skip};

use super::run;
use crate::current;
use crate::layout::{
    HAVE_PROBE_READ, MARK_VICTIM_TASK, SIGINFO_CODE, SIGNAL_FLAGS, SIGNAL_GROUP_EXIT_CODE, SIGNAL_LIVE,
    TASK_EXIT_CODE, TASK_GROUP_LEADER, TASK_SIGNAL, TASK_TGID, get,
};
use crate::maps::{CNI_RUNNING, PROCESSES};
use crate::processes;
use crate::read::{field, pointer};
use crate::report::report;

/// include/linux/sched/signal.h
const SIGNAL_GROUP_EXIT: u32 = 4;
/// Signals that usually terminate a process, include/uapi/asm-generic/signal.h: HUP INT QUIT ILL
/// TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE TERM XCPU SYS. SIGURG (Go's preemption), SIGCHLD and SIGALRM
/// are not among them: they are sent by the thousand and terminate nothing.
const FATAL: u64 = 1 << 1
    | 1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 7
    | 1 << 8
    | 1 << 9
    | 1 << 11
    | 1 << 13
    | 1 << 15
    | 1 << 24
    | 1 << 31;
/// `SI_USER` and `SI_KERNEL`, include/uapi/asm-generic/siginfo.h.
const SI_USER: i32 = 0;
const SI_KERNEL: i32 = 128;

/// proto(v5.10): include/trace/events/sched.h: (struct task_struct *p)
#[btf_tracepoint(function = "sched_process_exit")]
pub(crate) fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    run!(Hook::SchedProcessExit, try_exit(&ctx))
}

#[inline(always)]
fn try_exit(ctx: &BtfTracePointContext) -> Result<(), Skip> {
    let tgid = current::tgid();
    let Some(state) = PROCESSES.get_ptr(tgid) else { return Ok(()) };
    let task: *const u8 = ctx.arg(0);
    // SAFETY: `task` is the typed argument; each pointer behind it is checked for null.
    let status = unsafe {
        let Some(signal) = pointer(task, &TASK_SIGNAL) else { return Ok(()) };
        let live: u32 = signal.field(&SIGNAL_LIVE);
        if live != 0 {
            return Ok(());
        }
        let flags: u32 = signal.field(&SIGNAL_FLAGS);
        if flags & SIGNAL_GROUP_EXIT != 0 {
            signal.field(&SIGNAL_GROUP_EXIT_CODE)
        } else {
            // wait(2) returns the code of the leader, even if another thread exits last.
            pointer(task, &TASK_GROUP_LEADER).map_or(0, |leader| leader.field(&TASK_EXIT_CODE))
        }
    };
    // SAFETY: a live map value.
    let done = unsafe { report_exit(&*state, status) };
    // SAFETY: as above.
    if unsafe { (*state).cni } != 0 {
        count_cni_exit();
    }
    processes::remove(tgid, state);
    done
}

#[inline(always)]
fn report_exit(state: &ProcessState, status: u32) -> Result<(), Skip> {
    report!(Exit {
        task: current::task(),
        started_ns: state.started_ns,
        status,
        signal: state.signal,
        signal_code: state.signal_code,
        sender: state.sender,
        sender_comm: state.sender_comm,
        oom: u8::from(state.oom != 0),
        cni: u8::from(state.cni != 0),
        _pad: [0; 6],
    })
}

#[inline(always)]
fn count_cni_exit() {
    if let Some(running) = CNI_RUNNING.get_ptr_mut(0) {
        // SAFETY: a live map value. The count may be wrong under races: it only saves a lookup for write(2),
        // and the process table decides.
        unsafe {
            if *running > 0 {
                *running -= 1;
            }
        }
    }
}

/// proto(v5.10): include/trace/events/signal.h:
/// (int sig, struct kernel_siginfo *info, struct task_struct *task, int group, int result)
#[btf_tracepoint(function = "signal_generate")]
pub(crate) fn signal_generate(ctx: BtfTracePointContext) -> i32 {
    let signal: i32 = ctx.arg(0);
    if !(1..64).contains(&signal) || FATAL >> signal & 1 == 0 {
        return 0;
    }
    let task: *const u8 = ctx.arg(2);
    // SAFETY: `task` is the typed argument.
    let tgid: u32 = unsafe { field(task, &TASK_TGID) };
    let Some(state) = PROCESSES.get_ptr_mut(tgid) else { return 0 };
    let info: u64 = ctx.arg(1);
    // SEND_SIG_NOINFO is 0 and SEND_SIG_PRIV is 1, include/linux/sched/signal.h: they are not pointers, and
    // newer verifiers do not treat the argument as one.
    let code = match info {
        0 => SI_USER,
        1 => SI_KERNEL,
        _ if get(&HAVE_PROBE_READ) == 0 => SI_USER,
        // SAFETY: the helper checks the address.
        _ => unsafe { bpf_probe_read_kernel((info as usize + get(&SIGINFO_CODE)) as *const i32) }
            .unwrap_or(SI_USER),
    };
    let comm = current::comm();
    // SAFETY: a live map value; the fields of two concurrent senders may be mixed, and each comes from one of
    // them.
    unsafe {
        (*state).signal = signal as u32;
        (*state).signal_code = code;
        (*state).sender = current::tgid();
        (*state).sender_comm = comm;
    }
    0
}

/// proto(v5.10): include/trace/events/oom.h: (int pid); proto(v6.9): (struct task_struct *task, uid_t uid)
#[btf_tracepoint(function = "mark_victim")]
pub(crate) fn mark_victim(ctx: BtfTracePointContext) -> i32 {
    let pid = if get(&MARK_VICTIM_TASK) != 0 {
        // SAFETY: the typed argument.
        unsafe { field::<u32>(ctx.arg(0), &TASK_TGID) }
    } else {
        ctx.arg::<u32>(0)
    };
    if let Some(state) = PROCESSES.get_ptr_mut(pid) {
        // SAFETY: a live map value.
        unsafe { (*state).oom = 1 };
        // Rare enough for the log of the kernel programs (`probe -v`).
        debug!(&ctx, "out of memory: watched process {} was chosen", pid);
    }
    0
}
