//! What only the API server knows about a network that does not become ready: pods whose creation a webhook prevents, and a Node
//! object without a pod CIDR. It is read only while the network is broken. This module decides what to request and evaluates the
//! responses, without a clock and without a network.

use http::Request;
use probe_engine::{Admission, Blocked, BootTime, Gap, Observation, PodCidrs};
use serde_json::Value;

use crate::text::clean;

const SECOND: u64 = 1_000_000_000;
/// Range of the random delay from the fault to the first request: in a cluster whose webhook is unavailable, many nodes have the
/// fault at the same time.
const FIRST: (u64, u64) = (5 * SECOND, 30 * SECOND);
/// Interval between two requests. The server has to read all events for a list.
const INTERVAL: u64 = 120 * SECOND;
/// Interval between two requests if the account is not allowed to make them.
const DENIED_INTERVAL: u64 = 3600 * SECOND;

/// Maximum number of events in a response.
const MAX_EVENTS: usize = 50;
/// Maximum number of DaemonSets that are kept; a node has a handful.
const MAX_DAEMONSETS: usize = 8;
/// Maximum age of an event, seconds. An older one is about a past problem: the DaemonSet controller retries within 17 minutes
/// at the latest (the 1,000 s of its rate limiter).
const MAX_AGE_S: i64 = 1200;
/// Maximum number of a node's pod CIDRs: one of each address family.
const MAX_CIDRS: usize = 4;
/// Maximum length of a name, bytes.
const MAX_NAME: usize = 253;
/// Maximum length of a message, bytes.
const MAX_MESSAGE: usize = 200;

/// Prefix of Go's error for an address that cannot be reached.
const DIAL: &str = "dial tcp ";

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Query {
    /// Events of pods that could not be created.
    Events,
    /// The Node object, for its pod CIDRs.
    Node,
}

impl Query {
    const ALL: [Self; 2] = [Self::Events, Self::Node];

    pub(super) fn request(self, node: &str) -> Request<Vec<u8>> {
        let path = match self {
            Self::Events => {
                let selector = "reason%3DFailedCreate%2CinvolvedObject.kind%3DDaemonSet";
                format!("/api/v1/events?fieldSelector={selector}&limit={MAX_EVENTS}")
            }
            Self::Node => format!("/api/v1/nodes/{node}"),
        };
        let builder = Request::get(path).header("Accept", "application/json");
        builder.body(Vec::new()).expect("names of nodes are validated")
    }

    /// Returns the signal that is missing if the account is not allowed to make the request, and an explanation.
    const fn gap(self) -> (&'static str, &'static str) {
        match self {
            Self::Events => (
                "api.events",
                "the account is not allowed to list events (granted by deploy/rbac-reads.yaml): a webhook that prevents \
                 the creation of a CNI's pods is not observed",
            ),
            Self::Node => (
                "api.node",
                "the account is not allowed to read its Node object (granted by deploy/rbac-reads.yaml): a missing pod \
                 CIDR is not observed",
            ),
        }
    }
}

/// State of a kind of request.
#[derive(Debug)]
struct Pending {
    query: Query,
    due: BootTime,
    denied: bool,
}

/// State of all requests, see the module.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Empty while the network is not broken.
    pending: Vec<Pending>,
    blocked: Vec<Blocked>,
    cidrs: Option<Vec<String>>,
}

impl Reads {
    /// Starts the requests: the network of this node is broken, for a reason that lies with its CNI.
    pub(super) fn start(&mut self, now: BootTime, random: &mut fastrand::Rng) {
        if self.pending.is_empty() {
            let due = now.plus(random.u64(FIRST.0..FIRST.1));
            self.pending = Query::ALL.map(|query| Pending { query, due, denied: false }).into();
        }
    }

    /// Stops the requests: the network works, or is broken for another reason. Returns observations that withdraw those made
    /// before.
    pub(super) fn stop(&mut self) -> Vec<Observation> {
        let denied = self.pending.drain(..).filter(|pending| pending.denied);
        let mut withdrawn: Vec<_> = denied
            .map(|pending| Observation::GapClosed { signal: pending.query.gap().0.to_owned() })
            .collect();
        if !std::mem::take(&mut self.blocked).is_empty() {
            withdrawn.push(Observation::Admission(Admission::default()));
        }
        if self.cidrs.take().is_some() {
            withdrawn.push(Observation::PodCidrs(PodCidrs::default()));
        }
        withdrawn
    }

