//! The node on which the scenes run: makes a fault, keeps it up, repairs it, and checks what the agent reports throughout.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::agent::{self, STATE, Seen, Wanted};
use crate::cluster::{Cluster, NODE, Running, until};
use crate::image;
use crate::watch::{Expected, MOMENTS, Row, Watch, listing, recovers};

/// The two conditions.
pub(crate) const NETWORK: &str = "NodeNetworkReady";
/// See [`NETWORK`].
pub(crate) const REACHABLE: &str = "APIServerReachable";
/// How long it may take to prove a fault: hold times, grace periods and retries of the kubelet.
pub(crate) const PROOF: Duration = Duration::from_mins(1);
/// The engine's grace period for components that have just started.
pub(crate) const SETTLES: Duration = Duration::from_mins(2);
/// How long after its repair a fault may still be reported.
const RECOVERY: Duration = Duration::from_secs(30);
/// From the end of an outage until the Node object has been written: clean for 10 s, then spread over a minute.
pub(crate) const RETURN: Duration = Duration::from_secs(100);
/// After an outage its event is sent within six minutes.
const EVENTS: Duration = Duration::from_secs(380);

/// How long each fault is kept up: the kubelet and the runtime have retried several times by then.
const HOLD: Duration = Duration::from_secs(MOMENTS[MOMENTS.len() - 1]);

/// The condition of a node that is well.
pub(crate) const fn good(condition: &'static str) -> Wanted<'static> {
    Wanted { condition, status: "True", reason: "NetworkReady", after_s: 0 }
}

/// Whole seconds since 1970.
pub(crate) fn now_s() -> i64 {
    Timestamp::now().as_second()
}

/// What the Node object said: a line of the table.
struct Line {
    what: &'static str,
    condition: &'static str,
    seen: Seen,
}

/// A change to False that could not be written. An event with the time of the change must report it later.
struct Outage {
    what: &'static str,
    /// Between these two, in seconds since 1970.
    from: i64,
    proven: i64,
}

/// The cluster, the agent, and the tables so far.
pub(crate) struct Stage<'a> {
    /// What the agent watches.
    pub(crate) cluster: &'a mut Cluster,
    /// The agent.
    pub(crate) agent: Option<Running>,
    /// A process by the name of flannel's agent; only its name matters.
    pub(crate) flanneld: Option<Running>,
    lines: Vec<Line>,
    rows: Vec<Row>,
    outages: Vec<Outage>,
}

impl<'a> Stage<'a> {
    /// Boots the node and starts the agent on it.
    pub(crate) fn new(cluster: &'a mut Cluster) -> Result<Self> {
        let started = Instant::now();
        boot(cluster)?;
        println!("a node that is Ready after {:.1} s", started.elapsed().as_secs_f32());
        let agent = Some(agent::start(cluster)?);
        let stage =
            Self { cluster, agent, flanneld: None, lines: Vec::new(), rows: Vec::new(), outages: Vec::new() };
        // The agent learns the plugin directories from the first plugin that the runtime runs.
        stage.a_pod_runs("first")?;
        stage.on_the_node_all_is_well()?;
        Ok(stage)
    }

    /// Waits for the events of outages, and prints the tables.
    pub(crate) fn end(mut self) -> Result<()> {
        for outage in std::mem::take(&mut self.outages) {
            self.event_of(&outage)?;
        }
        print!("{}", Row::table(&self.rows));
        print(&self.lines);
        let [all, own] = self.agent.as_ref().and_then(Running::memory_mib).context("the agent runs")?;
        println!("the agent has {all:.1} MiB of memory, {own:.1} MiB of it not its program's");
        Ok(())
    }

    /// Samples the agent's state from now on.
    pub(crate) fn watch(&self) -> Watch {
        Watch::start(self.cluster.place.path(STATE))
    }

