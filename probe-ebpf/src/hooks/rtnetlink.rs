//! Links, addresses, routes and rules: what the kernel refuses, and who takes routes and rules away.

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str};
use aya_ebpf::macros::{fexit, raw_tracepoint};
use aya_ebpf::programs::{FExitContext, RawTracePointContext};
use probe_common::{Code, EXTACK_LEN, Hook, REQUEST_LEN, Rtnetlink, Skip};

use super::run;
use crate::emit::{current_netns, current_tgid, record_of_current, write_current};
use crate::layout::{EXTACK_TEXT, HAVE_PROBE_READ, NLMSG_LEN, NLMSG_TYPE, get};
use crate::maps::PROCESSES;
use crate::read::field;

// include/uapi/linux/rtnetlink.h: the kinds come in fours: new, del, get, set.
const RTM_BASE: u16 = 16;
const RTM_DELROUTE: u16 = 25;
const RTM_DELRULE: u16 = 33;
const RTM_NEWNSID: u16 = 88;
/// Low two bits of a kind that only asks.
const GET: u16 = 2;

/// fexit/`rtnetlink_rcv_msg`, net/core/rtnetlink.c (v5.10):
/// (struct sk_buff *skb, struct nlmsghdr *nlh, struct netlink_ext_ack *extack) -> int
#[fexit(function = "rtnetlink_rcv_msg")]
pub(crate) fn rtnetlink_rcv_msg(ctx: FExitContext) -> i32 {
    run!(Hook::Rtnetlink, answered(ctx.arg(1), ctx.arg(2), ctx.arg(3)))
}

#[inline(always)]
fn answered(nlh: *const u8, extack: *const u8, ret: i32) -> Result<(), Skip> {
    // SAFETY: the typed argument.
    let kind: u16 = unsafe { field(nlh, &NLMSG_TYPE) };
    let gone = matches!(kind, RTM_DELROUTE | RTM_DELRULE);
    let of_interest = (RTM_BASE..=RTM_NEWNSID).contains(&kind) && kind & 3 != GET && (ret < 0 || gone);
    if !of_interest {
        return Ok(());
    }
    // SAFETY: the typed argument; user space gives none with old requests.
    let text = if extack.is_null() { 0 } else { unsafe { field::<u64>(extack, &EXTACK_TEXT) } };
    report(kind, ret.unsigned_abs(), text, nlh)
}

/// raw_tp/`netlink_extack` (5.12): where fexit does not load. Only what has a text, and nothing but the text.
/// proto(v5.12): include/trace/events/netlink.h: (const char *msg)
#[raw_tracepoint(tracepoint = "netlink_extack")]
pub(crate) fn netlink_extack(ctx: RawTracePointContext) -> i32 {
    run!(Hook::Rtnetlink, report(0, 0, ctx.arg(0), core::ptr::null()))
}

#[inline(always)]
fn report(kind: u16, errno: u32, text: u64, nlh: *const u8) -> Result<(), Skip> {
    // SAFETY: a live map value.
    let cni = PROCESSES.get_ptr(current_tgid()).is_some_and(|state| unsafe { (*state).cni } != 0);
    let netns = current_netns();
    let mut entry = record_of_current::<Rtnetlink>(Code::Rtnetlink)?;
    let r = entry.as_mut_ptr();
    // SAFETY: `r` is the reserved record; the helpers check their sources; the length is at most the field's.
    unsafe {
        write_current(&raw mut (*r).task, netns);
        (&raw mut (*r).errno).write(errno);
        (&raw mut (*r).kind).write(kind);
        (&raw mut (*r).cni).cast::<u16>().write(u16::from(cni).to_le());
        (&raw mut (*r)._pad2).write(0);
        (&raw mut (*r).text).cast::<u8>().write(0);
        let mut len = 0;
        if get(&HAVE_PROBE_READ) != 0 {
            if text != 0 {
                bpf_probe_read_kernel_str((&raw mut (*r).text).cast(), EXTACK_LEN as u32, text as *const _);
            }
            if !nlh.is_null() {
                let whole: u32 = field(nlh, &NLMSG_LEN);
                len = if whole > REQUEST_LEN as u32 { REQUEST_LEN as u32 } else { whole };
                if bpf_probe_read_kernel((&raw mut (*r).request).cast(), len, nlh.cast()) != 0 {
                    len = 0;
                }
            }
        }
        (&raw mut (*r).len).write(len);
    }
    entry.submit(0);
    Ok(())
}
