//! What only the API server knows of a network that does not come: pods that a webhook keeps from being created, and
//! a Node object without a range for pods. Asked only while the network is broken; what goes in and out is decided
//! here, without a clock and without a network.

use http::Request;
use probe_engine::{Admission, Blocked, Gap, Mono, Observation, PodCidrs};
use serde_json::Value;

use crate::text::clean;

const SECOND: u64 = 1_000_000_000;
/// From the fault to the first question: by chance, for a cluster whose webhook is away has many such nodes; and then
/// between two. A list of events is read whole by the server.
const FIRST: (u64, u64) = (5 * SECOND, 30 * SECOND);
const AGAIN: u64 = 120 * SECOND;
/// Until it is tried again whether the account may ask.
const DENIED: u64 = 3600 * SECOND;

/// Most events that are asked for, and most DaemonSets that are kept of them: a node has a handful.
const EVENTS: usize = 50;
const KEPT: usize = 8;
/// An event that is older tells of something that is over: the DaemonSet controller tries again within 17 minutes at
/// the longest (its rate limiter's 1,000 s).
const FRESH_S: i64 = 1200;
/// Ranges of a node: one of each family.
const RANGES: usize = 4;
/// Longest name, and longest explanation, that is kept.
const NAME: usize = 253;
const WORDS: usize = 200;

/// How Go says which address it did not reach.
const DIAL: &str = "dial tcp ";

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Which pods could not be created.
    Events,
    /// Which ranges this node has.
    Node,
}

impl Question {
    const ALL: [Self; 2] = [Self::Events, Self::Node];

    pub(super) fn request(self, node: &str) -> Request<Vec<u8>> {
        let path = match self {
            Self::Events => {
                let selector = "reason%3DFailedCreate%2CinvolvedObject.kind%3DDaemonSet";
                format!("/api/v1/events?fieldSelector={selector}&limit={EVENTS}")
            }
            Self::Node => format!("/api/v1/nodes/{node}"),
        };
        let builder = Request::get(path).header("Accept", "application/json");
        builder.body(Vec::new()).expect("a node's name was checked to be a part of a path")
    }

    /// The signal that is missing where the account may not ask, and what is not seen then.
    const fn gap(self) -> (&'static str, &'static str) {
        match self {
            Self::Events => (
                "api.events",
                "the account may not list events (deploy/rbac-reads.yaml lets it): a webhook that keeps a CNI's pods \
                 from being created is not seen",
            ),
            Self::Node => (
                "api.node",
                "the account may not read its Node object (deploy/rbac-reads.yaml lets it): a pod CIDR that was not \
                 assigned is not seen",
            ),
        }
    }
}

/// One question and what is known of it.
#[derive(Debug)]
struct Asked {
    question: Question,
    due: Mono,
    denied: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Empty while the network is not broken.
    asked: Vec<Asked>,
    blocked: Vec<Blocked>,
    cidrs: Option<Vec<String>>,
}

impl Reads {
    /// The network of this node does not come, for a reason that lies with its CNI.
    pub(super) fn broken(&mut self, now: Mono, random: &mut fastrand::Rng) {
        if self.asked.is_empty() {
            let due = now.plus(random.u64(FIRST.0..FIRST.1));
            self.asked = Question::ALL.map(|question| Asked { question, due, denied: false }).into();
        }
    }

    /// It is well, or broken for another reason; answers with what is not known any more.
    pub(super) fn over(&mut self) -> Vec<Observation> {
        let denied = self.asked.drain(..).filter(|asked| asked.denied);
        let mut told: Vec<_> = denied
            .map(|asked| Observation::GapClosed { signal: asked.question.gap().0.to_owned() })
            .collect();
        if !std::mem::take(&mut self.blocked).is_empty() {
            told.push(Observation::Admission(Admission::default()));
        }
        if self.cidrs.take().is_some() {
            told.push(Observation::PodCidrs(PodCidrs::default()));
        }
        told
    }

    /// When to ask next.
    pub(super) fn due(&self) -> Option<Mono> {
        self.asked.iter().map(|asked| asked.due).min()
    }

    /// What to ask now.
    pub(super) fn next(&self, now: Mono) -> Option<Question> {
        self.asked.iter().find(|asked| asked.due <= now).map(|asked| asked.question)
    }

    /// Takes an answer, or the status with which it was refused if there was one; answers with what is news in it.
    /// `unix_now` in seconds since 1970.
    pub(super) fn answered(
        &mut self,
        question: Question,
        answer: Result<&Value, Option<u16>>,
        now: Mono,
        unix_now: i64,
    ) -> Option<Observation> {
        let asked = self.asked.iter_mut().find(|asked| asked.question == question)?;
        asked.due = now.plus(AGAIN);
        match (answer, question) {
            (Ok(answer), Question::Events) => {
                let blocked = blocked(answer, unix_now);
                let names = |all: &[Blocked]| {
                    all.iter().map(|one| (one.daemonset.clone(), one.webhook.clone())).collect::<Vec<_>>()
                };
                let is_news = names(&self.blocked) != names(&blocked);
                is_news.then(|| {
                    self.blocked.clone_from(&blocked);
                    Observation::Admission(Admission { blocked })
                })
            }
            (Ok(answer), Question::Node) => {
                let cidrs = Some(pod_cidrs(answer));
                (self.cidrs != cidrs).then(|| {
                    self.cidrs.clone_from(&cidrs);
                    Observation::PodCidrs(PodCidrs { cidrs })
                })
            }
            (Err(Some(403)), _) => {
                asked.due = now.plus(DENIED);
                asked.denied = true;
                let (signal, why) = question.gap();
                Some(Observation::Gap(Gap { signal: signal.to_owned(), why: why.to_owned(), blind: false }))
            }
            // Writing meets the same trouble, and tells.
            (Err(_), _) => None,
        }
    }
}

