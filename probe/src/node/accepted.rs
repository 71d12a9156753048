//! Whether the API server and the kubelet accept each other: verifies the server's certificate as the kubelet does, and reads
//! the kubelet's own Node object with the kubelet's own credential. Nothing else is requested, and nothing is written.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use probe_engine::{Actor, Answer, ApiTarget, CredentialAnswer, ProcessClass, SHORTEST_ANSWER, TlsFailure};
use rustls::crypto::{CryptoProvider, ring};
use rustls::{AlertDescription, ClientConfig};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::discovery::Kubelet;
use super::discovery::proxy::{Proxy, authority};
use super::kubeconfig::{Credential, Kubeconfig, Proof, Trust};
use super::tls::{self, Expected};
use super::trust::{Authorities, Chain};
use super::{processes, provenance, sockets};
use crate::settings::Settings;
use crate::text::{clean, is_node_name};

#[cfg(test)]
mod tests;

/// The object's metadata alone: the rest is names of images.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json";
/// Longest message of the server's that is kept, bytes.
const WORDS: usize = 200;
/// Between two looks at a connection. A client that rejects a certificate closes its connection within milliseconds.
const LASTS: Duration = Duration::from_secs(1);

/// How the API server behind an address is reached.
#[derive(Clone, Debug)]
struct Way<'a> {
    to: SocketAddr,
    /// The server's name or address for its clients, where that is not `to`.
    name: Option<String>,
    /// The proxy that `to` belongs to, and the server as a request to it names it.
    by: Option<(&'a Proxy, String)>,
}

impl<'a> Way<'a> {
    /// Returns the way to a server that the kubelet's kubeconfig names; `None` where it names another one.
    fn of_kubelet(kubelet: &'a Kubelet, kubeconfig: &Kubeconfig, target: &ApiTarget) -> Option<Self> {
        let to = target.addr;
        if target.proxy.is_none() {
            let name = target.name.clone();
            return kubeconfig.names(to, name.as_deref()).then_some(Self { to, name, by: None });
        }
        let (host, port) = kubeconfig.host_and_port()?;
        let proxy =
            kubelet.proxy_for(&host, port).filter(|proxy| Some(&proxy.url) == target.proxy.as_ref())?;
        Some(Self { to, name: Some(host.to_string()), by: Some((proxy, authority(&host, port))) })
    }

    /// Goes on with a connection that is established.
    async fn through(&self, stream: TcpStream) -> Result<TcpStream, TlsFailure> {
        match &self.by {
            Some((proxy, server)) => tls::tunnel(stream, proxy, server).await,
            None => Ok(stream),
        }
    }
}

/// Asks as [`tls::ask`] does. Where the kubelet's kubeconfig names this server, what that says of it is part of the answer.
/// `None` when there is nothing to ask: of a proxy that the agent cannot use, or of one that the kubelet does not use any
/// more.
pub(super) async fn ask(
    settings: &Settings,
    kubelet: &Kubelet,
    stream: TcpStream,
    target: &ApiTarget,
) -> Option<Answer> {
    let patience = settings.ask_timeout;
    let provider = Arc::new(ring::default_provider());
    // Addresses that were named by hand need not be the kubelet's.
    let kubeconfig = if settings.only_named { None } else { Kubeconfig::of(settings, kubelet) };
    let way = kubeconfig.as_ref().and_then(|kubeconfig| Way::of_kubelet(kubelet, kubeconfig, target));
    let (Some(way), Some(kubeconfig)) = (way, &kubeconfig) else {
        if target.proxy.is_some() {
            return None;
        }
        let name = target.name.as_deref();
        let expected = Expected { name, authorities: None };
        return Some(tls::ask(stream, target.addr, name, (&expected, &provider), patience).await.0);
    };
    if way.by.as_ref().is_some_and(|(proxy, _)| !proxy.can_ask(settings.kubelet_credentials)) {
        return None;
    }
    match timeout(patience, way.through(stream)).await.unwrap_or(Err(TlsFailure::Silent)) {
        Ok(stream) => Some(ask_server(settings, kubelet, kubeconfig, stream, &way, &provider).await),
        Err(failure) => Some(Answer { tls: Some(failure), ..tls::unanswered(way.to) }),
    }
}

/// Asks the server that the kubelet's kubeconfig names, and for the kubelet's own Node object where the server is verified.
async fn ask_server(
    settings: &Settings,
    kubelet: &Kubelet,
    kubeconfig: &Kubeconfig,
    stream: TcpStream,
    way: &Way<'_>,
    provider: &Arc<CryptoProvider>,
) -> Answer {
    let (to, name, patience) = (way.to, way.name.as_deref(), settings.ask_timeout);
    let trust = kubeconfig.trust(settings, provider);
    let authorities = match &trust {
        Trust::Issued(authorities) => Some(Arc::clone(authorities)),
        Trust::Any | Trust::Unknown => None,
    };
    let expected = Expected { name: kubeconfig.server_name().or(name), authorities };
    let (mut answer, chain) = tls::ask(stream, to, name, (&expected, provider), patience).await;
    if matches!(trust, Trust::Any) {
        // Whatever is wrong with it, the kubelet does not mind.
        answer.certificate = None;
    }
    if let Some(untrusted) = &mut answer.untrusted {
        untrusted.kubelet_served = kubelet_may_be_served(settings, to).await;
    }
    let may_ask = settings.kubelet_credentials && chain == Chain::Trusted && kubeconfig.is_at_root();
    // A server in trouble is not asked for more.
    if may_ask
        && answer.status.is_some()
        && answer.is_well()
        && let Some(authorities) = &expected.authorities
        && let Some(credential) = kubeconfig.credential(settings, kubelet)
    {
        let node = node_name(settings, kubelet, &credential);
        let asking = own_node(provider, authorities, credential, (way, expected.name), node);
        answer.kubelet = timeout(patience, asking).await.ok().flatten();
    }
    answer
}

