//! `/metrics`, `/livez`, `/readyz`: enough HTTP for a scraper, and no more.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::metrics::Shared;
use crate::clock;

/// Largest request that is read: a scraper's has a few hundred bytes.
const REQUEST: usize = 8 * 1024;
/// Most connections at once; further ones wait.
const CONNECTIONS: usize = 16;
/// A client that is slower than this is left.
const PATIENCE: Duration = Duration::from_secs(5);
/// The loop turns four times a second; ten seconds without a turn mean that it hangs.
const DEAD_AFTER_NS: u64 = 10_000_000_000;

/// Answers for ever.
pub(crate) async fn serve(listener: TcpListener, shared: Shared) {
    static PLACES: Semaphore = Semaphore::const_new(CONNECTIONS);
    loop {
        let Ok(place) = PLACES.acquire().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(PATIENCE, answer(stream, shared)).await;
                    drop(place);
                });
            }
            // Out of descriptors: wait for some to come back.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
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
            let mut wrong = ready.wrong;
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
