//! Requests that write the agent's two conditions to the Node object, and events about them.

use http::Request;
use probe_engine::{BootTime, Condition, Status};
use serde_json::{Value, json};

use crate::clock::Wall;
use crate::report::{PREFIX, timestamp};

/// Accepted content type: only the metadata of the object, because a Node object is twenty times as large.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";

/// Returns the request that writes `conditions`. In a strategic merge patch the list of conditions is merged by type, so those of
/// other components are left unchanged.
pub(crate) fn status(node: &str, conditions: &[Condition], now: BootTime, wall: Wall) -> Request<Vec<u8>> {
    let rows: Vec<_> = conditions
        .iter()
        .map(|condition| {
            json!({
                "type": format!("{PREFIX}/{}", condition.condition.as_str()),
                "status": condition.status.as_str(),
                "reason": condition.reason.as_str(),
                "message": condition.message,
                "lastHeartbeatTime": seconds(wall, now),
                "lastTransitionTime": seconds(wall, condition.since),
            })
        })
        .collect();
    let body = json!({"status": {"conditions": rows}});
    request("PATCH", &format!("/api/v1/nodes/{node}/status"), "application/strategic-merge-patch+json", &body)
}

/// An event, which is created once and then counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// Name of the Event object, which identifies the transition.
    pub(crate) name: String,
    /// The condition at its last occurrence.
    pub(crate) condition: Condition,
    /// Number of occurrences.
    pub(crate) count: u32,
    /// Time of its first occurrence.
    pub(crate) first: BootTime,
}

/// Path of the events of nodes: nodes have no namespace, and their events are in `default`.
const EVENTS: &str = "/api/v1/namespaces/default/events";

impl Event {
    /// Returns the request that creates the event.
    pub(crate) fn create(&self, node: &str, wall: Wall) -> Request<Vec<u8>> {
        let condition = &self.condition;
        let kind = if condition.status == Status::False { "Warning" } else { "Normal" };
        let body = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": self.name, "namespace": "default"},
            // `kubectl describe node` looks for events whose uid is the node's name, as the kubelet writes them.
            "involvedObject": {"kind": "Node", "name": node, "uid": node},
            "reason": condition.reason.as_str(),
            "message": self.message(),
            "type": kind,
            "source": {"component": "netready", "host": node},
            "count": self.count,
            "firstTimestamp": seconds(wall, self.first),
            "lastTimestamp": seconds(wall, condition.since),
        });
        request("POST", EVENTS, "application/json", &body)
    }

    /// Returns the request that updates the event after a further occurrence.
    pub(crate) fn update(&self, wall: Wall) -> Request<Vec<u8>> {
        let body = json!({
            "count": self.count,
            "message": self.message(),
            "lastTimestamp": seconds(wall, self.condition.since),
        });
        request("PATCH", &format!("{EVENTS}/{}", self.name), "application/merge-patch+json", &body)
    }

    fn message(&self) -> String {
        let condition = &self.condition;
        format!("{} is {}: {}", condition.condition.as_str(), condition.status.as_str(), condition.message)
    }
}

fn request(method: &str, path: &str, content: &str, body: &Value) -> Request<Vec<u8>> {
    let builder = Request::builder().method(method).uri(path).header("Content-Type", content);
    builder
        .header("Accept", METADATA)
        .body(body.to_string().into_bytes())
        .expect("names of nodes are validated")
}

/// Formats a time as `2026-01-02T03:04:05Z`: the API server keeps whole seconds.
fn seconds(wall: Wall, at: BootTime) -> String {
    timestamp(wall, at).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use probe_engine::{ConditionType, Reason};

    use super::*;

    fn condition() -> Condition {
        Condition {
            condition: ConditionType::NodeNetworkReady,
            status: Status::False,
            reason: Reason::CNIConfigMissing,
            message: "nothing in \"/etc/cni/net.d\"".into(),
            since: BootTime(90_000_000_000),
        }
    }

    const WALL: Wall = Wall { offset_ns: 1_767_322_000_000_000_000 };

    #[test]
    fn patch_contains_only_own_condition_types_with_their_times() {
        let request = status("worker-3", &[condition()], BootTime(150_000_000_000), WALL);
        assert_eq!(request.uri(), "/api/v1/nodes/worker-3/status");
        let body: Value = serde_json::from_slice(request.body()).expect("JSON");
        let conditions = body.pointer("/status/conditions").and_then(Value::as_array).expect("a list");
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0]["type"], "netready.dev/NodeNetworkReady");
        assert_eq!(conditions[0]["lastTransitionTime"], "2026-01-02T02:48:10Z");
        assert_eq!(conditions[0]["lastHeartbeatTime"], "2026-01-02T02:49:10Z");
        assert_eq!(body.as_object().map(serde_json::Map::len), Some(1));
    }

    #[test]
    fn event_is_created_and_then_updated() {
        let event = Event { name: "worker-3.1".into(), condition: condition(), count: 2, first: BootTime(0) };
        let body: Value = serde_json::from_slice(event.create("worker-3", WALL).body()).expect("JSON");
        assert_eq!((body["type"].as_str(), body["count"].as_u64()), (Some("Warning"), Some(2)));
        let again = event.update(WALL);
        assert_eq!(again.uri(), "/api/v1/namespaces/default/events/worker-3.1");
        assert!(!String::from_utf8_lossy(again.body()).contains("firstTimestamp"));
    }
}
