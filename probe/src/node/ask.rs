//! Asking the API addresses: a healthy kubelet opens no connection for hours, so silence proves nothing.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use probe_engine::{Answer, ApiTarget, Icmp, Mono, Route};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::discovery::Kubelet;
use super::{accepted, errqueue, file, routes};
use crate::clock;
use crate::settings::Settings;

/// The API addresses.
pub(crate) type Targets = BTreeMap<SocketAddr, ApiTarget>;

/// Between two questions that go on to `/readyz` when the last was answered well, ± 20 %: a handshake costs
/// the server about a millisecond, and there are many nodes.
const READY_EVERY: Duration = Duration::from_mins(5);
/// The least between two when a client failed, or waits for a response.
const READY_AGAIN: Duration = Duration::from_secs(10);
/// The largest multiple of that while the answer is bad: a fleet must not burden a server in trouble, and its recovery must
/// be noticed within half a minute.
const BACK_OFF: u32 = 2;
/// The least between two connects because of a client's trouble: a connect shows little that the client's own does not.
const CONNECT_AGAIN: Duration = Duration::from_secs(3);

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
    /// The ICMP message that ended it, with its sender.
    pub(crate) icmp: Option<Icmp>,
    /// How the kernel would get there.
    pub(crate) route: Route,
    /// What the server said, when it was asked for more than a connection.
    pub(crate) answer: Option<Answer>,
}

/// When an address is asked next.
#[derive(Clone, Debug)]
struct Due {
    target: ApiTarget,
    /// `None` while it is being asked.
    at: Option<Instant>,
    /// When it was asked last.
    asked: Option<Instant>,
    /// When it is asked for `/readyz` at the earliest, and when it was last.
    ready_at: Instant,
    ready_asked: Option<Instant>,
    /// How many answers in a row were bad.
    bad: u32,
}

impl Due {
    fn new(target: ApiTarget, now: Instant) -> Self {
        Self { target, at: Some(now), asked: None, ready_at: now, ready_asked: None, bad: 0 }
    }

    /// A client failed, waits, or was answered again: asks as soon as that is kind.
    fn wake(&mut self, now: Instant) {
        let ready = self.ready_asked.map_or(now, |asked| now.max(asked + READY_AGAIN));
        self.ready_at = self.ready_at.min(ready);
        let connect = self.asked.map_or(now, |asked| now.max(asked + CONNECT_AGAIN));
        self.at = self.at.map(|at| at.min(self.ready_at.max(now)).min(connect));
    }

    /// Takes an answer; `every` is the time until the next connect.
    fn answered(&mut self, now: Instant, every: Duration, answer: Option<&Answer>) {
        if let Some(answer) = answer {
            self.bad = if answer.is_settled() { 0 } else { self.bad.saturating_add(1) };
            let serves = answer.status.is_some() && answer.is_well();
            self.ready_at = now
                + match self.bad {
                    0 => jitter(READY_EVERY),
                    // What must be found twice to count is not asked for the second time before that is long enough.
                    1 if serves => jitter(READY_AGAIN * 5 / 4),
                    bad => jitter(READY_AGAIN * bad.min(BACK_OFF)),
                };
        }
        let at = now + jitter(every);
        self.at = Some(if self.ready_at > now { at.min(self.ready_at) } else { at });
    }
}

