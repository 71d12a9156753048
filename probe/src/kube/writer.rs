//! Writes the conditions to the Node object at the times of the schedule, and sends events.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use probe_engine::{BootTime, Condition, ConditionType, Observation, Reason, Side, Status, Writes};
use serde_json::Value;
use tokio::sync::mpsc;

use super::access::{Access, Problem};
use super::patch::{self, Event};
use super::reads::Reads;
use super::schedule::{Failure, Schedule};
use crate::clock::{self, Wall};
use crate::feed::{Feed, Seen};
use crate::settings::Settings;
use crate::sinks::metrics::WriteMetrics;

/// Range of the random delay of an outage's events after the first successful write, nanoseconds: every node of the cluster has
/// some, and the conditions take precedence.
const EVENT_DELAY: (u64, u64) = (60_000_000_000, 360_000_000_000);

/// Interval of checking the files of credentials while writes fail: a handful of stat(2) calls.
const FILE_CHECK: Duration = Duration::from_secs(10);

/// Input of the writer.
#[derive(Clone, Debug)]
pub(crate) enum WriterInput {
    /// Both conditions, after each change.
    Conditions(Vec<Condition>),
    /// A condition whose status has changed.
    Changed(Condition),
    /// The API server is recovering, which the conditions do not report yet.
    ApiRecovering,
    /// A kubelet has started.
    KubeletStarted,
}

/// State of the writer.
struct Writer {
    settings: Arc<Settings>,
    wall: Wall,
    access: Access,
    schedule: Schedule,
    metrics: WriteMetrics,
    feed: Feed,
    /// What was last reported about the writes.
    reported: Option<Writes>,
    /// Events by condition, reason and status, which are a closed set.
    events: BTreeMap<(ConditionType, Reason, Status), Event>,
    /// Events that have not been sent yet.
    unsent: Vec<(ConditionType, Reason, Status)>,
    /// When the unsent events are sent; `None`: after the next successful write.
    events_due: Option<BootTime>,
    /// Requests while the node has no network.
    reads: Reads,
    /// Makes the names of events unique: they are in one namespace for the whole cluster, and outlive an agent.
    seed: u64,
}

/// Runs until all senders of `inputs` are dropped, and then writes the shutdown of the agent if writing works. `resumed`: an
/// agent ran before on this boot.
pub(crate) async fn run(
    settings: Arc<Settings>,
    wall: Wall,
    resumed: bool,
    metrics: WriteMetrics,
    mut inputs: mpsc::Receiver<WriterInput>,
    feed: Feed,
) {
    let mut hasher = DefaultHasher::new();
    (&settings.node, clock::now()).hash(&mut hasher);
    let seed = hasher.finish();
    let access = Access::new(Arc::clone(&settings));
    let schedule = Schedule::new(seed, resumed);
    let mut writer = Writer {
        settings,
        wall,
        access,
        schedule,
        metrics,
        feed,
        reported: None,
        events: BTreeMap::new(),
        unsent: Vec::new(),
        events_due: None,
        reads: Reads::default(),
        seed,
    };
    let mut file_check = tokio::time::interval(FILE_CHECK);
    file_check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            input = inputs.recv() => match input {
                Some(input) => writer.take(input).await,
                None => return writer.shut_down().await,
            },
            () = clock::reached(writer.schedule.due()) => writer.write().await,
            () = clock::reached(writer.events_due) => writer.send_events().await,
            () = clock::reached(writer.reads.due()) => writer.read().await,
            _ = file_check.tick(), if writer.schedule.is_failing() => writer.check_files(),
        }
    }
}

impl Writer {
    /// Writes the shutdown of the agent, and sends events that would be lost otherwise.
    async fn shut_down(&mut self) {
        if self.schedule.must_write_shutdown() {
            self.write().await;
        }
        if !self.schedule.is_failing() {
            self.send_events().await;
        }
    }

    async fn take(&mut self, input: WriterInput) {
        let now = clock::now();
        match input {
            WriterInput::Conditions(conditions) => {
                self.schedule.update(now, &conditions);
                self.update_reads(now, &conditions).await;
            }
            WriterInput::ApiRecovering => self.schedule.api_recovering(now),
            WriterInput::KubeletStarted => self.schedule.kubelet_started(now),
            WriterInput::Changed(condition) => self.add_event(condition),
        }
    }

    /// Starts or stops the reads: the API server may know why the network does not become ready.
    async fn update_reads(&mut self, now: BootTime, conditions: &[Condition]) {
        let network = conditions.iter().find(|known| known.condition == ConditionType::NodeNetworkReady);
        let broken = |known: &Condition| known.status == Status::False && known.reason.side() == Side::Cni;
        if network.is_some_and(broken) {
            self.reads.start(now, &mut fastrand::Rng::new());
            return;
        }
        for observation in self.reads.stop() {
            self.feed(now, observation).await;
        }
    }

