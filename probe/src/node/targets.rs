//! Where this node expects the API server.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use probe_engine::{ApiTarget, Gap, Range, TargetKind};
use serde_json::Value;

use super::discovery::Discovery;
use super::file;
use crate::settings::Settings;
use crate::text::clean;

/// What was found, and what could not be made out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Servers {
    /// In the order in which clients prefer them.
    pub(crate) targets: Vec<ApiTarget>,
    /// Names that did not resolve, files that did not parse.
    pub(crate) gaps: Vec<Gap>,
    /// A kubeconfig of the kubelet was read and names a server: an address that is not here is not used any more.
    pub(crate) is_whole: bool,
}

/// Kubeconfigs of CNI plugins, inside the configuration directory.
const CNI_KUBECONFIGS: &[&str] = &["calico-kubeconfig", "multus.d/multus.kubeconfig"];

/// What is missing where an address is not known.
pub(crate) const SIGNAL: &str = "api.address";

/// Default port of an `https` URL and of kube-apiserver.
const HTTPS_PORT: u16 = 443;

/// The kubelet's kubeconfigs: the one named by hand, else those that it is started with.
pub(crate) fn kubeconfigs(settings: &Settings, discovery: &Discovery) -> Vec<PathBuf> {
    match &settings.kubeconfig {
        Some(path) => vec![path.clone()],
        None => discovery.kubelet.kubeconfigs().map(|known| known.value.clone()).collect(),
    }
}

/// Every address, named ones first.
pub(crate) fn find(settings: &Settings, discovery: &Discovery) -> Servers {
    let services = service_ranges(settings, discovery);
    let mut found = Servers::default();
    for named in &settings.apiservers {
        let kind = named.kind.unwrap_or_else(|| guess(&services, named.addr));
        found.add(named.addr, kind, "--apiserver", named.name.clone());
    }
    if !settings.only_named {
        for path in kubeconfigs(settings, discovery) {
            found.kubeconfig(settings, &services, &path, false);
        }
        if let Some(addr) = service_in_environment() {
            found.add(addr, TargetKind::Service, "KUBERNETES_SERVICE_HOST", None);
        }
        for name in CNI_KUBECONFIGS {
            found.kubeconfig(settings, &services, &settings.cni.conf().join(name), true);
        }
    }
    if found.targets.is_empty() && found.gaps.is_empty() {
        found.gap("no address of the API server was found; name it with --apiserver ADDRESS:PORT".to_owned());
    }
    found
}

impl Servers {
    fn add(&mut self, addr: SocketAddr, kind: TargetKind, source: &str, name: Option<String>) {
        if !self.targets.iter().any(|known| known.addr == addr) {
            self.targets.push(ApiTarget { addr, kind, source: source.to_owned(), name });
        }
    }

    fn gap(&mut self, why: String) {
        self.gaps.push(Gap { signal: SIGNAL.to_owned(), why, blind: false });
    }

    /// Only the server's URL is read; credentials are not kept.
    fn kubeconfig(&mut self, settings: &Settings, services: &[Range], path: &Path, of_cni: bool) {
        let Some(text) = file::read_text(&settings.on_host(path)) else { return };
        let shown = clean(path.to_string_lossy().as_bytes(), 200);
        let parsed: Result<Value, _> = serde_yaml_ng::from_str(&text);
        let servers: Vec<String> = match parsed {
            Ok(value) => servers(&value),
            Err(_) => return self.gap(format!("{shown} is no kubeconfig")),
        };
        self.is_whole |= !of_cni && !servers.is_empty();
        for server in servers {
            let addresses = resolve(settings, &server);
            if addresses.is_empty() {
                self.gap(format!(
                    "the server {:?} in {shown} is not in /etc/hosts; name its address with --apiserver",
                    clean(server.as_bytes(), 100)
                ));
            }
            for addr in addresses {
                // A plugin's kubeconfig mostly names the Service.
                let kind = if of_cni { guess(services, addr) } else { kind_of(services, addr) };
                self.add(addr, kind, &shown, name_in(&server));
            }
        }
    }
}

/// The host name in a URL; `None` for an address.
pub(crate) fn name_in(server: &str) -> Option<String> {
    let authority = server.strip_prefix("https://").unwrap_or(server).split('/').next()?;
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let is_address = authority.starts_with('[') || host.parse::<IpAddr>().is_ok();
    (!is_address).then(|| clean(host.as_bytes(), 253))
}

