//! What a server says after the handshake of TCP: its certificate, and whether it is ready.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use probe_engine::{Answer, Certificate, TlsFailure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificate;
use crate::text::clean;

/// Most of an answer that is read, its header and its body each: `/readyz` of a large control plane has about 3 KB.
const ANSWER: usize = 16 * 1024;
/// Longest error that is kept.
const WORDS: usize = 200;
/// Most failing checks that are named.
const CHECKS: usize = 8;

/// Requests `/readyz` anonymously, and `/livez/etcd` where that leaves etcd out (OpenShift). The server's certificate is
/// recorded and not trusted, and nothing secret is sent. `name` is the server's name for its clients, when that is not its
/// address; each request may take `patience`.
pub(crate) async fn ask(stream: TcpStream, to: SocketAddr, name: Option<&str>, patience: Duration) -> Answer {
    let mut answer = unanswered(to);
    let shown = name.map_or_else(|| to.ip().to_string(), str::to_owned);
    let seen = Arc::new(Seen::new());
    let asked = timeout(patience, async {
        let stream = shake_hands(stream, to, name, &seen).await.map_err(|error| failure(&error))?;
        let (mut server, connection) = http(stream).await.map_err(|error| http_failure(&error))?;
        // Ends with the connection, which ends with its sender.
        tokio::spawn(connection);
        let ready =
            get(&mut server, &shown, "/readyz?verbose").await.map_err(|error| http_failure(&error))?;
        Ok((server, ready))
    });
    let asked = asked.await.unwrap_or(Err(TlsFailure::Silent));
    answer.certificate = seen.certificate(&shown);
    match asked {
        Ok((mut server, (status, body))) => {
            let names_etcd = read(status, &body, &mut answer);
            if answer.is_well() && !names_etcd {
                let etcd = timeout(patience, get(&mut server, &shown, "/livez/etcd")).await;
                // Most servers do not let everybody ask.
                let allowed = |status: &u16| !matches!(status, 401 | 403 | 404);
                answer.etcd = etcd.ok().and_then(Result::ok).map(|(status, _)| status).filter(allowed);
            }
        }
        Err(failure) => answer.tls = Some(failure),
    }
    answer
}

/// Of a server that has not said anything yet.
pub(super) fn unanswered(to: SocketAddr) -> Answer {
    Answer { to, tls: None, certificate: None, status: None, failing: Vec::new(), etcd: None }
}

async fn shake_hands(
    stream: TcpStream,
    to: SocketAddr,
    name: Option<&str>,
    seen: &Arc<Seen>,
) -> io::Result<TlsStream<TcpStream>> {
    let server = match name.map(|name| ServerName::try_from(name.to_owned())) {
        Some(Ok(name)) => name,
        _ => ServerName::from(to.ip()),
    };
    TlsConnector::from(Arc::new(config(seen))).connect(server, stream).await
}

type Server = SendRequest<Empty<Bytes>>;

async fn http(
    stream: TlsStream<TcpStream>,
) -> hyper::Result<(Server, impl Future<Output = hyper::Result<()>> + Send + 'static)> {
    Builder::new().max_buf_size(ANSWER).handshake(TokioIo::new(stream)).await
}

/// The status and the body. What came of a body that broke off counts: many servers end a connection without TLS's own
/// good-bye.
async fn get(server: &mut Server, host: &str, path: &str) -> hyper::Result<(u16, Vec<u8>)> {
    let request = Request::get(path)
        .header("host", host)
        .header("user-agent", concat!("netready/", env!("CARGO_PKG_VERSION")))
        .body(Empty::new())
        .unwrap_or_default();
    let response = server.send_request(request).await?;
    let status = response.status().as_u16();
    let mut body = Limited::new(response.into_body(), ANSWER);
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
    }
    Ok((status, bytes))
}

/// Takes the status, and the checks that failed: lines of the form `[-]etcd failed: reason withheld`. Answers whether etcd
/// is among those that are named.
fn read(status: u16, body: &[u8], answer: &mut Answer) -> bool {
    let body = String::from_utf8_lossy(body);
    let check = |line: &'_ str, mark: &str| -> Option<String> {
        let name = line.strip_prefix(mark)?.split_whitespace().next()?;
        Some(clean(name.as_bytes(), 64))
    };
    answer.status = Some(status);
    answer.failing = body.lines().filter_map(|line| check(line, "[-]")).take(CHECKS).collect();
    let is_etcd = |name: Option<String>| name.is_some_and(|name| name == "etcd");
    body.lines().any(|line| is_etcd(check(line, "[+]")) || is_etcd(check(line, "[-]")))
}

fn http_failure(error: &hyper::Error) -> TlsFailure {
    let mut sources = std::iter::successors(std::error::Error::source(error), |error| error.source());
    if let Some(io) = sources.find_map(|error| error.downcast_ref::<io::Error>()) {
        return failure(io);
    }
    if error.is_parse() {
        return TlsFailure::Other { why: "it answers something that is not HTTP".to_owned() };
    }
    // The connection ended before there was an answer.
    TlsFailure::Closed
}

fn failure(error: &io::Error) -> TlsFailure {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match (error.kind(), tls) {
        (_, Some(Error::AlertReceived(alert))) => TlsFailure::Alert { alert: format!("{alert:?}") },
        (_, Some(error)) => TlsFailure::Other { why: clean(error.to_string().as_bytes(), WORDS) },
        (io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe, None) => {
            TlsFailure::Closed
        }
        (_, None) => TlsFailure::Other { why: clean(error.to_string().as_bytes(), WORDS) },
    }
}

fn config(seen: &Arc<Seen>) -> ClientConfig {
    let versions = ClientConfig::builder_with_provider(Arc::clone(&seen.provider))
        .with_safe_default_protocol_versions()
        .expect("the provider knows the protocol versions that it is built with");
    let verifier = Arc::clone(seen) as Arc<dyn ServerCertVerifier>;
    versions.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
}

/// Looks at the server's certificate instead of trusting it.
#[derive(Debug)]
struct Seen {
    provider: Arc<CryptoProvider>,
    certificate: Mutex<Option<Vec<u8>>>,
}

impl Seen {
    fn new() -> Self {
        Self { provider: Arc::new(ring::default_provider()), certificate: Mutex::new(None) }
    }

    fn certificate(&self, name: &str) -> Option<Certificate> {
        let der = self.certificate.lock().ok()?.take()?;
        certificate::read(&der, Some(name))
    }
}

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Ok(mut certificate) = self.certificate.lock() {
            *certificate = Some(end_entity.to_vec());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_checks_are_named_and_made_safe() {
        let mut answer = unanswered(([127, 0, 0, 1], 6443).into());
        assert!(!read(500, b"[+]ping ok\n[-]etc\x1bd failed: reason\nno\n", &mut answer));
        assert_eq!((answer.status, answer.failing.as_slice()), (Some(500), &["etc\\u{1b}d".to_owned()][..]));
        assert!(read(200, b"[+]ping ok\n[+]etcd ok\nreadyz check passed\n", &mut answer));
        assert!(answer.failing.is_empty());
        assert!(!read(200, b"[+]etcd-readiness ok\n", &mut answer));
        assert!(read(500, b"[-]etcd failed: reason withheld\n", &mut answer));
    }
}
