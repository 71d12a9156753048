//! Prometheus metrics: names and labels are public, see `docs/verdicts.md` section 5.

mod labels;
mod recent;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use probe_engine::{
    BootTime, ClientRole, ConditionType, ConfContent, Effect, Gap, Link, Observation, Outcome, ProcessEvent,
    Reason, Report, Status, errno_name,
};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::Sink;
use crate::bpf::HookStatus;
use crate::clock;
use crate::feed::LOSS_SOURCES;
use crate::threads::Blocked;
use labels::{
    COMMANDS, ClientLabels, CniLabels, CniTimeLabels, ConditionLabels, ConnectLabels, ErrnoLabels,
    ExitLabels, HookLabels, KindLabels, LINK_KINDS, NETLINK_ERRNOS, OutcomeLabels, Plugins, SINKS,
    SinkLabels, StateLabels, TIMED_COMMANDS, VerdictLabels, class, closed, kind,
};
use recent::Recent;

fn connect_times() -> Histogram {
    // Seconds. From an answer over loopback to the retransmissions of the first SYNs (1 s and 3 s, RFC 6298).
    Histogram::new([0.0005, 0.005, 0.05, 0.5, 1.5, 5.0])
}

fn cni_times() -> Histogram {
    // Seconds. An ADD takes 30 ms, or 300 ms through an agent; the limits of agents are between 30 and 90 s.
    Histogram::new([0.05, 0.2, 1.0, 5.0, 30.0])
}

fn turn_times() -> Histogram {
    // Seconds. Timers are exact to 1 ms and the budget is 10 ms; a blocked loop would be seconds late.
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0])
}

/// The sink. The HTTP server shares its registry.
pub(crate) struct Metrics {
    registry: Arc<Mutex<Registry>>,
    conditions: Family<ConditionLabels, Gauge>,
    verdict: Family<VerdictLabels, Gauge>,
    shown: Option<VerdictLabels>,
    connects: Recent<ConnectLabels, Counter>,
    connect_times: Recent<ClientLabels, Histogram>,
    cni: Family<CniLabels, Counter>,
    cni_times: Family<CniTimeLabels, Histogram>,
    plugins: Plugins,
    namespaces: Family<OutcomeLabels, Counter>,
    netlink_errors: Family<ErrnoLabels, Counter>,
    upcalls: Family<OutcomeLabels, Counter>,
    links: Family<KindLabels, Gauge>,
    known_links: BTreeMap<u32, &'static str>,
    files: Family<StateLabels, Gauge>,
    exits: Family<ExitLabels, Counter>,
    events: Recent<KindLabels, Counter>,
    lost: Family<HookLabels, Counter>,
    throttled: Family<HookLabels, Counter>,
    attached: Family<HookLabels, Gauge<i64>>,
    writes: WriteMetrics,
    own: Vec<IpAddr>,
    turns: Histogram,
    dropped: Family<SinkLabels, Counter>,
    alive: Arc<AtomicU64>,
    ready: Arc<Mutex<Readiness>>,
    blocked: Blocked,
}

/// Metrics of the writer of the Node object.
#[derive(Clone, Debug, Default)]
pub(crate) struct WriteMetrics {
    writes: Family<OutcomeLabels, Counter>,
    last: Gauge<f64, AtomicU64>,
}

impl WriteMetrics {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "condition_writes",
            "Writes of the node conditions by outcome",
            self.writes.clone(),
        );
        registry.register(
            "condition_last_write_timestamp_seconds",
            "When the node conditions were last written; 0 for never",
            self.last.clone(),
        );
        self.writes.get_or_create(&OutcomeLabels { outcome: "ok" }).inc_by(0);
    }

    /// Counts a write. `outcome` is one of a closed set.
    pub(crate) fn ended(&self, outcome: &'static str) {
        self.writes.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Returns the number of writes with this outcome.
    pub(crate) fn count(&self, outcome: &'static str) -> u64 {
        self.writes.get_or_create(&OutcomeLabels { outcome }).get()
    }

    /// Records the current wall time as that of the last successful write.
    pub(crate) fn wrote(&self) {
        self.last.set(clock::unix().as_secs_f64());
    }
}

