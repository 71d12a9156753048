//! The parts of an API server that a probe can observe: TLS with its own certificate, and `/readyz`.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;

use anyhow::Result;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use time::{Duration, OffsetDateTime};

/// The health that the server reports.
#[derive(Clone, Copy, Debug)]
pub struct Health {
    /// HTTP status of every response.
    pub status: u16,
    /// Whether its certificate expired an hour ago.
    pub expired: bool,
}

/// Returns the server's TLS configuration, with a self-signed certificate for `addr`.
pub fn config(addr: IpAddr, health: Health) -> Result<Arc<ServerConfig>> {
    let mut params = CertificateParams::new(Vec::new())?;
    // Also valid for the name that the test resolver serves.
    params.subject_alt_names = vec![SanType::IpAddress(addr), SanType::DnsName("api".try_into()?)];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::days(2);
    params.not_after = if health.expired { now - Duration::hours(1) } else { now + Duration::days(2) };
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let versions = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?;
    let config = versions.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key)?;
    Ok(Arc::new(config))
}

/// Serves one connection: sends one response to whatever request it reads, then closes the TLS session.
pub fn serve(connection: TcpStream, config: Arc<ServerConfig>, health: Health) -> Result<()> {
    let mut stream = StreamOwned::new(ServerConnection::new(config)?, connection);
    let mut request = [0; 2048];
    if stream.read(&mut request)? == 0 {
        return Ok(());
    }
    let body = if health.status < 500 { "ok" } else { "[+]ping ok\n[-]etcd failed: reason withheld\n" };
    let head = format!("HTTP/1.1 {} X\r\nContent-Length: {}\r\n\r\n", health.status, body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    stream.conn.send_close_notify();
    stream.flush()?;
    // The client closes the connection.
    std::io::copy(&mut stream.sock, &mut std::io::sink())?;
    Ok(())
}
