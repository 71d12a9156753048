//! The proxy through which the kubelet connects to its API server, from the environment variables that Go programs evaluate
//! (golang.org/x/net/http/httpproxy).

use std::net::{IpAddr, SocketAddr};

use data_encoding::BASE64;
use hyper::Uri;
use hyper::header::HeaderValue;
use hyper_util::client::proxy::matcher::Matcher;
use probe_engine::Range;

use super::MAX_PATH_LEN;
use crate::settings::ServerHost;
use crate::text::{HIDDEN, clean};

/// The environment variables, highest precedence first.
const PROXY_VARIABLES: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];
const EXCEPTION_VARIABLES: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// Maximum number of exceptions.
const MAX_EXCEPTIONS: usize = 256;

/// A proxy, and the hosts that are reached without it. Its `Debug` output contains no user information.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proxy {
    /// URL without user information; control characters are escaped.
    pub(crate) url: String,
    pub(crate) host: ServerHost,
    pub(crate) port: u16,
    /// Whether the proxy accepts plain HTTP, as opposed to TLS and SOCKS.
    is_http: bool,
    /// Value of the header `Proxy-Authorization`, marked as sensitive.
    authorization: Option<HeaderValue>,
    /// Hosts, domains and address ranges that are reached without the proxy, in lower case.
    exceptions: Vec<String>,
}

impl Proxy {
    /// Returns the proxy that these variables configure; `None` if they configure none, or one that Go does not support.
    pub(crate) fn of<'a>(variable: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let get = |names: [&str; 2]| names.iter().find_map(|name| variable(name).filter(|it| !it.is_empty()));
        let url = get(PROXY_VARIABLES)?;
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let matcher = Matcher::builder().https(url).build();
        let found = matcher.intercept(&Uri::from_static("https://server/"))?;
        let scheme = found.uri().scheme_str()?;
        // Default ports of Go's net/http (transport.go).
        let default = match scheme {
            "http" => 80,
            "https" => 443,
            _ => 1080,
        };
        let port = found.uri().port_u16().unwrap_or(default);
        let bare = found.uri().host()?.trim_start_matches('[').trim_end_matches(']');
        let host = bare.parse().map_or_else(|_| ServerHost::Name(bare.to_owned()), ServerHost::Address);
        let url = clean(format!("{scheme}://{}", authority(&host, port)).as_bytes(), MAX_PATH_LEN);
        let entries = get(EXCEPTION_VARIABLES).unwrap_or_default().split(',').take(MAX_EXCEPTIONS);
        let exceptions = entries.map(|entry| entry.trim().to_lowercase()).filter(|entry| !entry.is_empty());
        Some(Self {
            url,
            host,
            port,
            is_http: scheme == "http",
            authorization: found.basic_auth().cloned(),
            exceptions: exceptions.collect(),
        })
    }

    /// Returns whether the kubelet connects to a server through this proxy.
    pub(crate) fn covers(&self, host: &ServerHost, port: u16) -> bool {
        !is_exception(&self.exceptions, &host.to_string(), port)
    }

    /// Returns whether the agent can and may send requests through this proxy: user information is a credential of the
    /// kubelet.
    pub(crate) fn is_usable(&self, with_credentials: bool) -> bool {
        self.is_http && (with_credentials || self.authorization.is_none())
    }

    /// Returns the value of the header `Proxy-Authorization`.
    pub(crate) fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    /// Returns a text that the proxy sent, without user information: proxies quote URLs and account names.
    pub(crate) fn redact(&self, text: &str) -> String {
        let known = self.authorization.as_ref().and_then(|header| header.to_str().ok());
        let known = known.and_then(|header| header.strip_prefix("Basic "));
        let decoded = known.and_then(|known| BASE64.decode(known.as_bytes()).ok()).unwrap_or_default();
        let decoded = String::from_utf8_lossy(&decoded).into_owned();
        let password = decoded.split_once(':').map_or("", |(_, password)| password);
        let mut text = text.to_owned();
        for secret in [known.unwrap_or_default(), &decoded, password] {
            if !secret.is_empty() {
                text = text.replace(secret, HIDDEN);
            }
        }
        let words = text.split(' ').map(|word| match word.rsplit_once('@') {
            Some((before, after)) => {
                let scheme = before.find("//").map_or("", |at| &before[..at + 2]);
                format!("{scheme}{HIDDEN}@{after}")
            }
            None => word.to_owned(),
        });
        words.collect::<Vec<_>>().join(" ")
    }
}

/// Returns host and port in the form used in URLs and requests.
pub(crate) fn authority(host: &ServerHost, port: u16) -> String {
    match host {
        ServerHost::Address(ip) => SocketAddr::new(*ip, port).to_string(),
        ServerHost::Name(name) => format!("{name}:{port}"),
    }
}

/// Returns whether a server is among the exceptions, or on this host: Go uses no proxy for loopback addresses.
fn is_exception(exceptions: &[String], host: &str, port: u16) -> bool {
    let host = host.to_lowercase();
    let ip: Option<IpAddr> = host.parse().ok();
    if host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()) {
        return true;
    }
    exceptions.iter().any(|entry| {
        if entry == "*" {
            return true;
        }
        if let Some(range) = Range::parse(entry) {
            return ip.is_some_and(|ip| range.contains(ip));
        }
        let (name, wanted) = split_port(entry);
        if !wanted.is_empty() && wanted != port.to_string() {
            return false;
        }
        if let Ok(known) = name.parse::<IpAddr>() {
            return ip == Some(known);
        }
        let name = name.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(name);
        match name.strip_prefix('.') {
            // A leading dot excludes the domain itself.
            Some("") => false,
            Some(_) => host.ends_with(name),
            None => {
                let is_below = host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
                !name.is_empty() && (host == name || is_below)
            }
        }
    })
}

