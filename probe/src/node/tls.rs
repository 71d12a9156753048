//! What a server says after the handshake of TCP: its certificate, and whether it is ready.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use probe_engine::{Answer, Certificate, TlsFailure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::certificate;
use crate::text::clean;

/// Most of an answer that is read: `/readyz` of a large control plane has about 3 KB.
const ANSWER: u64 = 16 * 1024;
/// Longest error that is kept.
const WORDS: usize = 200;
/// Most failing checks that are named.
const CHECKS: usize = 8;

/// Asks `/readyz` as nobody: the server's own certificate is looked at and not trusted, and nothing secret is
/// sent. `name` is how clients call the server, when that is not its address.
pub(crate) async fn ask(stream: TcpStream, to: SocketAddr, name: Option<&str>) -> Answer {
    let mut answer = Answer { to, tls: None, certificate: None, status: None, failing: Vec::new() };
    let seen = Arc::new(Seen::new());
    let server = match name.map(|name| ServerName::try_from(name.to_owned())) {
        Some(Ok(name)) => name,
        _ => ServerName::from(to.ip()),
    };
    let shown = name.map_or_else(|| to.ip().to_string(), str::to_owned);
    let mut stream = match TlsConnector::from(Arc::new(config(&seen))).connect(server, stream).await {
        Ok(stream) => stream,
        Err(error) => {
            answer.tls = Some(failure(&error));
            answer.certificate = seen.certificate(&shown);
            return answer;
        }
    };
    answer.certificate = seen.certificate(&shown);
    match readyz(&mut stream, &shown).await {
        Ok(bytes) => read(&bytes, &mut answer),
        Err(error) => answer.tls = Some(failure(&error)),
    }
    answer
}

/// It took the connection and said nothing in time.
pub(crate) fn silent(to: SocketAddr) -> Answer {
    let tls = Some(TlsFailure::Silent);
    Answer { to, tls, certificate: None, status: None, failing: Vec::new() }
}

async fn readyz(stream: &mut tokio_rustls::client::TlsStream<TcpStream>, host: &str) -> io::Result<Vec<u8>> {
    let request = format!(
        "GET /readyz?verbose HTTP/1.1\r\nHost: {host}\r\nUser-Agent: netready/{}\r\nConnection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    );
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    match stream.take(ANSWER).read_to_end(&mut bytes).await {
        // Many servers end a connection without TLS's own good-bye; what came before counts.
        Err(error) if bytes.is_empty() => Err(error),
        _ => Ok(bytes),
    }
}

/// The status, and the checks that failed: lines of the form `[-]etcd failed: reason withheld`.
fn read(bytes: &[u8], answer: &mut Answer) {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(bytes);
    answer.status = response.code;
    if let Ok(httparse::Status::Complete(end)) = parsed {
        let body = String::from_utf8_lossy(&bytes[end..]);
        let failing = body.lines().filter_map(|line| line.strip_prefix("[-]")?.split_whitespace().next());
        answer.failing = failing.take(CHECKS).map(|name| clean(name.as_bytes(), 64)).collect();
    }
    if answer.status.is_none() {
        answer.tls = Some(TlsFailure::Other { why: "it answers something that is not HTTP".to_owned() });
    }
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
        let mut answer = Answer {
            to: "127.0.0.1:6443".parse().expect("an address"),
            tls: None,
            certificate: None,
            status: None,
            failing: Vec::new(),
        };
        let body =
            b"HTTP/1.1 500 Internal Server Error\r\nX: y\r\n\r\n[+]ping ok\n[-]etc\x1bd failed: reason\nno\n";
        read(body, &mut answer);
        assert_eq!((answer.status, answer.failing), (Some(500), vec!["etc\\u{1b}d".to_owned()]));
        let mut answer = Answer { status: None, failing: Vec::new(), ..answer };
        read(b"220 smtp ready\r\n", &mut answer);
        assert!(answer.status.is_none() && answer.tls.is_some());
    }
}