    /// Schedules the next attempt soon if the files of a credential were replaced.
    fn check_files(&mut self) {
        if self.access.has_changed() {
            self.schedule.credentials_changed(clock::now());
        }
    }

    async fn read(&mut self) {
        while let Some(query) = self.reads.next(clock::now()) {
            let response = self.access.send(&query.request(&self.settings.node)).await;
            let response = response.as_ref().map_err(|problem| problem.status);
            let now = clock::now();
            let observation = self.reads.take_response(query, response, now, clock::unix_now());
            if let Some(observation) = observation {
                self.feed(now, observation).await;
            }
        }
    }

    async fn feed(&mut self, at: BootTime, observation: Observation) {
        // Sending fails only if the agent is shutting down.
        let _ = self.feed.send(Seen { at, observation }).await;
    }

    /// Adds an event for a changed condition, or counts a further occurrence of it.
    fn add_event(&mut self, condition: Condition) {
        let key = (condition.condition, condition.reason, condition.status);
        let since = condition.since;
        if let Some(event) = self.events.get_mut(&key) {
            event.count = event.count.saturating_add(1);
            event.condition = condition;
        } else {
            let mut hasher = DefaultHasher::new();
            (self.seed, key.0.as_str(), key.1.as_str(), key.2.as_str()).hash(&mut hasher);
            let name = format!("{}.{:016x}", self.settings.node, hasher.finish());
            self.events.insert(key, Event { name, condition, count: 1, first: since });
        }
        if !self.unsent.contains(&key) {
            self.unsent.push(key);
        }
    }

    async fn write(&mut self) {
        let now = clock::now();
        // A booting node may set its clock from the network after the agent has started.
        self.wall = self.wall.refreshed();
        let conditions = self.schedule.take(now);
        let request = patch::status(&self.settings.node, &conditions, now, self.wall);
        let result = self.access.send(&request).await;
        let now = clock::now();
        let (outcome, problem) = match result {
            Ok(_) => {
                if self.schedule.is_failing() && !self.unsent.is_empty() {
                    self.send_events_later(now);
                }
                self.schedule.wrote(now, conditions);
                self.metrics.wrote();
                ("ok", None)
            }
            Err(problem) => {
                self.schedule.failed(now, problem.failure);
                (outcome(&problem), Some(problem.why))
            }
        };
        self.metrics.ended(outcome);
        let succeeded = problem.is_none();
        self.report(now, problem).await;
        if succeeded && self.events_due.is_none() {
            self.send_events().await;
        }
    }

    /// Reports through which candidate the conditions are written, or why they are not, if that has changed.
    async fn report(&mut self, at: BootTime, problem: Option<String>) {
        let by = self.access.name().unwrap_or_default().to_owned();
        let writes = Writes { by, problem };
        if self.reported.as_ref() == Some(&writes) {
            return;
        }
        crate::warn(&match &writes.problem {
            None => format!("writing the conditions of node {} with {}", self.settings.node, writes.by),
            Some(why) => format!("cannot write the conditions of node {}: {why}", self.settings.node),
        });
        self.reported = Some(writes.clone());
        self.feed(at, Observation::Writes(writes)).await;
    }

    fn send_events_later(&mut self, now: BootTime) {
        self.events_due.get_or_insert(now.plus(fastrand::u64(EVENT_DELAY.0..EVENT_DELAY.1)));
    }

    async fn send_events(&mut self) {
        self.events_due = None;
        for key in std::mem::take(&mut self.unsent) {
            let Some(event) = self.events.get(&key).cloned() else { continue };
            let updated = if event.count > 1 { self.send(&event, false).await } else { Err(Failure::NoNode) };
            let sent = match updated {
                // It does not exist yet, or has expired: the API server keeps events for an hour.
                Err(Failure::NoNode) => self.send(&event, true).await,
                other => other,
            };
            if sent == Err(Failure::Unavailable) {
                self.unsent.push(key);
                self.send_events_later(clock::now());
            }
        }
    }

    async fn send(&mut self, event: &Event, new: bool) -> Result<Value, Failure> {
        let node = &self.settings.node;
        let request = if new { event.create(node, self.wall) } else { event.update(self.wall) };
        self.access.send(&request).await.map_err(|problem| match problem.status {
            // The event waits until the credential is renewed, or the server is less busy.
            Some(401 | 429) => Failure::Unavailable,
            _ => problem.failure,
        })
    }
}

/// Returns the outcome of a failed write for the metric, one of a closed set.
fn outcome(problem: &Problem) -> &'static str {
    match (problem.failure, problem.status) {
        (Failure::NoNode, _) => "no_node",
        (_, Some(401)) => "unauthorized",
        (_, Some(403)) => "forbidden",
        (_, Some(429)) => "throttled",
        (Failure::Refused, _) => "refused",
        (Failure::Unavailable, Some(_)) => "server_error",
        (Failure::Unavailable, None) => "unreachable",
    }
}
