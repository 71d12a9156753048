//! Links of every network namespace for which the agent's own has an id, and the host's addresses, routes and
//! rules, from rtnetlink(7).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::nsid::NsidAttribute;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use probe_engine::{Actor, Gap, Link, Lost, Observation, RouteGone, Scope};
use rtnetlink::{Handle, new_connection};
use tokio::sync::mpsc;

use super::namespaces::Ids;
use super::netlink::{self, Received};
use super::processes;
use crate::clock;
use crate::feed::{Feed, RTNETLINK, Seen};
use crate::settings::Settings;
use crate::text::clean;

/// Most links and addresses that are read: twice the links of 110 pods and of as many leftovers.
const MOST: usize = 512;
/// Longest link name that is reported: `IFNAMSIZ` bytes, each of which may be escaped as `\xff`.
const NAME: usize = 4 * libc::IF_NAMESIZE;

/// Opens a connection for a request; its task ends when the handle is dropped.
pub(super) fn handle() -> Result<Handle> {
    let (connection, handle, _) = new_connection().context("open a route netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Returns the links of the agent's own network namespace.
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

/// Returns the addresses of the host's own links, including loopback.
pub(crate) async fn addresses() -> Result<Vec<IpAddr>> {
    let handle = handle()?;
    let mut addresses = BTreeSet::new();
    let mut dump = std::pin::pin!(handle.address().get().execute());
    while let Some(message) = dump.try_next().await.context("read the addresses")? {
        for attribute in message.attributes {
            // On a point-to-point link `Address` is that of the peer; `Local` is always the link's own.
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

pub(super) fn link(message: &LinkMessage, present: bool) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        link_kind: String::new(),
        present,
        up: message.header.flags.contains(LinkFlags::Up),
        netns: None,
        peer_netns: None,
        moved_to: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = clean(name.as_bytes(), NAME),
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

/// Returns the destination and the link of a route.
pub(super) fn route(route: &RouteMessage) -> RouteGone {
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(addr)) => Some(IpAddr::V4(*addr)),
        RouteAttribute::Destination(RouteAddress::Inet6(addr)) => Some(IpAddr::V6(*addr)),
        _ => None,
    });
    let link = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => name_of(*index),
        _ => None,
    });
    let length = route.header.destination_prefix_length;
    let object =
        destination.map_or_else(|| default(route.header.address_family), |addr| format!("{addr}/{length}"));
    RouteGone { object, device: link.unwrap_or_default(), ..RouteGone::default() }
}

/// Returns the source of a policy rule.
pub(super) fn rule(rule: &RuleMessage) -> RouteGone {
    let source = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Source(addr) => Some(format!("{addr}/{}", rule.header.src_len)),
        _ => None,
    });
    let object = source.unwrap_or_else(|| default(rule.header.family));
    RouteGone { rule: true, object, ..RouteGone::default() }
}

fn default(family: AddressFamily) -> String {
    if family == AddressFamily::Inet6 { "default (IPv6)" } else { "default" }.to_owned()
}

/// Returns the name of a link of the agent's own network namespace.
fn name_of(index: u32) -> Option<String> {
    let mut name = [0_u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has `IF_NAMESIZE` bytes, the length that the function requires.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) };
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    (!found.is_null()).then(|| clean(&name[..length], NAME))
}

/// Routes and rules that a process has removed.
#[derive(Debug, Default)]
struct Removals {
    /// Whether it is a rule, and its destination or source.
    removed: BTreeSet<(bool, String)>,
    /// Determine the process from the port id, because no kernel program reports it.
    names_process: bool,
}

impl Removals {
    /// Records a removal. The port id of a request is the PID of its sender, unless the sender has several
    /// rtnetlink sockets; 0 is the kernel, which removes routes with their link.
    fn add(&mut self, port: u32, route: RouteGone) -> Option<Observation> {
        if port == 0 {
            return None;
        }
        let key = (route.rule, route.object.clone());
        if self.removed.len() < MOST || self.removed.contains(&key) {
            self.removed.insert(key);
        }
        let sender = || Actor { pid: port, name: processes::name(port) };
        let process = if self.names_process { sender() } else { Actor::default() };
        Some(Observation::RouteGone(RouteGone { process, ..route }))
    }

    /// Records that a route or rule was added. Returns an observation if it had been removed.
    fn restore(&mut self, route: RouteGone) -> Option<Observation> {
        let was_removed = self.removed.remove(&(route.rule, route.object.clone()));
        was_removed.then_some(Observation::RouteGone(RouteGone { back: true, ..route }))
    }
}

/// `rtnetlink_groups`, include/uapi/linux/rtnetlink.h
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV4_RULE: u32 = 8;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RTNLGRP_IPV6_RULE: u32 = 19;
const RTNLGRP_NSID: u32 = 28;
const GROUPS: &[u32] = &[
    RTNLGRP_LINK,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV4_RULE,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV6_ROUTE,
    RTNLGRP_IPV6_RULE,
    RTNLGRP_NSID,
];

