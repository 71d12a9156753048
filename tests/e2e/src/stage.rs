//! The node on which scenes run: makes a fault, keeps it up, repairs it, and checks the agent's reports throughout.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::agent::{self, ExpectedCondition, ObservedCondition, STATE};
use crate::cluster::{Cluster, NODE, Running, until};
use crate::image;
use crate::watch::{Expected, Row, SAMPLE_TIMES, Watch, format_samples, wait_for_recovery};

/// The condition of the node's network.
pub(crate) const NETWORK: &str = "NodeNetworkReady";
/// The condition of the API server.
pub(crate) const REACHABLE: &str = "APIServerReachable";
/// How long a fault may take to be proven: hold times, grace periods and retries of the kubelet.
pub(crate) const PROOF: Duration = Duration::from_mins(1);
/// The engine's grace period for recently started components.
pub(crate) const SETTLES: Duration = Duration::from_mins(2);
/// How long a fault may still be reported after its repair.
const RECOVERY: Duration = Duration::from_secs(30);
/// Time from the end of an outage until the Node object was written: 10 s without a fault, then at random within a minute.
pub(crate) const RETURN: Duration = Duration::from_secs(100);
/// The event of an outage is sent within six minutes after it.
const EVENTS: Duration = Duration::from_secs(380);

/// How long each fault is kept up; by then the kubelet and the runtime have retried several times.
const HOLD: Duration = Duration::from_secs(SAMPLE_TIMES[SAMPLE_TIMES.len() - 1]);

