//! The ICMP message that ended a connect.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use probe_common::ConnectEnd;

use crate::layout::{
    HAVE_PROBE_READ, SK_BUFF_CB, SK_BUFF_HEAD, SK_BUFF_NETWORK_HEADER, SOCK_ERROR_QUEUE_PREV,
    SOCK_ERROR_QUEUE_QLEN, SOCK_EXTERR_EE, get,
};
use crate::read::{field, pointer};

/// `SO_EE_ORIGIN_ICMP`, include/uapi/linux/errqueue.h.
const ORIGIN_ICMP: u8 = 2;

/// The newest entry of a socket's error queue.
#[derive(Clone, Copy, Default)]
pub(super) struct Message {
    pub(super) origin: u8,
    pub(super) kind: u8,
    pub(super) code: u8,
    /// IPv4 source, network byte order.
    pub(super) from: [u8; 4],
    /// [`ConnectEnd::ICMP`] and [`ConnectEnd::ICMP_FROM`], as far as the message was read.
    pub(super) flags: u8,
}

/// Reads the newest entry of the socket's error queue. For a non-blocking connect that was rejected while
/// connect(2) still held the socket, it is the only trace of the ICMP message.
///
/// # Safety
/// `sk` is the typed argument.
#[inline(always)]
pub(super) unsafe fn newest(sk: *const u8) -> Message {
    let mut message = Message::default();
    // SAFETY: by the caller; the queue is not empty, so its tail is an sk_buff.
    unsafe {
        let queued: u32 = field(sk, &SOCK_ERROR_QUEUE_QLEN);
        if queued == 0 {
            return message;
        }
        let Some(skb) = pointer(sk, &SOCK_ERROR_QUEUE_PREV) else { return message };
        // struct sock_extended_err, include/uapi/linux/errqueue.h: errno u32, origin, type, code.
        let at = get(&SK_BUFF_CB) + get(&SOCK_EXTERR_EE);
        message.origin = skb.at(at + 4);
        message.kind = skb.at(at + 5);
        message.code = skb.at(at + 6);
        message.flags = ConnectEnd::ICMP;
        if message.origin != ORIGIN_ICMP || get(&HAVE_PROBE_READ) == 0 {
            return message;
        }
        // The queued buffer still holds the IP header of the ICMP message; the source address is at offset 12
        // (RFC 791).
        let head: u64 = skb.field(&SK_BUFF_HEAD);
        let network: u16 = skb.field(&SK_BUFF_NETWORK_HEADER);
        if let Ok(from) = bpf_probe_read_kernel((head + u64::from(network) + 12) as *const [u8; 4]) {
            message.from = from;
            message.flags |= ConnectEnd::ICMP_FROM;
        }
    }
    message
}
