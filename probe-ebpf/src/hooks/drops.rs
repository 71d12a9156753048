//! Packets that this host drops, with the kernel's reason.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use probe_common::{Drops, Hook, Skip};

use super::run;
use crate::connects;
use crate::current::now;
use crate::layout::{DROP_RPFILTER, NET_DEVICE_NAME, NET_DEVICE_NET, NET_INUM, SK_BUFF_DEV, SK_BUFF_SK, get};
use crate::maps::{DEVICES, Dropping};
use crate::read::{KernelPtr, field, pointer};
use crate::report::report;

/// Minimum interval between two records about a device, nanoseconds.
const INTERVAL_NS: u64 = 1_000_000_000;

/// proto(v5.17): include/trace/events/skb.h:
/// (struct sk_buff *skb, void *location, enum `skb_drop_reason` reason)
#[btf_tracepoint(function = "kfree_skb")]
pub(crate) fn kfree_skb(ctx: BtfTracePointContext) -> i32 {
    run!(Hook::KfreeSkb, dropped(ctx.arg(0), ctx.arg(2)))
}

#[inline(always)]
fn dropped(skb: *const u8, reason: u32) -> Result<(), Skip> {
    if reason as usize == get(&DROP_RPFILTER) {
        return dropped_by_reverse_path_filter(skb, reason);
    }
    // SAFETY: the typed argument.
    let sk: u64 = unsafe { field(skb, &SK_BUFF_SK) };
    // Only packets that this host sends have a socket.
    if sk != 0
        && let Some(pending) = connects::find(sk)
    {
        // SAFETY: a live map value; of two concurrent drops either reason is correct.
        unsafe { (*pending).dropped = reason };
    }
    Ok(())
}

#[inline(always)]
fn dropped_by_reverse_path_filter(skb: *const u8, reason: u32) -> Result<(), Skip> {
    // SAFETY: the typed argument, and the pointer is checked for null.
    let Some(dev) = (unsafe { pointer(skb, &SK_BUFF_DEV) }) else { return Ok(()) };
    let at = now();
    let Some(known) = DEVICES.get_ptr_mut(dev.address()) else {
        DEVICES
            .insert(dev.address(), Dropping { reported_ns: at, count: 0 }, 0)
            .map_err(|_| Skip::MapFull)?;
        return report_drops(dev, reason, 1);
    };
    // SAFETY: a live map value. Concurrent CPUs may lose a packet: the count gives the order of magnitude.
    unsafe {
        (*known).count += 1;
        if at < (*known).reported_ns + INTERVAL_NS {
            return Ok(());
        }
        (*known).reported_ns = at;
        let count = (*known).count;
        (*known).count = 0;
        report_drops(dev, reason, count)
    }
}

#[inline(always)]
fn report_drops(dev: KernelPtr, reason: u32, count: u64) -> Result<(), Skip> {
    // SAFETY: a device with a name of sixteen bytes; the pointer is checked for null.
    let (device, netns) = unsafe {
        let name = get(&NET_DEVICE_NAME);
        let netns = dev.pointer(&NET_DEVICE_NET).map_or(0, |net| net.field::<u32>(&NET_INUM));
        (core::mem::transmute::<[u64; 2], [u8; 16]>([dev.at(name), dev.at(name + 8)]), netns)
    };
    report!(Drops { count, netns, reason, device })
}
