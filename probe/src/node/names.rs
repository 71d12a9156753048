//! Resolves API server names as the node's own programs do: by the host's `/etc/hosts`, then by the servers of its
//! `/etc/resolv.conf`.

mod known;

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

use self::known::Known;
use super::discovery::Kubelet;
use super::file;
use super::targets::Whose;
use crate::clock;
use crate::feed::{Feed, Seen};
use crate::settings::Settings;
use crate::text::clean;

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long one name may take with all of its search domains and servers; glibc's own limit is 5 s for each try.
const PATIENCE: Duration = Duration::from_secs(8);
/// Between two look-ups of a name: as long as its record may be kept, within these bounds. Cloud providers keep the records of
/// API servers for one minute.
const EVERY: [Duration; 2] = [Duration::from_secs(30), Duration::from_mins(5)];
/// How often it is seen whether the files have changed, and whether something is due.
const TURN: Duration = Duration::from_secs(1);
/// Most addresses of one name that are taken; a name of an API server has one of each family, or one for each server.
const ADDRESSES: usize = 16;
/// Longest explanation.
const WHY: usize = 160;
/// Most search domains that are tried; resolv.conf(5) has a limit of six in older libraries.
const SEARCH: usize = 16;

/// A name of an API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) port: u16,
    /// Where it was found, for people.
    pub(crate) source: String,
    pub(crate) whose: Whose,
    /// The addresses of the cluster's Services, as far as they are known.
    pub(crate) services: Vec<Range>,
    /// It is the name of a proxy with this URL, see [`ApiTarget::proxy`].
    pub(crate) proxy: Option<String>,
}

impl Named {
    pub(crate) fn target(&self, ip: IpAddr) -> ApiTarget {
        let addr = SocketAddr::new(ip, self.port);
        ApiTarget {
            addr,
            kind: self.whose.kind(&self.services, addr),
            source: self.source.clone(),
            name: Some(self.name.clone()),
            proxy: self.proxy.clone(),
        }
    }
}

/// The result of resolving a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LookedUp {
    /// The DNS server or file that was asked first.
    pub(crate) resolver: String,
    /// The addresses, and for how long they may be kept.
    pub(crate) result: Result<(Vec<IpAddr>, Duration), NameFailure>,
}

/// Returns the addresses of a name in the host's `/etc/hosts`.
pub(crate) fn in_table(settings: &Settings, name: &str) -> Vec<IpAddr> {
    // Local proxies listen on the IPv4 address, and clients go on to it at once where the other one is closed.
    if name == "localhost" {
        return vec![Ipv4Addr::LOCALHOST.into()];
    }
    let hosts = file::read_text(&settings.on_host(Path::new(HOSTS))).unwrap_or_default();
    let address = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let addr = words.next()?.parse().ok()?;
        words.any(|known| known.eq_ignore_ascii_case(name)).then_some(addr)
    };
    hosts.lines().filter_map(address).take(ADDRESSES).collect()
}

/// Resolves a name.
pub(crate) async fn look_up(settings: &Settings, name: &str) -> LookedUp {
    let known = in_table(settings, name);
    if !known.is_empty() {
        return LookedUp { resolver: HOSTS.to_owned(), result: Ok((known, EVERY[0])) };
    }
    let mut conf = ResolvConf::new();
    let text = file::read_text(&settings.on_host(Path::new(RESOLV_CONF))).unwrap_or_default();
    if let Err(error) = conf.parse(&mut text.as_bytes()) {
        let why = clean(format!("{RESOLV_CONF}: {error}").as_bytes(), WHY);
        return LookedUp { resolver: RESOLV_CONF.to_owned(), result: Err(NameFailure::Other { why }) };
    }
    // Without a server it is the one on this host, as for every program.
    conf.finalize();
    let resolver =
        conf.servers.first().map_or_else(|| RESOLV_CONF.to_owned(), |server| server.addr.to_string());
    let candidates = candidates(name, &conf);
    let stub = StubResolver::from_conf(conf);
    let ask = async {
        let mut failure = None;
        for candidate in candidates {
            match ask(&stub, &candidate).await {
                Ok(found) => return Ok(found),
                Err(other) => _ = failure.get_or_insert(other),
            }
        }
        Err(failure.unwrap_or(NameFailure::NoSuchName))
    };
    let result = tokio::time::timeout(PATIENCE, ask).await.unwrap_or(Err(NameFailure::Silent));
    LookedUp { resolver, result: result.map(|(found, ttl)| (reachable(found), ttl)) }
}

