//! Writes what the conditions say to the Node object, as the schedule has it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use probe_engine::{Condition, ConditionType, Mono, Observation, Reason, Side, Status, Writes};
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

/// When events of an outage are sent, by chance, after the write that ended it: every node of the cluster has some, and
/// the conditions come first.
const EVENTS_AFTER: (u64, u64) = (60_000_000_000, 360_000_000_000);

/// Between two looks at the files of accounts, while writing fails: a handful of stat(2).
const FILES: Duration = Duration::from_secs(10);

/// What the writer is told.
#[derive(Clone, Debug)]
pub(crate) enum News {
    /// Both conditions, after each change.
    Conditions(Vec<Condition>),
    /// One changed its status.
    Changed(Condition),
    /// Nothing of the API server's trouble is left, and the conditions do not say so yet.
    ApiClears,
    /// A kubelet has started.
    KubeletStarted,
}

/// Everything that the task works with.
struct Writer {
    settings: Arc<Settings>,
    wall: Wall,
    access: Access,
    schedule: Schedule,
    metrics: WriteMetrics,
    feed: Feed,
    /// As it was told last.
    told: Option<Writes>,
    /// By what they are about: a closed set.
    events: BTreeMap<(ConditionType, Reason, Status), Event>,
    /// Those that were not sent yet, and when they are; `None`: after the next write.
    unsent: Vec<(ConditionType, Reason, Status)>,
    events_due: Option<Mono>,
    /// What is asked while the node has no network.
    reads: Reads,
    /// Names of events lie in the whole cluster's namespace and outlive an agent.
    seed: u64,
}

/// Runs until nobody tells it anything more; then it writes the last word, where writing has worked. `resumed`: an agent
/// ran before on this boot.
pub(crate) async fn run(
    settings: Arc<Settings>,
    wall: Wall,
    resumed: bool,
    metrics: WriteMetrics,
    mut news: mpsc::Receiver<News>,
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
        told: None,
        events: BTreeMap::new(),
        unsent: Vec::new(),
        events_due: None,
        reads: Reads::default(),
        seed,
    };
    let mut files = tokio::time::interval(FILES);
    files.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            told = news.recv() => match told {
                Some(told) => writer.take(told).await,
                None => return writer.say_goodbye().await,
            },
            () = clock::reached(writer.schedule.due()) => writer.write().await,
            () = clock::reached(writer.events_due) => writer.send_events().await,
            () = clock::reached(writer.reads.due()) => writer.read().await,
            _ = files.tick(), if writer.schedule.is_away() => writer.look_for_files(),
        }
    }
}

impl Writer {
    /// From here on nobody updates the object, and events that are not sent yet would be lost.
    async fn say_goodbye(&mut self) {
        if self.schedule.says_goodbye() {
            self.write().await;
        }
        if !self.schedule.is_away() {
            self.send_events().await;
        }
    }

    async fn take(&mut self, news: News) {
        let now = clock::now();
        match news {
            News::Conditions(conditions) => {
                self.schedule.want(now, &conditions);
                self.may_be_known(now, &conditions).await;
            }
            News::ApiClears => self.schedule.clears(now),
            News::KubeletStarted => self.schedule.registers(now),
            News::Changed(condition) => self.happened(condition),
        }
    }

    /// The API server may know why a network does not come.
    async fn may_be_known(&mut self, now: Mono, conditions: &[Condition]) {
        let network = conditions.iter().find(|known| known.condition == ConditionType::NodeNetworkReady);
        let broken = |known: &Condition| known.status == Status::False && known.reason.side() == Side::Cni;
        if network.is_some_and(broken) {
            self.reads.broken(now, &mut fastrand::Rng::new());
            return;
        }
        for observation in self.reads.over() {
            self.feed(now, observation).await;
        }
    }

    /// Whoever replaced an account that was refused waits for this.
    fn look_for_files(&mut self) {
        if self.access.has_changed() {
            self.schedule.renewed(clock::now());
        }
    }

    async fn read(&mut self) {
        while let Some(question) = self.reads.next(clock::now()) {
            let answer = self.access.send(&question.request(&self.settings.node)).await;
            let answer = answer.as_ref().map_err(|problem| problem.status);
            let now = clock::now();
            if let Some(news) = self.reads.answered(question, answer, now, clock::unix_now()) {
                self.feed(now, news).await;
            }
        }
    }

    async fn feed(&mut self, at: Mono, observation: Observation) {
        // The loop has ended when nobody listens.
        let _ = self.feed.send(Seen { at, observation }).await;
    }

    /// One event for each kind of change; the same again is counted.
    fn happened(&mut self, condition: Condition) {
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
        // A node that boots often gets its time from the network after its agent has started.
        self.wall = self.wall.refreshed();
        let conditions = self.schedule.take(now);
        let request = patch::status(&self.settings.node, &conditions, now, self.wall);
        let result = self.access.send(&request).await;
        let now = clock::now();
        let (outcome, problem) = match result {
            Ok(_) => {
                if self.schedule.is_away() && !self.unsent.is_empty() {
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
        let good = problem.is_none();
        self.tell(now, problem).await;
        if good && self.events_due.is_none() {
            self.send_events().await;
        }
    }

    /// By which way they are written, or why not; when that is news.
    async fn tell(&mut self, at: Mono, problem: Option<String>) {
        let by = self.access.name().unwrap_or_default().to_owned();
        let writes = Writes { by, problem };
        if self.told.as_ref() == Some(&writes) {
            return;
        }
        crate::warn(&match &writes.problem {
            None => format!("the conditions of node {} are written: {}", self.settings.node, writes.by),
            Some(why) => format!("the conditions of node {} are not written: {why}", self.settings.node),
        });
        self.told = Some(writes.clone());
        self.feed(at, Observation::Writes(writes)).await;
    }

    fn send_events_later(&mut self, now: Mono) {
        self.events_due.get_or_insert(now.plus(fastrand::u64(EVENTS_AFTER.0..EVENTS_AFTER.1)));
    }

    async fn send_events(&mut self) {
        self.events_due = None;
        for key in std::mem::take(&mut self.unsent) {
            let Some(event) = self.events.get(&key).cloned() else { continue };
            let again = if event.count > 1 { self.send(&event, false).await } else { Err(Failure::NoNode) };
            // It is not there yet, or has been forgotten: they are kept for an hour.
            let sent = match again {
                Err(Failure::NoNode) => self.send(&event, true).await,
                other => other,
            };
            if sent == Err(Failure::Away) {
                self.unsent.push(key);
                self.send_events_later(clock::now());
            }
        }
    }

    async fn send(&mut self, event: &Event, new: bool) -> Result<Value, Failure> {
        let node = &self.settings.node;
        let request = if new { event.create(node, self.wall) } else { event.again(self.wall) };
        self.access.send(&request).await.map_err(|problem| match problem.status {
            // Until the credential is renewed, or the server less busy, the event waits.
            Some(401 | 429) => Failure::Away,
            _ => problem.failure,
        })
    }
}

/// A closed set, for the metric.
fn outcome(problem: &Problem) -> &'static str {
    match (problem.failure, problem.status) {
        (Failure::NoNode, _) => "no_node",
        (_, Some(401)) => "unauthorized",
        (_, Some(403)) => "forbidden",
        (_, Some(429)) => "throttled",
        (Failure::Refused, _) => "refused",
        (Failure::Away, Some(_)) => "server_error",
        (Failure::Away, None) => "unreachable",
    }
}
