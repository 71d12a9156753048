//! Queries a server after the TCP handshake: its certificate, and whether it is ready.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::ext::ReasonPhrase;
use hyper::header::PROXY_AUTHORIZATION;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use probe_engine::{Answer, TlsFailure, Untrusted};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificate;
use super::discovery::proxy::Proxy;
use super::trust::{Authorities, Chain};
use crate::text::clean;

/// Maximum size of the header and of the body of a response, bytes each: `/readyz` of a large control plane has about 3 KB.
const MAX_RESPONSE_LEN: usize = 16 * 1024;
/// Maximum length of an error, bytes.
const MAX_ERROR_LEN: usize = 200;
/// Maximum number of failing checks.
const MAX_CHECKS: usize = 8;

/// What the clients of a server require of its certificate.
pub(super) struct Expected<'a> {
    /// The subject name; `None` for the address.
    pub(super) name: Option<&'a str>,
    /// The accepted issuers; `None` if they are unknown.
    pub(super) authorities: Option<Arc<Authorities>>,
}

/// Requests `/readyz` anonymously, and `/livez/etcd` if the former does not include etcd (OpenShift). The server's certificate
/// is recorded and verified but not required to be trusted, and nothing secret is sent. `name` is the host by which clients
/// address the server, if that is not its address; `limit` is the timeout of each request.
pub(super) async fn ask(
    stream: TcpStream,
    to: SocketAddr,
    name: Option<&str>,
    (expected, provider): (&Expected<'_>, &Arc<CryptoProvider>),
    limit: Duration,
) -> (Answer, Chain) {
    let mut answer = unanswered(to);
    let shown = name.map_or_else(|| to.ip().to_string(), str::to_owned);
    let recorder = Arc::new(CertificateRecorder::new(Arc::clone(provider), expected.authorities.clone()));
    let asked = timeout(limit, async {
        let stream =
            handshake(stream, to, expected.name, &recorder).await.map_err(|error| failure(&error))?;
        let (mut server, connection) = http(stream).await.map_err(|error| http_failure(&error))?;
        // Ends with the connection, which closes when its sender is dropped.
        tokio::spawn(connection);
        let ready = get(&mut server, request(&shown, "/readyz?verbose")).await;
        Ok((server, ready.map_err(|error| http_failure(&error))?))
    });
    let asked = asked.await.unwrap_or(Err(TlsFailure::Silent));
    let (der, chain) = recorder.take().unwrap_or((Vec::new(), Chain::Unknown));
    answer.certificate = certificate::read(&der, Some(expected.name.unwrap_or(&shown)));
    if let (Chain::Untrusted, Some(authorities)) = (chain, &expected.authorities) {
        let issuer = certificate::issuer(&der).unwrap_or_default();
        let file = authorities.file.clone();
        answer.untrusted = Some(Untrusted { file, issuer, kubelet_served: false });
    }
    match asked {
        Ok((mut server, (status, body))) => {
            let names_etcd = read_checks(status, &body, &mut answer);
            if answer.is_well() && !names_etcd {
                let etcd = timeout(limit, get(&mut server, request(&shown, "/livez/etcd"))).await;
                // Most servers do not allow anonymous requests for it.
                let allowed = |status: &u16| !matches!(status, 401 | 403 | 404);
                answer.etcd = etcd.ok().and_then(Result::ok).map(|(status, _)| status).filter(allowed);
            }
        }
        Err(failure) => answer.tls = Some(failure),
    }
    (answer, chain)
}

/// Returns the verification result of the server's certificate chain; `None` if the handshake fails or exceeds `limit`.
pub(super) async fn chain(
    stream: TcpStream,
    to: SocketAddr,
    (expected, provider): (&Expected<'_>, &Arc<CryptoProvider>),
    limit: Duration,
) -> Option<Chain> {
    let recorder = Arc::new(CertificateRecorder::new(Arc::clone(provider), expected.authorities.clone()));
    timeout(limit, handshake(stream, to, expected.name, &recorder)).await.ok()?.ok()?;
    recorder.take().map(|(_, chain)| chain)
}

/// Returns the answer of a server that has not responded.
pub(super) fn unanswered(to: SocketAddr) -> Answer {
    Answer {
        to,
        tls: None,
        certificate: None,
        status: None,
        failing: Vec::new(),
        etcd: None,
        untrusted: None,
        kubelet: None,
    }
}

/// Returns the subject name that a certificate must have: `name`, else the address.
pub(super) fn server_name(to: SocketAddr, name: Option<&str>) -> ServerName<'static> {
    match name.map(|name| ServerName::try_from(name.to_owned())) {
        Some(Ok(name)) => name,
        _ => ServerName::from(to.ip()),
    }
}

async fn handshake(
    stream: TcpStream,
    to: SocketAddr,
    name: Option<&str>,
    recorder: &Arc<CertificateRecorder>,
) -> io::Result<TlsStream<TcpStream>> {
    TlsConnector::from(Arc::new(config(recorder))).connect(server_name(to, name), stream).await
}

type Server = SendRequest<Empty<Bytes>>;

pub(super) async fn http(
    stream: TlsStream<TcpStream>,
) -> hyper::Result<(Server, impl Future<Output = hyper::Result<()>> + Send + 'static)> {
    Builder::new().max_buf_size(MAX_RESPONSE_LEN).handshake(TokioIo::new(stream)).await
}

const USER_AGENT: &str = concat!("netready/", env!("CARGO_PKG_VERSION"));

/// Returns an anonymous GET request.
pub(super) fn request(host: &str, path: &str) -> Request<Empty<Bytes>> {
    let request = Request::get(path).header("host", host).header("user-agent", USER_AGENT);
    request.body(Empty::new()).unwrap_or_default()
}

/// Requests a tunnel to `server` (host and port) from a proxy. As in Go's HTTP client, only 200 is a success.
pub(super) async fn tunnel(stream: TcpStream, proxy: &Proxy, server: &str) -> Result<TcpStream, TlsFailure> {
    let connected = Builder::new().max_buf_size(MAX_RESPONSE_LEN).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = connected.map_err(|error| http_failure(&error))?;
    // Ends when the connection is upgraded, or when its sender is dropped.
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::connect(server).header("host", server).header("user-agent", USER_AGENT);
    if let Some(authorization) = proxy.authorization() {
        request = request.header(PROXY_AUTHORIZATION, authorization);
    }
    let other = |error: &dyn std::error::Error| TlsFailure::Other {
        why: clean(format!("CONNECT {server}: {error}").as_bytes(), MAX_ERROR_LEN),
    };
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| other(&error))?;
    let response = sender.send_request(request).await.map_err(|error| http_failure(&error))?;
    let status = response.status();
    if status != StatusCode::OK {
        let named = response.extensions().get::<ReasonPhrase>().map(|phrase| phrase.as_bytes().to_vec());
        let named = named.unwrap_or_else(|| status.canonical_reason().unwrap_or_default().into());
        let line = format!("{} {}", status.as_u16(), String::from_utf8_lossy(&named));
        return Err(TlsFailure::Proxy { status: clean(proxy.redact(line.trim()).as_bytes(), MAX_ERROR_LEN) });
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(|error| http_failure(&error))?;
    match upgraded.downcast::<TokioIo<TcpStream>>() {
        // In TLS the client sends the first message.
        Ok(parts) if parts.read_buf.is_empty() => Ok(parts.io.into_inner()),
        _ => Err(TlsFailure::Other { why: "received data before the ClientHello".to_owned() }),
    }
}

/// Sends a request and returns the status and the body. A truncated body is accepted: many servers close a connection without
/// a TLS `close_notify` alert.
pub(super) async fn get(
    server: &mut Server,
    request: Request<Empty<Bytes>>,
) -> hyper::Result<(u16, Vec<u8>)> {
    let response = server.send_request(request).await?;
    let status = response.status().as_u16();
    let mut body = Limited::new(response.into_body(), MAX_RESPONSE_LEN);
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
    }
    Ok((status, bytes))
}

