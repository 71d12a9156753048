//! Packets of pods that the reverse path filter drops, and links that the kernel refuses to an agent.

use alloc::format;
use alloc::vec::Vec;

use super::Fault;
use crate::cnis;
use crate::facts::{Facts, is_taken_vni};
use crate::memory::Seen;
use crate::observation::{BootTime, NetlinkError};
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let mut faults = dropped(facts);
    faults.extend(facts.refused_links.values().map(|known| refused(&known.value, known.since)));
    faults
}

/// Returns the fault of a CNI agent whose link the kernel refused. The agent exits or waits before it writes its
/// configuration.
fn refused(error: &NetlinkError, since: BootTime) -> Fault {
    let who = &error.process.name;
    let same = if is_taken_vni(error) { "VNI" } else { "port" };
    let message = format!(
        "{who} cannot set up its link: another link has the same {same}; the kernel refused {}",
        error.words()
    );
    Fault::new(Reason::LinkConflict, error.object.as_str(), message, since)
}

fn dropped(facts: &Facts) -> Vec<Fault> {
    // On other links a spoofed packet is dropped in normal operation.
    let of_pods = facts.dropping.iter().filter(|(device, _)| cnis::of_link(device).is_some());
    of_pods
        .map(|(device, Seen { value: dropped, since, .. })| {
            let message = format!(
                "the reverse path filter drops packets received on {device} ({}): \
                 net.ipv4.conf.{device}.rp_filter or net.ipv4.conf.all.rp_filter is enabled",
                dropped.reason
            );
            Fault::new(Reason::ReversePathFiltered, device.as_str(), message, *since)
        })
        .collect()
}