/// The ranges in a Node object.
fn pod_cidrs(node: &Value) -> Vec<String> {
    let spec = &node["spec"];
    let several = spec["podCIDRs"].as_array().into_iter().flatten();
    let ranges =
        several.chain([&spec["podCIDR"]]).filter_map(Value::as_str).filter(|range| !range.is_empty());
    let mut ranges: Vec<_> = ranges.take(RANGES).map(|range| clean(range.as_bytes(), NAME)).collect();
    ranges.sort();
    ranges.dedup();
    ranges
}

/// Those that a webhook refuses, at `now_s` seconds since 1970.
fn blocked(answer: &Value, now_s: i64) -> Vec<Blocked> {
    let events = answer["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut found: Vec<Blocked> = Vec::new();
    for event in events.iter().take(EVENTS) {
        let Some(blocked) = of_event(event, now_s) else { continue };
        let known = found.iter().any(|known| known.daemonset == blocked.daemonset);
        if !known && found.len() < KEPT {
            found.push(blocked);
        }
    }
    // The same for the same state, whatever order the server has.
    found.sort_by(|one, other| one.daemonset.cmp(&other.daemonset));
    found
}

fn of_event(event: &Value, now_s: i64) -> Option<Blocked> {
    let message = event["message"].as_str()?;
    let last = seconds(&event["lastTimestamp"]).or_else(|| seconds(&event["eventTime"]))?;
    if now_s.saturating_sub(last) > FRESH_S {
        return None;
    }
    // `failed calling webhook "NAME": …`, `admission webhook "NAME" denied the request: …`
    let (_, rest) = message.split_once("webhook \"")?;
    let (webhook, rest) = rest.split_once('"')?;
    let why = rest.trim_start_matches([':', ' ']);
    // A URL with its query is long, and what is wrong with it stands behind.
    let why = why.find(DIAL).map_or(why, |at| &why[at..]);
    // `dial tcp 10.96.7.7:443: connect: connection refused`, `dial tcp [fd00::7]:443: i/o timeout`
    let backend = why.strip_prefix(DIAL).and_then(|rest| rest.split(": ").next()?.parse().ok());
    let object = &event["involvedObject"];
    let daemonset = format!("{}/{}", object["namespace"].as_str()?, object["name"].as_str()?);
    let first = seconds(&event["firstTimestamp"]).unwrap_or(last);
    Some(Blocked {
        daemonset: clean(daemonset.as_bytes(), NAME),
        webhook: clean(webhook.as_bytes(), NAME),
        why: clean(why.as_bytes(), WORDS),
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
    fn a_webhook_is_named_with_what_is_wrong_with_it() {
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

    const BROKEN: Mono = Mono(7 * SECOND);

    fn asking() -> Reads {
        let mut reads = Reads::default();
        reads.broken(BROKEN, &mut fastrand::Rng::with_seed(1));
        reads
    }

    #[test]
    fn a_node_without_a_range_is_told_once_and_taken_back() {
        let mut reads = asking();
        let answer =
            |reads: &mut Reads, at, node: Value| reads.answered(Question::Node, Ok(&node), Mono(at), 0);
        let none = json!({"spec": {"providerID": "x"}});
        let told = |cidrs: Option<Vec<&str>>| {
            let cidrs = cidrs.map(|cidrs| cidrs.into_iter().map(str::to_owned).collect());
            Some(Observation::PodCidrs(PodCidrs { cidrs }))
        };
        assert_eq!(answer(&mut reads, SECOND, none.clone()), told(Some(vec![])));
        assert_eq!(answer(&mut reads, 2 * SECOND, none), None);
        let both = json!({"spec": {"podCIDR": "10.244.3.0/24", "podCIDRs": ["10.244.3.0/24", "fd00::/64"]}});
        assert_eq!(answer(&mut reads, 3 * SECOND, both), told(Some(vec!["10.244.3.0/24", "fd00::/64"])));
        assert_eq!(reads.over(), told(None).into_iter().collect::<Vec<_>>());
        assert_eq!((reads.due(), reads.over()), (None, vec![]));
    }

    #[test]
    fn what_the_account_may_not_ask_is_a_gap_and_asked_again_much_later() {
        let mut reads = asking();
        let due = reads.due().expect("a first time");
        assert!((BROKEN.plus(FIRST.0)..BROKEN.plus(FIRST.1)).contains(&due));
        assert_eq!((reads.next(BROKEN), reads.next(due)), (None, Some(Question::Events)));
        let gap = reads.answered(Question::Events, Err(Some(403)), due, 0);
        assert!(matches!(gap, Some(Observation::Gap(gap)) if gap.signal == "api.events"));
        assert_eq!(reads.next(due), Some(Question::Node));
        assert_eq!(reads.answered(Question::Node, Err(None), due, 0), None);
        assert_eq!(reads.due(), Some(due.plus(AGAIN)));
        assert_eq!(reads.next(due.plus(DENIED - 1)), Some(Question::Node));
        assert_eq!(reads.over(), [Observation::GapClosed { signal: "api.events".to_owned() }]);
    }
}
