//! Resolves API server names as the node's own programs do: from the host's `/etc/hosts`, then by the DNS servers of its
//! `/etc/resolv.conf`.

mod state;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use domain::base::iana::{Rcode, Rtype};
use domain::base::{Message, Name, Record, Ttl};
use domain::dep::octseq::Octets;
use domain::rdata::{A, Aaaa};
use domain::resolv::StubResolver;
use domain::resolv::stub::conf::ResolvConf;
use probe_engine::{ApiTarget, NameFailure, Range, limits};
use tokio::sync::watch;
use tokio::time::Instant;

use self::state::NameState;
use super::discovery::Kubelet;
use super::file;
use super::targets::Origin;
use crate::clock;
use crate::feed::{Feed, Seen};
use crate::settings::Settings;
use crate::text::clean;

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Timeout of one name with all of its search domains and servers; glibc's own timeout is 5 s for each attempt.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(8);
/// Bounds of the interval between two lookups of a name, which is the TTL of its records. Cloud providers publish records of
/// API servers with a TTL of one minute.
const MIN_INTERVAL: Duration = Duration::from_secs(30);
const MAX_INTERVAL: Duration = Duration::from_mins(5);
/// Interval at which the files are checked for changes and due lookups are made.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of addresses of one name; the name of an API server has one per address family, or one per server.
const MAX_ADDRESSES: usize = 16;
/// Maximum length of an error, bytes.
const MAX_ERROR_LEN: usize = 160;
/// Maximum number of search domains that are tried; resolv.conf(5) documents a limit of six for older versions of glibc.
const MAX_SEARCH_DOMAINS: usize = 16;

/// A name of an API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) port: u16,
    /// Where it is configured, in readable form.
    pub(crate) source: String,
    pub(crate) origin: Origin,
    /// The known address ranges of the cluster's Services.
    pub(crate) services: Vec<Range>,
    /// The proxy's URL if this is the name of a proxy, see [`ApiTarget::proxy`].
    pub(crate) proxy: Option<String>,
}

impl Named {
    /// Returns the target at one of the name's addresses.
    pub(crate) fn target(&self, ip: IpAddr) -> ApiTarget {
        let addr = SocketAddr::new(ip, self.port);
        ApiTarget {
            addr,
            kind: self.origin.kind(&self.services, addr),
            source: self.source.clone(),
            name: Some(self.name.clone()),
            proxy: self.proxy.clone(),
        }
    }
}

/// The result of resolving a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NameResolution {
    /// The DNS server or file that was queried first.
    pub(crate) resolver: String,
    /// The addresses and their TTL.
    pub(crate) result: Result<(Vec<IpAddr>, Duration), NameFailure>,
}

/// Returns the addresses of a name in the host's `/etc/hosts`.
pub(crate) fn in_hosts_file(settings: &Settings, name: &str) -> Vec<IpAddr> {
    // Local proxies listen on the IPv4 address. If the IPv6 address refuses the connection, clients try IPv4 at once.
    if name == "localhost" {
        return vec![Ipv4Addr::LOCALHOST.into()];
    }
    let hosts = file::read_text(&settings.on_host(Path::new(HOSTS))).unwrap_or_default();
    let address = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let addr = words.next()?.parse().ok()?;
        words.any(|known| known.eq_ignore_ascii_case(name)).then_some(addr)
    };
    hosts.lines().filter_map(address).take(MAX_ADDRESSES).collect()
}

/// Resolves a name from `/etc/hosts`, else by DNS.
pub(crate) async fn resolve_name(settings: &Settings, name: &str) -> NameResolution {
    let known = in_hosts_file(settings, name);
    if !known.is_empty() {
        return NameResolution { resolver: HOSTS.to_owned(), result: Ok((known, MIN_INTERVAL)) };
    }
    let mut conf = ResolvConf::new();
    let text = file::read_text(&settings.on_host(Path::new(RESOLV_CONF))).unwrap_or_default();
    if let Err(error) = conf.parse(&mut text.as_bytes()) {
        let why = clean(format!("{RESOLV_CONF}: {error}").as_bytes(), MAX_ERROR_LEN);
        return NameResolution { resolver: RESOLV_CONF.to_owned(), result: Err(NameFailure::Other { why }) };
    }
    // If the file names no server, the default is the server on this host, as for every program.
    conf.finalize();
    let resolver =
        conf.servers.first().map_or_else(|| RESOLV_CONF.to_owned(), |server| server.addr.to_string());
    let candidates = candidates(name, &conf);
    let stub = StubResolver::from_conf(conf);
    let query_all = async {
        let mut failure = None;
        for candidate in candidates {
            match query(&stub, &candidate).await {
                Ok(found) => return Ok(found),
                Err(other) => _ = failure.get_or_insert(other),
            }
        }
        Err(failure.unwrap_or(NameFailure::NoSuchName))
    };
    let result = tokio::time::timeout(LOOKUP_TIMEOUT, query_all).await.unwrap_or(Err(NameFailure::Silent));
    NameResolution { resolver, result: result.map(|(found, ttl)| (routable(found), ttl)) }
}