/// State behind `/readyz`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Readiness {
    /// Whether the state at start has been read.
    pub(crate) snapshot: bool,
    /// Whether at least one hook is attached.
    pub(crate) hooks: bool,
    /// Other problems: what fails, and why.
    pub(crate) wrong: BTreeMap<String, String>,
}

/// The part of the sink that other threads use.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) registry: Arc<Mutex<Registry>>,
    /// When the loop last ran, in nanoseconds of boot time.
    pub(crate) alive: Arc<AtomicU64>,
    pub(crate) ready: Arc<Mutex<Readiness>>,
    /// Operations that may be blocked.
    pub(crate) blocked: Blocked,
}

impl Shared {
    /// Reports that something fails: by `/readyz` until [`Self::works`] is called, and once in the log.
    pub(crate) fn fails(&self, what: &str, why: &str) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = ready.wrong.insert(what.to_owned(), why.to_owned()).is_none();
        drop(ready);
        if is_news {
            crate::warn(&format!("{what}: {why}"));
        }
    }

    /// Reports that something works, or works again.
    pub(crate) fn works(&self, what: &str) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = ready.wrong.remove(what).is_some();
        drop(ready);
        if failed {
            crate::warn(&format!("{what}: works again"));
        }
    }

    /// Returns the page `/metrics`.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

impl Metrics {
    /// Registers all metrics.
    pub(crate) fn new() -> Self {
        let metrics = Self {
            registry: Arc::new(Mutex::new(Registry::with_prefix("netready"))),
            conditions: Family::default(),
            verdict: Family::default(),
            shown: None,
            connects: Recent::of(Family::default()),
            connect_times: Recent::of(Family::new_with_constructor(connect_times)),
            cni: Family::default(),
            cni_times: Family::new_with_constructor(cni_times),
            plugins: Plugins::default(),
            namespaces: Family::default(),
            netlink_errors: Family::default(),
            upcalls: Family::default(),
            links: Family::default(),
            known_links: BTreeMap::new(),
            files: Family::default(),
            exits: Family::default(),
            events: Recent::of(Family::default()),
            lost: Family::default(),
            throttled: Family::default(),
            attached: Family::default(),
            writes: WriteMetrics::default(),
            own: Vec::new(),
            turns: turn_times(),
            dropped: Family::default(),
            alive: Arc::new(AtomicU64::new(clock::now().0)),
            ready: Arc::default(),
            blocked: Blocked::default(),
        };
        metrics.register();
        for sink in SINKS {
            metrics.dropped(sink);
        }
        for condition in ConditionType::ALL {
            metrics.set_condition(condition.as_str(), Status::Unknown);
        }
        metrics
    }

