//! Determines the addresses at which the clients on this node expect the API server.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use probe_engine::{ApiTarget, Gap, Range, TargetKind, cnis};
use serde_json::Value;

use super::discovery::Discovery;
use super::discovery::proxy::Proxy;
use super::file;
use super::names::{self, Named};
use crate::settings::{ApiServer, ServerHost, Settings};
use crate::text::clean;
use crate::yaml;

/// The API servers that were found, and what could not be determined.
#[derive(Clone, Debug, Default)]
pub(crate) struct Servers {
    /// Known addresses, in the order in which clients prefer them.
    pub(crate) targets: Vec<ApiTarget>,
    /// Files that did not parse, and servers that cannot be observed.
    pub(crate) gaps: Vec<Gap>,
    /// Servers that are configured by name, including those that `/etc/hosts` resolves.
    pub(crate) names: Vec<Named>,
    /// Whether a kubeconfig of the kubelet was read and names a server: an address that is not included is no longer in use.
    pub(crate) is_complete: bool,
}

/// Signal of the gap if an address of the API server is unknown.
pub(crate) const SIGNAL: &str = "api.address";

/// Default port of an `https` URL and of kube-apiserver.
const HTTPS_PORT: u16 = 443;

/// Returns the paths of the kubelet's kubeconfigs: the one given by `--kubeconfig`, else those in the kubelet's flags.
pub(crate) fn kubeconfigs(settings: &Settings, discovery: &Discovery) -> Vec<PathBuf> {
    match &settings.kubeconfig {
        Some(path) => vec![path.clone()],
        None => discovery.kubelet.kubeconfigs().map(|known| known.value.clone()).collect(),
    }
}

/// Returns all API servers, those given by `--apiserver` first.
pub(crate) fn find(settings: &Settings, discovery: &Discovery) -> Servers {
    let services = service_ranges(settings, discovery);
    let mut found = Servers::default();
    for ApiServer { host, port, kind } in &settings.apiservers {
        found.server(settings, &services, (host.clone(), *port), "--apiserver", Origin::Flag(*kind));
    }
    if !settings.only_named {
        for path in kubeconfigs(settings, discovery) {
            found.kubeconfig(settings, discovery, &services, &path, Origin::Kubelet);
        }
        if let Some(addr) = service_in_environment() {
            let source = "KUBERNETES_SERVICE_HOST".to_owned();
            found.add(ApiTarget { addr, kind: TargetKind::Service, source, name: None, proxy: None });
        }
        for (name, _) in cnis::kubeconfigs() {
            found.kubeconfig(settings, discovery, &services, &settings.cni.conf().join(name), Origin::Cni);
        }
    }
    if found.targets.is_empty() && found.names.is_empty() && found.gaps.is_empty() {
        found.gap("no address of the API server was found; set it with --apiserver ADDRESS:PORT".to_owned());
    }
    found
}

impl Servers {
    fn add(&mut self, target: ApiTarget) {
        if !self.targets.iter().any(|known| known.addr == target.addr) {
            self.targets.push(target);
        }
    }

    fn gap(&mut self, why: String) {
        self.gaps.push(Gap { signal: SIGNAL.to_owned(), why, blind: false });
    }

    /// Adds the servers in a kubeconfig. Only their URLs are kept.
    fn kubeconfig(
        &mut self,
        settings: &Settings,
        discovery: &Discovery,
        services: &[Range],
        path: &Path,
        origin: Origin,
    ) {
        let Some(text) = file::read_text(&settings.on_host(path)) else { return };
        let source = clean(path.to_string_lossy().as_bytes(), 200);
        let parsed: Result<Value, _> = yaml::parse(text.as_bytes());
        let servers: Vec<String> = match parsed {
            Ok(value) => servers(&value),
            Err(_) => return self.gap(format!("{source} is not a kubeconfig")),
        };
        self.is_complete |= origin == Origin::Kubelet && !servers.is_empty();
        for server in servers {
            match parse(&server) {
                Some((host, port)) => {
                    let proxy = discovery.kubelet.proxy_for(&host, port);
                    match proxy.filter(|_| origin == Origin::Kubelet) {
                        Some(proxy) => self.proxy(settings, proxy, &source),
                        None => self.server(settings, services, (host, port), &source, origin),
                    }
                }
                None => {
                    self.gap(format!("{source}: server {:?} is not a URL", clean(server.as_bytes(), 100)));
                }
            }
        }
    }

