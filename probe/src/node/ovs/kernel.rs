//! Generic netlink of the Open vSwitch datapath: include/uapi/linux/openvswitch.h, include/uapi/linux/genetlink.h.

use anyhow::Result;
use netlink_packet_core::{NlaBuffer, NlasIterator};
use netlink_sys::protocols::NETLINK_GENERIC;

use super::super::netlink;
use crate::text::clean;

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;

const OVS_DP_CMD_GET: u8 = 3;
const OVS_DP_ATTR_NAME: u16 = 1;
const OVS_DP_ATTR_STATS: u16 = 3;
const OVS_DATAPATH_VERSION: u8 = 2;
const OVS_VPORT_CMD_NEW: u8 = 1;
const OVS_VPORT_CMD_DEL: u8 = 2;
const OVS_VPORT_ATTR_TYPE: u16 = 2;
const OVS_VPORT_ATTR_NAME: u16 = 3;
/// Names of `enum ovs_vport_type` as OVS prints them.
const PORT_KINDS: &[&str] = &["", "netdev", "internal", "gre", "vxlan", "geneve"];

/// Maximum number of datapaths; a host usually has one.
const MAX_DATAPATHS: usize = 16;
/// Maximum length of a name of `IFNAMSIZ` bytes after escaping, bytes.
const MAX_NAME_LEN: usize = 64;
/// Size of `struct nlmsghdr` and `struct genlmsghdr` together, then of `struct ovs_header`, bytes.
const HEADERS_LEN: usize = 20;
const OVS_HEADER_LEN: usize = 4;

/// The ID of a generic netlink family and of its multicast group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Family {
    id: u16,
    group: u32,
}

/// The families that the kernel module has registered; none if it is not loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Families {
    pub(super) datapath: Option<Family>,
    vport: Option<Family>,
}

/// Counters of a datapath since it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stats {
    /// Packets without a flow in the datapath, each of which causes an upcall to user space.
    pub(super) missed: u64,
    /// Upcalls that were dropped because user space did not receive them.
    pub(super) lost: u64,
}

/// One datapath.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Datapath {
    pub(super) name: String,
    pub(super) stats: Stats,
}

/// A port was created or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) up: bool,
}

/// Returns the registered families. The request is for all families, because a request for one by name would load its kernel
/// module.
pub(super) fn families() -> Result<Families> {
    let answer = netlink::ask(NETLINK_GENERIC, &dump_request(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 1, 0))?;
    let mut families = Families::default();
    for message in netlink::messages(&answer) {
        let (mut id, mut name, mut group) = (None, String::new(), None);
        for attribute in attributes(message.get(HEADERS_LEN..).unwrap_or_default()) {
            match attribute.kind() {
                CTRL_ATTR_FAMILY_ID => id = number(attribute.value()).and_then(|id| u16::try_from(id).ok()),
                CTRL_ATTR_FAMILY_NAME => name = text(attribute.value()),
                CTRL_ATTR_MCAST_GROUPS => group = first_group(attribute.value()),
                _ => {}
            }
        }
        let family = || {
            let (name, group) = group.as_ref()?;
            name.starts_with("ovs_").then_some(Family { id: id?, group: *group })
        };
        match name.as_str() {
            "ovs_datapath" => families.datapath = family(),
            "ovs_vport" => families.vport = family(),
            _ => {}
        }
    }
    Ok(families)
}

/// Returns name and ID of the first multicast group. Each family of Open vSwitch has one, of the same name.
fn first_group(groups: &[u8]) -> Option<(String, u32)> {
    let group = attributes(groups).next()?;
    let (mut name, mut id) = (None, None);
    for attribute in attributes(group.value()) {
        match attribute.kind() {
            CTRL_ATTR_MCAST_GRP_NAME => name = Some(text(attribute.value())),
            CTRL_ATTR_MCAST_GRP_ID => id = number(attribute.value()),
            _ => {}
        }
    }
    Some((name?, u32::try_from(id?).ok()?))
}

impl Families {
    /// Returns the multicast groups of datapaths and ports. The group of flows is not included because it has too many messages.
    pub(super) fn groups(&self) -> Option<Vec<u32>> {
        Some(vec![self.datapath?.group, self.vport?.group])
    }

    /// Reads the datapaths.
    pub(super) fn datapaths(&self) -> Result<Vec<Datapath>> {
        let Some(family) = self.datapath else { return Ok(Vec::new()) };
        let request = dump_request(family.id, OVS_DP_CMD_GET, OVS_DATAPATH_VERSION, OVS_HEADER_LEN);
        let answer = netlink::ask(NETLINK_GENERIC, &request)?;
        let datapaths = netlink::messages(&answer).filter(|message| message_type(message) == Some(family.id));
        Ok(datapaths.filter_map(datapath).take(MAX_DATAPATHS).collect())
    }