    fn register(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let r = &mut *registry;
        r.register("condition", "Node conditions as state sets", self.conditions.clone());
        r.register("verdict", "The root cause, undamped, as a state set", self.verdict.clone());
        r.register("api_connects", "Connects to API addresses by client and outcome", self.connects.family());
        r.register(
            "api_connect_duration_seconds",
            "Time from connect to its end",
            self.connect_times.family(),
        );
        r.register("cni_operations", "CNI plugins run by a runtime", self.cni.clone());
        r.register(
            "cni_operation_duration_seconds",
            "Time from exec to exit of a plugin",
            self.cni_times.clone(),
        );
        r.register("sandbox_netns", "Network namespaces created and removed", self.namespaces.clone());
        r.register(
            "netlink_errors",
            "Changes of links, addresses, routes and rules that the kernel refused",
            self.netlink_errors.clone(),
        );
        r.register(
            "ovs_upcalls",
            "Packets that an OVS datapath passed to user space, and lost",
            self.upcalls.clone(),
        );
        r.register("links", "Links of the host by kind", self.links.clone());
        r.register("cni_config_files", "CNI configuration files by state", self.files.clone());
        r.register("process_exits", "Exits of components of the node", self.exits.clone());
        r.register("events", "Observations by kind", self.events.family());
        r.register(
            "events_lost",
            "Events that a hook could not report, and runs of it that the kernel skipped",
            self.lost.clone(),
        );
        r.register(
            "events_throttled",
            "Events of processes that are not components of the node, not recorded because they exceeded their budget",
            self.throttled.clone(),
        );
        r.register("hook_attached", "1 when the hook is in use", self.attached.clone());
        r.register("loop_latency_seconds", "How late the loop that judges ran", self.turns.clone());
        r.register("sink_dropped", "Entries for which a sink had no room", self.dropped.clone());
        self.writes.register(r);
        r.register("build", "Version of the agent", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    }

    /// Returns the counter of entries for which a sink had no room; `sink` is one of [`SINKS`].
    pub(crate) fn dropped(&self, sink: &'static str) -> Counter {
        self.dropped.get_or_create(&SinkLabels { sink }).clone()
    }

    /// Returns the metrics of the writer of the Node object.
    pub(crate) fn writes(&self) -> WriteMetrics {
        self.writes.clone()
    }

    /// Returns the part that other threads use.
    pub(crate) fn shared(&self) -> Shared {
        Shared {
            registry: Arc::clone(&self.registry),
            alive: Arc::clone(&self.alive),
            ready: Arc::clone(&self.ready),
            blocked: self.blocked.clone(),
        }
    }

    fn set_condition(&self, condition: &'static str, now: Status) {
        for status in Status::ALL {
            let labels = ConditionLabels { r#type: condition, status: status.as_str() };
            self.conditions.get_or_create(&labels).set(i64::from(status == now));
        }
    }

    /// Returns whether the state at start has been read. Namespaces that it contains were not created just now.
    fn snapshot_done(&self) -> bool {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).snapshot
    }

    fn set_verdict(&mut self, reason: Reason) {
        let labels = VerdictLabels { reason: reason.as_str(), side: reason.side().as_str() };
        if let Some(old) = self.shown.take().filter(|old| *old != labels) {
            self.verdict.get_or_create(&old).set(0);
        }
        self.verdict.get_or_create(&labels).set(1);
        self.shown = Some(labels);
    }

    fn link(&mut self, link: &Link) {
        let kind = closed(&LINK_KINDS, &link.link_kind);
        let old = if link.present {
            self.known_links.insert(link.index, kind)
        } else {
            self.known_links.remove(&link.index)
        };
        if let Some(old) = old {
            self.links.get_or_create(&KindLabels { kind: old }).dec();
        }
        if link.present {
            self.links.get_or_create(&KindLabels { kind }).inc();
        }
    }
}

impl Sink for Metrics {
    fn hooks(&mut self, hooks: &[HookStatus]) {
        for status in hooks {
            let attached = i64::from(status.attached());
            self.attached.get_or_create(&HookLabels { hook: status.hook.name() }).set(attached);
            self.lost.get_or_create(&HookLabels { hook: status.hook.name() }).inc_by(0);
            self.throttled.get_or_create(&HookLabels { hook: status.hook.name() }).inc_by(0);
        }
        for hook in LOSS_SOURCES {
            self.lost.get_or_create(&HookLabels { hook }).inc_by(0);
        }
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.hooks = hooks.iter().any(HookStatus::attached);
    }

