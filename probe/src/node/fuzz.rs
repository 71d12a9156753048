//! Fuzz targets of this module; see `crate::fuzz`.

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use probe_engine::ConfContent;

use super::ovs::fuzz as ovs;
use super::{
    cni_parse, conf_access, cri as runtime, discovery, errqueue, kubeconfig, links, names, netlink as wire,
    targets,
};
use crate::fuzz::is_clean;
use crate::settings::ServerHost;
use crate::yaml;

/// Parses a CNI configuration, as a list and as a single plugin.
pub fn cni_config(bytes: &[u8]) {
    for name in ["10-pods.conflist", "10-pods.conf"] {
        match cni_parse::parse(name, bytes) {
            ConfContent::Network { network, plugins } => {
                assert!(is_clean(&network) && plugins.iter().all(|plugin| is_clean(plugin)));
                assert!(plugins.iter().all(|plugin| !plugin.contains('/')), "{plugins:?}");
            }
            ConfContent::Invalid { why } => assert!(is_clean(&why), "{why:?}"),
            _ => {}
        }
    }
    if let Some((kind, file)) = cni_parse::readiness(bytes) {
        assert!(is_clean(&kind) && is_clean(&file));
    }
    assert!(cni_parse::links(bytes).iter().all(|link| is_clean(link)));
    if let Some(dir) = cni_parse::lease_dir(bytes) {
        assert!(dir.is_absolute());
    }
}

/// Parses a kubeconfig, and reads its servers and the kubelet's context.
pub fn kubeconfig(bytes: &[u8]) {
    kubeconfig::fuzz(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(value) = yaml::parse(text.as_bytes()) else { return };
    let servers = targets::servers(&value);
    assert!(servers.len() <= 16);
    for server in servers {
        let server = targets::parse(&server);
        assert!(!matches!(server, Some((ServerHost::Name(name), _)) if !is_clean(&name)));
    }
}

/// Parses a configuration file of a kubelet, a runtime or a resolver.
pub fn node_config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    discovery::fuzz(text);
    names::fuzz(text);
}

/// Parses a datagram of rtnetlink or generic netlink, an entry of a socket's error queue, or the records of a
/// fanotify event.
pub fn netlink(bytes: &[u8]) {
    let _ = wire::end_of(bytes);
    for message in wire::messages(bytes) {
        ovs::message(message);
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) else { continue };
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => {
                let link = links::link(&message, true);
                assert!(is_clean(&link.name) && is_clean(&link.link_kind));
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelRoute(route)) => {
                assert!(is_clean(&links::route(&route).object));
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelRule(rule)) => {
                assert!(is_clean(&links::rule(&rule).object));
            }
            _ => {}
        }
    }
    let _ = errqueue::parse(bytes);
    let _ = conf_access::name_in(bytes);
}

/// Parses the response of a runtime to `Status`.
pub fn cri(bytes: &[u8]) {
    runtime::fuzz(bytes);
}

/// Parses the response of a DNS server.
pub fn dns(bytes: &[u8]) {
    names::fuzz_response(bytes);
}

/// Parses a response of the Open vSwitch database.
pub fn ovsdb(bytes: &[u8]) {
    ovs::database(bytes);
}
