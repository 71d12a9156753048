//! The timeline as JSON lines, each with `schemaVersion`, `at` and `kind`.

use std::io::Write;
use std::net::IpAddr;

use probe_engine::{BootTime, Effect, Observation, Outcome};
use serde_json::{Map, Value, json};

use super::Sink;
use super::topic::Filter;
use crate::report::{Context, Document, rfc3339};

/// Writes one object per line: an observation under its own kind (connects with their `outcome`), or `"kind":"verdict"` with the
/// report of the contract.
pub(crate) struct JsonLines<W> {
    out: W,
    context: Context,
    filter: Filter,
    own: Vec<IpAddr>,
    /// The first failure of the output.
    pub(crate) broken: Option<std::io::Error>,
}

impl<W: Write> JsonLines<W> {
    /// Writes lines to `out`.
    pub(crate) fn new(out: W, context: Context, filter: Filter) -> Self {
        Self { out, context, filter, own: Vec::new(), broken: None }
    }

    fn line(&mut self, at: BootTime, value: Value) {
        let Value::Object(fields) = value else { return };
        let mut line = Map::from_iter([
            ("schemaVersion".to_owned(), json!(1)),
            ("at".to_owned(), json!(rfc3339(self.context.wall, at))),
            ("atNs".to_owned(), json!(at.0)),
        ]);
        line.extend(fields);
        let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
        bytes.push(b'\n');
        if let (Err(error), None) = (self.out.write_all(&bytes).and_then(|()| self.out.flush()), &self.broken)
        {
            self.broken = Some(error);
        }
    }
}

impl<W: Write> Sink for JsonLines<W> {
    fn observation(&mut self, at: BootTime, observation: &Observation) {
        if let Observation::Host(host) = observation {
            self.own.clone_from(&host.addresses);
        }
        if !self.filter.selects(observation) {
            return;
        }
        let Ok(mut value) = serde_json::to_value(observation) else { return };
        if let Observation::Connect(connect) = observation {
            value["outcome"] = json!(Outcome::of(connect, &self.own));
        }
        self.line(at, value);
    }

    fn effect(&mut self, at: BootTime, effect: &Effect) {
        let value = match effect {
            Effect::Verdict(report) => serde_json::to_value(Document::new(report, &self.context)),
            Effect::Condition(condition) => serde_json::to_value(condition),
            Effect::Ask(_) | Effect::Reread(_) => return,
        };
        let Ok(mut value) = value else { return };
        value["kind"] = json!(if matches!(effect, Effect::Verdict(_)) { "verdict" } else { "condition" });
        self.line(at, value);
    }
}
