//! Connects under way and connections to watched ports, by the address of their `struct sock`.
//!
//! Every reset, every failed connect and most drops of the machine ask whether a socket is among them, and the answer is
//! no nearly always. So each socket has one slot of an array, whose look-up the verifier turns into an addition; only who
//! finds its slot taken goes into a hash, which costs ten times as much and is asked while it holds any.

use aya_ebpf::bindings::BPF_NOEXIST;
use probe_common::{CONNECT_SLOTS, Skip};

use crate::maps::{CONNECTS, ELSEWHERE, Pending, SLOTS, Slot};
use crate::read::number;

/// Bits of [`Slot::owner`] below the socket's address: how many programs claim the slot now, its owner among them.
const CLAIM_BITS: u32 = 16;

/// What is known of a socket's connect.
#[inline(always)]
pub(crate) fn find(sk: u64) -> Option<*mut Pending> {
    let sk = number(sk);
    let slot = slot(sk)?;
    // SAFETY: a live map value.
    unsafe {
        if is_of(slot, sk) {
            return Some(&raw mut (*slot).pending);
        }
    }
    if ELSEWHERE.get(0).is_none_or(|count| *count == 0) {
        return None;
    }
    CONNECTS.get_ptr_mut(sk)
}

/// A new connect; what was known of an earlier socket at the same address is forgotten. If its slot is taken, only one that is
/// unlimited goes into the hash, which others could fill.
#[inline(always)]
pub(crate) fn insert(sk: u64, pending: &Pending, is_unlimited: bool) -> Result<(), Skip> {
    let sk = number(sk);
    let Some(slot) = slot(sk) else { return Err(Skip::MapFull) };
    // SAFETY: a live map value. Of two programs that claim a slot at the same time at most one finds its own claim alone
    // there: it gets the slot, or nobody does.
    unsafe {
        if is_of(slot, sk) {
            (&raw mut (*slot).pending).write(*pending);
            return Ok(());
        }
        add(&raw mut (*slot).owner, 1);
        if owner(slot) == 1 {
            (&raw mut (*slot).pending).write(*pending);
            add(&raw mut (*slot).owner, name(sk) << CLAIM_BITS);
            return Ok(());
        }
        add(&raw mut (*slot).owner, 1_u64.wrapping_neg());
    }
    if !is_unlimited {
        return Err(Skip::Throttled);
    }
    if CONNECTS.insert(sk, pending, u64::from(BPF_NOEXIST)).is_ok() {
        count_elsewhere(1);
        return Ok(());
    }
    // Left over, or there is no room.
    CONNECTS.insert(sk, pending, 0).map_err(|_| Skip::MapFull)
}

/// Its end; only after [`find`].
#[inline(always)]
pub(crate) fn remove(sk: u64) {
    let sk = number(sk);
    let Some(slot) = slot(sk) else { return };
    // SAFETY: a live map value, and only this socket's own transitions come here: nobody else gives its slot back. Name and
    // claim go in one addition: the slot is free or taken, never half of both.
    unsafe {
        if is_of(slot, sk) {
            add(&raw mut (*slot).owner, ((name(sk) << CLAIM_BITS) + 1).wrapping_neg());
            return;
        }
    }
    if CONNECTS.remove(sk).is_ok() {
        count_elsewhere(1_u64.wrapping_neg());
    }
}

/// The low 48 bits: those above are the same for all addresses of the kernel's own memory.
#[inline(always)]
fn name(sk: u64) -> u64 {
    sk & (u64::MAX >> CLAIM_BITS)
}

/// Sockets are neighbours in their slab: multiplied with 2^64 divided by the golden ratio they spread evenly.
#[inline(always)]
fn slot(sk: u64) -> Option<*mut Slot> {
    let spread = sk.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - CONNECT_SLOTS.trailing_zeros());
    SLOTS.get_ptr_mut(spread as u32)
}

/// # Safety
/// `slot` is a live map value.
#[inline(always)]
unsafe fn owner(slot: *const Slot) -> u64 {
    // SAFETY: by the caller; one load of an aligned word.
    unsafe { core::ptr::read_volatile(&raw const (*slot).owner) }
}

/// # Safety
/// As [`owner`].
#[inline(always)]
unsafe fn is_of(slot: *const Slot, sk: u64) -> bool {
    // SAFETY: by the caller.
    unsafe { owner(slot) >> CLAIM_BITS == name(sk) }
}

#[inline(always)]
fn count_elsewhere(by: u64) {
    if let Some(count) = ELSEWHERE.get_ptr_mut(0) {
        // SAFETY: a live map value.
        unsafe { add(count, by) };
    }
}

/// Atomically, without an answer: the only atomic operation that Linux 5.10 takes. The library of the language has none
/// for this target.
///
/// # Safety
/// `word` is a live, aligned map value.
#[inline(always)]
unsafe fn add(word: *mut u64, by: u64) {
    // SAFETY: by the caller.
    #[cfg(target_arch = "bpf")]
    unsafe {
        core::arch::asm!("lock *(u64 *)({word} + 0) += {by}", word = in(reg) word, by = in(reg) by);
    }
    #[cfg(not(target_arch = "bpf"))]
    let _ = (word, by);
}
