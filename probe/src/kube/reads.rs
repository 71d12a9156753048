//! What only the API server knows of a CNI that is not there: pods that a webhook keeps from being created.

use http::Request;
use probe_engine::Blocked;
use serde_json::Value;

use crate::text::clean;

/// Most events that are asked for, and most DaemonSets that are kept of them: a node has a handful.
const EVENTS: usize = 50;
const KEPT: usize = 8;
/// An event that is older tells of something that is over: the DaemonSet controller tries again within 17 minutes at
/// the longest (its rate limiter's 1,000 s).
const FRESH_S: i64 = 1200;
/// Longest name, and longest explanation, that is kept.
const NAME: usize = 253;
const WORDS: usize = 200;

/// Every DaemonSet whose pods could not be created, in any namespace.
pub(super) fn request() -> Request<Vec<u8>> {
    let selector = "reason%3DFailedCreate%2CinvolvedObject.kind%3DDaemonSet";
    Request::get(format!("/api/v1/events?fieldSelector={selector}&limit={EVENTS}"))
        .header("Accept", "application/json")
        .body(Vec::new())
        .expect("the path is a constant")
}

/// Those that a webhook refuses, at `now_s` seconds since 1970.
pub(super) fn blocked(answer: &Value, now_s: i64) -> Vec<Blocked> {
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
    let why = why.find("dial tcp").map_or(why, |at| &why[at..]);
    let object = &event["involvedObject"];
    let daemonset = format!("{}/{}", object["namespace"].as_str()?, object["name"].as_str()?);
    let first = seconds(&event["firstTimestamp"]).unwrap_or(last);
    Some(Blocked {
        daemonset: clean(daemonset.as_bytes(), NAME),
        webhook: clean(webhook.as_bytes(), NAME),
        why: clean(why.as_bytes(), WORDS),
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
        assert_eq!(found[1].why, "denied the request: no \\u{1b}[31mroot");
        assert_eq!(blocked(&json!({"items": items}), now + 3600), []);
        assert_eq!(blocked(&json!({"items": 7}), now), []);
    }
}