/// Returns the condition of a healthy node.
pub(crate) const fn healthy_condition(condition: &'static str) -> ExpectedCondition<'static> {
    ExpectedCondition { condition, status: "True", reason: "NetworkReady", after_s: 0 }
}

/// Returns the time in whole seconds since 1970.
pub(crate) fn now_s() -> i64 {
    Timestamp::now().as_second()
}

/// A condition on the Node object: a line of the table.
struct Line {
    what: &'static str,
    condition: &'static str,
    seen: ObservedCondition,
}

/// A change to False that could not be written. An event with the time of the change must report it later.
struct Outage {
    what: &'static str,
    /// The outage started between `from` and `proven`, in seconds since 1970.
    from: i64,
    proven: i64,
}

/// The cluster, the agent, and the results so far.
pub(crate) struct Stage<'a> {
    /// The cluster with the node that the agent observes.
    pub(crate) cluster: &'a mut Cluster,
    /// The agent.
    pub(crate) agent: Option<Running>,
    /// A process with the name of flannel's agent.
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
        println!("the node was Ready after {:.1} s", started.elapsed().as_secs_f32());
        let agent = Some(agent::start(cluster)?);
        let stage =
            Self { cluster, agent, flanneld: None, lines: Vec::new(), rows: Vec::new(), outages: Vec::new() };
        // The agent learns the directory of plugins from the first plugin that the runtime runs.
        stage.run_pod_once("first")?;
        stage.wait_until_healthy()?;
        Ok(stage)
    }

    /// Waits for the events of outages and prints the tables.
    pub(crate) fn end(mut self) -> Result<()> {
        for outage in std::mem::take(&mut self.outages) {
            self.wait_for_event(&outage)?;
        }
        print!("{}", Row::table(&self.rows));
        print(&self.lines);
        let [all, own] =
            self.agent.as_ref().and_then(Running::memory_mib).context("the agent is not running")?;
        println!("memory of the agent: {all:.1} MiB, {own:.1} MiB of it anonymous");
        Ok(())
    }

    /// Starts to sample the agent's state.
    pub(crate) fn watch(&self) -> Watch {
        Watch::start(self.cluster.host.path(STATE))
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

    /// Makes a fault, keeps it up for [`HOLD`] with `keep_up`, and repairs it. Every sample must be right.
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
            let known = watch.now().is_some_and(|sample| expected.is_reported_in(&sample));
            if proven.is_none() && known {
                proven = Some(now_s());
                if expected.written {
                    self.wait_for_root_condition(&expected)?;
                }
            }
            Ok((watch.elapsed() >= HOLD && proven.is_some()).then_some(()))
        })
        .with_context(|| format_samples(&watch.samples()))?;
        let samples = watch.samples();
        drop(watch);
        expected.check(&samples)?;
        let watch = self.watch();
        repair(self)?;
        let repaired = watch.elapsed();
        let took = wait_for_recovery(&watch, expected, RECOVERY)?.saturating_sub(repaired);
        self.rows.push(Row::new(expected, &samples, took));
        if expected.written {
            return self.wait_until_healthy();
        }
        // The fault could not be written, so the object had True throughout. The condition that is written now became true
        // after the fault was proven, and possibly before the repair was complete: the API server has several clients of
        // etcd, which reconnect one after the other.
        let proven = proven.context("the fault was not reported")?;
        self.expect_condition(
            expected.what,
            ExpectedCondition { after_s: proven, ..healthy_condition(REACHABLE) },
            RETURN,
        )?;
        self.outages.push(Outage { what: expected.what, from, proven });
        Ok(())
    }

    /// Waits until the Node object has the condition of the root cause, if the fault has one.
    fn wait_for_root_condition(&mut self, expected: &Expected) -> Result<()> {
        let Some(condition) = expected.conditions.first() else { return Ok(()) };
        let wanted = ExpectedCondition { condition, status: "False", reason: expected.root(), after_s: 0 };
        self.expect_condition(expected.what, wanted, PROOF).map(|_| ())
    }

    /// Waits until both conditions of the Node object are True.
    pub(crate) fn wait_until_healthy(&self) -> Result<()> {
        for condition in [NETWORK, REACHABLE] {
            agent::wait(self.cluster, healthy_condition(condition), RETURN)?;
        }
        Ok(())
    }

    /// Waits for a condition on the Node object and adds it to the table.
    pub(crate) fn expect_condition(
        &mut self,
        what: &'static str,
        wanted: ExpectedCondition<'static>,
        patience: Duration,
    ) -> Result<ObservedCondition> {
        let seen = agent::wait(self.cluster, wanted, patience)?;
        self.lines.push(Line { what, condition: wanted.condition, seen: seen.clone() });
        Ok(seen)
    }

    /// Starts a process with the name of flannel's agent. It keeps running, because every start has a grace period.
    pub(crate) fn start_flanneld(&mut self) -> Result<()> {
        if self.flanneld.is_none() {
            let mut command = self.cluster.copy_as("/bin/sleep", "flanneld")?;
            self.flanneld =
                Some(Running::start(command.arg("infinity"), &self.cluster.file("flanneld.log"))?);
        }
        Ok(())
    }

    /// Creates a pod that is bound to the node, without a scheduler.
    pub(crate) fn create_pod(&self, name: &str) -> Result<()> {
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
    pub(crate) fn wait_until_pod_runs(&self, name: &str) -> Result<()> {
        until(&format!("the pod {name} runs"), Duration::from_mins(1), || {
            Ok(self.phase(name)?.starts_with("Running 10.").then_some(()))
        })
    }

    /// Creates a pod, waits until it has an address, and deletes it.
    pub(crate) fn run_pod_once(&self, name: &str) -> Result<()> {
        self.create_pod(name)?;
        self.wait_until_pod_runs(name)?;
        self.delete_pods(&[name])
    }

    /// Deletes pods without a grace period.
    pub(crate) fn delete_pods(&self, names: &[&str]) -> Result<()> {
        let mut args = vec!["delete", "pod", "--grace-period=0", "--force", "--wait=false"];
        args.extend(names);
        self.cluster.kubectl(&args).map(|_| ())
    }

    /// Waits for the event of an outage, which is sent minutes after the conditions.
    fn wait_for_event(&self, outage: &Outage) -> Result<()> {
        let Outage { what, from, proven } = outage;
        let mut found = Vec::new();
        until(&format!("an event of {what:?} exists"), EVENTS, || {
            let text = self.cluster.kubectl(&["get", "events", "-o", "json"])?;
            let events: Value = serde_json::from_str(&text)?;
            let rows = events["items"].as_array().cloned().unwrap_or_default();
            found = rows.iter().map(|row| format!("{} {}", row["message"], row["lastTimestamp"])).collect();
            let ours = |row: &&Value| {
                let [first, last] = ["firstTimestamp", "lastTimestamp"]
                    .map(|name| agent::seconds(&row[name]).unwrap_or_default());
                // A later outage of the same kind only updates `lastTimestamp` and the count.
                row["type"] == "Warning"
                    && row["source"]["component"] == "netready"
                    && first <= *proven
                    && last >= *from
            };
            Ok(rows.iter().find(ours).map(|_| ()))
        })
        .with_context(|| format!("between {from} and {proven}; found {found:?}"))
    }

    /// Restarts the agent with `start`, and waits for its first verdict.
    pub(crate) fn restart_agent(&mut self, start: fn(&Cluster) -> Result<Running>) -> Result<()> {
        self.agent.take().context("not running")?.stop()?;
        self.agent = Some(start(self.cluster)?);
        until("the agent has a verdict", PROOF, || {
            let verdict = agent::state(self.cluster)?["verdict"]["reason"].clone();
            Ok((verdict != "AgentStopping" && verdict != "Learning").then_some(()))
        })
    }
}

/// Starts all programs and waits until the node is Ready.
fn boot(cluster: &mut Cluster) -> Result<()> {
    cluster.start_etcd()?;
    cluster.start_api()?;
    cluster.install_network("10.244.0.0/24")?;
    cluster.start_open_vswitch()?;
    cluster.start_runtime()?;
    cluster.import_image()?;
    cluster.start_kubelet()?;
    until("the node is Ready", Duration::from_secs(90), || {
        let Ok(node) = cluster.node_object() else { return Ok(None) };
        let ready = node["status"]["conditions"]
            .as_array()
            .is_some_and(|rows| rows.iter().any(|row| row["type"] == "Ready" && row["status"] == "True"));
        Ok(ready.then_some(()))
    })
}

fn print(lines: &[Line]) {
    println!(
        "\n{:<42} {:<19} {:<26} {:>11}  the kubelet's Ready",
        "fault", "condition", "value", "on the Node"
    );
    println!("{}", "─".repeat(134));
    for Line { what, condition, seen } in lines {
        let value = format!("{} {}", seen.status, seen.reason);
        println!("{what:<42} {condition:<19} {value:<26} {:>8} ms  {}", seen.took.as_millis(), seen.ready);
    }
    println!(
        "\n\"on the Node\": time from the change in the agent until kubectl has read it, which itself takes 60 to 150 ms."
    );
}
