//! Packets of pods that this host drops, and links that it does not make.

use alloc::format;
use alloc::vec::Vec;

use super::Fault;
use crate::cnis;
use crate::facts::{Facts, is_taken_vni, refusal};
use crate::memory::Seen;
use crate::observation::{Mono, NetlinkError};
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let mut faults = dropped(facts);
    faults.extend(facts.refused_links.values().map(|known| refused(&known.value, known.since)));
    faults
}

/// The agent of a CNI gets no link: it ends, or waits, before it writes its configuration.
fn refused(error: &NetlinkError, since: Mono) -> Fault {
    let who = &error.process.name;
    let same = if is_taken_vni(error) { "VNI" } else { "port" };
    let message = format!("another link has the same {same}: the kernel refused {who} {}", refusal(error));
    Fault::new(Reason::LinkConflict, error.object.as_str(), message, since)
}

fn dropped(facts: &Facts) -> Vec<Fault> {
    // On any other link a spoofed packet is the filter's ordinary work.
    let of_pods = facts.dropping.iter().filter(|(device, _)| cnis::of_link(device).is_some());
    of_pods
        .map(|(device, Seen { value: dropped, since, .. })| {
            let message = format!(
                "packets that come in on {device} are dropped by the reverse path filter ({}); \
                 net.ipv4.conf.{device}.rp_filter or net.ipv4.conf.all.rp_filter is on",
                dropped.reason
            );
            Fault::new(Reason::ReversePathFiltered, device.as_str(), message, *since)
        })
        .collect()
}