/// Returns whether the server at an address that the kubelet is connected to can be the one of its kubeconfig: not where none
/// of the CAs there issued its certificate. `None` when it does not show one.
pub(super) async fn is_server_of_kubelet(
    settings: &Settings,
    kubelet: &Kubelet,
    target: &ApiTarget,
) -> Option<bool> {
    let (to, name) = (target.addr, target.name.as_deref());
    let provider = Arc::new(ring::default_provider());
    let kubeconfig = Kubeconfig::of(settings, kubelet).filter(|kubeconfig| kubeconfig.names(to, name));
    let trust = kubeconfig.as_ref().map(|kubeconfig| kubeconfig.trust(settings, &provider));
    let (Some(kubeconfig), Some(Trust::Issued(authorities)), true) = (&kubeconfig, trust, settings.ask)
    else {
        return Some(true);
    };
    let expected = Expected { name: kubeconfig.server_name().or(name), authorities: Some(authorities) };
    let connected = timeout(settings.ask_timeout, TcpStream::connect(to)).await.ok()?;
    let chain = tls::chain(connected.ok()?, to, (&expected, &provider), settings.ask_timeout).await?;
    Some(chain != Chain::Untrusted)
}

fn node_name(settings: &Settings, kubelet: &Kubelet, credential: &Credential) -> Option<String> {
    let flag = kubelet.node_name.as_ref().map(|known| known.value.to_lowercase());
    let names = [credential.node.clone(), flag, Some(settings.node.clone())];
    names.into_iter().flatten().next().filter(|name| is_node_name(name))
}

/// Reads the Node object on a connection of its own, to a server whose certificate is verified. `None` when the answer says
/// nothing of the credential.
async fn own_node(
    provider: &Arc<CryptoProvider>,
    authorities: &Authorities,
    credential: Credential,
    (way, expected): (&Way<'_>, Option<&str>),
    node: Option<String>,
) -> Option<CredentialAnswer> {
    let node = node?;
    let Credential { file, node: own, proof } = credential;
    let versions = ClientConfig::builder_with_provider(Arc::clone(provider));
    let versions = versions.with_safe_default_protocol_versions().ok()?;
    let config = versions.with_webpki_verifier(Arc::clone(&authorities.verifier));
    let (config, token) = match proof {
        // Fails where the key is not the certificate's: the files are being replaced.
        Proof::Certificate(chain, key) => (config.with_client_auth_cert(chain, key).ok()?, None),
        Proof::Token(token) => (config.with_no_client_auth(), Some(token)),
    };
    let by_certificate = token.is_none();
    let mut answer =
        CredentialAnswer { file, status: None, alert: None, message: String::new(), own_node: own.is_some() };
    let (to, name) = (way.to, way.name.as_deref());
    let stream = way.through(TcpStream::connect(to).await.ok()?).await.ok()?;
    let connected =
        TlsConnector::from(Arc::new(config)).connect(tls::server_name(to, expected), stream).await;
    let sent = async {
        let (mut server, connection) = tls::http(connected?).await.map_err(io::Error::other)?;
        // Ends with the connection, which ends with its sender.
        tokio::spawn(connection);
        let shown = name.map_or_else(|| to.ip().to_string(), str::to_owned);
        let mut request = tls::request(&shown, &format!("/api/v1/nodes/{node}"));
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static(METADATA));
        if let Some(token) = token {
            request.headers_mut().insert(AUTHORIZATION, token);
        }
        tls::get(&mut server, request).await.map_err(io::Error::other)
    };
    match sent.await {
        Ok((status @ (200..300 | 401 | 403 | 404 | 408 | 429 | 500..), body)) => {
            answer.status = Some(status);
            if status == 403 && answer.own_node {
                answer.message = message(&body);
            }
        }
        Err(error) if by_certificate => answer.alert = Some(rejection(&error)?),
        _ => return None,
    }
    Some(answer)
}

/// The message in a `Status` object of the API server.
fn message(body: &[u8]) -> String {
    let status: Value = serde_json::from_slice(body).unwrap_or_default();
    clean(status.get("message").and_then(Value::as_str).unwrap_or_default().as_bytes(), WORDS)
}

/// The alert by which a server rejects a client's certificate; with TLS 1.3 it comes after the handshake.
fn rejection(error: &io::Error) -> Option<String> {
    let alert = tls::alert(error)?;
    let is_of_certificate = matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
    );
    is_of_certificate.then(|| format!("{alert:?}"))
}

/// Whether a kubelet holds a connection to this address that outlasts its handshake. True as well where that cannot be seen.
async fn kubelet_may_be_served(settings: &Settings, to: SocketAddr) -> bool {
    let served = || -> io::Result<BTreeSet<u32>> {
        let found = sockets::established(&[to])?.into_iter();
        let served = found.filter(|connection| connection.received >= SHORTEST_ANSWER);
        Ok(served.map(|connection| connection.inode).collect())
    };
    let Ok(first) = served() else { return true };
    if first.is_empty() {
        return false;
    }
    tokio::time::sleep(LASTS).await;
    let Ok(second) = served() else { return true };
    let lasting: BTreeSet<_> = first.intersection(&second).copied().collect();
    let owners = processes::socket_owners(&lasting);
    let may_be_kubelet = |inode: &u32| {
        let class = |owner: &Actor| provenance::class_of(settings, owner.pid, &owner.name);
        let is_kubelet = |owner: &Actor| class(owner) == Some(ProcessClass::Kubelet);
        owners.get(inode).is_none_or(is_kubelet)
    };
    lasting.iter().any(may_be_kubelet)
}
