//! The error queue of a socket: which ICMP message ended a connect, and who sent it; ip(7), `IP_RECVERR`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use probe_engine::Icmp;

/// `struct sock_extended_err`, include/uapi/linux/errqueue.h; the sender's address follows it.
const ERROR: usize = 16;

/// The newest entry, when it is an ICMP message; none when the queue is empty.
pub(super) fn icmp(socket: BorrowedFd<'_>) -> Option<Icmp> {
    let mut newest = None;
    // Bounded: a queue that fills up while it is read is left as it is.
    for _ in 0..16 {
        let Some(entry) = next(socket) else { break };
        newest = parse(&entry).or(newest);
    }
    newest
}

/// Takes one entry: its `struct sock_extended_err` and what follows, empty for anything else.
fn next(socket: BorrowedFd<'_>) -> Option<Vec<u8>> {
    // As `struct cmsghdr` wants it.
    let mut control = [0_u64; 32];
    let mut payload = [0_u8; 64];
    let mut part = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    // SAFETY: all zero is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: every pointer in `message` is live and of the length that stands beside it.
    let size = unsafe {
        libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
    };
    if size < 0 {
        return None;
    }
    // SAFETY: the kernel has filled `message`, and its buffer lives on.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if header.is_null() {
        return Some(Vec::new());
    }
    // SAFETY: the macro answers with a header inside the buffer, whose length the kernel has set.
    let (level, kind, length) = unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len) };
    let length = length.saturating_sub(size_of::<libc::cmsghdr>()).min(size_of_val(&control));
    // SAFETY: as above; the data follows its header.
    let data = unsafe { std::slice::from_raw_parts(libc::CMSG_DATA(header), length) };
    let ours = matches!(
        (level, kind),
        (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
    );
    Some(if ours { data.to_vec() } else { Vec::new() })
}

pub(super) fn parse(data: &[u8]) -> Option<Icmp> {
    // errno u32, origin u8, type u8, code u8; SO_EE_ORIGIN_ICMP is 2, SO_EE_ORIGIN_ICMP6 is 3.
    let (origin, icmp_type, code) = (*data.get(4)?, *data.get(5)?, *data.get(6)?);
    let v6 = match origin {
        2 => false,
        3 => true,
        _ => return None,
    };
    // struct sockaddr_in or sockaddr_in6, with family 0 when the sender is not known.
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
    fn an_entry_is_read_and_a_short_one_refused() {
        let mut data = vec![111, 0, 0, 0, 2, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 10, 99, 0, 1];
        let want = Icmp { v6: false, icmp_type: 3, code: 3, from: Some(IpAddr::from([10, 99, 0, 1])) };
        assert_eq!(parse(&data), Some(want));
        data.truncate(18);
        assert_eq!(parse(&data), Some(Icmp { from: None, ..want }));
        data.truncate(6);
        assert_eq!(parse(&data), None);
    }

    #[test]
    fn an_empty_queue_is_none() {
        use std::os::fd::AsFd as _;
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        assert_eq!(icmp(socket.as_fd()), None);
    }
}
