//! Checks whether the API server and the kubelet accept each other: verifies the server's certificate as the kubelet does, and
//! reads the kubelet's own Node object with the kubelet's own credential. Nothing else is requested, and nothing is written.

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
use super::kubeconfig::{ClientAuth, Credential, Kubeconfig, Trust};
use super::tls::{self, Expected};
use super::trust::{Authorities, Chain};
use super::{processes, provenance, sockets};
use crate::settings::Settings;
use crate::text::{clean, is_node_name};

#[cfg(test)]
mod tests;

/// `Accept` header that requests the metadata of the Node object: the rest consists mostly of image names.
const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json";
/// Maximum length of a server's message, bytes.
const MAX_MESSAGE_LEN: usize = 200;
/// Delay after which a connection must still be open to count: a client that rejects a certificate closes its connection
/// within milliseconds.
const RECHECK_DELAY: Duration = Duration::from_secs(1);

/// How to reach the API server behind an address.
#[derive(Clone, Debug)]
struct ApiEndpoint<'a> {
    /// The address to connect to.
    to: SocketAddr,
    /// The host by which clients address the server; `None` for the address itself.
    name: Option<String>,
    /// The proxy that `to` belongs to, and the server's authority in a CONNECT request.
    proxy: Option<(&'a Proxy, String)>,
}

impl<'a> ApiEndpoint<'a> {
    /// Returns the endpoint of the server in the kubelet's kubeconfig; `None` if `target` is not that server.
    fn of_kubelet(kubelet: &'a Kubelet, kubeconfig: &Kubeconfig, target: &ApiTarget) -> Option<Self> {
        let to = target.addr;
        if target.proxy.is_none() {
            let name = target.name.clone();
            return kubeconfig.is_server(to, name.as_deref()).then_some(Self { to, name, proxy: None });
        }
        let (host, port) = kubeconfig.host_and_port()?;
        let proxy =
            kubelet.proxy_for(&host, port).filter(|proxy| Some(&proxy.url) == target.proxy.as_ref())?;
        Some(Self { to, name: Some(host.to_string()), proxy: Some((proxy, authority(&host, port))) })
    }

    /// Turns an established connection into one to the server: through the proxy if there is one.
    async fn connect_through(&self, stream: TcpStream) -> Result<TcpStream, TlsFailure> {
        match &self.proxy {
            Some((proxy, server)) => tls::tunnel(stream, proxy, server).await,
            None => Ok(stream),
        }
    }
}

/// Queries a target as [`tls::ask`] does. If it is the server in the kubelet's kubeconfig, the answer includes whether the
/// server and the kubelet accept each other. Returns `None` for a proxy that the agent cannot use, or that the kubelet no
/// longer uses.
pub(super) async fn ask(
    settings: &Settings,
    kubelet: &Kubelet,
    stream: TcpStream,
    target: &ApiTarget,
) -> Option<Answer> {
    let limit = settings.ask_timeout;
    let provider = Arc::new(ring::default_provider());
    // Addresses given by --apiserver need not be those of the kubelet's server.
    let kubeconfig = if settings.only_named { None } else { Kubeconfig::of(settings, kubelet) };
    let endpoint =
        kubeconfig.as_ref().and_then(|kubeconfig| ApiEndpoint::of_kubelet(kubelet, kubeconfig, target));
    let (Some(endpoint), Some(kubeconfig)) = (endpoint, &kubeconfig) else {
        if target.proxy.is_some() {
            return None;
        }
        let name = target.name.as_deref();
        let expected = Expected { name, authorities: None };
        return Some(tls::ask(stream, target.addr, name, (&expected, &provider), limit).await.0);
    };
    if endpoint.proxy.as_ref().is_some_and(|(proxy, _)| !proxy.is_usable(settings.kubelet_credentials)) {
        return None;
    }
    match timeout(limit, endpoint.connect_through(stream)).await.unwrap_or(Err(TlsFailure::Silent)) {
        Ok(stream) => Some(ask_server(settings, kubelet, kubeconfig, stream, &endpoint, &provider).await),
        Err(failure) => Some(Answer { tls: Some(failure), ..tls::unanswered(endpoint.to) }),
    }
}

