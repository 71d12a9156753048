//! Plugins that cannot be executed, and running plugins that cannot be replaced.

use aya_ebpf::helpers::generated::bpf_task_pt_regs;
use aya_ebpf::macros::{fexit, tracepoint};
use aya_ebpf::programs::{FExitContext, TracePointContext};
use probe_common::{FileRefused, Hook, Skip};

use super::{run, sys_exit_ret};
use crate::current;
use crate::filter::process_watched;
use crate::layout::{
    DENTRY_INODE, FILENAME_NAME, HAVE_TASK_PT_REGS, INODE_NUMBER, PATH_DENTRY, REGS_ARG1, REGS_ARG2, get,
};
use crate::read::{KernelPtr, current_task, field, number, pointer};
use crate::report::report_charged;

// include/uapi/asm-generic/errno-base.h
const EPERM: i64 = 1;
const EACCES: i64 = 13;
const ETXTBSY: i64 = 26;

/// Location of a file's name.
enum Name {
    /// Address in kernel memory.
    Kernel(u64),
    /// Address in user memory.
    User(u64),
    /// The directory entry, which contains the last component of the path if it is short, and leads to the
    /// inode.
    Entry(KernelPtr),
}

/// Returns whether a failed execution is reported. Refusals are reported for every process. Other errors,
/// which shells and others get for every directory of their `PATH`, are reported only if the parent is a
/// watched process or a plugin.
#[inline(always)]
fn is_reported(ret: i64) -> bool {
    match -ret {
        EPERM | EACCES | ETXTBSY => true,
        // fs/exec.c: values from -MAX_ERRNO (4095) on are errors.
        1..=4095 => process_watched(current::ppid()),
        _ => false,
    }
}

/// fexit/`__x64_sys_execve` and its like: (const struct `pt_regs` *regs) -> long. Sees every error of
/// execve(2): those of an unknown format and of a missing interpreter are found after the file was opened.
#[fexit(function = "__x64_sys_execve")]
pub(crate) fn sys_execve(ctx: FExitContext) -> i32 {
    let ret: i64 = ctx.arg(1);
    if !is_reported(ret) {
        return 0;
    }
    // SAFETY: the typed argument.
    let name = unsafe { field(ctx.arg(0), &REGS_ARG1) };
    run!(Hook::Execve, report_refused(ret, false, &Name::User(name)))
}

/// fexit/`do_open_execat`, fs/exec.c (v5.10): (int fd, struct filename *name, int flags) -> struct file *
#[fexit(function = "do_open_execat")]
pub(crate) fn do_open_execat(ctx: FExitContext) -> i32 {
    run!(Hook::Execve, try_open_execat(ctx.arg(1), number(ctx.arg(3)) as i64))
}

#[inline(always)]
fn try_open_execat(filename: *const u8, ret: i64) -> Result<(), Skip> {
    if !matches!(-ret, EPERM | EACCES | ETXTBSY) {
        return Ok(());
    }
    // SAFETY: the typed argument.
    report_refused(ret, false, &Name::Kernel(unsafe { field(filename, &FILENAME_NAME) }))
}

/// tracepoint/syscalls/sys_exit_execve: the fallback if fexit does not load.
#[tracepoint(category = "syscalls", name = "sys_exit_execve")]
pub(crate) fn sys_exit_execve(ctx: TracePointContext) -> u32 {
    let ret = sys_exit_ret(&ctx);
    if get(&HAVE_TASK_PT_REGS) == 0 || !is_reported(ret) {
        return 0;
    }
    // SAFETY: a typed pointer to the registers that the system call was entered with.
    let name = unsafe { field(bpf_task_pt_regs(current_task() as _) as *const u8, &REGS_ARG1) };
    run!(Hook::Execve, report_refused(ret, false, &Name::User(name)))
}

/// fexit/`vfs_open`, fs/open.c (v5.10): (const struct path *path, struct file *file) -> int.
/// Runs for every open(2) and compares one number.
#[fexit(function = "vfs_open")]
pub(crate) fn vfs_open(ctx: FExitContext) -> i32 {
    let ret = i64::from(ctx.arg::<i32>(2));
    if -ret != ETXTBSY {
        return 0;
    }
    run!(Hook::Openat, try_vfs_open(ctx.arg(0), ret))
}

#[inline(always)]
fn try_vfs_open(path: *const u8, ret: i64) -> Result<(), Skip> {
    // SAFETY: the typed argument, and the pointer is checked for null.
    unsafe {
        let Some(dentry) = pointer(path, &PATH_DENTRY) else { return Ok(()) };
        report_refused(ret, true, &Name::Entry(dentry))
    }
}

/// tracepoint/syscalls/sys_exit_openat: the fallback if fexit does not load.
#[tracepoint(category = "syscalls", name = "sys_exit_openat")]
pub(crate) fn sys_exit_openat(ctx: TracePointContext) -> u32 {
    let ret = sys_exit_ret(&ctx);
    if -ret != ETXTBSY || get(&HAVE_TASK_PT_REGS) == 0 {
        return 0;
    }
    // SAFETY: a typed pointer to the registers that the system call was entered with.
    let name = unsafe { field(bpf_task_pt_regs(current_task() as _) as *const u8, &REGS_ARG2) };
    run!(Hook::Openat, report_refused(ret, true, &Name::User(name)))
}

#[inline(always)]
fn report_refused(ret: i64, write: bool, name: &Name) -> Result<(), Skip> {
    let inode = match *name {
        // SAFETY: a directory entry; the pointer is checked for null.
        Name::Entry(dentry) => unsafe {
            dentry.pointer(&DENTRY_INODE).map_or(0, |inode| inode.field(&INODE_NUMBER))
        },
        Name::Kernel(_) | Name::User(_) => 0,
    };
    report_charged!(FileRefused {
        task: current::task(),
        errno: (-ret) as u32,
        write: u8::from(write),
        _pad: [0; 3],
        inode,
        path(to): match *name {
            Name::Entry(dentry) => to.short_name(dentry),
            Name::Kernel(from) => to.kernel_text(from),
            Name::User(from) => to.user_text(from),
        },
    })
}
