//! Links, in every namespace that can be seen from the host's, and the host's addresses, by rtnetlink(7).

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
use super::netlink::{self, Came};
use super::processes;
use crate::clock;
use crate::feed::{Feed, RTNETLINK, Seen};
use crate::settings::Settings;
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

pub(super) fn route_gone(route: &RouteMessage) -> RouteGone {
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
    let any = if route.header.address_family == AddressFamily::Inet6 { "default (IPv6)" } else { "default" };
    let object = destination.map_or_else(|| any.to_owned(), |addr| format!("{addr}/{length}"));
    RouteGone { object, device: link.unwrap_or_default(), ..RouteGone::default() }
}

pub(super) fn rule_gone(rule: &RuleMessage) -> RouteGone {
    let source = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Source(addr) => Some(format!("{addr}/{}", rule.header.src_len)),
        _ => None,
    });
    let any = if rule.header.family == AddressFamily::Inet6 { "default (IPv6)" } else { "default" };
    let object = source.unwrap_or_else(|| any.to_owned());
    RouteGone { rule: true, object, ..RouteGone::default() }
}

/// A link of this namespace.
fn name_of(index: u32) -> Option<String> {
    let mut name = [0_u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the length that the function asks for.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) };
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    (!found.is_null()).then(|| clean(&name[..length], IFNAME * 4))
}

/// Routes and rules that somebody took away.
#[derive(Debug, Default)]
struct Gone {
    known: BTreeSet<(bool, String)>,
    /// The kernel half tells who did it: here nobody is named.
    is_told: bool,
}

impl Gone {
    /// The port id of a request is the process id of its sender, unless that has several such sockets; 0 is the
    /// kernel, which takes routes away with their link.
    fn by(&mut self, port: u32, gone: RouteGone) -> Option<Observation> {
        if port == 0 {
            return None;
        }
        let key = (gone.rule, gone.object.clone());
        if self.known.len() < MOST || self.known.contains(&key) {
            self.known.insert(key);
        }
        let who = || Actor { pid: port, name: processes::name(port) };
        let process = if self.is_told { Actor::default() } else { who() };
        Some(Observation::RouteGone(RouteGone { process, ..gone }))
    }

    /// One of them is there again.
    fn back(&mut self, came: RouteGone) -> Option<Observation> {
        let was_gone = self.known.remove(&(came.rule, came.object.clone()));
        was_gone.then_some(Observation::RouteGone(RouteGone { back: true, ..came }))
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

/// Sends changes of links in every namespace that the host's one has an id for, and a note when the host's
/// addresses changed; with `routes`, also who took its routes and rules away, as far as the port id of the
/// request tells it. Runs for ever.
pub(crate) async fn watch(
    settings: Arc<Settings>,
    feed: Feed,
    addresses_changed: mpsc::Sender<()>,
    routes: bool,
) {
    if let Err(error) = try_watch(&settings, &feed, &addresses_changed, routes).await {
        let why = format!("watch links: {error:#}; only their state at start is known");
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
    let mut gone = Gone { is_told: !routes, ..Gone::default() };
    let mut ids = Ids::default();
    let mut known = BTreeMap::new();
    loop {
        let mut seen = Vec::new();
        match listener.next().await.context("read netlink")? {
            Came::Lost => {
                let hook = RTNETLINK.to_owned();
                let lost = Lost { hook, scope: Scope::Links, count: 1, left_out: false };
                seen.push(Observation::Lost(lost));
            }
            Came::Datagram(datagram, id) => {
                for message in netlink::messages(datagram) {
                    let Ok(message) = NetlinkMessage::deserialize(message) else { continue };
                    let place = Place { id, settings, ids: &mut ids, gone: &mut gone };
                    let Some(observation) = observation(message, place, addresses_changed) else { continue };
                    // The kernel repeats a link for every counter and flag; only what is shown counts.
                    if let Observation::Link(link) = &observation
                        && !is_news(&mut known, (id, link.index), link)
                    {
                        continue;
                    }
                    seen.push(observation);
                }
            }
        }
        for observation in seen {
            if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                return Ok(());
            }
        }
    }
}

fn is_news(known: &mut BTreeMap<(Option<i32>, u32), Link>, key: (Option<i32>, u32), link: &Link) -> bool {
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

/// Where a message was made.
struct Place<'a> {
    id: Option<i32>,
    settings: &'a Settings,
    ids: &'a mut Ids,
    gone: &'a mut Gone,
}

impl Place<'_> {
    fn link(&mut self, message: &LinkMessage, present: bool) -> Link {
        let mut link = link(message, present);
        link.netns = self.id.map(|id| self.ids.inum(id, self.settings));
        for attribute in &message.attributes {
            match attribute {
                // Ids in a message are those of the namespace where it was made: only the host's are known.
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
    mut place: Place<'_>,
    addresses_changed: &mpsc::Sender<()>,
) -> Option<Observation> {
    let port = message.header.port_number;
    let NetlinkPayload::InnerMessage(message) = message.payload else { return None };
    match message {
        RouteNetlinkMessage::NewLink(message) => Some(Observation::Link(place.link(&message, true))),
        RouteNetlinkMessage::DelLink(message) => Some(Observation::Link(place.link(&message, false))),
        RouteNetlinkMessage::DelNsId(message) if place.id.is_none() => {
            for attribute in &message.attributes {
                if let NsidAttribute::Id(id) = attribute {
                    place.ids.gone(*id);
                }
            }
            None
        }
        // Of other namespaces, only the links.
        _ if place.id.is_some() => None,
        RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => {
            // One note is enough for any number of changes.
            let _ = addresses_changed.try_send(());
            None
        }
        RouteNetlinkMessage::DelRoute(route) => place.gone.by(port, route_gone(&route)),
        RouteNetlinkMessage::DelRule(rule) => place.gone.by(port, rule_gone(&rule)),
        RouteNetlinkMessage::NewRoute(route) => place.gone.back(route_gone(&route)),
        RouteNetlinkMessage::NewRule(rule) => place.gone.back(rule_gone(&rule)),
        _ => None,
    }
}