/// Stores the status and the failed checks in `answer`: lines of the form `[-]etcd failed: reason withheld`. Returns whether
/// the response names the check of etcd.
fn read_checks(status: u16, body: &[u8], answer: &mut Answer) -> bool {
    let body = String::from_utf8_lossy(body);
    let check = |line: &'_ str, mark: &str| -> Option<String> {
        let name = line.strip_prefix(mark)?.split_whitespace().next()?;
        Some(clean(name.as_bytes(), 64))
    };
    answer.status = Some(status);
    answer.failing = body.lines().filter_map(|line| check(line, "[-]")).take(MAX_CHECKS).collect();
    let is_etcd = |name: Option<String>| name.is_some_and(|name| name == "etcd");
    body.lines().any(|line| is_etcd(check(line, "[+]")) || is_etcd(check(line, "[-]")))
}

fn http_failure(error: &hyper::Error) -> TlsFailure {
    let mut sources = std::iter::successors(std::error::Error::source(error), |error| error.source());
    if let Some(io) = sources.find_map(|error| error.downcast_ref::<io::Error>()) {
        return failure(io);
    }
    if error.is_parse() {
        return TlsFailure::Other { why: "the response is not HTTP".to_owned() };
    }
    // The connection was closed before a response.
    TlsFailure::Closed
}

