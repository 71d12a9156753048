//! Packets of pods that this host drops.

use alloc::format;
use alloc::vec::Vec;

use super::{Fault, depth};
use crate::evidence::Facts;
use crate::reason::Reason;

/// What the links of pods and of CNIs are called: a spoofed packet on any other link is the filter's ordinary
/// work. A new CNI's is one entry.
const LINKS: &[&str] =
    &["cali", "cilium_", "cni", "eni", "flannel", "genev_sys", "lxc", "nkt", "ovn", "tunl0", "veth", "vxlan"];

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let of_pods =
        facts.dropping.iter().filter(|(device, _)| LINKS.iter().any(|name| device.starts_with(name)));
    of_pods
        .map(|(device, (dropped, since, _))| {
            let message = format!(
                "packets that come in on {device} are dropped by the reverse path filter ({}); \
                 net.ipv4.conf.{device}.rp_filter or net.ipv4.conf.all.rp_filter is on",
                dropped.reason
            );
            Fault::new(Reason::ReversePathFiltered, device.as_str(), message, *since)
                .at_depth(depth::DATAPATH)
        })
        .collect()
}