/// The full names that are asked for, in the order of resolv.conf(5).
fn candidates(name: &str, conf: &ResolvConf) -> Vec<String> {
    if name.ends_with('.') {
        return vec![name.to_owned()];
    }
    let suffixes = conf.options.search.as_slice().iter().take(SEARCH).map(ToString::to_string);
    let searched = suffixes.filter(|suffix| !suffix.is_empty() && suffix != ".");
    let mut all: Vec<_> = searched.map(|suffix| format!("{name}.{}", suffix.trim_end_matches('.'))).collect();
    let dots = name.bytes().filter(|byte| *byte == b'.').count();
    let at = if dots >= conf.options.ndots { 0 } else { all.len() };
    all.insert(at, name.to_owned());
    all
}

/// Both families of addresses of one full name, with the shortest time that they may be kept.
async fn ask(stub: &StubResolver, name: &str) -> Result<(Vec<IpAddr>, Duration), NameFailure> {
    let Ok(name) = name.trim_end_matches('.').parse::<Name<Vec<u8>>>() else {
        return Err(NameFailure::Other { why: "not a DNS name".to_owned() });
    };
    let (v4, v6) = tokio::join!(stub.query((&name, Rtype::A)), stub.query((&name, Rtype::AAAA)));
    let (mut found, mut ttl, mut failure) = (Vec::new(), EVERY[1], None);
    for answer in [v4, v6] {
        let message = match answer {
            Ok(answer) => answer.into_message(),
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                failure.get_or_insert(NameFailure::Silent);
                continue;
            }
            Err(error) => {
                let why = clean(error.to_string().as_bytes(), WHY);
                failure.get_or_insert(NameFailure::Other { why });
                continue;
            }
        };
        if let Some(other) = failure_in(&message) {
            failure.get_or_insert(other);
        }
        for (ip, kept) in addresses_in(&message) {
            found.push(ip);
            ttl = ttl.min(kept.into_duration());
        }
    }
    if found.is_empty() {
        Err(failure.unwrap_or(NameFailure::NoAddress))
    } else {
        Ok((found, ttl.max(EVERY[0])))
    }
}

fn failure_in<O: AsRef<[u8]>>(message: &Message<O>) -> Option<NameFailure> {
    match message.header().rcode() {
        Rcode::NOERROR => None,
        Rcode::NXDOMAIN => Some(NameFailure::NoSuchName),
        Rcode::SERVFAIL => Some(NameFailure::ServerFailure),
        Rcode::REFUSED => Some(NameFailure::Refused),
        other => Some(NameFailure::Other { why: format!("its answer is {other}") }),
    }
}

/// Returns the addresses in a response, at most [`ADDRESSES`]. Records that cannot be read are left out.
fn addresses_in<O: Octets>(message: &Message<O>) -> Vec<(IpAddr, Ttl)> {
    let Ok(section) = message.answer() else { return Vec::new() };
    let v4 = section.limit_to_in::<A>().flatten().map(|record| address(&record, record.data().addr().into()));
    let v6 =
        section.limit_to_in::<Aaaa>().flatten().map(|record| address(&record, record.data().addr().into()));
    v4.chain(v6).take(ADDRESSES).collect()
}

fn address<N, D>(record: &Record<N, D>, ip: IpAddr) -> (IpAddr, Ttl) {
    (ip, record.ttl())
}

/// Those of the families that this host has a way for; all of them where it has none, which is a fault of its own.
fn reachable(found: Vec<IpAddr>) -> Vec<IpAddr> {
    // A datagram socket is connected without a packet.
    let has_way = |ip: &IpAddr| {
        let any =
            if ip.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((*ip, 9))).is_ok()
    };
    let with_way: Vec<_> = found.iter().copied().filter(has_way).collect();
    if with_way.is_empty() { found } else { with_way }
}

