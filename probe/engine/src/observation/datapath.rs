//! Links, routes and Open vSwitch.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Actor, ProcessClass};
use crate::errno::errno_words;
use crate::range::Range;

/// See [`super::Observation::Ovs`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ovs {
    /// The kernel module is loaded: its netlink families are registered.
    pub module: bool,
    /// Datapaths in the kernel; empty where OVS forwards in user space.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub datapaths: Vec<String>,
    /// State of its database; `None` where it has no socket, or where the agent may not read it (the gap
    /// [`OVS_DATABASE`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<OvsDatabase>,
}

/// The signal of the gap that is open while the agent may not read the database.
pub const OVS_DATABASE: &str = "ovs.database";

/// The `Open_vSwitch` database of ovsdb-server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OvsDatabase {
    /// Why it could not be read, on one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Requested changes (`next_cfg`) have not been applied by ovs-vswitchd (`cur_cfg`).
    #[serde(default)]
    pub behind: bool,
    /// Names of its bridges.
    #[serde(default)]
    pub bridges: Vec<String>,
    /// Interfaces that could not be created.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<OvsInterface>,
}

/// An interface with an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OvsInterface {
    /// Name; control characters are escaped.
    pub name: String,
    /// `geneve`, `vxlan`, `internal`, …; empty for a link of the system.
    #[serde(default)]
    pub port_kind: String,
    /// The error message of ovs-vswitchd; control characters are escaped.
    pub error: String,
}

/// See [`super::Observation::OvsPort`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OvsPort {
    /// Name; control characters are escaped.
    pub name: String,
    /// `netdev`, `internal`, `vxlan`, `geneve`, …
    #[serde(default)]
    pub port_kind: String,
    /// Whether it was added; false when it was removed.
    pub up: bool,
}

/// See [`super::Observation::OvsUpcalls`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OvsUpcalls {
    /// Name of the datapath.
    pub datapath: String,
    /// Packets without a matching flow since the last report.
    pub missed: u64,
    /// Upcalls for these packets that no process in user space received.
    pub lost: u64,
}

/// See [`super::Observation::Link`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// `ifindex`
    pub index: u32,
    /// Name; control characters are escaped.
    pub name: String,
    /// `IFLA_INFO_KIND` (veth, bridge, vxlan, …); empty for a physical link.
    #[serde(default)]
    pub link_kind: String,
    /// Whether it exists; false when it was removed.
    pub present: bool,
    /// `IFF_UP`
    #[serde(default)]
    pub up: bool,
    /// Inode number of its namespace, when that is not the host's; 0 when the namespace has no name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<u32>,
    /// The namespace of its peer, in the same form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_netns: Option<u32>,
    /// The namespace into which it was moved, in the same form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_to: Option<u32>,
}

/// See [`super::Observation::NetlinkError`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetlinkError {
    /// The process that sent the request.
    pub process: Actor,
    /// Its class, if it is a watched process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ProcessClass>,
    /// The process is a CNI plugin or one of its children.
    #[serde(default)]
    pub cni: bool,
    /// `newlink`, `setlink`, `newaddr`, `newroute`, …; empty when not known.
    #[serde(default)]
    pub request: String,
    /// The link or the destination of the request; control characters are escaped.
    #[serde(default)]
    pub object: String,
    /// Positive errno; 0 when not known.
    #[serde(default)]
    pub errno: u32,
    /// The error text of the kernel (extended acknowledgement); empty when it gave none.
    #[serde(default)]
    pub text: String,
}

impl NetlinkError {
    /// Returns the refused request with its errno and the error text of the kernel:
    /// `newlink vxlan0 (EADDRINUSE): A VXLAN device …`.
    pub fn words(&self) -> String {
        let mut words = match (self.request.as_str(), self.object.as_str()) {
            ("", "") => String::from("a request"),
            (request, "") => String::from(request),
            ("", object) => format!("a request for {object}"),
            (request, object) => format!("{request} {object}"),
        };
        if self.errno != 0 {
            words.push_str(&format!(" ({})", errno_words(self.errno)));
        }
        if !self.text.is_empty() {
            words.push_str(&format!(": {}", self.text));
        }
        words
    }
}

/// See [`super::Observation::RouteGone`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteGone {
    /// The process that removed it; its ID is 0 for a removal by the kernel, or when not known.
    pub process: Actor,
    /// Whether this is a policy rule; false for a route.
    #[serde(default)]
    pub rule: bool,
    /// Destination in the notation of iproute2: `10.244.0.0/16`, `default`; for a rule, the source.
    pub object: String,
    /// The link of the route; empty for a rule, and when not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// It was restored.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub back: bool,
}

impl RouteGone {
    /// Returns the prefix length of this route if it matches `to`; the longest prefix wins. `None` for a rule.
    pub(crate) fn covers(&self, to: IpAddr) -> Option<u8> {
        match self.object.as_str() {
            _ if self.rule => None,
            "default" => Some(0),
            object if object.parse() == Ok(to) => Some(128),
            object => Range::parse(object).filter(|range| range.contains(to)).map(|range| range.length),
        }
    }

    /// Returns a noun phrase: `the route to 10.244.0.0/16 dev cni0`, `the default route dev eth0`.
    pub fn words(&self) -> String {
        let object = self.object.as_str();
        let what = match object {
            _ if self.rule => format!("the policy rule from {object}"),
            "default" => String::from("the default route"),
            _ => format!("the route to {object}"),
        };
        if self.device.is_empty() { what } else { format!("{what} dev {}", self.device) }
    }
}

/// See [`super::Observation::PacketsDropped`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketsDropped {
    /// The kernel's name of the drop reason: `IP_RPFILTER`.
    pub reason: String,
    /// The link on which they were received; empty when not known.
    #[serde(default)]
    pub device: String,
    /// Number of packets since the last report.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn route_covers_its_range_and_default_route_covers_every_address() {
        let covers = |object: &str, to: &str| {
            let gone = RouteGone { object: String::from(object), ..RouteGone::default() };
            gone.covers(to.parse().expect("an address"))
        };
        for (object, to, bits) in [
            ("default", "10.0.0.1", 0),
            ("default", "fd00::1", 0),
            ("0.0.0.0/0", "10.0.0.1", 0),
            ("10.0.0.0/24", "10.0.0.1", 24),
            ("10.0.0.1", "10.0.0.1", 128),
            ("fd00::/64", "fd00::1", 64),
        ] {
            assert_eq!(covers(object, to), Some(bits), "{object} {to}");
        }
        for (object, to) in [
            ("10.0.1.0/24", "10.0.0.1"),
            ("10.0.0.2", "10.0.0.1"),
            ("fd00:1::/64", "fd00::1"),
            ("fd00::/64", "10.0.0.1"),
            ("10.0.0.0/99", "10.0.0.1"),
            ("", "10.0.0.1"),
            ("nonsense/x", "10.0.0.1"),
        ] {
            assert_eq!(covers(object, to), None, "{object} {to}");
        }
        let rule = RouteGone { object: String::from("default"), rule: true, ..RouteGone::default() };
        assert_eq!(rule.covers(IpAddr::from([10, 0, 0, 1])), None);
    }
}