/// Returns the fully qualified names to query, in the order that resolv.conf(5) specifies.
fn candidates(name: &str, conf: &ResolvConf) -> Vec<String> {
    if name.ends_with('.') {
        return vec![name.to_owned()];
    }
    let suffixes = conf.options.search.as_slice().iter().take(MAX_SEARCH_DOMAINS).map(ToString::to_string);
    let searched = suffixes.filter(|suffix| !suffix.is_empty() && suffix != ".");
    let mut all: Vec<_> = searched.map(|suffix| format!("{name}.{}", suffix.trim_end_matches('.'))).collect();
    let dots = name.bytes().filter(|byte| *byte == b'.').count();
    let at = if dots >= conf.options.ndots { 0 } else { all.len() };
    all.insert(at, name.to_owned());
    all
}

/// Queries the A and AAAA records of a fully qualified name. Returns the addresses with their lowest TTL, which is at least
/// [`MIN_INTERVAL`].
async fn query(stub: &StubResolver, name: &str) -> Result<(Vec<IpAddr>, Duration), NameFailure> {
    let Ok(name) = name.trim_end_matches('.').parse::<Name<Vec<u8>>>() else {
        return Err(NameFailure::Other { why: "not a DNS name".to_owned() });
    };
    let (v4, v6) = tokio::join!(stub.query((&name, Rtype::A)), stub.query((&name, Rtype::AAAA)));
    let (mut found, mut min_ttl, mut failure) = (Vec::new(), MAX_INTERVAL, None);
    for answer in [v4, v6] {
        let message = match answer {
            Ok(answer) => answer.into_message(),
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                failure.get_or_insert(NameFailure::Silent);
                continue;
            }
            Err(error) => {
                let why = clean(error.to_string().as_bytes(), MAX_ERROR_LEN);
                failure.get_or_insert(NameFailure::Other { why });
                continue;
            }
        };
        if let Some(other) = failure_in(&message) {
            failure.get_or_insert(other);
        }
        for (ip, ttl) in addresses_in(&message) {
            found.push(ip);
            min_ttl = min_ttl.min(ttl.into_duration());
        }
    }
    if found.is_empty() {
        Err(failure.unwrap_or(NameFailure::NoAddress))
    } else {
        Ok((found, min_ttl.max(MIN_INTERVAL)))
    }
}

fn failure_in<O: AsRef<[u8]>>(message: &Message<O>) -> Option<NameFailure> {
    match message.header().rcode() {
        Rcode::NOERROR => None,
        Rcode::NXDOMAIN => Some(NameFailure::NoSuchName),
        Rcode::SERVFAIL => Some(NameFailure::ServerFailure),
        Rcode::REFUSED => Some(NameFailure::Refused),
        other => Some(NameFailure::Other { why: format!("response code {other}") }),
    }
}

/// Returns the addresses in a response with their TTLs, at most [`MAX_ADDRESSES`]. Malformed records are skipped.
fn addresses_in<O: Octets>(message: &Message<O>) -> Vec<(IpAddr, Ttl)> {
    let Ok(section) = message.answer() else { return Vec::new() };
    let v4 = section.limit_to_in::<A>().flatten().map(|record| address(&record, record.data().addr().into()));
    let v6 =
        section.limit_to_in::<Aaaa>().flatten().map(|record| address(&record, record.data().addr().into()));
    v4.chain(v6).take(MAX_ADDRESSES).collect()
}

fn address<N, D>(record: &Record<N, D>, ip: IpAddr) -> (IpAddr, Ttl) {
    (ip, record.ttl())
}

/// Returns the addresses to which this host has a route. Returns all if there is none: the missing route is reported as a
/// fault of its own.
fn routable(found: Vec<IpAddr>) -> Vec<IpAddr> {
    // Connecting a datagram socket sends no packet.
    let has_route = |ip: &IpAddr| {
        let any =
            if ip.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((*ip, 9))).is_ok()
    };
    let with_route: Vec<_> = found.iter().copied().filter(has_route).collect();
    if with_route.is_empty() { found } else { with_route }
}

