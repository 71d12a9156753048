//! The JSON form of a report: public, see `docs/verdicts.md` section 3. Fields are added and never removed.

use probe_engine::{BootTime, Evidence, Finding, Reason, Report, Role, Side, Status, Writes};
use serde::{Deserialize, Serialize};

use crate::clock::Wall;

/// Default domain of the condition types.
pub(crate) const PREFIX: &str = "netready.dev";

/// What a JSON report needs besides the report of the engine.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// Name of the node.
    pub(crate) node: String,
    /// `/proc/sys/kernel/random/boot_id`
    pub(crate) boot_id: String,
    /// Converts boot time to wall time.
    pub(crate) wall: Wall,
}

impl Context {
    /// Returns the context of this boot of this host.
    pub(crate) fn here(node: &str, wall: Wall) -> Self {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { node: node.to_owned(), boot_id: boot_id.trim().to_owned(), wall }
    }
}

/// The JSON object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    pub(crate) schema_version: u32,
    pub(crate) node: String,
    pub(crate) boot_id: String,
    pub(crate) role: Role,
    pub(crate) verdict: Verdict,
    pub(crate) because: Vec<Link>,
    pub(crate) consequences: Vec<Link>,
    pub(crate) also: Vec<Link>,
    pub(crate) conditions: Vec<ConditionRow>,
    pub(crate) evidence: Vec<EvidenceRow>,
    pub(crate) gaps: Vec<GapRow>,
    /// Absent until the first attempt to write, and where conditions are not written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) condition_writes: Option<Writes>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) reason: Reason,
    pub(crate) side: Side,
    pub(crate) status: Status,
    pub(crate) subject: String,
    pub(crate) since: String,
    pub(crate) message: String,
    pub(crate) remedy: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Link {
    pub(crate) reason: Reason,
    pub(crate) side: Side,
    pub(crate) subject: String,
    pub(crate) message: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConditionRow {
    #[serde(rename = "type")]
    pub(crate) condition: String,
    pub(crate) status: Status,
    pub(crate) reason: Reason,
    pub(crate) message: String,
    pub(crate) last_transition_time: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EvidenceRow {
    pub(crate) at: String,
    pub(crate) signal: String,
    pub(crate) text: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GapRow {
    pub(crate) signal: String,
    pub(crate) why: String,
    /// No other source replaces the signal: what depends on it is `ProbeDegraded`. Absent where false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) blind: bool,
}

impl Document {
    /// Converts a report.
    pub(crate) fn new(report: &Report, context: &Context) -> Self {
        let wall = context.wall;
        let link = |finding: &Finding| Link {
            reason: finding.reason,
            side: finding.reason.side(),
            subject: finding.subject.clone(),
            message: finding.message.clone(),
        };
        let evidence = |line: &Evidence| EvidenceRow {
            at: rfc3339(wall, line.at),
            signal: line.signal.clone(),
            text: line.text.clone(),
        };
        Self {
            schema_version: 1,
            node: context.node.clone(),
            boot_id: context.boot_id.clone(),
            role: report.role,
            verdict: Verdict {
                reason: report.verdict.reason,
                side: report.verdict.reason.side(),
                status: report.status,
                subject: report.verdict.subject.clone(),
                since: rfc3339(wall, report.verdict.since),
                message: report.verdict.message.clone(),
                remedy: report.remedy.clone(),
            },
            because: report.because.iter().map(link).collect(),
            consequences: report.consequences.iter().map(link).collect(),
            also: report.also.iter().map(link).collect(),
            conditions: report
                .conditions
                .iter()
                .map(|condition| ConditionRow {
                    condition: format!("{PREFIX}/{}", condition.condition.as_str()),
                    status: condition.status,
                    reason: condition.reason,
                    message: condition.message.clone(),
                    last_transition_time: rfc3339(wall, condition.since),
                })
                .collect(),
            evidence: report.evidence.iter().map(evidence).collect(),
            gaps: report
                .gaps
                .iter()
                .map(|gap| GapRow { signal: gap.signal.clone(), why: gap.why.clone(), blind: gap.blind })
                .collect(),
            condition_writes: report.writes.clone(),
        }
    }
}

/// Returns the wall time of `at`: `2026-01-02T03:04:05.678Z`.
pub(crate) fn rfc3339(wall: Wall, at: BootTime) -> String {
    format!("{:.3}", timestamp(wall, at))
}

/// Returns the time of day of `at` in UTC: `03:04:05.678`.
pub(crate) fn time_of_day(wall: Wall, at: BootTime) -> String {
    timestamp(wall, at).strftime("%H:%M:%S%.3f").to_string()
}

/// Returns the wall time of `at`; the epoch if it is out of range.
pub(crate) fn timestamp(wall: Wall, at: BootTime) -> jiff::Timestamp {
    jiff::Timestamp::try_from(wall.at(at)).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use probe_engine::{Config, Engine};

    use super::*;

    #[test]
    fn document_has_every_field_of_the_contract() {
        let engine = Engine::new(Config::default(), BootTime(5_000_000_000));
        let wall = Wall { offset_ns: 1_767_322_000_000_000_000 };
        let context = Context { node: "worker-3".into(), boot_id: "b".into(), wall };
        let value = serde_json::to_value(Document::new(&engine.report(), &context)).expect("serializes");
        let keys: Vec<_> = value.as_object().expect("an object").keys().map(String::as_str).collect();
        let mut want = [
            "schemaVersion",
            "node",
            "bootId",
            "role",
            "verdict",
            "because",
            "consequences",
            "also",
            "conditions",
            "evidence",
            "gaps",
        ];
        want.sort_unstable();
        assert_eq!(keys, want);
        for field in ["reason", "side", "status", "subject", "since", "message", "remedy"] {
            assert!(value["verdict"].get(field).is_some(), "{field}");
        }
        assert_eq!(value["conditions"][0]["type"], "netready.dev/NodeNetworkReady");
        assert_eq!(value["conditions"][1]["type"], "netready.dev/APIServerReachable");
        assert_eq!(value["conditions"][0]["lastTransitionTime"], "2026-01-02T02:46:45.000Z");
    }
}
