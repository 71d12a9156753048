//! Fields of `struct sock`.

use probe_common::ConnectEnd;

use crate::current;
use crate::filter::{AF_INET6, Address, pair};
use crate::layout::{
    NET_INUM, SOCK_DADDR, SOCK_DPORT, SOCK_FAMILY, SOCK_NET, SOCK_NUM, SOCK_RCV_SADDR, SOCK_V6_DADDR,
    SOCK_V6_RCV_SADDR, get,
};
use crate::maps::Pending;
use crate::read::{field, pointer};

/// Returns the remote address, and the remote port in host byte order.
#[inline(always)]
pub(super) fn remote(sk: *const u8) -> (Address, u16) {
    // SAFETY: `sk` is the program's own typed argument.
    unsafe {
        let port = u16::from_be(field(sk, &SOCK_DPORT));
        let family: u16 = field(sk, &SOCK_FAMILY);
        let address =
            if family == AF_INET6 { v6(sk, &SOCK_V6_DADDR) } else { Address::v4(field(sk, &SOCK_DADDR)) };
        (address, port)
    }
}

/// Returns the local address.
#[inline(always)]
pub(super) fn local(sk: *const u8) -> Address {
    // SAFETY: `sk` is the program's own typed argument.
    unsafe {
        let family: u16 = field(sk, &SOCK_FAMILY);
        if family == AF_INET6 { v6(sk, &SOCK_V6_RCV_SADDR) } else { Address::v4(field(sk, &SOCK_RCV_SADDR)) }
    }
}

/// # Safety
/// As [`field`]. The four words of an address are aligned to four bytes only.
#[inline(always)]
unsafe fn v6(sk: *const u8, offset: &'static u32) -> Address {
    // SAFETY: by the caller; an in6_addr is sixteen bytes.
    unsafe {
        let word = |index: usize| core::ptr::read_volatile(sk.add(get(offset) + index * 4).cast::<u32>());
        Address::v6([pair(word(0), word(1)), pair(word(2), word(3))])
    }
}

/// Returns the inode number of the network namespace.
#[inline(always)]
pub(super) fn netns(sk: *const u8) -> u32 {
    // SAFETY: `sk` is the program's own typed argument, and the pointer is checked for null.
    unsafe { pointer(sk, &SOCK_NET).map_or(0, |net| net.field(&NET_INUM)) }
}

/// Returns whether the entry belongs to this socket, with this remote port, while it connects or once it is
/// established. It does not if it was left by an earlier socket at the same address: the kernel may have
/// skipped the program run that would have removed it.
#[inline(always)]
pub(super) fn is_of(pending: &Pending, sk: *const u8, port: u16, is_established: bool) -> bool {
    if pending.dport != port {
        return false;
    }
    if !is_established {
        return pending.sport == 0;
    }
    // SAFETY: `sk` is the program's own typed argument.
    let sport: u16 = unsafe { field(sk, &SOCK_NUM) };
    // A socket that closes at once has already released its local port.
    pending.sport != 0 && (sport == 0 || sport == pending.sport)
}

/// Returns the flags that the entry of a connect or connection determines.
#[inline(always)]
pub(super) fn flags(pending: &Pending) -> u8 {
    let rst = if pending.rst != 0 { ConnectEnd::RST } else { 0 };
    let by_caller = if current::tgid() == pending.task.tgid { ConnectEnd::BY_CALLER } else { 0 };
    let asked = if pending.asked_family != 0 { ConnectEnd::ASKED } else { 0 };
    rst | by_caller | asked
}
