//! Asking the API addresses: a healthy kubelet opens no connection for hours, so silence proves nothing.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use probe_engine::{Mono, Route};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::routes;
use crate::clock;
use crate::settings::Settings;

/// One question and its answer.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// When the answer came.
    pub(crate) at: Mono,
    /// Who was asked.
    pub(crate) to: SocketAddr,
    /// From the connect to its end.
    pub(crate) took_ns: u64,
    /// Connected, or the positive errno; 0 for no answer in time.
    pub(crate) result: Result<(), u32>,
    /// The next hop leaves neighbour discovery unanswered.
    pub(crate) neighbour_failed: bool,
    /// How the kernel would get there.
    pub(crate) route: Route,
}

/// Asks each target now and then, and at once when woken; at most one question to each at a time.
pub(crate) async fn run(
    settings: Arc<Settings>,
    mut targets: watch::Receiver<Vec<SocketAddr>>,
    mut wake: mpsc::Receiver<SocketAddr>,
    done: mpsc::Sender<Asked>,
) {
    // When each is asked next; `None` while it is being asked.
    let mut due: BTreeMap<SocketAddr, Option<Instant>> = BTreeMap::new();
    let mut asking = JoinSet::new();
    loop {
        let now = Instant::now();
        for (addr, at) in &mut due {
            if at.is_some_and(|at| at <= now) {
                *at = None;
                asking.spawn(ask(*addr, settings.ask_timeout));
            }
        }
        let next = due.values().flatten().min().copied();
        tokio::select! {
            changed = targets.changed() => {
                if changed.is_err() {
                    return;
                }
                let wanted = targets.borrow_and_update().clone();
                due.retain(|addr, _| wanted.contains(addr));
                for addr in wanted {
                    due.entry(addr).or_insert(Some(now));
                }
            }
            Some(addr) = wake.recv() => {
                if let Some(at @ Some(_)) = due.get_mut(&addr) {
                    *at = Some(now);
                }
            }
            Some(Ok(asked)) = asking.join_next() => {
                let every = if asked.result.is_ok() { settings.ask_every } else { settings.ask_again };
                if let Some(at) = due.get_mut(&asked.to) {
                    *at = Some(Instant::now() + jitter(every));
                }
                if done.send(asked).await.is_err() {
                    return;
                }
            }
            () = sleep_until(next) => {}
        }
    }
}

async fn sleep_until(next: Option<Instant>) {
    match next {
        Some(next) => tokio::time::sleep_until(next).await,
        None => std::future::pending().await,
    }
}

async fn ask(to: SocketAddr, patience: Duration) -> Asked {
    let started = clock::now();
    let answer = tokio::time::timeout(patience, TcpStream::connect(to)).await;
    let at = clock::now();
    let result = match answer {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(errno(&error)),
        Err(_) => Err(0),
    };
    let route = routes::lookup(to.ip()).await;
    let neighbour_failed = result.is_err() && route.errno == 0 && routes::neighbour_failed(to.ip()).await;
    Asked { at, to, took_ns: at.since(started), result, neighbour_failed, route }
}

fn errno(error: &io::Error) -> u32 {
    error.raw_os_error().map_or(0, i32::unsigned_abs)
}

/// ± 20 %, so that nodes that were started together do not ask together.
fn jitter(every: Duration) -> Duration {
    // Only to spread: the low bits of the clock are as good as any.
    let fifths = clock::now().0 / 1000 % 401;
    every * 8 / 10 + every * u32::try_from(fifths).unwrap_or(200) / 1000
}
