//! Serves `/metrics`, `/livez` and `/readyz` over the part of HTTP/1.1 that scrapers and probes need.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::metrics::Shared;
use crate::clock;

/// Largest request that is read, in bytes. Scrapers send a few hundred.
const REQUEST: usize = 8 * 1024;
/// Maximum number of connections from this host, and from other hosts.
const CONNECTIONS: usize = 16;
/// Timeout of one connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// The loop that judges runs ten times a second. If it has not run for ten seconds, it hangs.
const DEAD_AFTER_NS: u64 = 10_000_000_000;
/// Interval between attempts to bind the address.
const RETRY: Duration = Duration::from_secs(5);
/// Interval between checks for blocked operations.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Serves until the process exits. Retries while another process uses the address.
pub(crate) async fn serve(address: SocketAddr, shared: Shared) {
    let what = format!("serve metrics on {address}");
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => shared.fails(&what, &format!("{error}; retrying every 5 s")),
        }
        tokio::time::sleep(RETRY).await;
    };
    shared.works(&what);
    let (mut here, mut elsewhere) = (Places::default(), Places::default());
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of descriptors (EMFILE): closing connections frees some.
            elsewhere.make_room(elsewhere.0.len() / 2);
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // Clients on other hosts must not take the connections that the liveness probe of the kubelet needs.
        let is_own = |local: SocketAddr| local.ip() == peer.ip();
        let is_here = peer.ip().is_loopback() || stream.local_addr().is_ok_and(is_own);
        let places = if is_here { &mut here } else { &mut elsewhere };
        places.make_room(CONNECTIONS - 1);
        let shared = shared.clone();
        places.0.push_back(tokio::spawn(async move {
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, answer(stream, shared)).await;
        }));
    }
}

/// Open connections, the oldest first.
#[derive(Default)]
struct Places(VecDeque<JoinHandle<()>>);

impl Places {
    /// Closes the oldest connections until at most `most` are left. Connections of ordinary clients are short; the oldest belong to
    /// clients that send nothing.
    fn make_room(&mut self, most: usize) {
        self.0.retain(|connection| !connection.is_finished());
        while self.0.len() > most {
            if let Some(oldest) = self.0.pop_front() {
                oldest.abort();
            }
        }
    }
}

/// Logs when an operation is blocked, and when it is no longer. Runs until the process exits.
pub(crate) async fn watch_blocked(shared: Shared) {
    let mut known = BTreeSet::new();
    loop {
        let now: BTreeSet<_> = shared.blocked.lines().into_iter().collect();
        for line in now.difference(&known) {
            crate::warn(line);
        }
        for line in known.difference(&now) {
            crate::warn(&format!("{line} no longer"));
        }
        known = now;
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

async fn answer(mut stream: TcpStream, shared: Shared) -> std::io::Result<()> {
    let mut request = Vec::new();
    let path = loop {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut parsed = httparse::Request::new(&mut headers);
        match parsed.parse(&request) {
            Ok(httparse::Status::Complete(_)) if parsed.method == Some("GET") => {
                break parsed.path.unwrap_or("/").split('?').next().unwrap_or("/").to_owned();
            }
            Ok(httparse::Status::Partial) if request.len() < REQUEST => {}
            Ok(httparse::Status::Complete(_)) => {
                return respond(&mut stream, "405 Method Not Allowed", TEXT, "").await;
            }
            Ok(httparse::Status::Partial) | Err(_) => {
                return respond(&mut stream, "400 Bad Request", TEXT, "").await;
            }
        }
        let mut buffer = [0; 1024];
        let size = stream.read(&mut buffer).await?;
        if size == 0 {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..size]);
    };
    let (status, kind, body) = page(&path, &shared);
    respond(&mut stream, status, kind, &body).await
}

const TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn page(path: &str, shared: &Shared) -> (&'static str, &'static str, String) {
    match path {
        "/metrics" => ("200 OK", OPEN_METRICS, shared.text()),
        "/livez" => {
            let silent = clock::now().0.saturating_sub(shared.alive.load(Ordering::Relaxed));
            if silent < DEAD_AFTER_NS {
                ("200 OK", TEXT, "ok\n".to_owned())
            } else {
                (
                    "503 Service Unavailable",
                    TEXT,
                    format!("the loop has not run for {} s\n", silent / 1_000_000_000),
                )
            }
        }
        "/readyz" => {
            let ready = shared.ready.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let lines = ready.wrong.into_iter().map(|(what, why)| format!("{what}: {why}"));
            let mut wrong: Vec<_> = lines.chain(shared.blocked.lines()).collect();
            if !ready.snapshot {
                wrong.push("the state at start has not been read".to_owned());
            }
            if !ready.hooks {
                wrong.push("no eBPF hook is attached".to_owned());
            }
            if wrong.is_empty() {
                ("200 OK", TEXT, "ok\n".to_owned())
            } else {
                ("503 Service Unavailable", TEXT, wrong.join("\n") + "\n")
            }
        }
        _ => ("404 Not Found", TEXT, "not found; use /metrics, /livez or /readyz\n".to_owned()),
    }
}

async fn respond(stream: &mut TcpStream, status: &str, kind: &str, body: &str) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