/// Asks each target now and then, and at once when woken; at most one question to each at a time.
pub(crate) async fn run(
    settings: Arc<Settings>,
    kubelet: watch::Receiver<Kubelet>,
    mut targets: watch::Receiver<Targets>,
    mut wake: mpsc::Receiver<SocketAddr>,
    done: mpsc::Sender<Asked>,
) {
    let mut due: BTreeMap<SocketAddr, Due> = BTreeMap::new();
    let mut asking = JoinSet::new();
    loop {
        let now = Instant::now();
        for due in due.values_mut() {
            if due.at.is_some_and(|at| at <= now) {
                due.at = None;
                due.asked = Some(now);
                let ready = due.ready_at <= now;
                due.ready_asked = ready.then_some(now).or(due.ready_asked);
                let kubelet = ready.then(|| kubelet.borrow().clone());
                asking.spawn(ask(Arc::clone(&settings), due.target.clone(), kubelet));
            }
        }
        let next = due.values().filter_map(|due| due.at).min();
        tokio::select! {
            changed = targets.changed() => {
                if changed.is_err() {
                    return;
                }
                let wanted = targets.borrow_and_update().clone();
                due.retain(|addr, _| wanted.contains_key(addr));
                for (addr, target) in wanted {
                    let due = due.entry(addr).or_insert_with(|| Due::new(target.clone(), now));
                    due.target = target;
                }
            }
            Some(addr) = wake.recv() => {
                if let Some(due) = due.get_mut(&addr) {
                    due.wake(now);
                }
            }
            Some(Ok(asked)) = asking.join_next() => {
                if let Some(due) = due.get_mut(&asked.to) {
                    let every = if asked.result.is_ok() { settings.ask_every } else { settings.ask_again };
                    due.answered(Instant::now(), every, asked.answer.as_ref());
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

/// Connects; when that works and a kubelet is given, asks on, as that kubelet would.
async fn ask(settings: Arc<Settings>, target: ApiTarget, kubelet: Option<Kubelet>) -> Asked {
    let to = target.addr;
    let (started, answer, icmp, at) = loop {
        let started = clock::now();
        let (answer, icmp) = connect(to, settings.ask_timeout).await;
        // Nothing was asked then.
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

/// The socket is kept beside its connect: what is left in its error queue tells who sent an ICMP message.
async fn connect(
    to: SocketAddr,
    patience: Duration,
) -> (Result<io::Result<TcpStream>, tokio::time::error::Elapsed>, Option<Icmp>) {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let kept = socket.and_then(|socket| Ok((socket.as_fd().try_clone_to_owned()?, socket)));
    let (kept, socket) = match kept {
        Ok(both) => both,
        Err(error) => return (Ok(Err(error)), None),
    };
    let answer = tokio::time::timeout(patience, socket.connect(to)).await;
    let icmp = match &answer {
        Ok(Err(_)) => errqueue::icmp(kept.as_fd()),
        _ => None,
    };
    (answer, icmp)
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
    fn questions_are_ten_seconds_apart_however_often_clients_fail() {
        let start = Instant::now();
        let s = |seconds| start + Duration::from_secs(seconds);
        let mut due = Due::new(target(), start);
        (due.at, due.asked, due.ready_asked) = (None, Some(start), Some(start));
        due.answered(start, Duration::from_secs(10), Some(&answer(200)));
        assert!(due.ready_at >= s(4 * 60));
        for second in 1..10 {
            due.wake(s(second));
            assert_eq!(due.ready_at, s(10), "at {second} s");
            assert!(due.at.is_some_and(|at| at >= s(3)), "a connect at {:?} for one at {second} s", due.at);
        }
        due.wake(s(12));
        assert_eq!(due.at, Some(s(3)), "what is due stays due");
    }

    #[test]
    fn a_question_that_is_due_during_a_connect_is_asked_when_it_is_done() {
        let start = Instant::now();
        let s = |seconds| start + Duration::from_secs(seconds);
        let mut due = Due::new(target(), start);
        (due.at, due.asked, due.ready_asked, due.ready_at) = (None, Some(s(9)), Some(start), s(300));
        due.wake(s(9));
        due.answered(s(9), Duration::from_secs(10), None);
        assert_eq!(due.at, Some(s(10)));
        // The address refuses: what is overdue does not make it ask without a pause.
        due.answered(s(12), Duration::from_secs(1), None);
        assert!(due.at.is_some_and(|at| at >= s(12) + Duration::from_millis(800)));
    }

    #[test]
    fn a_refused_credential_is_tried_again_when_that_can_count() {
        let start = Instant::now();
        let mut due = Due::new(target(), start);
        let kubelet = |status| CredentialAnswer {
            file: String::new(),
            status: Some(status),
            alert: None,
            message: String::new(),
            own_node: true,
        };
        for (status, at_least, at_most) in [(401, 10, 15), (401, 16, 24), (200, 240, 360), (429, 10, 15)] {
            let answer = Answer { kubelet: Some(kubelet(status)), ..answer(200) };
            due.answered(start, Duration::from_secs(10), Some(&answer));
            let after = due.ready_at - start;
            assert!((at_least..=at_most).contains(&after.as_secs()), "{after:?} after {status}");
        }
    }

    #[test]
    fn a_server_in_trouble_is_asked_less_often_and_its_return_seen_soon() {
        let start = Instant::now();
        let mut due = Due::new(target(), start);
        for (status, at_least, at_most) in [(500, 8, 12), (503, 16, 24), (429, 16, 24), (200, 240, 360)] {
            due.answered(start, Duration::from_secs(10), Some(&answer(status)));
            let after = due.ready_at - start;
            assert!((at_least..=at_most).contains(&after.as_secs()), "{after:?} after {status}");
        }
    }
}