/// Returns the TLS alert that ended a connection, or a request on it.
pub(super) fn alert(error: &io::Error) -> Option<AlertDescription> {
    let first = error.get_ref().map(|error| error as &(dyn std::error::Error + 'static));
    let mut errors = std::iter::successors(first, |error| match error.downcast_ref::<io::Error>() {
        Some(io) => io.get_ref().map(|error| error as &(dyn std::error::Error + 'static)),
        None => error.source(),
    });
    errors.find_map(|error| match error.downcast_ref::<Error>() {
        Some(Error::AlertReceived(alert)) => Some(*alert),
        _ => None,
    })
}

fn failure(error: &io::Error) -> TlsFailure {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match (error.kind(), tls) {
        (_, Some(Error::AlertReceived(alert))) => TlsFailure::Alert { alert: format!("{alert:?}") },
        (_, Some(error)) => TlsFailure::Other { why: clean(error.to_string().as_bytes(), MAX_ERROR_LEN) },
        (io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe, None) => {
            TlsFailure::Closed
        }
        (_, None) => TlsFailure::Other { why: clean(error.to_string().as_bytes(), MAX_ERROR_LEN) },
    }
}

fn config(recorder: &Arc<CertificateRecorder>) -> ClientConfig {
    let versions = ClientConfig::builder_with_provider(Arc::clone(&recorder.provider))
        .with_safe_default_protocol_versions()
        .expect("the provider supports the default protocol versions");
    let verifier = Arc::clone(recorder) as Arc<dyn ServerCertVerifier>;
    versions.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
}

/// A scheme that is offered although ring cannot verify it: without it, a server with a P-521 key would reject the handshake,
/// although it serves the node's clients. Nothing secret is sent over this connection.
const UNVERIFIED_SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP521_SHA512;

/// A verifier that records the server's certificate and never rejects it.
#[derive(Debug)]
struct CertificateRecorder {
    provider: Arc<CryptoProvider>,
    authorities: Option<Arc<Authorities>>,
    /// The certificate (DER), and the verification result of its chain.
    certificate: Mutex<Option<(Vec<u8>, Chain)>>,
}

impl CertificateRecorder {
    fn new(provider: Arc<CryptoProvider>, authorities: Option<Arc<Authorities>>) -> Self {
        Self { provider, authorities, certificate: Mutex::new(None) }
    }

    fn take(&self) -> Option<(Vec<u8>, Chain)> {
        self.certificate.lock().ok()?.take()
    }
}

impl ServerCertVerifier for CertificateRecorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let judge = |authorities: &Arc<Authorities>| authorities.judge(end_entity, intermediates, name);
        let chain = self.authorities.as_ref().map_or(Chain::Unknown, judge);
        if let Ok(mut certificate) = self.certificate.lock() {
            *certificate = Some((end_entity.to_vec(), chain));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if signature.scheme == UNVERIFIED_SCHEME {
            return Ok(HandshakeSignatureValid::assertion());
        }
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if signature.scheme == UNVERIFIED_SCHEME {
            return Ok(HandshakeSignatureValid::assertion());
        }
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let mut schemes = self.provider.signature_verification_algorithms.supported_schemes();
        schemes.push(UNVERIFIED_SCHEME);
        schemes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_failing_checks_and_escapes_their_names() {
        let mut answer = unanswered(([127, 0, 0, 1], 6443).into());
        assert!(!read_checks(500, b"[+]ping ok\n[-]etc\x1bd failed: reason\nno\n", &mut answer));
        assert_eq!((answer.status, answer.failing.as_slice()), (Some(500), &["etc\\u{1b}d".to_owned()][..]));
        assert!(read_checks(200, b"[+]ping ok\n[+]etcd ok\nreadyz check passed\n", &mut answer));
        assert!(answer.failing.is_empty());
        assert!(!read_checks(200, b"[+]etcd-readiness ok\n", &mut answer));
        assert!(read_checks(500, b"[-]etcd failed: reason withheld\n", &mut answer));
    }
}