    /// Returns when the next request is due.
    pub(super) fn due(&self) -> Option<BootTime> {
        self.pending.iter().map(|pending| pending.due).min()
    }

    /// Returns a request that is due at `now`.
    pub(super) fn next(&self, now: BootTime) -> Option<Query> {
        self.pending.iter().find(|pending| pending.due <= now).map(|pending| pending.query)
    }

    /// Takes a response, or the HTTP status of an error if there is one. Returns an observation if the result has changed.
    /// `unix_now` is in seconds since 1970.
    pub(super) fn take_response(
        &mut self,
        query: Query,
        response: Result<&Value, Option<u16>>,
        now: BootTime,
        unix_now: i64,
    ) -> Option<Observation> {
        let pending = self.pending.iter_mut().find(|pending| pending.query == query)?;
        pending.due = now.plus(INTERVAL);
        match (response, query) {
            (Ok(response), Query::Events) => {
                let blocked = blocked(response, unix_now);
                let names = |all: &[Blocked]| {
                    all.iter().map(|one| (one.daemonset.clone(), one.webhook.clone())).collect::<Vec<_>>()
                };
                let has_changed = names(&self.blocked) != names(&blocked);
                has_changed.then(|| {
                    self.blocked.clone_from(&blocked);
                    Observation::Admission(Admission { blocked })
                })
            }
            (Ok(response), Query::Node) => {
                let cidrs = Some(pod_cidrs(response));
                (self.cidrs != cidrs).then(|| {
                    self.cidrs.clone_from(&cidrs);
                    Observation::PodCidrs(PodCidrs { cidrs })
                })
            }
            (Err(Some(403)), _) => {
                pending.due = now.plus(DENIED_INTERVAL);
                pending.denied = true;
                let (signal, why) = query.gap();
                Some(Observation::Gap(Gap { signal: signal.to_owned(), why: why.to_owned(), blind: false }))
            }
            // The writer has the same problem and reports it.
            (Err(_), _) => None,
        }
    }
}

/// Returns the pod CIDRs of a Node object, sorted.
fn pod_cidrs(node: &Value) -> Vec<String> {
    let spec = &node["spec"];
    let several = spec["podCIDRs"].as_array().into_iter().flatten();
    let cidrs = several.chain([&spec["podCIDR"]]).filter_map(Value::as_str).filter(|cidr| !cidr.is_empty());
    let mut cidrs: Vec<_> = cidrs.take(MAX_CIDRS).map(|cidr| clean(cidr.as_bytes(), MAX_NAME)).collect();
    cidrs.sort();
    cidrs.dedup();
    cidrs
}