pub(super) fn servers(kubeconfig: &Value) -> Vec<String> {
    let clusters =
        kubeconfig.get("clusters").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let server = |cluster: &Value| Some(cluster.pointer("/cluster/server")?.as_str()?.to_owned());
    clusters.iter().take(16).filter_map(server).collect()
}

fn service_in_environment() -> Option<SocketAddr> {
    let host: IpAddr = std::env::var("KUBERNETES_SERVICE_HOST").ok()?.parse().ok()?;
    let port = std::env::var("KUBERNETES_SERVICE_PORT").ok()?.parse().ok()?;
    Some(SocketAddr::new(host, port))
}

/// `https://host:port/path`, `host:port`, `[v6]:port`, `host`: to its addresses by the host's own table of names, without
/// asking anybody; empty where it has none.
pub(crate) fn resolve(settings: &Settings, server: &str) -> Vec<SocketAddr> {
    try_resolve(settings, server).unwrap_or_default()
}

fn try_resolve(settings: &Settings, server: &str) -> Option<Vec<SocketAddr>> {
    let (rest, default) = match server.strip_prefix("https://") {
        Some(rest) => (rest, HTTPS_PORT),
        None => (server, 6443),
    };
    let authority = rest.split('/').next()?;
    if let Ok(addr) = authority.parse::<SocketAddr>() {
        return Some(vec![addr]);
    }
    let bare = authority.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(authority);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Some(vec![SocketAddr::new(ip, default)]);
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (authority, default),
    };
    Some(by_name(settings, host).into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
}

/// Most addresses of one name that are taken; a name of an API server has one of each family, or one for each server.
const ADDRESSES: usize = 16;

fn by_name(settings: &Settings, name: &str) -> Vec<IpAddr> {
    // Local proxies listen on the IPv4 address, and clients go on to it at once where the other one is closed.
    if name == "localhost" {
        return vec![IpAddr::from([127, 0, 0, 1])];
    }
    let hosts = file::read_text(&settings.on_host(Path::new("/etc/hosts"))).unwrap_or_default();
    let address = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let addr = words.next()?.parse().ok()?;
        words.any(|known| known.eq_ignore_ascii_case(name)).then_some(addr)
    };
    hosts.lines().filter_map(address).take(ADDRESSES).collect()
}

/// Service when it is known to be one.
fn kind_of(services: &[Range], addr: SocketAddr) -> TargetKind {
    let in_environment = service_in_environment().is_some_and(|service| service.ip() == addr.ip());
    let in_range = services.iter().any(|range| range.contains(addr.ip()));
    if in_environment || in_range { TargetKind::Service } else { TargetKind::Direct }
}

/// As [`kind_of`]; where nothing is known of the Services, a private address with the Service's port 443 is
/// taken for one: API servers themselves listen on 6443 nearly everywhere.
fn guess(services: &[Range], addr: SocketAddr) -> TargetKind {
    let private = match addr.ip() {
        // RFC 1918, and RFC 6598, which kops uses.
        IpAddr::V4(v4) => v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64),
        IpAddr::V6(v6) => v6.is_unique_local(),
    };
    if services.is_empty() && addr.port() == HTTPS_PORT && private {
        return TargetKind::Service;
    }
    kind_of(services, addr)
}

/// From the API server's own manifest; else around the cluster's DNS address, which is a Service: the /16
/// there is the smallest range that common installers use (kubeadm: /12, Kubespray: /18 of a /16 of its own).
fn service_ranges(settings: &Settings, discovery: &Discovery) -> Vec<Range> {
    let static_pods = discovery.kubelet.static_pods.as_ref();
    let manifest = static_pods
        .and_then(|dir| file::read_text(&settings.on_host(&dir.value.join("kube-apiserver.yaml"))));
    let flag = "--service-cluster-ip-range=";
    let named = manifest.as_deref().unwrap_or_default().lines().find_map(|line| line.split_once(flag));
    if let Some((_, ranges)) = named {
        return ranges.trim_end_matches(['"', '\'']).split(',').filter_map(Range::parse).collect();
    }
    let dns = discovery.kubelet.cluster_dns.as_ref();
    let around = |ip: &IpAddr| Range { base: *ip, length: if ip.is_ipv4() { 16 } else { 112 } };
    dns.map(|dns| dns.value.iter().map(around).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_from_a_kubeconfig() {
        let text = "clusters:\n- name: a\n  cluster: {server: 'https://10.0.0.1:6443', x: 1}\n- name: b\n";
        let value: Value = serde_yaml_ng::from_str(text).expect("yaml");
        assert_eq!(servers(&value), ["https://10.0.0.1:6443"]);
    }
}
