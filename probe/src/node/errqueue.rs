//! The error queue of a socket (ip(7), `IP_RECVERR`): which ICMP message terminated a connect, and its
//! sender.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use probe_engine::Icmp;

/// `struct sock_extended_err`, include/uapi/linux/errqueue.h; the sender's address follows it.
const ERROR: usize = 16;

/// Returns the newest ICMP message in the queue; `None` if it has none.
pub(super) fn icmp(socket: BorrowedFd<'_>) -> Option<Icmp> {
    let mut newest = None;
    // Bounded, because the queue may be filled while it is read.
    for _ in 0..16 {
        let Some(entry) = next(socket) else { break };
        newest = parse(&entry).or(newest);
    }
    newest
}

/// Takes one entry from the queue: `struct sock_extended_err` and the address that follows it, empty for any
/// other entry. `None` if the queue is empty.
fn next(socket: BorrowedFd<'_>) -> Option<Vec<u8>> {
    // Of `u64` for the alignment of `struct cmsghdr`.
    let mut control = [0_u64; 32];
    let mut payload = [0_u8; 64];
    let mut part = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    // SAFETY: all-zero bytes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: every pointer in `message` is live and valid for the length beside it.
    let size = unsafe {
        libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
    };
    if size < 0 {
        return None;
    }
    // SAFETY: the kernel has filled `message`, and its control buffer is still live.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if header.is_null() {
        return Some(Vec::new());
    }
    // SAFETY: the macro returned a header inside the buffer, whose length the kernel has set.
    let (level, kind, length) = unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len) };
    let length = length.saturating_sub(size_of::<libc::cmsghdr>()).min(size_of_val(&control));
    // SAFETY: the data follows its header in the same buffer, and `length` is at most that of the buffer.
    let data = unsafe { std::slice::from_raw_parts(libc::CMSG_DATA(header), length) };
    let is_error = matches!(
        (level, kind),
        (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
    );
    Some(if is_error { data.to_vec() } else { Vec::new() })
}

/// Parses `struct sock_extended_err` and the sender's address; `None` if it is not an ICMP message.
pub(super) fn parse(data: &[u8]) -> Option<Icmp> {
    // errno u32, origin u8, type u8, code u8; SO_EE_ORIGIN_ICMP is 2, SO_EE_ORIGIN_ICMP6 is 3.
    let (origin, icmp_type, code) = (*data.get(4)?, *data.get(5)?, *data.get(6)?);
    let v6 = match origin {
        2 => false,
        3 => true,
        _ => return None,
    };
    // struct sockaddr_in or sockaddr_in6, with family 0 if the sender is unknown.
    let family = data.get(ERROR..ERROR + 2).map(|bytes| i32::from(u16::from_ne_bytes([bytes[0], bytes[1]])));
    let from = match family {
        Some(libc::AF_INET) => {
            let octets = data.get(ERROR + 4..ERROR + 8).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
            octets.map(|octets| IpAddr::V4(Ipv4Addr::from(octets)))
        }
        Some(libc::AF_INET6) => {
            let octets = data.get(ERROR + 8..ERROR + 24).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
            octets.map(|octets| IpAddr::V6(Ipv6Addr::from(octets)).to_canonical())
        }
        _ => None,
    };
    Some(Icmp { v6, icmp_type, code, from })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_an_entry_and_rejects_a_truncated_one() {
        let mut data = vec![111, 0, 0, 0, 2, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 10, 99, 0, 1];
        let want = Icmp { v6: false, icmp_type: 3, code: 3, from: Some(IpAddr::from([10, 99, 0, 1])) };
        assert_eq!(parse(&data), Some(want));
        data.truncate(18);
        assert_eq!(parse(&data), Some(Icmp { from: None, ..want }));
        data.truncate(6);
        assert_eq!(parse(&data), None);
    }

    #[test]
    fn empty_queue_is_none() {
        use std::os::fd::AsFd as _;
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        assert_eq!(icmp(socket.as_fd()), None);
    }
}