    /// Adds a proxy in place of the server behind it: the kubelet connects to the proxy, so a direct connection to the server
    /// shows nothing about the kubelet's.
    fn proxy(&mut self, settings: &Settings, proxy: &Proxy, source: &str) {
        if !proxy.is_usable(settings.kubelet_credentials) {
            self.gap(format!(
                "the kubelet reaches its API server through the proxy {}; only connections to the proxy are observed, \
                 because requests through it would need TLS, SOCKS or the kubelet's user information",
                proxy.url
            ));
        }
        let named = Named {
            name: proxy.host.to_string(),
            port: proxy.port,
            source: source.to_owned(),
            origin: Origin::Kubelet,
            services: Vec::new(),
            proxy: Some(proxy.url.clone()),
        };
        match &proxy.host {
            ServerHost::Address(ip) => self.add(ApiTarget { name: None, ..named.target(*ip) }),
            ServerHost::Name(_) => self.name(settings, named),
        }
    }

    /// Adds a server: its address, or its name with the addresses in `/etc/hosts`.
    fn server(
        &mut self,
        settings: &Settings,
        services: &[Range],
        (host, port): (ServerHost, u16),
        source: &str,
        origin: Origin,
    ) {
        match host {
            ServerHost::Address(ip) => {
                let addr = SocketAddr::new(ip, port);
                let (kind, source) = (origin.kind(services, addr), source.to_owned());
                self.add(ApiTarget { addr, kind, source, name: None, proxy: None });
            }
            ServerHost::Name(name) => {
                let (source, services) = (source.to_owned(), services.to_vec());
                self.name(settings, Named { name, port, source, origin, services, proxy: None });
            }
        }
    }

    fn name(&mut self, settings: &Settings, named: Named) {
        for ip in names::in_hosts_file(settings, &named.name) {
            self.add(named.target(ip));
        }
        if !self.names.iter().any(|known| (&known.name, known.port) == (&named.name, named.port)) {
            self.names.push(named);
        }
    }
}

/// Where an API server is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// `--apiserver`, with the kind if the flag specifies it.
    Flag(Option<TargetKind>),
    /// A kubeconfig of the kubelet.
    Kubelet,
    /// A kubeconfig of a CNI plugin.
    Cni,
}

impl Origin {
    /// Returns whether an address is that of the Service or of an API server itself. The kubeconfig of a CNI plugin usually
    /// names the Service.
    pub(super) fn kind(self, services: &[Range], addr: SocketAddr) -> TargetKind {
        match self {
            Self::Flag(Some(kind)) => kind,
            Self::Flag(None) | Self::Cni => guess(services, addr),
            Self::Kubelet => kind_of(services, addr),
        }
    }
}

/// Returns the server URLs in a kubeconfig, at most 16.
pub(super) fn servers(kubeconfig: &Value) -> Vec<String> {
    let clusters =
        kubeconfig.get("clusters").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let server = |cluster: &Value| Some(cluster.pointer("/cluster/server")?.as_str()?.to_owned());
    clusters.iter().take(16).filter_map(server).collect()
}

/// Returns the address of the Service `kubernetes`, which the kubelet passes to containers.
fn service_in_environment() -> Option<SocketAddr> {
    let host: IpAddr = std::env::var("KUBERNETES_SERVICE_HOST").ok()?.parse().ok()?;
    let port = std::env::var("KUBERNETES_SERVICE_PORT").ok()?.parse().ok()?;
    Some(SocketAddr::new(host, port))
}

/// Parses host and port of a server in one of the forms `https://host:port/path`, `host:port`, `[v6]:port` and `host`. The
/// default port is 443 for a URL, else 6443.
pub(crate) fn parse(server: &str) -> Option<(ServerHost, u16)> {
    let (rest, default) = match server.strip_prefix("https://") {
        Some(rest) => (rest, HTTPS_PORT),
        None => (server, 6443),
    };
    let authority = rest.split('/').next()?;
    if let Ok(addr) = authority.parse::<SocketAddr>() {
        return Some((ServerHost::Address(addr.ip()), addr.port()));
    }
    let bare = authority.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(authority);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Some((ServerHost::Address(ip), default));
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (authority, default),
    };
    // RFC 1035. Underscores are not valid in host names, but are in use.
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (!host.is_empty() && host.len() <= 253 && host.bytes().all(is_name))
        .then(|| (ServerHost::Name(host.to_owned()), port))
}

/// Returns [`TargetKind::Service`] if the address is known to be that of a Service.
fn kind_of(services: &[Range], addr: SocketAddr) -> TargetKind {
    let in_environment = service_in_environment().is_some_and(|service| service.ip() == addr.ip());
    let in_range = services.iter().any(|range| range.contains(addr.ip()));
    if in_environment || in_range { TargetKind::Service } else { TargetKind::Direct }
}