/// Sends changes of links in every network namespace for which the host's has an id, removed routes and
/// rules, and a notification when the host's addresses have changed. With `routes`, also determines which
/// process removed a route or rule, from the port id of the request. Runs forever.
pub(crate) async fn watch(
    settings: Arc<Settings>,
    feed: Feed,
    addresses_changed: mpsc::Sender<()>,
    routes: bool,
) {
    if let Err(error) = try_watch(&settings, &feed, &addresses_changed, routes).await {
        let why = format!("cannot watch links: {error:#}; only their state at start is known");
        let gap = Observation::Gap(Gap { signal: "link".to_owned(), why, blind: false });
        let _ = feed.send(Seen { at: clock::now(), observation: gap }).await;
    }
}

async fn try_watch(
    settings: &Settings,
    feed: &Feed,
    addresses_changed: &mpsc::Sender<()>,
    routes: bool,
) -> Result<()> {
    let mut listener = netlink::Listener::open(NETLINK_ROUTE, GROUPS)?;
    let mut removals = Removals { names_process: routes, ..Removals::default() };
    let mut ids = Ids::default();
    let mut known = BTreeMap::new();
    loop {
        let mut changes = Vec::new();
        match listener.next().await.context("read netlink")? {
            Received::Lost => {
                let hook = RTNETLINK.to_owned();
                let lost = Lost { hook, scope: Scope::Links, count: 1, left_out: false };
                changes.push(Observation::Lost(lost));
            }
            Received::Datagram(datagram, id) => {
                for message in netlink::messages(datagram) {
                    let Ok(message) = NetlinkMessage::deserialize(message) else { continue };
                    let origin = Origin { id, settings, ids: &mut ids, removals: &mut removals };
                    let Some(observation) = observation(message, origin, addresses_changed) else { continue };
                    // The kernel sends a link again for every change of a counter or flag.
                    if let Observation::Link(link) = &observation
                        && !has_changed(&mut known, (id, link.index), link)
                    {
                        continue;
                    }
                    changes.push(observation);
                }
            }
        }
        for observation in changes {
            if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Records a link by namespace id and index. Returns whether anything that is reported of it has changed.
fn has_changed(known: &mut BTreeMap<(Option<i32>, u32), Link>, key: (Option<i32>, u32), link: &Link) -> bool {
    if known.get(&key) == Some(link) {
        return false;
    }
    if !link.present {
        known.remove(&key);
    } else if known.len() < 8 * MOST {
        known.insert(key, link.clone());
    }
    true
}

/// The network namespace in which a message was sent, and what is needed to evaluate it.
struct Origin<'a> {
    /// Id of the namespace; `None` for the agent's own.
    id: Option<i32>,
    settings: &'a Settings,
    ids: &'a mut Ids,
    removals: &'a mut Removals,
}

impl Origin<'_> {
    fn link(&mut self, message: &LinkMessage, present: bool) -> Link {
        let mut link = link(message, present);
        link.netns = self.id.map(|id| self.ids.inum(id, self.settings));
        for attribute in &message.attributes {
            match attribute {
                // Ids are relative to the namespace in which the message was sent: only the host's are known.
                LinkAttribute::LinkNetNsId(id) if self.id.is_none() && *id >= 0 => {
                    link.peer_netns = Some(self.ids.inum(*id, self.settings));
                }
                LinkAttribute::NewNetnsId(id) if self.id.is_none() && *id >= 0 => {
                    link.moved_to = Some(self.ids.inum(*id, self.settings));
                }
                _ => {}
            }
        }
        link
    }
}

fn observation(
    message: NetlinkMessage<RouteNetlinkMessage>,
    mut origin: Origin<'_>,
    addresses_changed: &mpsc::Sender<()>,
) -> Option<Observation> {
    let port = message.header.port_number;
    let NetlinkPayload::InnerMessage(message) = message.payload else { return None };
    match message {
        RouteNetlinkMessage::NewLink(message) => Some(Observation::Link(origin.link(&message, true))),
        RouteNetlinkMessage::DelLink(message) => Some(Observation::Link(origin.link(&message, false))),
        RouteNetlinkMessage::DelNsId(message) if origin.id.is_none() => {
            for attribute in &message.attributes {
                if let NsidAttribute::Id(id) = attribute {
                    origin.ids.remove(*id);
                }
            }
            None
        }
        // Only the links of other namespaces are reported.
        _ if origin.id.is_some() => None,
        RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => {
            // A pending notification covers any number of changes.
            let _ = addresses_changed.try_send(());
            None
        }
        RouteNetlinkMessage::DelRoute(message) => origin.removals.add(port, route(&message)),
        RouteNetlinkMessage::DelRule(message) => origin.removals.add(port, rule(&message)),
        RouteNetlinkMessage::NewRoute(message) => origin.removals.restore(route(&message)),
        RouteNetlinkMessage::NewRule(message) => origin.removals.restore(rule(&message)),
        _ => None,
    }
}
