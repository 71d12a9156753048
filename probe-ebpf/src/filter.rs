//! Filters: which addresses, ports and processes are watched.

use probe_common::TargetKey;

use crate::maps::{PORTS, PROCESSES, TARGETS};

/// `AF_UNIX`, include/linux/socket.h.
pub(crate) const AF_UNIX: u16 = 1;
/// `AF_INET`, include/linux/socket.h.
pub(crate) const AF_INET: u16 = 2;
/// `AF_INET6`, include/linux/socket.h.
pub(crate) const AF_INET6: u16 = 10;

/// An address as records contain it.
#[derive(Clone, Copy)]
pub(crate) struct Address {
    /// IPv4 in the first four bytes, the rest zero.
    pub(crate) words: [u64; 2],
    /// `AF_INET` or `AF_INET6`.
    pub(crate) family: u16,
}

impl Address {
    /// Makes an address of its bytes in memory order.
    #[inline(always)]
    pub(crate) fn v4(addr: u32) -> Self {
        Self { words: [u64::from_ne_bytes(first_four(addr)), 0], family: AF_INET }
    }

    /// Makes an address of its two halves in memory order.
    #[inline(always)]
    pub(crate) fn v6(words: [u64; 2]) -> Self {
        Self { words, family: AF_INET6 }
    }

    /// Returns the bytes of the address.
    #[inline(always)]
    pub(crate) fn bytes(self) -> [u8; 16] {
        // SAFETY: two u64 are sixteen bytes.
        unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>(self.words) }
    }

    /// Returns the form in which addresses are watched: ::ffff:a.b.c.d becomes a.b.c.d. Records contain the
    /// original address, because the verifier follows the branches here once more for every path that leads
    /// to them.
    #[inline(always)]
    fn canonical(self) -> Self {
        // In memory order: eight zero bytes, then 00 00 ff ff, then the IPv4 address.
        let tail = self.words[1].to_ne_bytes();
        let mark = u32::from_ne_bytes([tail[0], tail[1], tail[2], tail[3]]);
        if self.family == AF_INET6
            && self.words[0] == 0
            && mark == const { u32::from_ne_bytes([0, 0, 0xff, 0xff]) }
        {
            Self::v4(u32::from_ne_bytes([tail[4], tail[5], tail[6], tail[7]]))
        } else {
            self
        }
    }
}

/// Joins two words in memory order.
#[inline(always)]
pub(crate) fn pair(low: u32, high: u32) -> u64 {
    let (low, high) = (low.to_ne_bytes(), high.to_ne_bytes());
    u64::from_ne_bytes([low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]])
}

#[inline(always)]
fn first_four(addr: u32) -> [u8; 8] {
    let a = addr.to_ne_bytes();
    [a[0], a[1], a[2], a[3], 0, 0, 0, 0]
}

/// Returns whether any watched address has this port.
#[inline(always)]
pub(crate) fn port_watched(port: u16) -> bool {
    PORTS.get(u32::from(port) / 64).is_some_and(|word| word >> (port % 64) & 1 == 1)
}

/// Returns whether this process is watched.
#[inline(always)]
pub(crate) fn process_watched(tgid: u32) -> bool {
    PROCESSES.get_ptr(tgid).is_some()
}

/// Returns whether this address is watched, as an exact address or by its port.
#[inline(always)]
pub(crate) fn address_watched(address: Address, port: u16) -> bool {
    if !port_watched(port) {
        return false;
    }
    let address = address.canonical();
    TARGETS.get_ptr(TargetKey { addr: address.bytes(), port, family: address.family }).is_some()
        || TARGETS.get_ptr(TargetKey { addr: [0; 16], port, family: 0 }).is_some()
}