/// Returns the DaemonSets whose pods a webhook refuses, at `now_s` seconds since 1970.
fn blocked(response: &Value, now_s: i64) -> Vec<Blocked> {
    let events = response["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut found: Vec<Blocked> = Vec::new();
    for event in events.iter().take(MAX_EVENTS) {
        let Some(blocked) = blocked_by_webhook(event, now_s) else { continue };
        let known = found.iter().any(|known| known.daemonset == blocked.daemonset);
        if !known && found.len() < MAX_DAEMONSETS {
            found.push(blocked);
        }
    }
    // Sorted, so that the result does not depend on the server's order.
    found.sort_by(|one, other| one.daemonset.cmp(&other.daemonset));
    found
}

fn blocked_by_webhook(event: &Value, now_s: i64) -> Option<Blocked> {
    let message = event["message"].as_str()?;
    let last = seconds(&event["lastTimestamp"]).or_else(|| seconds(&event["eventTime"]))?;
    if now_s.saturating_sub(last) > MAX_AGE_S {
        return None;
    }
    // `failed calling webhook "NAME": …`, `admission webhook "NAME" denied the request: …`
    let (_, rest) = message.split_once("webhook \"")?;
    let (webhook, rest) = rest.split_once('"')?;
    let why = rest.trim_start_matches([':', ' ']);
    // Skip the URL, which is long, to the error behind it.
    let why = why.find(DIAL).map_or(why, |at| &why[at..]);
    // `dial tcp 10.96.7.7:443: connect: connection refused`, `dial tcp [fd00::7]:443: i/o timeout`
    let backend = why.strip_prefix(DIAL).and_then(|rest| rest.split(": ").next()?.parse().ok());
    let object = &event["involvedObject"];
    let daemonset = format!("{}/{}", object["namespace"].as_str()?, object["name"].as_str()?);
    let first = seconds(&event["firstTimestamp"]).unwrap_or(last);
    Some(Blocked {
        daemonset: clean(daemonset.as_bytes(), MAX_NAME),
        webhook: clean(webhook.as_bytes(), MAX_NAME),
        why: clean(why.as_bytes(), MAX_MESSAGE),
        backend,
        since_s: u64::try_from(now_s.saturating_sub(first)).unwrap_or(0),
    })
}

fn seconds(time: &Value) -> Option<i64> {
    time.as_str()?.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str, message: &str) -> Value {
        json!({
            "involvedObject": {"kind": "DaemonSet", "namespace": "kube-system", "name": name},
            "reason": "FailedCreate",
            "message": message,
            "firstTimestamp": "2026-01-02T03:00:00Z",
            "lastTimestamp": "2026-01-02T03:04:05Z",
        })
    }

    #[test]
    fn reports_webhook_with_its_error() {
        let refused = "Error creating: Internal error occurred: failed calling webhook \"closed.example\": Post \
                       \"https://127.0.0.1:9999/mutate?timeout=5s\": dial tcp 127.0.0.1:9999: connect: connection refused";
        let denied =
            "Error creating: admission webhook \"policy.example\" denied the request: no \u{1b}[31mroot";
        let quota = "Error creating: pods \"x\" is forbidden: exceeded quota";
        let items = [event("kube-proxy", denied), event("calico-node", refused), event("x", quota)];
        let now = seconds(&json!("2026-01-02T03:05:00Z")).expect("a time");
        let found = blocked(&json!({"items": items}), now);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].daemonset.as_str(), found[0].since_s), ("kube-system/calico-node", 300));
        assert_eq!(found[0].webhook, "closed.example");
        assert_eq!(found[0].why, "dial tcp 127.0.0.1:9999: connect: connection refused");
        assert_eq!(found[0].backend, "127.0.0.1:9999".parse().ok());
        assert_eq!(found[1].backend, None);
        assert_eq!(found[1].why, "denied the request: no \\u{1b}[31mroot");
        assert_eq!(blocked(&json!({"items": items}), now + 3600), []);
        assert_eq!(blocked(&json!({"items": 7}), now), []);
    }

    const BROKEN: BootTime = BootTime(7 * SECOND);

    fn started() -> Reads {
        let mut reads = Reads::default();
        reads.start(BROKEN, &mut fastrand::Rng::with_seed(1));
        reads
    }

    #[test]
    fn missing_pod_cidr_is_reported_once_and_withdrawn() {
        let mut reads = started();
        let answer =
            |reads: &mut Reads, at, node: Value| reads.take_response(Query::Node, Ok(&node), BootTime(at), 0);
        let none = json!({"spec": {"providerID": "x"}});
        let reported = |cidrs: Option<Vec<&str>>| {
            let cidrs = cidrs.map(|cidrs| cidrs.into_iter().map(str::to_owned).collect());
            Some(Observation::PodCidrs(PodCidrs { cidrs }))
        };
        assert_eq!(answer(&mut reads, SECOND, none.clone()), reported(Some(vec![])));
        assert_eq!(answer(&mut reads, 2 * SECOND, none), None);
        let both = json!({"spec": {"podCIDR": "10.244.3.0/24", "podCIDRs": ["10.244.3.0/24", "fd00::/64"]}});
        assert_eq!(answer(&mut reads, 3 * SECOND, both), reported(Some(vec!["10.244.3.0/24", "fd00::/64"])));
        assert_eq!(reads.stop(), reported(None).into_iter().collect::<Vec<_>>());
        assert_eq!((reads.due(), reads.stop()), (None, vec![]));
    }

    #[test]
    fn forbidden_request_is_a_gap_and_retried_much_later() {
        let mut reads = started();
        let due = reads.due().expect("a first time");
        assert!((BROKEN.plus(FIRST.0)..BROKEN.plus(FIRST.1)).contains(&due));
        assert_eq!((reads.next(BROKEN), reads.next(due)), (None, Some(Query::Events)));
        let gap = reads.take_response(Query::Events, Err(Some(403)), due, 0);
        assert!(matches!(gap, Some(Observation::Gap(gap)) if gap.signal == "api.events"));
        assert_eq!(reads.next(due), Some(Query::Node));
        assert_eq!(reads.take_response(Query::Node, Err(None), due, 0), None);
        assert_eq!(reads.due(), Some(due.plus(INTERVAL)));
        assert_eq!(reads.next(due.plus(DENIED_INTERVAL - 1)), Some(Query::Node));
        assert_eq!(reads.stop(), [Observation::GapClosed { signal: "api.events".to_owned() }]);
    }
}