/// Returns the host and the port of an exception; the port is empty if there is none.
fn split_port(entry: &str) -> (&str, &str) {
    if let Some((host, port)) = entry.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
        return (host, port);
    }
    match entry.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, port),
        _ => (entry, ""),
    }
}

/// Fuzz target: environment variables of any content.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &str) -> Option<String> {
    let (proxy, exceptions) = text.split_once('\n').unwrap_or((text, ""));
    let found = Proxy::of(|name| match name {
        "HTTPS_PROXY" => Some(proxy),
        "NO_PROXY" => Some(exceptions),
        _ => None,
    })?;
    let _ = found.covers(&ServerHost::Name("api.example.com".to_owned()), 6443);
    Some(format!("{} {}", found.url, clean(found.redact(text).as_bytes(), MAX_PATH_LEN)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(variables: &[(&str, &'static str)]) -> Option<Proxy> {
        Proxy::of(|wanted| variables.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value))
    }

    #[test]
    fn exceptions_match_as_in_go() {
        assert_eq!(proxy(&[("NO_PROXY", "a"), ("HTTP_PROXY", "http://p")]), None);
        assert_eq!(proxy(&[("HTTPS_PROXY", ""), ("NO_PROXY", "a")]), None);
        let all = "10.0.0.0/8, .cluster.local,api.example.com:6443,192.168.0.1,svc,fd00::/8,*.test,192.168.0.2:443,\
                   [2001:db8::1]:443,2001:db8::2,other:https,:80,.";
        let found = proxy(&[("https_proxy", "p:3128"), ("no_proxy", all)]).expect("a proxy");
        for (host, port, wanted) in [
            ("10.1.2.3", 6443, true),
            ("11.1.2.3", 6443, false),
            ("192.168.0.1", 443, true),
            ("192.168.0.2", 443, true),
            ("192.168.0.2", 6443, false),
            ("fd00::1", 443, true),
            ("2001:db8::1", 443, true),
            ("2001:db8::1", 6443, false),
            ("2001:db8::2", 6443, true),
            ("kubernetes.default.svc.cluster.local", 443, true),
            ("cluster.local", 443, false),
            ("api.example.com", 6443, true),
            ("x.api.example.com", 6443, true),
            ("api.example.com", 443, false),
            ("API.Example.Com", 6443, true),
            ("api.test", 6443, true),
            ("test", 6443, false),
            ("x.svc", 443, true),
            ("svc", 443, true),
            ("nosvc", 443, false),
            ("other", 443, false),
            ("localhost", 6443, true),
            ("127.0.0.1", 6443, true),
            ("::1", 6443, true),
        ] {
            assert_eq!(is_exception(&found.exceptions, host, port), wanted, "{host}:{port}");
        }
        assert!(is_exception(&["*".to_owned()], "anything", 1));
        assert!(!is_exception(&[], "anything", 1));
    }

    #[test]
    fn parses_urls_and_addresses() {
        for (value, wanted) in [
            ("http://proxy.corp:3128", Some("http://proxy.corp:3128")),
            ("http://proxy.corp", Some("http://proxy.corp:80")),
            ("proxy.corp:3128/", Some("http://proxy.corp:3128")),
            ("http://user:secret%40x@proxy.corp:3128/x", Some("http://proxy.corp:3128")),
            ("user:secret@10.0.0.1:3128", Some("http://10.0.0.1:3128")),
            ("https://[fd00::1]", Some("https://[fd00::1]:443")),
            ("socks5://user:secret@proxy.corp", Some("socks5://proxy.corp:1080")),
            ("ftp://proxy.corp", None),
            ("http://", None),
            ("http://a b", None),
        ] {
            let found = proxy(&[("HTTPS_PROXY", value), ("https_proxy", "http://another")]);
            assert_eq!(found.as_ref().map(|proxy| proxy.url.as_str()), wanted, "{value}");
            assert!(!format!("{found:?}").contains("secret"), "{found:?}");
        }
    }

    #[test]
    fn user_information_is_sent_and_never_shown() {
        let found = proxy(&[("HTTPS_PROXY", "http://user:se%40cret@p:3128")]).expect("a proxy");
        assert_eq!(found.authorization().and_then(|it| it.to_str().ok()), Some("Basic dXNlcjpzZUBjcmV0"));
        assert!(found.is_usable(true) && !found.is_usable(false));
        for (text, wanted) in [
            ("403 Forbidden", "403 Forbidden"),
            ("407 user:se@cret is unknown", "407 [redacted] is unknown"),
            ("407 se@cret", "407 [redacted]"),
            ("407 dXNlcjpzZUBjcmV0", "407 [redacted]"),
            ("502 no way to http://a:b@c:1/ here", "502 no way to http://[redacted]@c:1/ here"),
        ] {
            assert_eq!(found.redact(text), wanted);
        }
        let by_tls = proxy(&[("HTTPS_PROXY", "https://p")]).expect("a proxy");
        assert!(!by_tls.is_usable(true));
    }
}
