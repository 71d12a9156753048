//! Results of connect(2): failures before a packet is sent, which no socket state shows, and connects of
//! plugins and agents to Unix sockets.

use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::helpers::generated::bpf_task_pt_regs;
use aya_ebpf::macros::{fexit, tracepoint};
use aya_ebpf::programs::{FExitContext, TracePointContext};
use probe_common::{ConnectError, Hook, Skip, UNIX_PATH_LEN, UnixConnect};

use super::{run, sys_exit_ret};
use crate::current;
use crate::filter::{AF_INET, AF_INET6, AF_UNIX, Address, address_watched, pair, process_watched};
use crate::layout::{HAVE_PROBE_READ, HAVE_TASK_PT_REGS, REGS_ARG2, get};
use crate::maps::PROCESSES;
use crate::read::{current_task, field};
use crate::report::report_charged;

// include/uapi/asm-generic/errno.h: the connect is in progress, or its socket has entered SYN_SENT.
const EINTR: i64 = 4;
const ERESTARTSYS: i64 = 512;
const EISCONN: i64 = 106;
const ETIMEDOUT: i64 = 110;
const ECONNREFUSED: i64 = 111;
const EALREADY: i64 = 114;
const EINPROGRESS: i64 = 115;

/// fexit/`__sys_connect_file`, net/socket.c (v5.10):
/// (struct file *file, struct sockaddr_storage *address, int addrlen, int file_flags) -> int.
/// Runs for connects only.
#[fexit(function = "__sys_connect_file")]
pub(crate) fn sys_connect_file(ctx: FExitContext) -> i32 {
    run!(Hook::Connect, try_connect(&Kernel(ctx.arg(1)), i64::from(ctx.arg::<i32>(4))))
}

/// tracepoint/syscalls/sys_exit_connect: the fallback if fexit does not load. The address is read from the
/// registers of the system call.
#[tracepoint(category = "syscalls", name = "sys_exit_connect")]
pub(crate) fn sys_exit_connect(ctx: TracePointContext) -> u32 {
    run!(Hook::Connect, try_exit_connect(&ctx))
}

#[inline(always)]
fn try_exit_connect(ctx: &TracePointContext) -> Result<(), Skip> {
    if get(&HAVE_TASK_PT_REGS) == 0 || get(&HAVE_PROBE_READ) == 0 {
        return Ok(());
    }
    let ret = sys_exit_ret(ctx);
    // SAFETY: a typed pointer to the registers that the system call was entered with.
    let address = unsafe { field::<u64>(bpf_task_pt_regs(current_task() as _) as *const u8, &REGS_ARG2) };
    try_connect(&User(address as *const u8), ret)
}

/// A `struct sockaddr_*` in kernel or user memory.
trait Sockaddr {
    /// Reads the value at `offset`, which must be inside `struct sockaddr_storage`.
    fn read<T: Copy>(&self, offset: usize) -> Result<T, Skip>;
}

/// The kernel's copy, behind a typed pointer.
struct Kernel(*const u8);

impl Sockaddr for Kernel {
    #[inline(always)]
    fn read<T: Copy>(&self, offset: usize) -> Result<T, Skip> {
        // SAFETY: a typed argument; the verifier checks that the load is inside its type.
        Ok(unsafe { core::ptr::read_volatile(self.0.add(offset).cast::<T>()) })
    }
}

/// The original in the memory of the caller.
struct User(*const u8);

impl Sockaddr for User {
    #[inline(always)]
    fn read<T: Copy>(&self, offset: usize) -> Result<T, Skip> {
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_user(self.0.add(offset).cast::<T>()) }.map_err(|_| Skip::Unreadable)
    }
}

#[inline(always)]
fn try_connect(address: &impl Sockaddr, ret: i64) -> Result<(), Skip> {
    let errno = -ret;
    let is_early = !matches!(
        errno,
        0 | EINTR | ERESTARTSYS | EISCONN | ETIMEDOUT | ECONNREFUSED | EALREADY | EINPROGRESS
    );
    let state = PROCESSES.get_ptr(current::tgid());
    if !is_early && state.is_none() {
        return Ok(());
    }
    match address.read::<u16>(0)? {
        AF_UNIX => match state {
            // SAFETY: a live map value.
            Some(state) => unix(address, errno, unsafe { (*state).cni } != 0),
            None => Ok(()),
        },
        family @ (AF_INET | AF_INET6) if is_early => inet(address, family, errno),
        _ => Ok(()),
    }
}

/// Reports a failed connect. `sockaddr_in` and `sockaddr_in6` both start with the family and the port; then
/// follows an IPv4 address, or the flow label and an IPv6 address.
#[inline(always)]
fn inet(sockaddr: &impl Sockaddr, family: u16, errno: i64) -> Result<(), Skip> {
    let port = u16::from_be(sockaddr.read::<u16>(2)?);
    let address = if family == AF_INET {
        Address::v4(sockaddr.read::<u32>(4)?)
    } else {
        let word = |index: usize| sockaddr.read::<u32>(8 + index * 4);
        Address::v6([pair(word(0)?, word(1)?), pair(word(2)?, word(3)?)])
    };
    if !address_watched(address, port) && !process_watched(current::tgid()) {
        return Ok(());
    }
    report_charged!(ConnectError {
        task: current::task(),
        daddr: address.bytes(),
        dport: port,
        family: address.family,
        errno: errno as u32,
    })
}

/// Reports a connect to a Unix socket. In `sockaddr_un` the path follows the family.
#[inline(always)]
fn unix(sockaddr: &impl Sockaddr, errno: i64, cni: bool) -> Result<(), Skip> {
    // Before the record is reserved: each failed read would need a path of its own to discard it.
    let mut path = [0_u16; UNIX_PATH_LEN / 2 - 2];
    for (index, pair) in path.iter_mut().enumerate() {
        // Volatile, because the compiler would replace the loop by a call.
        // SAFETY: a live reference.
        unsafe { core::ptr::write_volatile(pair, sockaddr.read::<u16>(2 + index * 2)?) };
    }
    report_charged!(UnixConnect {
        task: current::task(),
        path(to): to.pairs(&path),
        errno: errno as u32,
        cni: u8::from(cni),
        _pad: [0; 3],
    })
}
