//! Links, routes, Open vSwitch.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Actor, ProcessClass};
use crate::range::Range;

/// See [`super::Observation::Ovs`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ovs {
    /// The kernel's module has registered its families.
    pub module: bool,
    /// Datapaths in the kernel; there is none where OVS runs in user space.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub datapaths: Vec<String>,
    /// What its database says; `None` where there is no socket, or where the agent may not read it
    /// (the gap [`OVS_DATABASE`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<OvsDatabase>,
}

/// The signal that is missing while the agent may not read the database.
pub const OVS_DATABASE: &str = "ovs.database";

/// The `Open_vSwitch` database of ovsdb-server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OvsDatabase {
    /// Why it could not be read, on one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Somebody asked for changes (`next_cfg`) that ovs-vswitchd has not made (`cur_cfg`).
    #[serde(default)]
    pub behind: bool,
    /// Names of its bridges.
    #[serde(default)]
    pub bridges: Vec<String>,
    /// Interfaces that could not be made.
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
    /// The words of ovs-vswitchd; control characters are escaped.
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
    /// Came or went.
    pub up: bool,
}

/// See [`super::Observation::OvsUpcalls`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OvsUpcalls {
    /// Name of the datapath.
    pub datapath: String,
    /// Packets without a flow since this was told last.
    pub missed: u64,
    /// Of the questions about them, those that nobody took.
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
    /// Present or gone.
    pub present: bool,
    /// `IFF_UP`
    #[serde(default)]
    pub up: bool,
    /// Inode number of its namespace, when that is not the host's; 0 when nobody has given it a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<u32>,
    /// The namespace of its other end, in the same words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_netns: Option<u32>,
    /// It is gone because it was moved into this namespace; in the same words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_to: Option<u32>,
}

/// See [`super::Observation::NetlinkError`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetlinkError {
    /// Who asked.
    pub process: Actor,
    /// What the process is, when it is one that matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ProcessClass>,
    /// A CNI plugin, or something that it started, asked.
    #[serde(default)]
    pub cni: bool,
    /// `newlink`, `setlink`, `newaddr`, `newroute`, …; empty when it is not known.
    #[serde(default)]
    pub request: String,
    /// The link or the destination that it was about; control characters are escaped.
    #[serde(default)]
    pub object: String,
    /// Positive errno; 0 when it is not known.
    #[serde(default)]
    pub errno: u32,
    /// The kernel's own explanation; empty when it gave none.
    #[serde(default)]
    pub text: String,
}

/// See [`super::Observation::RouteGone`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteGone {
    /// Who asked for it.
    pub process: Actor,
    /// A policy rule and not a route.
    #[serde(default)]
    pub rule: bool,
    /// Destination as people write it: `10.244.0.0/16`, `default`; of a rule, the source.
    pub object: String,
    /// The link that it led to; empty for a rule, and when it is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// It is there again.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub back: bool,
}

impl RouteGone {
    /// How many bits of `to` this route asks for, when packets to it could take it: the most win.
    pub(crate) fn covers(&self, to: IpAddr) -> Option<u8> {
        match self.object.as_str() {
            _ if self.rule => None,
            "default" => Some(0),
            object if object.parse() == Ok(to) => Some(128),
            object => Range::parse(object).filter(|range| range.contains(to)).map(|range| range.length),
        }
    }

    /// In plain words: `the route to 10.244.0.0/16 by cni0`.
    pub fn words(&self) -> String {
        let what = if self.rule { "the rule from" } else { "the route to" };
        let by = if self.device.is_empty() { String::new() } else { format!(" by {}", self.device) };
        format!("{what} {}{by}", self.object)
    }
}

/// See [`super::Observation::PacketsDropped`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketsDropped {
    /// The kernel's name of the reason: `IP_RPFILTER`.
    pub reason: String,
    /// The link on which they came; empty when it is not known.
    #[serde(default)]
    pub device: String,
    /// How many since this was told last.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_covers_its_range_and_the_default_route_everything() {
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