    /// Makes a fault that persists by itself, and repairs it after [`HOLD`].
    pub(crate) fn hold(
        &mut self,
        expected: Expected,
        fault: impl FnOnce(&mut Self) -> Result<()>,
        repair: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.hold_and(expected, fault, |_| Ok(()), repair)
    }

    /// Makes a fault, keeps it up for [`HOLD`] and repairs it. Every sample must be right.
    pub(crate) fn hold_and(
        &mut self,
        expected: Expected,
        fault: impl FnOnce(&mut Self) -> Result<()>,
        mut keep_up: impl FnMut(&mut Self) -> Result<()>,
        repair: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let watch = self.watch();
        let from = now_s();
        fault(self)?;
        let mut proven = None;
        until("the fault has lasted", HOLD + SETTLES, || {
            keep_up(self)?;
            let known = watch.now().is_some_and(|sample| expected.is_said_by(&sample));
            if proven.is_none() && known {
                proven = Some(now_s());
                if expected.written {
                    self.on_the_node(&expected)?;
                }
            }
            Ok((watch.lasts() >= HOLD && proven.is_some()).then_some(()))
        })
        .with_context(|| listing(&watch.samples()))?;
        let samples = watch.samples();
        drop(watch);
        expected.check(&samples)?;
        let watch = self.watch();
        repair(self)?;
        let repaired = watch.lasts();
        let took = recovers(&watch, expected, RECOVERY)?.saturating_sub(repaired);
        self.rows.push(Row::new(expected, &samples, took));
        if expected.written {
            return self.on_the_node_all_is_well();
        }
        // The fault could not be written, so the object said True throughout. What is written now became true after the
        // fault was seen, and maybe before the repair was: the API server reaches etcd by many clients, one after the other.
        let proven = proven.context("the fault was seen")?;
        self.expect(expected.what, Wanted { after_s: proven, ..good(REACHABLE) }, RETURN)?;
        self.outages.push(Outage { what: expected.what, from, proven });
        Ok(())
    }

    /// Waits until the Node object has the condition of the root, if it has one.
    fn on_the_node(&mut self, expected: &Expected) -> Result<()> {
        let Some(condition) = expected.conditions.first() else { return Ok(()) };
        let wanted = Wanted { condition, status: "False", reason: expected.root(), after_s: 0 };
        self.expect(expected.what, wanted, PROOF).map(|_| ())
    }

    /// Waits until both conditions of the Node object are True.
    pub(crate) fn on_the_node_all_is_well(&self) -> Result<()> {
        for condition in [NETWORK, REACHABLE] {
            agent::wait(self.cluster, good(condition), RETURN)?;
        }
        Ok(())
    }

    /// Waits for it on the Node object, and keeps it for the table.
    pub(crate) fn expect(
        &mut self,
        what: &'static str,
        wanted: Wanted<'static>,
        patience: Duration,
    ) -> Result<Seen> {
        let seen = agent::wait(self.cluster, wanted, patience)?;
        self.lines.push(Line { what, condition: wanted.condition, seen: seen.clone() });
        Ok(seen)
    }

    /// Starts a process by the name of flannel's agent. Agents get a grace period after their start, so it is kept.
    pub(crate) fn start_flanneld(&mut self) -> Result<()> {
        if self.flanneld.is_none() {
            let mut command = self.cluster.renamed("/bin/sleep", "flanneld")?;
            self.flanneld =
                Some(Running::start(command.arg("infinity"), &self.cluster.file("flanneld.log"))?);
        }
        Ok(())
    }

