//! Whether the kubelet reaches its API server by a proxy, by the variables that Go programs obey
//! (golang.org/x/net/http/httpproxy).

use std::collections::BTreeMap;
use std::net::IpAddr;

use probe_engine::Range;

/// The variables, the one that wins first. The proxy's own may hold a password: only that it is set is kept.
pub(super) const PROXY: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];
pub(super) const EXCEPTIONS: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// Most exceptions that are read.
const ENTRIES: usize = 256;

/// Returns what is not reached by a proxy; `None` where nothing is.
pub(super) fn exceptions(variables: &BTreeMap<String, String>) -> Option<Vec<String>> {
    let get = |names: [&str; 2]| {
        names.iter().find_map(|name| variables.get(*name).filter(|value| !value.is_empty()))
    };
    get(PROXY)?;
    let entries = get(EXCEPTIONS).map(String::as_str).unwrap_or_default().split(',').take(ENTRIES);
    Some(entries.map(|entry| entry.trim().to_lowercase()).filter(|entry| !entry.is_empty()).collect())
}

/// Returns whether a server is among them.
pub(super) fn is_exception(exceptions: &[String], host: &str, port: u16) -> bool {
    let host = host.trim_end_matches('.').to_lowercase();
    let ip: Option<IpAddr> = host.parse().ok();
    // Go asks no proxy for what is on this host.
    if host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()) {
        return true;
    }
    exceptions.iter().any(|entry| {
        if entry == "*" {
            return true;
        }
        if let (Some(range), Some(ip)) = (Range::parse(entry).filter(|_| entry.contains('/')), ip) {
            return range.contains(ip);
        }
        let (name, wanted) = match entry.rsplit_once(':') {
            Some((name, wanted)) if entry.matches(':').count() == 1 => (name, wanted.parse().ok()),
            _ => (entry.as_str(), None),
        };
        let bare = name.trim_start_matches("*.").trim_start_matches('.');
        let is_below = host.strip_suffix(bare).is_some_and(|rest| rest.ends_with('.')) && ip.is_none();
        // With a dot before it the name itself is none.
        let is_it = host == bare && !name.starts_with(['.', '*']);
        wanted.is_none_or(|wanted: u16| wanted == port) && !bare.is_empty() && (is_it || is_below)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_read_as_go_does() {
        let variables = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(exceptions(&variables(&[("NO_PROXY", "a")])), None);
        assert_eq!(exceptions(&variables(&[("HTTPS_PROXY", ""), ("NO_PROXY", "a")])), None);
        let all = "10.0.0.0/8, .cluster.local,api.example.com:6443,192.168.0.1,svc,fd00::/8";
        let found = exceptions(&variables(&[("https_proxy", "set"), ("no_proxy", all)])).expect("a proxy");
        for (host, port, wanted) in [
            ("10.1.2.3", 6443, true),
            ("11.1.2.3", 6443, false),
            ("192.168.0.1", 443, true),
            ("fd00::1", 443, true),
            ("kubernetes.default.svc.cluster.local", 443, true),
            ("cluster.local", 443, false),
            ("api.example.com", 6443, true),
            ("api.example.com", 443, false),
            ("API.Example.Com.", 6443, true),
            ("x.svc", 443, true),
            ("svc", 443, true),
            ("nosvc", 443, false),
            ("localhost", 6443, true),
            ("127.0.0.1", 6443, true),
        ] {
            assert_eq!(is_exception(&found, host, port), wanted, "{host}:{port}");
        }
        assert!(is_exception(&["*".to_owned()], "anything", 1));
        assert!(!is_exception(&[], "anything", 1));
    }
}
