//! An API server as far as a probe can see it: TLS with a certificate of its own, and `/readyz`.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;

use anyhow::Result;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use time::{Duration, OffsetDateTime};

/// How the server is.
#[derive(Clone, Copy, Debug)]
pub struct Health {
    /// HTTP status of every answer.
    pub status: u16,
    /// Its certificate expired an hour ago.
    pub expired: bool,
}

/// The server's side of TLS, with a certificate for `addr`.
pub fn config(addr: IpAddr, health: Health) -> Result<Arc<ServerConfig>> {
    let mut params = CertificateParams::new(Vec::new())?;
    // And for the name by which the lab's resolver knows it.
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

/// Answers one connection: every request gets the same answer, then the end.
pub fn answer(connection: TcpStream, config: Arc<ServerConfig>, health: Health) -> Result<()> {
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
    // It is the client who ends it.
    std::io::copy(&mut stream.sock, &mut std::io::sink())?;
    Ok(())
}
