//! Passes changes of the conditions to the writer of the Node object.

use std::collections::BTreeMap;
use std::time::Duration;

use probe_engine::{
    BootTime, Condition, ConditionType, Effect, Finding, Observation, ProcessClass, ProcessEvent, Reason,
    Remembered, Report, Side, Status,
};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;

use super::Sink;
use crate::kube::WriterInput;

/// The sink. It never waits, because the writer may be waiting for the API server.
pub(crate) struct Conditions {
    news: mpsc::Sender<WriterInput>,
    shown: Vec<Condition>,
    /// The last status of each condition for which an event was sent or was not needed.
    status: BTreeMap<ConditionType, Status>,
    /// Not passed on yet, because the queue to the writer is full.
    pending: Option<Vec<Condition>>,
    /// Counts changes that were dropped because the queue was full.
    dropped: Counter,
}

impl Conditions {
    /// Creates the sink. `remembered` is what an earlier agent reported: the same status again is not a change.
    pub(crate) fn new(news: mpsc::Sender<WriterInput>, remembered: &Remembered) -> Self {
        let status = remembered.conditions.iter().map(|known| (known.condition, known.status)).collect();
        Self { news, shown: Vec::new(), status, pending: None, dropped: Counter::default() }
    }

    /// Sets the counter of dropped changes.
    pub(crate) fn counting(self, dropped: Counter) -> Self {
        Self { dropped, ..self }
    }

    fn send_pending(&mut self) {
        if let Some(conditions) = self.pending.take()
            && let Err(mpsc::error::TrySendError::Full(_)) =
                self.news.try_send(WriterInput::Conditions(conditions.clone()))
        {
            self.pending = Some(conditions);
        }
    }
}

/// Returns whether no fault on the API side is left, and `APIServerReachable` is still False.
fn clears(report: &Report) -> bool {
    let is_false = |known: &Condition| {
        known.condition == ConditionType::APIServerReachable && known.status == Status::False
    };
    let mut found = [&report.because, &report.consequences, &report.also].into_iter().flatten();
    let is_api = |finding: &Finding| finding.reason.side() == Side::Api;
    report.conditions.iter().any(is_false) && !is_api(&report.verdict) && !found.any(is_api)
}

impl Sink for Conditions {
    fn observation(&mut self, _at: BootTime, observation: &Observation) {
        if let Observation::Process(process) = observation
            && (process.class, &process.event) == (ProcessClass::Kubelet, &ProcessEvent::Started)
        {
            // If the queue is full, the next heartbeat restores the conditions.
            let _ = self.news.try_send(WriterInput::KubeletStarted);
        }
    }

    fn effect(&mut self, _at: BootTime, effect: &Effect) {
        let condition = match effect {
            Effect::Condition(condition) => condition,
            Effect::Verdict(report) if clears(report) => {
                // If the queue is full, the writer is busy and writes the newest conditions next.
                let _ = self.news.try_send(WriterInput::ApiRecovering);
                return;
            }
            _ => return,
        };
        // The start and the stop of an agent are not changes of the node.
        if matches!(condition.reason, Reason::Learning | Reason::AgentStopping) {
            return;
        }
        if self.status.insert(condition.condition, condition.status) != Some(condition.status)
            && self.news.try_send(WriterInput::Changed(condition.clone())).is_err()
        {
            self.dropped.inc();
        }
    }

    fn report(&mut self, _at: BootTime, report: &Report) {
        if self.shown != report.conditions {
            self.shown.clone_from(&report.conditions);
            self.pending = Some(report.conditions.clone());
            self.send_pending();
        }
    }

    fn turn(&mut self, _at: BootTime, _late: Duration) {
        self.send_pending();
    }
}
