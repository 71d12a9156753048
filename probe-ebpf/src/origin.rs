//! Limits on events by their origin: events of processes that could break the node anyway are recorded
//! without limit. All others are recorded within a budget, so that they cannot take the room that the node's
//! own components need.
//!
//! The functions are not inlined: most programs call them, and inlining made the object larger by half.

use aya_ebpf::helpers::generated::bpf_get_current_uid_gid;
use probe_common::{BUDGET_EVENTS, BUDGET_INTERVAL_NS, Skip};

use crate::current;
use crate::layout::{
    CRED_CAP_EFFECTIVE, CRED_USER_NS, NSPROXY_PID_NS, PID_NS_INUM, TASK_CRED, TASK_NSPROXY, USER_NS_LEVEL,
};
use crate::maps::{PROCESSES, SOURCES, Source};
use crate::read::KernelPtr;

/// Bit of `CAP_NET_ADMIN` in a capability set, include/uapi/linux/capability.h.
const CAP_NET_ADMIN: u32 = 1 << 12;

/// Returns whether the running task may administer the host's network: its real user is root, and it has
/// `CAP_NET_ADMIN`, in the initial user namespace. The effective user does not count: any user can start a
/// set-user-ID program.
#[inline(never)]
pub(crate) fn is_admin() -> bool {
    // SAFETY: the pointers start at the running task, and each is checked for null.
    real_uid() == 0
        && unsafe { KernelPtr::current_task().pointer(&TASK_CRED) }.is_some_and(|cred| unsafe {
            // The low 32 bits: the set is one word of 64 bits, or two of 32 before 6.3.
            cred.field::<u32>(&CRED_CAP_EFFECTIVE) & CAP_NET_ADMIN != 0 && is_initial(cred)
        })
}

/// Returns whether events of the running task are recorded without limit: those of administrators, and of
/// processes that the agent identified as components of the node.
#[inline(never)]
pub(crate) fn is_unlimited() -> bool {
    // SAFETY: a live map value.
    is_admin() || PROCESSES.get_ptr(current::tgid()).is_some_and(|state| unsafe { (*state).trusted } != 0)
}

/// Charges an event of the running task to its source's budget, unless it is unlimited.
#[inline(always)]
pub(crate) fn charge() -> Result<(), Skip> {
    if is_unlimited() { Ok(()) } else { spend() }
}

/// Charges an event of the running task to the budget of its source.
#[inline(never)]
pub(crate) fn spend() -> Result<(), Skip> {
    let key = source();
    let at = current::now();
    let Some(source) = SOURCES.get_ptr_mut(key) else {
        // A full map evicts the source that was idle longest.
        let _ = SOURCES.insert(key, Source { at_ns: at, spent: 1 }, 0);
        return Ok(());
    };
    // SAFETY: a live map value. Programs on other CPUs may charge the same source at the same time: the
    // budget limits the order of magnitude only.
    unsafe {
        let refilled = at.saturating_sub((*source).at_ns) / BUDGET_INTERVAL_NS;
        if refilled > 0 {
            (*source).at_ns = at;
            (*source).spent = (*source).spent.saturating_sub(refilled);
        }
        if (*source).spent >= BUDGET_EVENTS {
            return Err(Skip::Throttled);
        }
        (*source).spent += 1;
    }
    Ok(())
}

/// Returns the key of the running task's budget: the user, for root in containers its PID namespace. Users
/// can create namespaces, but only in a user namespace of their own.
#[inline(always)]
fn source() -> u64 {
    let uid = real_uid();
    // SAFETY: the pointers start at the running task, and each is checked for null.
    let pids = unsafe {
        let task = KernelPtr::current_task();
        if uid == 0 && task.pointer(&TASK_CRED).is_some_and(|cred| is_initial(cred)) {
            let pids = task.pointer(&TASK_NSPROXY).and_then(|nsproxy| nsproxy.pointer(&NSPROXY_PID_NS));
            pids.map_or(0, |pids| pids.field::<u32>(&PID_NS_INUM))
        } else {
            0
        }
    };
    u64::from(uid) << 32 | u64::from(pids)
}

/// Returns whether the credentials belong to the initial user namespace.
///
/// # Safety
/// `cred` is a `struct cred`.
#[inline(always)]
unsafe fn is_initial(cred: KernelPtr) -> bool {
    // SAFETY: by the caller.
    unsafe {
        cred.pointer(&CRED_USER_NS).is_some_and(|namespace| namespace.field::<u32>(&USER_NS_LEVEL) == 0)
    }
}

/// Returns the real user ID of the running task.
#[inline(always)]
fn real_uid() -> u32 {
    // SAFETY: no precondition. The lower half is the user ID.
    unsafe { bpf_get_current_uid_gid() as u32 }
}
