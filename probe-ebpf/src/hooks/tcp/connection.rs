//! Established connections to watched ports, until they end.

use aya_ebpf::helpers::generated::bpf_skc_to_tcp_sock;
use probe_common::{ConnectionEnd, Skip};

use super::socket::{flags, is_of, remote};
use crate::connects;
use crate::filter::Address;
use crate::layout::{SOCK_ERR, SOCK_NUM, TCP_BYTES_ACKED, TCP_BYTES_RECEIVED, TCP_BYTES_SENT};
use crate::maps::Pending;
use crate::read::field;
use crate::report::report;

#[inline(always)]
pub(super) fn ended(sk: *const u8, state: i32) -> Result<(), Skip> {
    let Some(pending) = connects::find(sk as u64) else { return Ok(()) };
    let (address, port) = remote(sk);
    // SAFETY: a live map value; only this socket's own transitions write the fields read here.
    let known = unsafe { &*pending };
    let done =
        if is_of(known, sk, port, true) { report_end(sk, state, known, address, port) } else { Ok(()) };
    connects::remove(sk as u64);
    done
}

#[inline(always)]
fn report_end(sk: *const u8, state: i32, pending: &Pending, address: Address, port: u16) -> Result<(), Skip> {
    // SAFETY: the helper takes any socket and returns a typed pointer or null.
    let tcp = unsafe { bpf_skc_to_tcp_sock(sk as *mut _) } as *const u8;
    if tcp.is_null() {
        return Ok(());
    }
    // SAFETY: the pointers are typed.
    let (sport, sk_err, bytes_received, bytes_acked, bytes_sent) = unsafe {
        (
            field(sk, &SOCK_NUM),
            field(sk, &SOCK_ERR),
            field(tcp, &TCP_BYTES_RECEIVED),
            field(tcp, &TCP_BYTES_ACKED),
            field(tcp, &TCP_BYTES_SENT),
        )
    };
    report!(ConnectionEnd {
        task: pending.task,
        established_ns: pending.established_ns,
        daddr: address.bytes(),
        dport: port,
        family: address.family,
        state: state as u8,
        flags: flags(pending),
        sport,
        sk_err,
        retransmits: u32::from(pending.retransmits),
        bytes_received,
        bytes_acked,
        bytes_sent,
        asked: pending.asked,
        asked_port: pending.asked_port,
        asked_family: pending.asked_family,
        _pad: [0; 4],
    })
}