    fn observation(&mut self, _at: BootTime, observation: &Observation) {
        self.events.get(KindLabels { kind: kind(observation) }).inc();
        match observation {
            Observation::Host(host) => self.own.clone_from(&host.addresses),
            Observation::SnapshotDone => {
                self.ready.lock().unwrap_or_else(PoisonError::into_inner).snapshot = true;
            }
            Observation::Connect(connect) => {
                let outcome = Outcome::of(connect, &self.own);
                // Connects of the agent itself are not those of a client.
                if connect.role == ClientRole::Probe || outcome == Outcome::Cancelled {
                    return;
                }
                let client = connect.role.as_str();
                self.connects.get(ConnectLabels { client, outcome: outcome.as_str() }).inc();
                self.connect_times.get(ClientLabels { client }).observe(seconds(connect.took_ns));
            }
            Observation::CniEnd(end) => {
                let command = closed(&COMMANDS, &end.start.command);
                let plugin = self.plugins.label(&end.start.plugin);
                let outcome = if end.exit.success() { "ok" } else { "failed" };
                self.cni.get_or_create(&CniLabels { command, plugin, outcome }).inc();
                let command = closed(&TIMED_COMMANDS, command);
                self.cni_times
                    .get_or_create(&CniTimeLabels { command, plugin })
                    .observe(seconds(end.took_ns));
            }
            Observation::Netns(netns) if self.snapshot_done() => {
                let outcome = if netns.up { "created" } else { "ended" };
                self.namespaces.get_or_create(&OutcomeLabels { outcome }).inc();
            }
            // Links of the host only; those of pods appear and disappear with them.
            Observation::Link(link) if link.netns.is_none() => self.link(link),
            Observation::CniConfig(config) => {
                let count = |wanted: fn(&ConfContent) -> bool| {
                    i64::try_from(config.files.iter().filter(|file| wanted(&file.content)).count())
                        .unwrap_or(i64::MAX)
                };
                let set = |state, count| self.files.get_or_create(&StateLabels { state }).set(count);
                set("valid", count(|content| matches!(content, ConfContent::Network { .. })));
                set("invalid", count(|content| matches!(content, ConfContent::Invalid { .. })));
                set("unreadable", count(|content| matches!(content, ConfContent::Unreadable { .. })));
            }
            Observation::Process(process) => {
                if let ProcessEvent::Exited { exit, oom, .. } = &process.event {
                    let cause = match (oom, exit.signal, exit.code) {
                        (true, ..) => "oom",
                        (false, 0, 0) => "exit_ok",
                        (false, 0, _) => "exit_error",
                        (false, ..) => "signal",
                    };
                    self.exits.get_or_create(&ExitLabels { process: class(process.class), cause }).inc();
                }
            }
            Observation::OvsUpcalls(upcalls) => {
                for (outcome, count) in [("missed", upcalls.missed), ("lost", upcalls.lost)] {
                    self.upcalls.get_or_create(&OutcomeLabels { outcome }).inc_by(count);
                }
            }
            Observation::NetlinkError(error) => {
                let errno = closed(&NETLINK_ERRNOS, errno_name(error.errno).unwrap_or_default());
                self.netlink_errors.get_or_create(&ErrnoLabels { errno }).inc();
            }
            Observation::Lost(lost) => {
                let hooks = probe_common::Hook::ALL.iter().map(|hook| hook.name()).chain(LOSS_SOURCES);
                count(&self.lost, hooks, &lost.hook, lost.count);
            }
            Observation::Throttled(throttled) => {
                let hooks = probe_common::Hook::ALL.iter().map(|hook| hook.name());
                count(&self.throttled, hooks, &throttled.hook, throttled.count);
            }
            _ => {}
        }
    }

    fn effect(&mut self, _at: BootTime, effect: &Effect) {
        match effect {
            Effect::Condition(condition) => {
                self.set_condition(condition.condition.as_str(), condition.status);
            }
            Effect::Verdict(report) => self.set_verdict(report.verdict.reason),
            Effect::Ask(_) | Effect::Reread(_) => {}
        }
    }

    fn report(&mut self, _at: BootTime, report: &Report) {
        self.set_verdict(report.verdict.reason);
        let losing = report.gaps.iter().filter(|gap| gap.signal == Gap::EVENTS_LOST);
        let losing: Vec<_> = losing.map(|gap| gap.why.as_str()).collect();
        if losing.is_empty() {
            self.shared().works(Gap::EVENTS_LOST);
        } else {
            self.shared().fails(Gap::EVENTS_LOST, &losing.join("; "));
        }
    }

    fn turn(&mut self, at: BootTime, late: Duration) {
        self.turns.observe(late.as_secs_f64());
        self.alive.store(at.0, std::sync::atomic::Ordering::Relaxed);
    }
}

fn count(
    family: &Family<HookLabels, Counter>,
    mut known: impl Iterator<Item = &'static str>,
    hook: &str,
    count: u64,
) {
    if let Some(hook) = known.find(|known| *known == hook) {
        family.get_or_create(&HookLabels { hook }).inc_by(count);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a duration in seconds needs no more than 52 bits")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests;