/// Resolves names, again when their records expire, and reports their addresses as API targets. Runs forever.
pub(crate) async fn watch(
    settings: Arc<Settings>,
    mut names: watch::Receiver<Vec<Named>>,
    kubelet: watch::Receiver<Kubelet>,
    feed: Feed,
) {
    let mut known: BTreeMap<(String, u16), Known> = BTreeMap::new();
    let mut files = stamps(&settings);
    loop {
        let wanted = names.borrow_and_update().clone();
        let gone: Vec<_> =
            known.keys().filter(|key| !wanted.iter().any(|named| is(named, key))).cloned().collect();
        for key in gone {
            // Their targets went with the kubeconfig that named them.
            known.remove(&key);
        }
        let now = stamps(&settings);
        if now != files {
            files = now;
            known.values_mut().for_each(Known::is_due);
        }
        for named in wanted.iter().take(limits::NAMES) {
            let key = (named.name.clone(), named.port);
            let state = known.entry(key).or_default();
            let mut seen = Vec::new();
            if state.due <= Instant::now() {
                let looked_up = look_up(&settings, &named.name).await;
                // A question that could not be sent is not a failure of the resolver. The library does not pass on the errno.
                if looked_up.result.is_ok() || !is_short() {
                    seen = state.take(named, looked_up);
                }
            }
            seen.extend(state.follow_kubelet(&settings, &kubelet, named).await);
            for observation in seen {
                if feed.send(Seen { at: clock::now(), observation }).await.is_err() {
                    return;
                }
            }
        }
        if let Ok(Err(_)) = tokio::time::timeout(TURN, names.changed()).await {
            return;
        }
    }
}

/// Returns whether this process has no descriptor left for a question.
fn is_short() -> bool {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).is_err_and(|error| file::is_shortage(&error))
}

fn is(named: &Named, (name, port): &(String, u16)) -> bool {
    named.name == *name && named.port == *port
}

/// By which it shows that the files were changed or replaced.
fn stamps(settings: &Settings) -> [Option<(u64, i64, i64)>; 2] {
    [HOSTS, RESOLV_CONF].map(|path| {
        let metadata = fs::metadata(settings.on_host(Path::new(path))).ok()?;
        Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
    })
}

/// A resolver's configuration of any content.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &str) {
    let mut conf = ResolvConf::new();
    if conf.parse(&mut text.as_bytes()).is_ok() {
        conf.finalize();
        assert!(candidates("api.example.com", &conf).len() <= SEARCH + 1);
    }
}

/// A DNS response of any content.
#[cfg(fuzzing)]
pub(super) fn fuzz_response(bytes: &[u8]) {
    let Ok(message) = Message::from_octets(bytes) else { return };
    let _ = failure_in(&message);
    assert!(addresses_in(&message).len() <= ADDRESSES);
}

#[cfg(test)]
mod tests {
    use crate::settings::tests::settings;

    use super::*;

    #[test]
    fn names_are_completed_in_the_order_of_the_configuration() {
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
    async fn the_table_comes_first_and_a_broken_configuration_is_told() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir(root.path().join("etc")).expect("made");
        let settings = settings(&["--host-root", root.path().to_str().expect("a text")]);
        fs::write(root.path().join("etc/hosts"), "10.0.0.1 other\n10.0.0.2 api API.example.com # x\n")
            .expect("written");
        fs::write(root.path().join("etc/resolv.conf"), "nameserver nonsense\n").expect("written");
        let LookedUp { resolver, result } = look_up(&settings, "api.example.com").await;
        assert_eq!(
            (resolver.as_str(), result.map(|(found, _)| found)),
            ("/etc/hosts", Ok(vec![[10, 0, 0, 2].into()]))
        );
        let LookedUp { resolver, result } = look_up(&settings, "else").await;
        assert!(resolver == RESOLV_CONF && matches!(result, Err(NameFailure::Other { .. })), "{result:?}");
    }
}
