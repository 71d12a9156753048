//! Active checks of the API addresses: a healthy kubelet opens no new connection for hours, so the absence of connects proves
//! nothing.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use probe_engine::{Answer, ApiTarget, BootTime, Icmp, Route};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::discovery::Kubelet;
use super::{accepted, errqueue, file, routes};
use crate::clock;
use crate::settings::Settings;

/// The API targets by address.
pub(crate) type Targets = BTreeMap<SocketAddr, ApiTarget>;

/// Interval between requests for `/readyz` while the server is healthy, ± 20 %: a TLS handshake costs the server about a
/// millisecond, and there are many nodes.
const READYZ_INTERVAL: Duration = Duration::from_mins(5);
/// Minimum interval between requests for `/readyz` when a client failed or waits for a response.
const READYZ_MIN_INTERVAL: Duration = Duration::from_secs(10);
/// Interval between requests after the second bad answer, ± 20 %: a fleet must not overload a failing server, and with the
/// 10 s that a condition has to be clean a recovery must be reported within 30 s.
const READYZ_BAD_INTERVAL: Duration = Duration::from_secs(16);
/// Minimum interval between connects that failures of clients trigger: a connect shows little that the client's own connect
/// does not.
const CONNECT_MIN_INTERVAL: Duration = Duration::from_secs(3);

/// One check of an API address and its result.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// When the connect completed, failed or timed out.
    pub(crate) at: BootTime,
    pub(crate) to: SocketAddr,
    /// Duration of the connect.
    pub(crate) took_ns: u64,
    /// The result of the connect: a failure is the positive errno, 0 for a timeout.
    pub(crate) result: Result<(), u32>,
    /// Whether the next hop did not answer neighbour discovery.
    pub(crate) neighbour_failed: bool,
    /// The ICMP message that ended the connect, with its sender.
    pub(crate) icmp: Option<Icmp>,
    /// The kernel's route to the address.
    pub(crate) route: Route,
    /// The server's answer; `None` if only a connection was requested.
    pub(crate) answer: Option<Answer>,
}

/// When a target is checked next.
#[derive(Clone, Debug)]
struct Schedule {
    target: ApiTarget,
    /// When the next check starts; `None` during a check.
    at: Option<Instant>,
    /// When the last check started.
    asked: Option<Instant>,
    /// The earliest time of the next request for `/readyz`.
    readyz_due: Instant,
    /// The time of the last request for `/readyz`.
    readyz_last: Option<Instant>,
    /// Number of consecutive bad answers.
    bad_answers: u32,
}

impl Schedule {
    fn new(target: ApiTarget, now: Instant) -> Self {
        Self { target, at: Some(now), asked: None, readyz_due: now, readyz_last: None, bad_answers: 0 }
    }

    /// Schedules the next check as early as the minimum intervals allow: a client failed, waits for a response, or is served
    /// again.
    fn wake(&mut self, now: Instant) {
        let ready = self.readyz_last.map_or(now, |asked| now.max(asked + READYZ_MIN_INTERVAL));
        self.readyz_due = self.readyz_due.min(ready);
        let connect = self.asked.map_or(now, |asked| now.max(asked + CONNECT_MIN_INTERVAL));
        self.at = self.at.map(|at| at.min(self.readyz_due.max(now)).min(connect));
    }

    /// Records the result of a check and schedules the next one; `every` is the time until the next connect.
    fn record(&mut self, now: Instant, every: Duration, answer: Option<&Answer>) {
        if let Some(answer) = answer {
            self.bad_answers = if answer.is_settled() { 0 } else { self.bad_answers.saturating_add(1) };
            let serves = answer.status.is_some() && answer.is_well();
            self.readyz_due = now
                + match self.bad_answers {
                    0 => jitter(READYZ_INTERVAL),
                    // The server is healthy, but the certificate or the credential was rejected. That counts only if a second
                    // request confirms it, which must not follow too soon to count.
                    1 if serves => jitter(READYZ_MIN_INTERVAL * 5 / 4),
                    1 => jitter(READYZ_MIN_INTERVAL),
                    _ => jitter(READYZ_BAD_INTERVAL),
                };
        }
        let at = now + jitter(every);
        self.at = Some(if self.readyz_due > now { at.min(self.readyz_due) } else { at });
    }
}

