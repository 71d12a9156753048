//! `/metrics`, `/livez`, `/readyz`: enough HTTP for a scraper, and no more.

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

/// Largest request that is read: a scraper's has a few hundred bytes.
const REQUEST: usize = 8 * 1024;
/// Most connections at once from this host, and from elsewhere.
const CONNECTIONS: usize = 16;
/// A client that is slower than this is left.
const PATIENCE: Duration = Duration::from_secs(5);
/// The judge turns ten times a second; ten seconds without a turn mean that it hangs.
const DEAD_AFTER_NS: u64 = 10_000_000_000;
/// Between two tries to serve.
const AGAIN: Duration = Duration::from_secs(5);
/// Between two looks at what may be blocked.
const LOOK: Duration = Duration::from_secs(1);

/// Answers for ever; tries again for as long as the address belongs to somebody else.
pub(crate) async fn serve(address: SocketAddr, shared: Shared) {
    let what = format!("serve metrics on {address}");
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => shared.fails(&what, &format!("{error}; it is tried again every 5 s")),
        }
        tokio::time::sleep(AGAIN).await;
    };
    shared.works(&what);
    let (mut here, mut elsewhere) = (Places::default(), Places::default());
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of descriptors: connections hold some of them.
            elsewhere.make_room(elsewhere.0.len() / 2);
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // The kubelet's probe must not share its places with whoever can reach this port.
        let is_own = |local: SocketAddr| local.ip() == peer.ip();
        let is_here = peer.ip().is_loopback() || stream.local_addr().is_ok_and(is_own);
        let places = if is_here { &mut here } else { &mut elsewhere };
        places.make_room(CONNECTIONS - 1);
        let shared = shared.clone();
        places.0.push_back(tokio::spawn(async move {
            let _ = tokio::time::timeout(PATIENCE, answer(stream, shared)).await;
        }));
    }
}

/// Connections, the oldest first.
#[derive(Default)]
struct Places(VecDeque<JoinHandle<()>>);

impl Places {
    /// Closes the oldest connections until at most `most` are left. A client that is answered at once is never the oldest for
    /// long; one that says nothing is, and must not keep others out.
    fn make_room(&mut self, most: usize) {
        self.0.retain(|connection| !connection.is_finished());
        while self.0.len() > most {
            if let Some(oldest) = self.0.pop_front() {
                oldest.abort();
            }
        }
    }
}

/// Reports in the log what is blocked, and when it is no longer. Runs for ever.
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
        tokio::time::sleep(LOOK).await;
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
                    format!("the loop has not turned for {} s\n", silent / 1_000_000_000),
                )
            }
        }
        "/readyz" => {
            let ready = shared.ready.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let lines = ready.wrong.into_iter().map(|(what, why)| format!("{what}: {why}"));
            let mut wrong: Vec<_> = lines.chain(shared.blocked.lines()).collect();
            if !ready.snapshot {
                wrong.push("the state at start is not read yet".to_owned());
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
        _ => ("404 Not Found", TEXT, "there are /metrics, /livez and /readyz\n".to_owned()),
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
