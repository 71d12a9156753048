//! Netlink sockets: a listener that reports from which network namespace a message comes, and requests.

use std::io;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use netlink_sys::{Socket, SocketAddr};
use tokio::io::unix::AsyncFd;

/// Buffer for one datagram, bytes: the kernel builds notifications in a page and dumps in 32 KB
/// (NLMSG_GOODSIZE, net/netlink/af_netlink.c).
const DATAGRAM: usize = 32 * 1024;
/// Receive buffer of the socket, bytes: 100 pods that start at once cause about 500 messages of 1.5 KB.
const QUEUE: usize = 1 << 20;
/// include/linux/socket.h and include/uapi/linux/netlink.h
const SOL_NETLINK: i32 = 270;
const NETLINK_LISTEN_ALL_NSID: i32 = 8;

/// What a [`Listener`] receives.
pub(super) enum Received<'a> {
    /// A datagram of one or more messages, and the id that this network namespace has for the one where they
    /// were sent; `None` for this namespace itself.
    Datagram(&'a [u8], Option<i32>),
    /// The receive buffer was full and the kernel dropped messages.
    Lost,
}

/// A netlink socket that is a member of multicast groups.
pub(super) struct Listener {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
}

impl Listener {
    /// Joins multicast groups of `protocol` in every network namespace for which this one has an id.
    pub(super) fn open(protocol: isize, groups: &[u32]) -> Result<Self> {
        let mut socket = Socket::new(protocol).context("open a netlink socket")?;
        socket.bind_auto().context("bind a netlink socket")?;
        socket.set_non_blocking(true)?;
        // A buffer above net.core.rmem_max needs CAP_NET_ADMIN, which the agent has on a node; a smaller one
        // is acceptable.
        let _ = socket.set_rx_buf_sz(u32::try_from(QUEUE).unwrap_or(u32::MAX));
        socket.set_listen_all_namespaces(true).context("listen to every namespace")?;
        for group in groups {
            socket.add_membership(*group).context("join a netlink group")?;
        }
        // SAFETY: the socket owns its descriptor, keeps it open until it is dropped, and always returns it.
        let socket = unsafe { AsyncFd::register(socket) }.context("watch a netlink socket")?;
        Ok(Self { socket, buffer: vec![0; DATAGRAM] })
    }

    /// Waits for the next datagram.
    pub(super) async fn next(&mut self) -> io::Result<Received<'_>> {
        let (length, nsid) = loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| receive(socket.get_ref(), &mut self.buffer)) {
                Ok(Ok(received)) => break received,
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Received::Lost),
                Ok(Err(error)) => return Err(error),
                Err(_) => {}
            }
        };
        Ok(self.buffer.get(..length).map_or(Received::Lost, |datagram| Received::Datagram(datagram, nsid)))
    }
}

/// Receives one datagram. Returns its full length, which may exceed that of the buffer, and the id of its
/// namespace.
fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<(usize, Option<i32>)> {
    let mut control = [0_u64; 8];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero bytes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: every pointer in `message` is live and valid for the length beside it.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_TRUNC) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let mut nsid = None;
    // SAFETY: the macros walk the control messages that recvmsg(2) wrote into `control`, within their
    // lengths.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if ((*header).cmsg_level, (*header).cmsg_type) == (SOL_NETLINK, NETLINK_LISTEN_ALL_NSID) {
                nsid = Some(libc::CMSG_DATA(header).cast::<i32>().read_unaligned());
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok((length, nsid))
}

/// Longest response that is read, bytes: 4,000 links of 2 KB.
const RESPONSE: usize = 8 << 20;
/// include/uapi/linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_MULTI: u16 = 2;

/// Returns the messages of one or more concatenated datagrams, up to the first that is truncated.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        // `struct nlmsghdr` has 16 bytes and begins with the length; messages are aligned to four bytes.
        let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
        let message = datagram.get(..length).filter(|_| length >= 16)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Returns whether more datagrams follow, and the positive errno if the kernel rejected the request, else 0.
pub(super) fn end_of(datagram: &[u8]) -> (bool, i32) {
    let mut more = false;
    for message in messages(datagram) {
        let half = |at: usize| u16::from_ne_bytes([message[at], message[at + 1]]);
        match half(4) {
            NLMSG_ERROR => {
                let errno = message.get(16..20).and_then(|errno| errno.try_into().ok());
                return (false, errno.map_or(libc::EIO, |errno| i32::from_ne_bytes(errno).saturating_neg()));
            }
            NLMSG_DONE => return (false, 0),
            _ => more = half(6) & NLM_F_MULTI != 0,
        }
    }
    (more, 0)
}

/// Sends a request and returns the datagrams of its response, for messages that the libraries do not
/// implement.
///
/// # Errors
/// If the kernel rejects the request, or does not respond within 1 s.
pub(super) fn ask(protocol: isize, request: &[u8]) -> Result<Vec<u8>> {
    let mut socket = Socket::new(protocol).context("open a netlink socket")?;
    socket.bind_auto()?;
    let timeout = libc::timeval { tv_sec: 1, tv_usec: 0 };
    // SAFETY: `timeout` is live and of this size.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const timeout).cast(),
            libc::socklen_t::try_from(size_of_val(&timeout))?,
        )
    };
    anyhow::ensure!(set == 0, "set the timeout of a netlink socket: {}", io::Error::last_os_error());
    socket.send_to(request, &SocketAddr::new(0, 0), 0).context("send a netlink request")?;
    let mut response = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full().context("receive a netlink response")?;
        let (more, errno) = end_of(&datagram);
        anyhow::ensure!(errno == 0, "netlink request rejected: {}", io::Error::from_raw_os_error(errno));
        response.extend(datagram);
        if !more || response.len() > RESPONSE {
            return Ok(response);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_messages_up_to_the_first_truncated_one() {
        let message = |kind: u16, flags: u16| {
            let mut bytes = [&20_u32.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes()].concat();
            bytes.resize(20, 0);
            bytes
        };
        let two = [message(20, NLM_F_MULTI), message(20, NLM_F_MULTI)].concat();
        assert_eq!(messages(&two).count(), 2);
        assert_eq!(messages(&two[..39]).count(), 1);
        assert_eq!(messages(&[0; 16]).count(), 0);
        assert_eq!(end_of(&two), (true, 0));
        assert_eq!(end_of(&[two, message(NLMSG_DONE, NLM_F_MULTI)].concat()), (false, 0));
        let mut rejection = message(NLMSG_ERROR, 0);
        rejection[16..20].copy_from_slice(&(-libc::EOPNOTSUPP).to_ne_bytes());
        assert_eq!(end_of(&rejection), (false, libc::EOPNOTSUPP));
    }
}