    /// Parses a message of the multicast groups; `None` if it is not about a port.
    pub(super) fn change(&self, message: &[u8]) -> Option<Change> {
        (message_type(message)? == self.vport?.id).then(|| change(message))?
    }
}

/// Parses a message of the vport family.
pub(super) fn change(message: &[u8]) -> Option<Change> {
    let up = match *message.get(16)? {
        OVS_VPORT_CMD_NEW => true,
        OVS_VPORT_CMD_DEL => false,
        _ => return None,
    };
    let (mut name, mut kind) = (None, "");
    for attribute in attributes(message.get(HEADERS_LEN + OVS_HEADER_LEN..)?) {
        match attribute.kind() {
            OVS_VPORT_ATTR_NAME => name = Some(text(attribute.value())),
            OVS_VPORT_ATTR_TYPE => {
                let known = number(attribute.value()).and_then(|kind| usize::try_from(kind).ok());
                kind = known.and_then(|kind| PORT_KINDS.get(kind)).copied().unwrap_or("other");
            }
            _ => {}
        }
    }
    Some(Change { name: name?, kind: kind.to_owned(), up })
}

/// Parses a message of the datapath family.
pub(super) fn datapath(message: &[u8]) -> Option<Datapath> {
    let (mut name, mut stats) = (None, Stats::default());
    for attribute in attributes(message.get(HEADERS_LEN + OVS_HEADER_LEN..)?) {
        match attribute.kind() {
            OVS_DP_ATTR_NAME => name = Some(text(attribute.value())),
            // struct ovs_dp_stats: n_hit, n_missed, n_lost, n_flows.
            OVS_DP_ATTR_STATS => {
                let word = |index: usize| number(attribute.value().get(index * 8..index * 8 + 8)?);
                stats = Stats { missed: word(1)?, lost: word(2)? };
            }
            _ => {}
        }
    }
    Some(Datapath { name: name?, stats })
}

/// Returns a dump request; `padding` zero bytes follow the headers.
fn dump_request(family: u16, command: u8, version: u8, padding: usize) -> Vec<u8> {
    const NLM_F_REQUEST: u16 = 1;
    const NLM_F_DUMP: u16 = 0x300;
    let length = u32::try_from(HEADERS_LEN + padding).unwrap_or_default();
    let mut request = Vec::new();
    request.extend(length.to_ne_bytes());
    request.extend(family.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend([0; 8]);
    request.extend([command, version, 0, 0]);
    request.resize(HEADERS_LEN + padding, 0);
    request
}

fn attributes(bytes: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    // Stops at the first truncated attribute.
    NlasIterator::new(bytes).map_while(Result::ok)
}

fn message_type(message: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?))
}

/// Returns an integer of two, four or eight bytes in native byte order.
fn number(bytes: &[u8]) -> Option<u64> {
    Some(match *bytes {
        [a, b] => u16::from_ne_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]).into(),
        _ => u64::from_ne_bytes(bytes.try_into().ok()?),
    })
}

fn text(bytes: &[u8]) -> String {
    clean(bytes.split(|byte| *byte == 0).next().unwrap_or_default(), MAX_NAME_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).expect("short");
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn port(command: u8) -> Vec<u8> {
        let mut message = dump_request(30, command, 1, OVS_HEADER_LEN);
        message.extend(attribute(OVS_VPORT_ATTR_NAME, b"genev_sys_6081\0"));
        message.extend(attribute(OVS_VPORT_ATTR_TYPE, &5_u32.to_ne_bytes()));
        message
    }

    const FAMILIES: Families =
        Families { datapath: Some(Family { id: 29, group: 9 }), vport: Some(Family { id: 30, group: 10 }) };

    #[test]
    fn reads_name_and_type_of_a_port() {
        let change = Change { name: "genev_sys_6081".into(), kind: "geneve".into(), up: true };
        assert_eq!(FAMILIES.change(&port(OVS_VPORT_CMD_NEW)), Some(change));
        assert!(FAMILIES.change(&port(OVS_VPORT_CMD_DEL)).is_some_and(|change| !change.up));
        assert_eq!(FAMILIES.change(&port(4)), None);
        assert_eq!(Families::default().change(&port(1)), None);
    }

    #[test]
    fn truncated_messages_cause_no_panic() {
        let whole = port(OVS_VPORT_CMD_NEW);
        for cut in 0..whole.len() {
            let _ = FAMILIES.change(&whole[..cut]);
            let _ = datapath(&whole[..cut]);
        }
        let stats = [1_u64, 20, 3, 4].map(u64::to_ne_bytes).concat();
        let mut message = dump_request(29, OVS_DP_CMD_GET, 2, OVS_HEADER_LEN);
        message.extend(attribute(OVS_DP_ATTR_NAME, b"ovs-system\0"));
        message.extend(attribute(OVS_DP_ATTR_STATS, &stats));
        let read = Datapath { name: "ovs-system".into(), stats: Stats { missed: 20, lost: 3 } };
        assert_eq!(datapath(&message), Some(read));
    }
}