/// Same as [`kind_of`], but if the Service ranges are unknown, a private address with port 443 is assumed to be a Service:
/// API servers themselves nearly always listen on 6443.
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

/// Returns the address ranges of Services: those in the API server's static pod manifest, else the /16 (IPv6: /112) around the
/// address of the cluster DNS, which is a Service. A /16 is the smallest range that common installers reserve (kubeadm: /12,
/// Kubespray: /18 of a /16 of its own).
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
    use std::collections::BTreeMap;
    use std::fs;

    use probe_engine::ProcessClass;

    use super::*;
    use crate::node::discovery::Program;
    use crate::settings::tests::settings;

    #[test]
    fn parses_urls_and_addresses() {
        let name = |name: &str| ServerHost::Name(name.to_owned());
        for (server, wanted) in [
            ("https://10.0.0.1", Some((ServerHost::Address([10, 0, 0, 1].into()), 443))),
            ("10.0.0.1", Some((ServerHost::Address([10, 0, 0, 1].into()), 6443))),
            (
                "https://[fd00::1]:6443/x",
                Some((ServerHost::Address("fd00::1".parse().expect("an address")), 6443)),
            ),
            ("https://api.example.com", Some((name("api.example.com"), 443))),
            ("https://localhost:6443", Some((name("localhost"), 6443))),
            ("https://api:port", None),
            ("https://a b", None),
            ("https://", None),
        ] {
            assert_eq!(parse(server), wanted, "{server}");
        }
    }

    #[test]
    fn target_behind_a_proxy_has_the_address_of_the_proxy() {
        let root = tempfile::tempdir().expect("a directory");
        fs::write(root.path().join("k"), "clusters: [{cluster: {server: 'https://10.0.0.1:6443'}}]")
            .expect("written");
        let settings = settings(&["--host-root", root.path().to_str().expect("a text")]);
        let found = |proxy: &'static str, exceptions: &'static str| {
            let variable = |name: &str| match name {
                "HTTPS_PROXY" => Some(proxy),
                "NO_PROXY" => Some(exceptions),
                _ => None,
            };
            let kubelet = Program {
                name: "kubelet".to_owned(),
                class: ProcessClass::Kubelet,
                words: vec!["kubelet".to_owned(), "--kubeconfig=/k".to_owned()],
                variables: BTreeMap::new(),
                proxy: Proxy::of(variable),
            };
            find(&settings, &Discovery::find(&settings, &[kubelet]))
        };
        let shown = |servers: &Servers| -> Vec<_> {
            servers.targets.iter().map(|target| (target.addr.to_string(), target.proxy.clone())).collect()
        };
        let direct = found("http://10.0.9.9:3128", "10.0.0.0/8");
        assert!(direct.gaps.is_empty(), "{direct:?}");
        assert_eq!(shown(&direct), [("10.0.0.1:6443".to_owned(), None)]);
        let behind = found("http://10.0.9.9:3128", "");
        let url = "http://10.0.9.9:3128".to_owned();
        assert_eq!(shown(&behind), [("10.0.9.9:3128".to_owned(), Some(url.clone()))]);
        assert!(behind.gaps.is_empty() && behind.names.is_empty() && behind.is_complete, "{behind:?}");
        let by_name = found("http://p.corp:3128", "");
        assert!(by_name.targets.is_empty(), "{by_name:?}");
        let named = &by_name.names[0];
        assert_eq!((named.name.as_str(), named.port), ("p.corp", 3128));
        let target = named.target([10, 0, 9, 9].into());
        assert_eq!(
            (target.name.as_deref(), target.proxy.as_deref()),
            (Some("p.corp"), Some("http://p.corp:3128"))
        );
        let by_tls = found("https://user:secret@10.0.9.9:3128", "");
        assert_eq!(shown(&by_tls), [("10.0.9.9:3128".to_owned(), Some(url.replace("http", "https")))]);
        assert!(by_tls.gaps[0].why.contains("through the proxy https://10.0.9.9:3128;"), "{by_tls:?}");
    }

    #[test]
    fn reads_servers_from_a_kubeconfig() {
        let text = "clusters:\n- name: a\n  cluster: {server: 'https://10.0.0.1:6443', x: 1}\n- name: b\n";
        let value: Value = yaml::parse(text.as_bytes()).expect("yaml");
        assert_eq!(servers(&value), ["https://10.0.0.1:6443"]);
    }
}