/// Queries the server in the kubelet's kubeconfig, and requests the kubelet's own Node object if the server is verified.
async fn ask_server(
    settings: &Settings,
    kubelet: &Kubelet,
    kubeconfig: &Kubeconfig,
    stream: TcpStream,
    endpoint: &ApiEndpoint<'_>,
    provider: &Arc<CryptoProvider>,
) -> Answer {
    let (to, name, limit) = (endpoint.to, endpoint.name.as_deref(), settings.ask_timeout);
    let trust = kubeconfig.trust(settings, provider);
    let authorities = match &trust {
        Trust::Issued(authorities) => Some(Arc::clone(authorities)),
        Trust::Any | Trust::Unknown => None,
    };
    let expected = Expected { name: kubeconfig.server_name().or(name), authorities };
    let (mut answer, chain) = tls::ask(stream, to, name, (&expected, provider), limit).await;
    if matches!(trust, Trust::Any) {
        // The kubelet does not verify the certificate, so a defect of it has no effect.
        answer.certificate = None;
    }
    if let Some(untrusted) = &mut answer.untrusted {
        untrusted.kubelet_served = kubelet_may_be_served(settings, to).await;
    }
    let may_use_credential =
        settings.kubelet_credentials && chain == Chain::Trusted && kubeconfig.is_at_root();
    // An unhealthy server gets no further request.
    if may_use_credential
        && answer.status.is_some()
        && answer.is_well()
        && let Some(authorities) = &expected.authorities
        && let Some(credential) = kubeconfig.credential(settings, kubelet)
    {
        let node = node_name(settings, kubelet, &credential);
        let request = own_node(provider, authorities, credential, (endpoint, expected.name), node);
        answer.kubelet = timeout(limit, request).await.ok().flatten();
    }
    answer
}

/// Returns whether the server at an address that the kubelet is connected to can be the server of its kubeconfig. It cannot if
/// none of the CAs there issued its certificate. `None` if it presents no certificate within the timeout.
pub(super) async fn is_server_of_kubelet(
    settings: &Settings,
    kubelet: &Kubelet,
    target: &ApiTarget,
) -> Option<bool> {
    let (to, name) = (target.addr, target.name.as_deref());
    let provider = Arc::new(ring::default_provider());
    let kubeconfig = Kubeconfig::of(settings, kubelet).filter(|kubeconfig| kubeconfig.is_server(to, name));
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

/// Reads the Node object on a separate connection, which requires a verified server certificate. Returns `None` if the result
/// shows nothing about the credential.
async fn own_node(
    provider: &Arc<CryptoProvider>,
    authorities: &Authorities,
    credential: Credential,
    (endpoint, expected): (&ApiEndpoint<'_>, Option<&str>),
    node: Option<String>,
) -> Option<CredentialAnswer> {
    let node = node?;
    let Credential { file, node: own, auth } = credential;
    let versions = ClientConfig::builder_with_provider(Arc::clone(provider));
    let versions = versions.with_safe_default_protocol_versions().ok()?;
    let config = versions.with_webpki_verifier(Arc::clone(&authorities.verifier));
    let (config, token) = match auth {
        // Fails if the key does not belong to the certificate: the files are being replaced.
        ClientAuth::Certificate(chain, key) => (config.with_client_auth_cert(chain, key).ok()?, None),
        ClientAuth::Token(token) => (config.with_no_client_auth(), Some(token)),
    };
    let by_certificate = token.is_none();
    let mut answer =
        CredentialAnswer { file, status: None, alert: None, message: String::new(), own_node: own.is_some() };
    let (to, name) = (endpoint.to, endpoint.name.as_deref());
    let stream = endpoint.connect_through(TcpStream::connect(to).await.ok()?).await.ok()?;
    let connected =
        TlsConnector::from(Arc::new(config)).connect(tls::server_name(to, expected), stream).await;
    let sent = async {
        let (mut server, connection) = tls::http(connected?).await.map_err(io::Error::other)?;
        // Ends with the connection, which closes when its sender is dropped.
        tokio::spawn(connection);
        let shown = name.map_or_else(|| to.ip().to_string(), str::to_owned);
        let mut request = tls::request(&shown, &format!("/api/v1/nodes/{node}"));
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static(METADATA_ONLY));
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

/// Returns the message in a `Status` object of the API server.
fn message(body: &[u8]) -> String {
    let status: Value = serde_json::from_slice(body).unwrap_or_default();
    clean(status.get("message").and_then(Value::as_str).unwrap_or_default().as_bytes(), MAX_MESSAGE_LEN)
}

/// Returns the alert by which a server rejects a client's certificate. With TLS 1.3 it arrives after the handshake.
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

/// Returns whether a kubelet holds a connection to this address that outlasts its handshake. Also true if that cannot be
/// determined.
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
    tokio::time::sleep(RECHECK_DELAY).await;
    let Ok(second) = served() else { return true };
    let lasting: BTreeSet<_> = first.intersection(&second).copied().collect();
    let owners = processes::socket_owners(&lasting);
    let is_kubelet =
        |owner: &Actor| provenance::class_of(settings, owner.pid, &owner.name) == Some(ProcessClass::Kubelet);
    lasting.iter().any(|inode| owners.get(inode).is_none_or(is_kubelet))
}
