//! Links and addresses of the host's namespace, by rtnetlink(7).

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use probe_engine::{Actor, Gap, Link, Observation, RouteGone};
use rtnetlink::{Handle, MulticastGroup, new_connection, new_multicast_connection};
use tokio::sync::mpsc;

use super::processes;
use crate::clock;
use crate::feed::{Feed, Seen};
use crate::text::clean;

/// Most links and addresses that are taken: 110 pods with a link each, and as many again for what is left
/// over, twice.
const MOST: usize = 512;
/// `IFNAMSIZ`
const IFNAME: usize = 16;

/// A connection for one question; its task ends with the handle.
pub(super) fn handle() -> Result<Handle> {
    let (connection, handle, _) = new_connection().context("open a route netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Every link.
pub(crate) async fn snapshot() -> Result<Vec<Link>> {
    let handle = handle()?;
    let mut links = Vec::new();
    let mut dump = std::pin::pin!(handle.link().get().execute());
    while let Some(message) = dump.try_next().await.context("read the links")? {
        if links.len() < MOST {
            links.push(link(&message, true));
        }
    }
    Ok(links)
}

/// Every address of the host's own links, loopback included.
pub(crate) async fn addresses() -> Result<Vec<IpAddr>> {
    let handle = handle()?;
    let mut addresses = BTreeSet::new();
    let mut dump = std::pin::pin!(handle.address().get().execute());
    while let Some(message) = dump.try_next().await.context("read the addresses")? {
        for attribute in message.attributes {
            // On a point-to-point link `Address` is the other end; `Local` is always this one.
            if let AddressAttribute::Local(addr) | AddressAttribute::Address(addr) = attribute
                && addresses.len() < MOST
            {
                addresses.insert(addr);
                if matches!(attribute, AddressAttribute::Local(_)) {
                    break;
                }
            }
        }
    }
    Ok(addresses.into_iter().collect())
}

fn link(message: &LinkMessage, present: bool) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        link_kind: String::new(),
        present,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = clean(name.as_bytes(), IFNAME * 4),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.link_kind = clean(kind.to_string().as_bytes(), 32);
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn route_gone(route: &RouteMessage) -> RouteGone {
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(addr)) => Some(IpAddr::V4(*addr)),
        RouteAttribute::Destination(RouteAddress::Inet6(addr)) => Some(IpAddr::V6(*addr)),
        _ => None,
    });
    let length = route.header.destination_prefix_length;
    let object = destination.map_or_else(|| "default".to_owned(), |addr| format!("{addr}/{length}"));
    RouteGone { process: Actor::default(), rule: false, object }
}

fn rule_gone(rule: &RuleMessage) -> RouteGone {
    let source = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Source(addr) => Some(format!("{addr}/{}", rule.header.src_len)),
        _ => None,
    });
    RouteGone {
        process: Actor::default(),
        rule: true,
        object: source.unwrap_or_else(|| "default".to_owned()),
    }
}

/// The port id of a request is the process id of its sender, unless that has several such sockets; 0 is the
/// kernel, which takes routes away with their link. False when nobody listens any more.
async fn tell_gone(feed: &Feed, port: u32, gone: RouteGone) -> bool {
    if port == 0 {
        return true;
    }
    let process = Actor { pid: port, name: processes::name(port) };
    let observation = Observation::RouteGone(RouteGone { process, ..gone });
    feed.send(Seen { at: clock::now(), observation }).await.is_ok()
}

/// Sends changes of links, and a note when addresses changed; with `routes`, also who took routes and rules
/// away, as far as the port id of the request tells it. Runs for ever.
pub(crate) async fn watch(feed: Feed, addresses_changed: mpsc::Sender<()>, routes: bool) {
    let mut groups = vec![MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    if routes {
        groups.extend([
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ]);
    }
    let mut messages = match new_multicast_connection(&groups) {
        Ok((connection, _, messages)) => {
            tokio::spawn(connection);
            messages
        }
        Err(error) => {
            let why = format!("watch links: {error}; only their state at start is known");
            let gap = Observation::Gap(Gap { signal: "link".to_owned(), why, blind: false });
            let _ = feed.send(Seen { at: clock::now(), observation: gap }).await;
            return;
        }
    };
    let mut known = std::collections::BTreeMap::new();
    while let Some((message, _)) = messages.next().await {
        let port = message.header.port_number;
        let seen = match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelRoute(route)) => {
                if tell_gone(&feed, port, route_gone(&route)).await {
                    continue;
                }
                return;
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelRule(rule)) => {
                if tell_gone(&feed, port, rule_gone(&rule)).await {
                    continue;
                }
                return;
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => link(&message, true),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message)) => link(&message, false),
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_),
            ) => {
                // One note is enough for any number of changes.
                let _ = addresses_changed.try_send(());
                continue;
            }
            _ => continue,
        };
        // The kernel repeats a link for every counter and flag; only what is shown counts.
        if known.get(&seen.index) == Some(&seen) {
            continue;
        }
        if !seen.present {
            known.remove(&seen.index);
        } else if known.len() < MOST {
            known.insert(seen.index, seen.clone());
        }
        if feed.send(Seen { at: clock::now(), observation: Observation::Link(seen) }).await.is_err() {
            return;
        }
    }
}
