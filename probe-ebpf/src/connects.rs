//! Entries of connects in progress and of connections to watched ports, by the address of their `struct
//! sock`.
//!
//! Every reset, every failed connect and most drops of the machine look a socket up here, and nearly all of
//! these lookups find nothing. So each socket maps to one slot of an array, whose lookup the verifier turns
//! into an addition. Only a socket whose slot is taken goes into a hash map, which costs ten times as much
//! and is looked up only while it has entries.

use aya_ebpf::bindings::BPF_NOEXIST;
use probe_common::{CONNECT_SLOTS, Skip};

use crate::maps::{CONNECTS, OVERFLOWED, Pending, SLOTS, Slot};
use crate::read::number;

/// Bits of [`Slot::owner`] below the socket's address: the number of current claims to the slot, that of its
/// owner included.
const CLAIM_BITS: u32 = 16;

/// Returns the entry of a socket.
#[inline(always)]
pub(crate) fn find(sk: u64) -> Option<*mut Pending> {
    let sk = number(sk);
    let slot = slot(sk)?;
    // SAFETY: `slot` is a live map value.
    unsafe {
        if is_owned_by(slot, sk) {
            return Some(&raw mut (*slot).pending);
        }
    }
    if OVERFLOWED.get(0).is_none_or(|count| *count == 0) {
        return None;
    }
    CONNECTS.get_ptr_mut(sk)
}

/// Inserts a new connect, and replaces the entry of an earlier socket at the same address. If the slot is
/// taken, only an unlimited connect goes into the hash map, because limited ones could fill it.
#[inline(always)]
pub(crate) fn insert(sk: u64, pending: &Pending, is_unlimited: bool) -> Result<(), Skip> {
    let sk = number(sk);
    let Some(slot) = slot(sk) else { return Err(Skip::MapFull) };
    // SAFETY: `slot` is a live map value. Of two programs that claim a slot at the same time, at most one
    // finds no other claim: that program gets the slot, or none does.
    unsafe {
        if is_owned_by(slot, sk) {
            (&raw mut (*slot).pending).write(*pending);
            return Ok(());
        }
        add(&raw mut (*slot).owner, 1);
        if owner(slot) == 1 {
            (&raw mut (*slot).pending).write(*pending);
            add(&raw mut (*slot).owner, key(sk) << CLAIM_BITS);
            return Ok(());
        }
        add(&raw mut (*slot).owner, 1_u64.wrapping_neg());
    }
    if !is_unlimited {
        return Err(Skip::Throttled);
    }
    if CONNECTS.insert(sk, pending, u64::from(BPF_NOEXIST)).is_ok() {
        count_overflow(1);
        return Ok(());
    }
    // The socket has an entry from an earlier socket, or the map is full.
    CONNECTS.insert(sk, pending, 0).map_err(|_| Skip::MapFull)
}

/// Removes the entry of a socket that [`find`] has found.
#[inline(always)]
pub(crate) fn remove(sk: u64) {
    let sk = number(sk);
    let Some(slot) = slot(sk) else { return };
    // SAFETY: `slot` is a live map value. Only the transitions of this socket remove its entry, so no other
    // program releases the slot. One addition removes the key and the claim, so that no other program sees
    // one without the other.
    unsafe {
        if is_owned_by(slot, sk) {
            add(&raw mut (*slot).owner, ((key(sk) << CLAIM_BITS) + 1).wrapping_neg());
            return;
        }
    }
    if CONNECTS.remove(sk).is_ok() {
        count_overflow(1_u64.wrapping_neg());
    }
}

/// Returns the low 48 bits of the address: those above are the same for all addresses of kernel memory.
#[inline(always)]
fn key(sk: u64) -> u64 {
    sk & (u64::MAX >> CLAIM_BITS)
}

/// Returns the slot of a socket. Sockets are adjacent in their slab: a multiplication by 2^64 divided by the
/// golden ratio spreads them evenly.
#[inline(always)]
fn slot(sk: u64) -> Option<*mut Slot> {
    let spread = sk.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - CONNECT_SLOTS.trailing_zeros());
    SLOTS.get_ptr_mut(spread as u32)
}

/// Returns the owner of the slot and the claims.
///
/// # Safety
/// `slot` is a live map value.
#[inline(always)]
unsafe fn owner(slot: *const Slot) -> u64 {
    // SAFETY: by the caller; one load of an aligned word.
    unsafe { core::ptr::read_volatile(&raw const (*slot).owner) }
}

/// Returns whether the slot holds the entry of this socket.
///
/// # Safety
/// As [`owner`].
#[inline(always)]
unsafe fn is_owned_by(slot: *const Slot, sk: u64) -> bool {
    // SAFETY: by the caller.
    unsafe { owner(slot) >> CLAIM_BITS == key(sk) }
}

#[inline(always)]
fn count_overflow(by: u64) {
    if let Some(count) = OVERFLOWED.get_ptr_mut(0) {
        // SAFETY: a live map value.
        unsafe { add(count, by) };
    }
}

/// Adds atomically and returns nothing: the only atomic operation that Linux 5.10 has. The standard library
/// has none for this target.
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