/// Checks each target periodically, and as soon as possible after `wake` names its address. At most one check of a target runs
/// at a time. Returns when the receiver of the results, or the sender of the targets, is dropped.
pub(crate) async fn run(
    settings: Arc<Settings>,
    kubelet: watch::Receiver<Kubelet>,
    mut targets: watch::Receiver<Targets>,
    mut wake: mpsc::Receiver<SocketAddr>,
    done: mpsc::Sender<Asked>,
) {
    let mut schedules: BTreeMap<SocketAddr, Schedule> = BTreeMap::new();
    let mut running = JoinSet::new();
    loop {
        let now = Instant::now();
        for schedule in schedules.values_mut() {
            if schedule.at.is_some_and(|at| at <= now) {
                schedule.at = None;
                schedule.asked = Some(now);
                let readyz = schedule.readyz_due <= now;
                schedule.readyz_last = readyz.then_some(now).or(schedule.readyz_last);
                let kubelet = readyz.then(|| kubelet.borrow().clone());
                running.spawn(ask(Arc::clone(&settings), schedule.target.clone(), kubelet));
            }
        }
        let next = schedules.values().filter_map(|schedule| schedule.at).min();
        tokio::select! {
            changed = targets.changed() => {
                if changed.is_err() {
                    return;
                }
                let wanted = targets.borrow_and_update().clone();
                schedules.retain(|addr, _| wanted.contains_key(addr));
                for (addr, target) in wanted {
                    let schedule = schedules.entry(addr).or_insert_with(|| Schedule::new(target.clone(), now));
                    schedule.target = target;
                }
            }
            Some(addr) = wake.recv() => {
                if let Some(schedule) = schedules.get_mut(&addr) {
                    schedule.wake(now);
                }
            }
            Some(Ok(asked)) = running.join_next() => {
                if let Some(schedule) = schedules.get_mut(&asked.to) {
                    let every = if asked.result.is_ok() { settings.ask_every } else { settings.ask_again };
                    schedule.record(Instant::now(), every, asked.answer.as_ref());
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

/// Connects to a target, and requests `/readyz` as `kubelet` would if one is given and the connect succeeds.
async fn ask(settings: Arc<Settings>, target: ApiTarget, kubelet: Option<Kubelet>) -> Asked {
    let to = target.addr;
    let (started, answer, icmp, at) = loop {
        let started = clock::now();
        let (answer, icmp) = connect(to, settings.ask_timeout).await;
        // The agent lacked the resources to connect, which shows nothing about the target.
        if matches!(&answer, Ok(Err(error)) if file::is_shortage(error)) {
            tokio::time::sleep(settings.ask_again).await;
            continue;
        }
        break (started, answer, icmp, clock::now());
    };
    let result = match &answer {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(errno(error)),
        Err(_) => Err(0),
    };
    let route = routes::lookup(to.ip()).await;
    let neighbour_failed = result.is_err() && route.errno == 0 && routes::neighbour_failed(to.ip()).await;
    let answer = match (answer, kubelet) {
        (Ok(Ok(stream)), Some(kubelet)) => accepted::ask(&settings, &kubelet, stream, &target).await,
        _ => None,
    };
    Asked { at, to, took_ns: at.since(started), result, neighbour_failed, icmp, route, answer }
}

/// Connects within `limit`. Returns the result and the ICMP message that ended the connect.
///
/// A duplicate of the socket's descriptor outlives the connect: the socket's error queue names the sender of the message.
async fn connect(
    to: SocketAddr,
    limit: Duration,
) -> (Result<io::Result<TcpStream>, tokio::time::error::Elapsed>, Option<Icmp>) {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let kept = socket.and_then(|socket| Ok((socket.as_fd().try_clone_to_owned()?, socket)));
    let (kept, socket) = match kept {
        Ok(both) => both,
        Err(error) => return (Ok(Err(error)), None),
    };
    let answer = tokio::time::timeout(limit, socket.connect(to)).await;
    let icmp = match &answer {
        Ok(Err(_)) => errqueue::icmp(kept.as_fd()),
        _ => None,
    };
    (answer, icmp)
}

fn errno(error: &io::Error) -> u32 {
    error.raw_os_error().map_or(0, i32::unsigned_abs)
}

/// Returns `every` ± 20 %, so that nodes that started together do not send their requests together.
fn jitter(every: Duration) -> Duration {
    // The low bits of the clock are random enough to spread requests.
    let fifths = clock::now().0 / 1000 % 401;
    every * 8 / 10 + every * u32::try_from(fifths).unwrap_or(200) / 1000
}

#[cfg(test)]
mod tests {
    use probe_engine::{CredentialAnswer, TargetKind};

    use super::*;
    use crate::node::tls;

    fn answer(status: u16) -> Answer {
        Answer { status: Some(status), ..tls::unanswered(([10, 0, 0, 1], 6443).into()) }
    }

    fn target() -> ApiTarget {
        let addr = ([10, 0, 0, 1], 6443).into();
        ApiTarget { addr, kind: TargetKind::Direct, source: String::new(), name: None, proxy: None }
    }

    #[test]
    fn readyz_requests_are_ten_seconds_apart_while_clients_fail() {
        let start = Instant::now();
        let s = |seconds| start + Duration::from_secs(seconds);
        let mut schedule = Schedule::new(target(), start);
        (schedule.at, schedule.asked, schedule.readyz_last) = (None, Some(start), Some(start));
        schedule.record(start, Duration::from_secs(10), Some(&answer(200)));
        assert!(schedule.readyz_due >= s(4 * 60));
        for second in 1..10 {
            schedule.wake(s(second));
            assert_eq!(schedule.readyz_due, s(10), "at {second} s");
            assert!(
                schedule.at.is_some_and(|at| at >= s(3)),
                "a connect at {:?} for one at {second} s",
                schedule.at
            );
        }
        schedule.wake(s(12));
        assert_eq!(schedule.at, Some(s(3)), "a scheduled check is not delayed");
    }

    #[test]
    fn readyz_request_that_falls_due_during_a_connect_follows_it() {
        let start = Instant::now();
        let s = |seconds| start + Duration::from_secs(seconds);
        let mut schedule = Schedule::new(target(), start);
        (schedule.at, schedule.asked, schedule.readyz_last, schedule.readyz_due) =
            (None, Some(s(9)), Some(start), s(300));
        schedule.wake(s(9));
        schedule.record(s(9), Duration::from_secs(10), None);
        assert_eq!(schedule.at, Some(s(10)));
        // The address refuses connections: an overdue request for /readyz must not cause connects without a pause.
        schedule.record(s(12), Duration::from_secs(1), None);
        assert!(schedule.at.is_some_and(|at| at >= s(12) + Duration::from_millis(800)));
    }

    #[test]
    fn rejected_credential_is_retried_once_the_result_counts() {
        let start = Instant::now();
        let mut schedule = Schedule::new(target(), start);
        let kubelet = |status| CredentialAnswer {
            file: String::new(),
            status: Some(status),
            alert: None,
            message: String::new(),
            own_node: true,
        };
        for (status, at_least, at_most) in [(401, 10, 15), (401, 12, 20), (200, 240, 360), (429, 10, 15)] {
            let answer = Answer { kubelet: Some(kubelet(status)), ..answer(200) };
            schedule.record(start, Duration::from_secs(10), Some(&answer));
            let after = schedule.readyz_due - start;
            assert!((at_least..=at_most).contains(&after.as_secs()), "{after:?} after {status}");
        }
    }

    #[test]
    fn backs_off_while_server_is_unhealthy_and_detects_recovery() {
        let start = Instant::now();
        let mut schedule = Schedule::new(target(), start);
        for (status, at_least, at_most) in [(500, 8, 12), (503, 12, 20), (429, 12, 20), (200, 240, 360)] {
            schedule.record(start, Duration::from_secs(10), Some(&answer(status)));
            let after = schedule.readyz_due - start;
            assert!((at_least..=at_most).contains(&after.as_secs()), "{after:?} after {status}");
        }
    }
}
