//! Converts records of rtnetlink(7) requests, and names the objects that they are about.

use netlink_packet_core::{DefaultNla, Nla as _, NlasIterator, Parseable as _};
use probe_common::{Rtnetlink, text};
use probe_engine::{Actor, NetlinkError, ProcessClass, RouteGone};

use super::VALUE_MAX;
use crate::text::clean;

/// Size of `struct nlmsghdr`, bytes.
const HEADER: usize = 16;

// include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h, fib_rules.h
const RTM_DELROUTE: u16 = 25;
const RTM_DELRULE: u16 = 33;
const IFLA_IFNAME: u16 = 3;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const FRA_SRC: u16 = 2;

const KINDS: &[(u16, &str)] = &[
    (16, "newlink"),
    (17, "dellink"),
    (19, "setlink"),
    (20, "newaddr"),
    (21, "deladdr"),
    (24, "newroute"),
    (25, "delroute"),
    (28, "newneigh"),
    (29, "delneigh"),
    (32, "newrule"),
    (33, "delrule"),
    (36, "newqdisc"),
    (37, "delqdisc"),
    (40, "newtclass"),
    (44, "newtfilter"),
    (45, "deltfilter"),
    (88, "newnsid"),
];

/// Converts a refused request.
pub(super) fn refused(record: &Rtnetlink, process: Actor, class: Option<ProcessClass>) -> NetlinkError {
    let request = KINDS.iter().find(|(kind, _)| *kind == record.kind).map_or("", |(_, name)| name);
    NetlinkError {
        process,
        class,
        cni: record.cni != 0,
        request: request.to_owned(),
        object: object(record).unwrap_or_default(),
        errno: record.errno,
        text: clean(text(&record.text), VALUE_MAX),
    }
}

/// Converts a request that removed a route or a rule; `None` for any other request.
pub(super) fn removed(record: &Rtnetlink, process: Actor) -> Option<RouteGone> {
    let rule = match (record.kind, record.errno) {
        (RTM_DELROUTE, 0) => false,
        (RTM_DELRULE, 0) => true,
        _ => return None,
    };
    Some(RouteGone { process, rule, object: object(record).unwrap_or_default(), ..RouteGone::default() })
}

/// Returns the object of a request: the name of a link, an address, or the destination of a route.
fn object(record: &Rtnetlink) -> Option<String> {
    let length = usize::try_from(record.len).ok()?;
    let body = record.request.get(HEADER..length)?;
    match record.kind {
        16..=19 => {
            // struct ifinfomsg has the index at offset 4.
            let name = attribute(body.get(16..)?, IFLA_IFNAME).map(|name| clean(text(&name), 64));
            name.or_else(|| Some(format!("#{}", i32::from_ne_bytes(body.get(4..8)?.try_into().ok()?))))
        }
        20..=22 => Some(prefix(&attribute(body.get(8..)?, IFA_LOCAL)?, *body.get(1)?)),
        24..=26 | 32..=34 => {
            let (family, length, source) = (body.first()?, *body.get(1)?, *body.get(2)?);
            let of = if record.kind < 32 { (RTA_DST, length) } else { (FRA_SRC, source) };
            let any = if i32::from(*family) == libc::AF_INET6 { "default (IPv6)" } else { "default" };
            let found = attribute(body.get(12..)?, of.0);
            Some(found.map_or_else(|| any.to_owned(), |bytes| prefix(&bytes, of.1)))
        }
        _ => None,
    }
}

fn prefix(bytes: &[u8], length: u8) -> String {
    let address = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| std::net::IpAddr::from(bytes).to_string()),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|bytes| std::net::IpAddr::from(bytes).to_string()),
        _ => None,
    };
    format!("{}/{length}", address.unwrap_or_else(|| "?".to_owned()))
}

/// Returns the value of the first attribute of this kind; `None` if a truncated one comes before it.
fn attribute(bytes: &[u8], wanted: u16) -> Option<Vec<u8>> {
    for nla in NlasIterator::new(bytes) {
        let nla = DefaultNla::parse(&nla.ok()?).ok()?;
        if nla.kind() == wanted {
            let mut value = vec![0; nla.value_len()];
            nla.emit_value(&mut value);
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    fn record(kind: u16, body: &[u8]) -> Rtnetlink {
        let mut record = Rtnetlink::new_zeroed();
        record.kind = kind;
        record.request[HEADER..HEADER + body.len()].copy_from_slice(body);
        record.len = u32::try_from(HEADER + body.len()).expect("short");
        record
    }

    #[test]
    fn names_objects_as_ip_does() {
        let mut link = vec![0; 16];
        link[4] = 7;
        assert_eq!(object(&record(16, &link)).as_deref(), Some("#7"));
        link.extend([10, 0, 3, 0]);
        link.extend(b"eth0\x1b\0\0\0");
        assert_eq!(object(&record(16, &link)).as_deref(), Some("eth0\\u{1b}"));
        let mut route = vec![2, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(object(&record(25, &route)).as_deref(), Some("default"));
        route.extend([8, 0, 1, 0, 10, 244, 0, 0]);
        let removed = removed(&record(25, &route), Actor::default()).expect("a route");
        assert_eq!((removed.object.as_str(), removed.rule), ("10.244.0.0/16", false));
        for cut in 0..route.len() {
            let _ = object(&record(25, &route[..cut]));
        }
    }
}