    /// A pod on the node, without a scheduler.
    pub(crate) fn pod(&self, name: &str) -> Result<()> {
        self.cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "nodeName": NODE, "terminationGracePeriodSeconds": 0, "enableServiceLinks": false,
                "automountServiceAccountToken": false,
                "containers": [{"name": "c", "image": image::NAME, "imagePullPolicy": "Never"}],
            },
        }))
    }

    fn phase(&self, name: &str) -> Result<String> {
        let text =
            self.cluster.kubectl(&["get", "pod", name, "-o", "jsonpath={.status.phase} {.status.podIP}"])?;
        Ok(text.trim().to_owned())
    }

    /// Waits until a pod has an address.
    pub(crate) fn runs(&self, name: &str) -> Result<()> {
        until(&format!("the pod {name} runs"), Duration::from_mins(1), || {
            Ok(self.phase(name)?.starts_with("Running 10.").then_some(()))
        })
    }

    /// Runs a pod until it has an address, and deletes it.
    pub(crate) fn a_pod_runs(&self, name: &str) -> Result<()> {
        self.pod(name)?;
        self.runs(name)?;
        self.without_pods(&[name])
    }

    /// Deletes pods at once.
    pub(crate) fn without_pods(&self, names: &[&str]) -> Result<()> {
        let mut args = vec!["delete", "pod", "--grace-period=0", "--force", "--wait=false"];
        args.extend(names);
        self.cluster.kubectl(&args).map(|_| ())
    }

    /// Waits for the event of an outage. Events come minutes after the conditions.
    fn event_of(&self, outage: &Outage) -> Result<()> {
        let Outage { what, from, proven } = outage;
        let mut there = Vec::new();
        until(&format!("there is an event of: {what}"), EVENTS, || {
            let text = self.cluster.kubectl(&["get", "events", "-o", "json"])?;
            let events: Value = serde_json::from_str(&text)?;
            let rows = events["items"].as_array().cloned().unwrap_or_default();
            there = rows.iter().map(|row| format!("{} {}", row["message"], row["lastTimestamp"])).collect();
            let ours = |row: &&Value| {
                let [first, last] = ["firstTimestamp", "lastTimestamp"]
                    .map(|name| agent::seconds(&row[name]).unwrap_or_default());
                // One of the same kind may have followed, and is counted on.
                row["type"] == "Warning"
                    && row["source"]["component"] == "netready"
                    && first <= *proven
                    && last >= *from
            };
            Ok(rows.iter().find(ours).map(|_| ()))
        })
        .with_context(|| format!("between {from} and {proven}; there are {there:?}"))
    }

    /// Restarts the agent as `start` does it, and waits for its first verdict.
    pub(crate) fn another_agent(&mut self, start: fn(&Cluster) -> Result<Running>) -> Result<()> {
        self.agent.take().context("it runs")?.stop()?;
        self.agent = Some(start(self.cluster)?);
        until("the agent has a verdict", PROOF, || {
            let verdict = agent::state(self.cluster)?["verdict"]["reason"].clone();
            Ok((verdict != "AgentStopping" && verdict != "Learning").then_some(()))
        })
    }
}

fn boot(cluster: &mut Cluster) -> Result<()> {
    cluster.start_etcd()?;
    cluster.start_api()?;
    cluster.install_network("10.244.0.0/24")?;
    cluster.start_open_vswitch()?;
    cluster.start_runtime()?;
    cluster.import_image()?;
    cluster.start_kubelet()?;
    until("the node is Ready", Duration::from_secs(90), || {
        let Ok(node) = cluster.node() else { return Ok(None) };
        let ready = node["status"]["conditions"]
            .as_array()
            .is_some_and(|rows| rows.iter().any(|row| row["type"] == "Ready" && row["status"] == "True"));
        Ok(ready.then_some(()))
    })
}

fn print(lines: &[Line]) {
    println!(
        "\n{:<42} {:<19} {:<26} {:>11}  the kubelet's Ready then",
        "what was done", "condition", "says", "on the Node"
    );
    println!("{}", "─".repeat(134));
    for Line { what, condition, seen } in lines {
        let says = format!("{} {}", seen.status, seen.reason);
        println!("{what:<42} {condition:<19} {says:<26} {:>8} ms  {}", seen.took.as_millis(), seen.ready);
    }
    println!(
        "\n\"on the Node\": from the change in the agent to its being read with kubectl, which takes 60 to 150 ms itself."
    );
}
