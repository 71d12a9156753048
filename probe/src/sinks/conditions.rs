//! Tells the writer of the Node object what the conditions say.

use std::collections::BTreeMap;
use std::time::Duration;

use probe_engine::{
    Condition, ConditionType, Effect, Finding, Mono, Observation, ProcessClass, ProcessEvent, Reason,
    Remembered, Report, Side, Status,
};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;

use super::Sink;
use crate::kube::News;

/// See the module. Never waits: the writer may be waiting for the API server.
pub(crate) struct Conditions {
    news: mpsc::Sender<News>,
    shown: Vec<Condition>,
    /// The status that each had last, as far as events are concerned.
    status: BTreeMap<ConditionType, Status>,
    /// Not told yet, because the writer is behind.
    late: Option<Vec<Condition>>,
    /// Changes that the writer never hears of, because it is behind.
    dropped: Counter,
}

impl Conditions {
    /// `remembered` is what an earlier agent said: the same again is no change.
    pub(crate) fn new(news: mpsc::Sender<News>, remembered: &Remembered) -> Self {
        let status = remembered.conditions.iter().map(|known| (known.condition, known.status)).collect();
        Self { news, shown: Vec::new(), status, late: None, dropped: Counter::default() }
    }

    /// Counts there the changes that the writer never hears of.
    pub(crate) fn counting(self, dropped: Counter) -> Self {
        Self { dropped, ..self }
    }

    fn tell(&mut self) {
        if let Some(conditions) = self.late.take()
            && let Err(mpsc::error::TrySendError::Full(_)) =
                self.news.try_send(News::Conditions(conditions.clone()))
        {
            self.late = Some(conditions);
        }
    }
}

/// The API server's condition is about to become True.
fn clears(report: &Report) -> bool {
    let says = |known: &Condition| {
        known.condition == ConditionType::APIServerReachable && known.status == Status::False
    };
    let mut found = [&report.because, &report.consequences, &report.also].into_iter().flatten();
    let is_api = |finding: &Finding| finding.reason.side() == Side::Api;
    report.conditions.iter().any(says) && !is_api(&report.verdict) && !found.any(is_api)
}

impl Sink for Conditions {
    fn observation(&mut self, _at: Mono, observation: &Observation) {
        if let Observation::Process(process) = observation
            && (process.class, &process.event) == (ProcessClass::Kubelet, &ProcessEvent::Started)
        {
            // Full: the writer is busy, and a heartbeat puts right what this would have.
            let _ = self.news.try_send(News::KubeletStarted);
        }
    }

    fn effect(&mut self, _at: Mono, effect: &Effect) {
        let condition = match effect {
            Effect::Condition(condition) => condition,
            Effect::Verdict(report) if clears(report) => {
                // Full: the writer is busy, and writes what it is told last.
                let _ = self.news.try_send(News::ApiClears);
                return;
            }
            _ => return,
        };
        // What an agent says when it comes or goes is no change of the node.
        if matches!(condition.reason, Reason::Learning | Reason::AgentStopping) {
            return;
        }
        if self.status.insert(condition.condition, condition.status) != Some(condition.status)
            && self.news.try_send(News::Changed(condition.clone())).is_err()
        {
            self.dropped.inc();
        }
    }

    fn report(&mut self, _at: Mono, report: &Report) {
        if self.shown != report.conditions {
            self.shown.clone_from(&report.conditions);
            self.late = Some(report.conditions.clone());
            self.tell();
        }
    }

    fn turn(&mut self, _at: Mono, _late: Duration) {
        self.tell();
    }
}