/// Resolves names, repeats that when their records expire, and reports their addresses as API targets. Returns when the
/// receiver of the feed, or the sender of the names, is dropped.
pub(crate) async fn watch(
    settings: Arc<Settings>,
    mut names: watch::Receiver<Vec<Named>>,
    kubelet: watch::Receiver<Kubelet>,
    feed: Feed,
) {
    let mut known: BTreeMap<(String, u16), NameState> = BTreeMap::new();
    let mut files = file_versions(&settings);
    loop {
        let wanted = names.borrow_and_update().clone();
        let removed: Vec<_> =
            known.keys().filter(|key| !wanted.iter().any(|named| is_named(named, key))).cloned().collect();
        for key in removed {
            // Their targets were removed with the kubeconfig that named them.
            known.remove(&key);
        }
        let now = file_versions(&settings);
        if now != files {
            files = now;
            known.values_mut().for_each(NameState::retry_now);
        }
        for named in wanted.iter().take(limits::NAMES) {
            let key = (named.name.clone(), named.port);
            let state = known.entry(key).or_default();
            let mut reports = Vec::new();
            if state.due <= Instant::now() {
                let resolution = resolve_name(&settings, &named.name).await;
                // A query that could not be sent is not a failure of the resolver. The library does not return the errno.
                if resolution.result.is_ok() || !lacks_descriptors() {
                    reports = state.record(named, resolution);
                }
            }
            reports.extend(state.follow_kubelet(&settings, &kubelet, named).await);
            for observation in reports {
                if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                    return;
                }
            }
        }
        if let Ok(Err(_)) = tokio::time::timeout(POLL_INTERVAL, names.changed()).await {
            return;
        }
    }
}

/// Returns whether this process lacks the descriptors for a query.
fn lacks_descriptors() -> bool {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).is_err_and(|error| file::is_shortage(&error))
}

fn is_named(named: &Named, (name, port): &(String, u16)) -> bool {
    named.name == *name && named.port == *port
}

/// Returns inode number and modification time of the files, which differ after a file is changed or replaced.
fn file_versions(settings: &Settings) -> [Option<(u64, i64, i64)>; 2] {
    [HOSTS, RESOLV_CONF].map(|path| {
        let metadata = fs::metadata(settings.on_host(Path::new(path))).ok()?;
        Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
    })
}

/// Fuzz target: a resolver configuration of any content.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &str) {
    let mut conf = ResolvConf::new();
    if conf.parse(&mut text.as_bytes()).is_ok() {
        conf.finalize();
        assert!(candidates("api.example.com", &conf).len() <= MAX_SEARCH_DOMAINS + 1);
    }
}

/// Fuzz target: a DNS response of any content.
#[cfg(fuzzing)]
pub(super) fn fuzz_response(bytes: &[u8]) {
    let Ok(message) = Message::from_octets(bytes) else { return };
    let _ = failure_in(&message);
    assert!(addresses_in(&message).len() <= MAX_ADDRESSES);
}

#[cfg(test)]
mod tests {
    use crate::settings::tests::settings;

    use super::*;

    #[test]
    fn search_domains_are_tried_in_the_order_of_resolv_conf() {
        for (text, name, wanted) in [
            ("search a.test b.test.\n", "api", &["api.a.test", "api.b.test", "api"][..]),
            ("search a.test\n", "api.b", &["api.b", "api.b.a.test"]),
            ("search a.test\noptions ndots:3\n", "api.b", &["api.b.a.test", "api.b"]),
            ("search a.test\n", "api.", &["api."]),
            ("", "api.b", &["api.b"]),
        ] {
            let mut conf = ResolvConf::new();
            conf.parse(&mut text.as_bytes()).expect("a configuration");
            conf.finalize();
            assert_eq!(candidates(name, &conf), wanted, "{text} {name}");
        }
    }

    #[tokio::test]
    async fn hosts_file_wins_and_malformed_resolv_conf_is_reported() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir(root.path().join("etc")).expect("made");
        let settings = settings(&["--host-root", root.path().to_str().expect("a text")]);
        fs::write(root.path().join("etc/hosts"), "10.0.0.1 other\n10.0.0.2 api API.example.com # x\n")
            .expect("written");
        fs::write(root.path().join("etc/resolv.conf"), "nameserver nonsense\n").expect("written");
        let NameResolution { resolver, result } = resolve_name(&settings, "api.example.com").await;
        assert_eq!(
            (resolver.as_str(), result.map(|(found, _)| found)),
            ("/etc/hosts", Ok(vec![[10, 0, 0, 2].into()]))
        );
        let NameResolution { resolver, result } = resolve_name(&settings, "else").await;
        assert!(resolver == RESOLV_CONF && matches!(result, Err(NameFailure::Other { .. })), "{result:?}");
    }
}
