//! Links, addresses, routes and rules: changes that the kernel rejects, and deleted routes and rules.

use aya_ebpf::macros::{fexit, raw_tracepoint};
use aya_ebpf::programs::{FExitContext, RawTracePointContext};
use probe_common::{Hook, Rtnetlink, Skip};

use super::run;
use crate::current;
use crate::layout::{EXTACK_TEXT, HAVE_PROBE_READ, NLMSG_LEN, NLMSG_TYPE, get};
use crate::maps::PROCESSES;
use crate::read::field;
use crate::report::report_charged;

// include/uapi/linux/rtnetlink.h: kinds come in groups of four: new, del, get, set.
const RTM_BASE: u16 = 16;
const RTM_DELROUTE: u16 = 25;
const RTM_DELRULE: u16 = 33;
const RTM_NEWNSID: u16 = 88;
/// Low two bits of a kind that only queries.
const GET: u16 = 2;

/// fexit/`rtnetlink_rcv_msg`, net/core/rtnetlink.c (v5.10):
/// (struct sk_buff *skb, struct nlmsghdr *nlh, struct netlink_ext_ack *extack) -> int
#[fexit(function = "rtnetlink_rcv_msg")]
pub(crate) fn rtnetlink_rcv_msg(ctx: FExitContext) -> i32 {
    run!(Hook::Rtnetlink, returned(ctx.arg(1), ctx.arg(2), ctx.arg(3)))
}

#[inline(always)]
fn returned(nlh: *const u8, extack: *const u8, ret: i32) -> Result<(), Skip> {
    // SAFETY: the typed argument.
    let kind: u16 = unsafe { field(nlh, &NLMSG_TYPE) };
    let is_deletion = matches!(kind, RTM_DELROUTE | RTM_DELRULE);
    let is_reported = (RTM_BASE..=RTM_NEWNSID).contains(&kind) && kind & 3 != GET && (ret < 0 || is_deletion);
    if !is_reported {
        return Ok(());
    }
    // SAFETY: the typed argument; it is null for some old requests.
    let text = if extack.is_null() { 0 } else { unsafe { field::<u64>(extack, &EXTACK_TEXT) } };
    replied(kind, ret.unsigned_abs(), text, nlh)
}

/// raw_tp/`netlink_extack` (5.12): the fallback if fexit does not load. It reports only errors with a text,
/// and only the text.
/// proto(v5.12): include/trace/events/netlink.h: (const char *msg)
#[raw_tracepoint(tracepoint = "netlink_extack")]
pub(crate) fn netlink_extack(ctx: RawTracePointContext) -> i32 {
    run!(Hook::Rtnetlink, replied(0, 0, ctx.arg(0), core::ptr::null()))
}

#[inline(always)]
fn replied(kind: u16, errno: u32, text: u64, nlh: *const u8) -> Result<(), Skip> {
    // SAFETY: a live map value.
    let cni = PROCESSES.get_ptr(current::tgid()).is_some_and(|state| unsafe { (*state).cni } != 0);
    let mut len = 0;
    report_charged!(Rtnetlink {
        task: current::task(),
        errno,
        kind,
        cni: u8::from(cni),
        _pad: 0,
        _pad2: 0,
        text(to): if text == 0 { to.empty() } else { to.kernel_text(text) },
        request(to): if get(&HAVE_PROBE_READ) != 0 && !nlh.is_null() {
            // SAFETY: the typed argument.
            let whole: u32 = unsafe { field(nlh, &NLMSG_LEN) };
            len = to.kernel_bytes(nlh, u64::from(whole)).unwrap_or(0);
        },
        len,
    })
}
