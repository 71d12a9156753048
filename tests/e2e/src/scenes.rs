//! One fault after the other: what was done, what the Node object says then, and what the kubelet says of it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use jiff::Timestamp;
use kernel_tests::{API, Namespace};
use serde_json::{Value, json};

use crate::agent::{self, Seen, Wanted};
use crate::cluster::{CERTIFICATE, Cluster, NODE, Running, SERVICE, VALID, network, until};
use crate::image;

const NETWORK: &str = "NodeNetworkReady";
const REACHABLE: &str = "APIServerReachable";
/// What a fault may take to be proven: the engine's own hold and settling times, and the kubelet's retries.
const PROOF: Duration = Duration::from_mins(1);
/// After an outage: clean for 10 s, then spread over a minute.
const RETURN: Duration = Duration::from_secs(100);

/// After an outage its event is sent within six minutes.
const EVENTS: Duration = Duration::from_secs(380);
/// How long the engine gives what has just started, before it says that something is wrong.
const SETTLES: Duration = Duration::from_mins(2);

/// One line of the table.
struct Line {
    what: &'static str,
    condition: &'static str,
    seen: Seen,
}

/// Before the name of a scene that is done.
pub(crate) const DONE: char = '✔';

/// The scene's own part of a story: makes the fault, waits for what must be said, repairs.
type Scene = fn(&mut Stage<'_>) -> Result<()>;

/// Two stories of about the same length, each for a node of its own: most of a scene is waiting. Outages come first, for
/// their events come minutes later.
const STORIES: [&[(&str, Scene)]; 2] = [
    &[
        ("healthy", healthy),
        ("API server stopped", stopped),
        ("API server frozen", frozen),
        ("etcd killed", etcd_killed),
        ("API server behind a filter that drops", dropped),
        ("API server behind a filter that rejects", rejected),
        ("API server behind the node's own filter", firewalled),
        ("kube-apiserver ends again and again", crash_loop),
        ("containerd killed, namespaces gone", runtime_killed),
        ("ovs-vswitchd killed", switch_killed),
        ("node deleted", deleted),
    ],
    &[
        ("credentials rotated and expired", credentials),
        ("configuration removed", removed),
        ("configuration broken", broken),
        ("network that waits for another", meta_plugin),
        ("configuration shadowed", shadowed),
        ("plugin missing", missing),
        ("addresses exhausted", exhausted),
        ("kubelet stopped", kubelet_stopped),
        ("agent restarted", restarted),
        ("node without a pod CIDR", without_pod_cidr),
        ("account in the cluster, Service address dead", in_cluster),
        ("webhook blocks the pods of the network", webhook),
    ],
];

/// The names of the scenes of each story.
pub(crate) fn stories() -> impl Iterator<Item = Vec<&'static str>> {
    STORIES.iter().map(|story| story.iter().map(|(name, _)| *name).collect())
}

/// Fails when a part of a name is in none: playing nothing would look like success.
pub(crate) fn check(chosen: &[String]) -> Result<()> {
    for part in chosen {
        if !stories().flatten().any(|name| name.contains(part.as_str())) {
            let names: Vec<_> = stories().flatten().collect();
            bail!("no scene has {part:?} in its name; there are:\n  {}", names.join("\n  "));
        }
    }
    Ok(())
}

/// The cluster, the agent, and the table so far.
struct Stage<'a> {
    cluster: &'a mut Cluster,
    agent: Option<Running>,
    /// A process that the agent takes for flannel's: nothing else of it counts here.
    flanneld: Option<Running>,
    lines: Vec<Line>,
    outages: Vec<Outage>,
}

/// A change to False that could not be written. What is left of it is an event with the change's own time.
struct Outage {
    what: &'static str,
    /// Between these two, in seconds since 1970.
    from: i64,
    proven: i64,
}

/// Plays them; fails at the first wrong answer.
pub(crate) fn play(cluster: &mut Cluster, chosen: &[String]) -> Result<()> {
    let started = Instant::now();
    boot(cluster)?;
    println!("a node that is Ready after {:.1} s", started.elapsed().as_secs_f32());
    let agent = Some(agent::start(cluster)?);
    let mut stage = Stage { cluster, agent, flanneld: None, lines: Vec::new(), outages: Vec::new() };
    stage.expect("", good(NETWORK), PROOF)?;
    stage.expect("", good(REACHABLE), PROOF)?;
    stage.lines.clear();
    for (name, scene) in STORIES.into_iter().flatten() {
        if chosen.iter().any(|part| name.contains(part.as_str())) {
            let started = Instant::now();
            let recorder = agent::record(stage.cluster, name)?;
            scene(&mut stage).with_context(|| format!("scene {name:?}"))?;
            recorder.map(Running::stop).transpose()?;
            println!("{DONE} {name} ({:.0} s)", started.elapsed().as_secs_f32());
        }
    }
    for outage in std::mem::take(&mut stage.outages) {
        stage.told(&outage)?;
    }
    print(&stage.lines);
    let [all, own] = stage.agent.as_ref().and_then(Running::memory_mib).context("the agent runs")?;
    println!("the agent has {all:.1} MiB of memory, {own:.1} MiB of it not its program's");
    Ok(())
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

/// The condition of a node that is well.
const fn good(condition: &'static str) -> Wanted<'static> {
    Wanted { condition, status: "True", reason: "NetworkReady", after_s: 0 }
}

/// The network's condition when it is not.
const fn broken_by(reason: &'static str) -> Wanted<'static> {
    Wanted { condition: NETWORK, status: "False", reason, after_s: 0 }
}

fn now_s() -> i64 {
    Timestamp::now().as_second()
}

impl Stage<'_> {
    /// Waits for it on the Node object, and keeps it for the table.
    fn expect(&mut self, what: &'static str, wanted: Wanted<'static>, patience: Duration) -> Result<Seen> {
        let seen = agent::wait(self.cluster, wanted, patience)?;
        self.lines.push(Line { what, condition: wanted.condition, seen: seen.clone() });
        Ok(seen)
    }

    /// The node is well again.
    fn recovers(&mut self) -> Result<()> {
        for condition in [NETWORK, REACHABLE] {
            agent::wait(self.cluster, good(condition), RETURN)?;
        }
        Ok(())
    }

    /// Agents that have just started are given time, so it stays.
    fn start_flanneld(&mut self) -> Result<()> {
        if self.flanneld.is_none() {
            let mut command = self.cluster.renamed("/bin/sleep", "flanneld")?;
            self.flanneld =
                Some(Running::start(command.arg("infinity"), &self.cluster.file("flanneld.log"))?);
        }
        Ok(())
    }

    /// A pod on the node, without a scheduler.
    fn pod(&self, name: &str) -> Result<()> {
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

    fn runs(&self, name: &str) -> Result<()> {
        until(&format!("the pod {name} runs"), Duration::from_mins(1), || {
            Ok(self.phase(name)?.starts_with("Running 10.").then_some(()))
        })
    }

    fn without_pods(&self, names: &[&str]) -> Result<()> {
        let mut args = vec!["delete", "pod", "--grace-period=0", "--force", "--wait=false"];
        args.extend(names);
        self.cluster.kubectl(&args).map(|_| ())
    }

    /// The event of an outage is there. Events wait for conditions, those of a whole cluster.
    fn told(&self, outage: &Outage) -> Result<()> {
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

    /// The API server is away for so long that the agent notices, then comes back: what was then is told truly.
    fn outage(
        &mut self,
        what: &'static str,
        reason: &str,
        begin: impl FnOnce(&mut Cluster) -> Result<()>,
        end: impl FnOnce(&mut Cluster) -> Result<()>,
    ) -> Result<()> {
        let from = now_s();
        begin(self.cluster)?;
        agent::says(self.cluster, REACHABLE, reason, PROOF)?;
        let proven = now_s();
        end(self.cluster)?;
        let back = now_s();
        let wanted = Wanted { after_s: back, ..good(REACHABLE) };
        self.expect(what, wanted, RETURN)?;
        // Its reason is the one that was proven first; a better one may have followed.
        self.outages.push(Outage { what, from, proven });
        self.recovers()
    }
}

fn healthy(stage: &mut Stage<'_>) -> Result<()> {
    stage.pod("web-1")?;
    stage.runs("web-1")?;
    stage.expect("nothing", good(NETWORK), PROOF)?;
    stage.expect("", good(REACHABLE), PROOF)?;
    let node = stage.cluster.node()?;
    let kinds: Vec<_> = node["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| row["type"].clone())
        .collect();
    for foreign in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        ensure!(kinds.iter().any(|kind| kind == foreign), "{foreign} is gone from {kinds:?}");
    }
    ensure!(kinds.len() == 6, "{kinds:?}");
    stage.without_pods(&["web-1"])
}

fn removed(stage: &mut Stage<'_>) -> Result<()> {
    stage.cluster.remove_network("10-pods.conflist")?;
    stage.expect("CNI configuration removed", broken_by("CNIConfigMissing"), PROOF)?;
    stage.cluster.install_network("10.244.0.0/24")?;
    stage.recovers()
}

fn broken(stage: &mut Stage<'_>) -> Result<()> {
    stage
        .cluster
        .write_network("10-pods.conflist", "{\"cniVersion\": \"0.4.0\", \"name\": \"pods\", \"plug")?;
    stage.expect("half a configuration", broken_by("CNIConfigInvalid"), PROOF)?;
    stage.cluster.install_network("10.244.0.0/24")?;
    stage.recovers()
}

/// A file that comes first by its name, before that of the network whose agent runs here.
fn shadowed(stage: &mut Stage<'_>) -> Result<()> {
    stage.start_flanneld()?;
    let flannel = json!({"cniVersion": "0.4.0", "name": "flannel", "plugins": [{"type": "flannel"}]});
    stage.cluster.write_network("20-flannel.conflist", &flannel.to_string())?;
    stage.expect("another's file before that of the agent", broken_by("CNIConfigShadowed"), PROOF)?;
    stage.cluster.remove_network("20-flannel.conflist")?;
    stage.recovers()
}

fn missing(stage: &mut Stage<'_>) -> Result<()> {
    let plugin = stage.cluster.place.path("/opt/cni/bin/portmap");
    let away = plugin.with_file_name("portmap.away");
    fs::rename(&plugin, &away)?;
    stage.expect("plugin portmap removed", broken_by("CNIBinaryMissing"), PROOF)?;
    fs::rename(&away, &plugin)?;
    stage.recovers()
}

fn exhausted(stage: &mut Stage<'_>) -> Result<()> {
    stage.cluster.write_network(
        "10-pods.conflist",
        &network("10.244.9.0/30").to_string().replace("\"pods\"", "\"few\"").replace("cni0", "cni9"),
    )?;
    stage.pod("one")?;
    stage.runs("one")?;
    stage.pod("two")?;
    stage.expect("a second pod in a /30", broken_by("IPAMExhausted"), PROOF)?;
    stage.without_pods(&["one", "two"])?;
    stage.cluster.install_network("10.244.0.0/24")?;
    // It takes a success to disprove it.
    stage.pod("three")?;
    stage.runs("three")?;
    stage.recovers()?;
    stage.without_pods(&["three"])
}

fn stopped(stage: &mut Stage<'_>) -> Result<()> {
    stage.outage(
        "API server stopped, and started",
        "APIServerRefused",
        |cluster| cluster.api.take().context("it runs")?.stop(),
        Cluster::start_api,
    )
}

fn frozen(stage: &mut Stage<'_>) -> Result<()> {
    let signal = |signal| {
        move |cluster: &mut Cluster| {
            cluster.api.as_ref().context("it runs")?.signal(signal);
            Ok(())
        }
    };
    stage.outage(
        "API server frozen, and continued",
        "APITLSStalled",
        signal(libc::SIGSTOP),
        signal(libc::SIGCONT),
    )
}

fn filter(
    stage: &mut Stage<'_>,
    what: &'static str,
    reason: &str,
    on: fn(&Cluster) -> &Namespace,
    hook: &str,
    rule: &str,
) -> Result<()> {
    let rules = format!(
        "add table ip e2e; add chain ip e2e c {{ type filter hook {hook} priority 0; }}; add rule ip e2e c {rule}"
    );
    stage.outage(
        what,
        reason,
        |cluster| on(cluster).nft(&rules),
        |cluster| on(cluster).nft("delete table ip e2e"),
    )
}

const fn control(cluster: &Cluster) -> &Namespace {
    &cluster.control
}

const fn node(cluster: &Cluster) -> &Namespace {
    &cluster.place.netns
}

fn dropped(stage: &mut Stage<'_>) -> Result<()> {
    let rule = "ip saddr 10.99.0.2 tcp dport 6443 drop";
    filter(stage, "packets to it dropped, and let through", "APITimeout", control, "input", rule)
}

fn rejected(stage: &mut Stage<'_>) -> Result<()> {
    let rule = "ip saddr 10.99.0.2 tcp dport 6443 reject with icmp type admin-prohibited";
    filter(stage, "packets to it rejected, and let through", "APIFirewalled", control, "input", rule)
}

/// Dropped before it leaves the node.
fn firewalled(stage: &mut Stage<'_>) -> Result<()> {
    let rule = "ip daddr 10.99.0.1 tcp dport 6443 drop";
    filter(stage, "packets to it dropped by the node itself", "APIPolicyDenied", node, "output", rule)
}

fn etcd_killed(stage: &mut Stage<'_>) -> Result<()> {
    stage.outage(
        "etcd killed, and started",
        "APIServerUnhealthy",
        |cluster| {
            drop(cluster.etcd.take());
            Ok(())
        },
        Cluster::start_etcd,
    )
}

/// What it left of its pods' namespaces are files: the new one cleans up, and makes the pods anew.
fn runtime_killed(stage: &mut Stage<'_>) -> Result<()> {
    stage.pod("kept")?;
    stage.runs("kept")?;
    drop(stage.cluster.runtime.take());
    stage.expect("containerd killed", broken_by("RuntimeDown"), PROOF)?;
    stage.cluster.forget_namespaces()?;
    stage.cluster.start_runtime()?;
    stage.expect("containerd started over what it left", good(NETWORK), PROOF)?;
    stage.recovers()?;
    stage.pod("next")?;
    stage.runs("next")?;
    stage.recovers()?;
    stage.without_pods(&["kept", "next"])
}

fn kubelet_stopped(stage: &mut Stage<'_>) -> Result<()> {
    stage.cluster.kubelet.take().context("it runs")?.stop()?;
    stage.expect("kubelet stopped", broken_by("KubeletDown"), PROOF)?;
    stage.cluster.start_kubelet()?;
    stage.recovers()
}

/// As Multus does it: a plugin that waits for what the default network writes, and hands on to another plugin.
fn meta_plugin(stage: &mut Stage<'_>) -> Result<()> {
    const MARKER: &str = "/run/default-network-is-ready";
    let mut delegate = network("10.244.0.0/24")["plugins"][0].take();
    delegate["cniVersion"] = "0.4.0".into();
    delegate["name"] = "pods".into();
    let script = format!(
        "#!/bin/sh\ncat >/dev/null\nwhile [ \"$CNI_COMMAND\" = ADD ] && [ ! -e {MARKER} ]; do sleep 0.2; done\n\
         echo '{delegate}' | /opt/cni/bin/bridge\n"
    );
    stage.cluster.install_plugin("multus", &script)?;
    let config =
        json!({"cniVersion": "0.4.0", "name": "meta", "type": "multus", "readinessindicatorfile": MARKER});
    stage.cluster.write_network("00-multus.conf", &config.to_string())?;
    stage.pod("waits")?;
    stage.expect("a network that waits for another", broken_by("CNIDefaultNetworkNotReady"), PROOF)?;
    fs::write(stage.cluster.place.path(MARKER), "")?;
    stage.runs("waits")?;
    stage.expect("the other network is there", good(NETWORK), PROOF)?;
    stage.recovers()?;
    stage.cluster.remove_network_as("multus", "00-multus.conf")?;
    stage.recovers()?;
    stage.without_pods(&["waits"])
}

/// Its datapath is in the process: nothing of it is left.
fn switch_killed(stage: &mut Stage<'_>) -> Result<()> {
    drop(stage.cluster.switch.take());
    stage.expect("ovs-vswitchd killed", broken_by("OVSNotReady"), PROOF)?;
    stage.cluster.start_switch()?;
    stage.expect("ovs-vswitchd started", good(NETWORK), PROOF)?;
    stage.recovers()
}

/// The node's own API server, as on a control plane of several hosts: another one answers.
fn crash_loop(stage: &mut Stage<'_>) -> Result<()> {
    for _ in 0..3 {
        let status = stage.cluster.broken_api_server()?;
        ensure!(!status.success(), "it should not start");
    }
    let looping =
        Wanted { condition: REACHABLE, status: "False", reason: "ControlPlaneCrashLoop", after_s: 0 };
    stage.expect("kube-apiserver ends three times", looping, PROOF)?;
    // A loop counts as over when nothing has ended for two minutes.
    stage.expect("it ends no more", good(REACHABLE), RETURN + SETTLES)?;
    stage.recovers()
}

fn deleted(stage: &mut Stage<'_>) -> Result<()> {
    stage.cluster.kubelet.take().context("it runs")?.stop()?;
    let old = stage.cluster.node()?["metadata"]["uid"].clone();
    stage.cluster.kubectl(&["delete", "node", NODE])?;
    stage.cluster.start_kubelet()?;
    until("the node is registered anew", Duration::from_mins(1), || {
        Ok(stage.cluster.node().ok().filter(|node| node["metadata"]["uid"] != old))
    })?;
    // A heartbeat would be minutes away.
    stage.expect("node deleted and registered anew", good(REACHABLE), Duration::from_secs(30))?;
    stage.recovers()
}

fn credentials(stage: &mut Stage<'_>) -> Result<()> {
    stage.cluster.kubelet_identity(-time::Duration::hours(1))?;
    agent::says(stage.cluster, REACHABLE, "CredentialExpired", Duration::from_secs(90))?;
    // What was wrong could not be written, so that True stood there all the time.
    let back = now_s();
    stage.cluster.kubelet_identity(VALID)?;
    let wanted = Wanted { after_s: back, ..good(REACHABLE) };
    stage.expect("certificate expired, and replaced", wanted, RETURN)?;
    ensure!(stage.cluster.place.path(CERTIFICATE).exists(), "the certificate is there");
    stage.recovers()
}

fn restarted(stage: &mut Stage<'_>) -> Result<()> {
    let before = agent::wait(stage.cluster, good(NETWORK), PROOF)?;
    // A condition does not change twice within ten seconds, not even for this.
    until("it may change", PROOF, || Ok((now_s() > before.since_s + 10).then_some(())))?;
    stage.agent.take().context("it runs")?.stop()?;
    let stopping = Wanted { condition: NETWORK, status: "Unknown", reason: "AgentStopping", after_s: 0 };
    agent::wait(stage.cluster, stopping, PROOF)?;
    stage.agent = Some(agent::start(stage.cluster)?);
    let seen = until("the new agent says that all is well", PROOF, || {
        let state = agent::state(stage.cluster)?;
        Ok((state["verdict"]["reason"] == "NetworkReady").then_some(state))
    })?;
    let since = agent::seconds(&seen["conditions"][0]["lastTransitionTime"])?;
    ensure!(since == before.since_s, "it was True since {}, and a new agent says {since}", before.since_s);
    let after = agent::wait(stage.cluster, good(NETWORK), PROOF)?;
    if after.since_s != before.since_s {
        bail!("a restart of the agent moved the time from {} to {}", before.since_s, after.since_s);
    }
    Ok(())
}

/// Nobody gives this cluster's nodes ranges, and the agent of the network takes its addresses from there.
fn without_pod_cidr(stage: &mut Stage<'_>) -> Result<()> {
    stage.start_flanneld()?;
    stage.cluster.remove_network("10-pods.conflist")?;
    // An agent that has just started is given two minutes, and the object is read within half a minute then.
    // Its status has not changed then, so it is in no table of changes.
    agent::wait(stage.cluster, broken_by("PodCIDRNotAssigned"), PROOF + SETTLES)?;
    stage.cluster.install_network("10.244.0.0/24")?;
    stage.recovers()?;
    stage.flanneld.take().context("it runs")?.stop()
}

/// The agent as a DaemonSet runs it, where nobody programs Services: it writes by the address that the kubelet uses.
fn in_cluster(stage: &mut Stage<'_>) -> Result<()> {
    stage.agent.take().context("it runs")?.stop()?;
    stage.cluster.install_account()?;
    stage.agent = Some(agent::start_in_cluster(stage.cluster)?);
    let wanted =
        Wanted { condition: REACHABLE, status: "False", reason: "APIServiceNotProgrammed", after_s: 0 };
    stage.expect("Service address without a way", wanted, PROOF)?;
    let by = agent::state(stage.cluster)?["conditionWrites"]["by"].clone();
    ensure!(by == format!("in-cluster account at {API}"), "it writes by {by}");
    let rules = format!(
        "add table ip e2e; add chain ip e2e out {{ type nat hook output priority -100; }}; \
         add rule ip e2e out ip daddr {SERVICE} tcp dport 443 dnat to {API}"
    );
    stage.cluster.place.netns.nft(&rules)?;
    stage.expect("Service address programmed", good(REACHABLE), RETURN)?;
    stage.recovers()
}

/// As kops' rolling update had it: the webhook's backend waits for the network, whose pods wait for the webhook.
fn webhook(stage: &mut Stage<'_>) -> Result<()> {
    if !stage.cluster.has_account() {
        in_cluster(stage)?;
    }
    stage.agent.take().context("it runs")?.stop()?;
    stage.agent = Some(agent::start_in_cluster(stage.cluster)?);
    let controllers = stage.cluster.start_controllers()?;
    let on_control = agent::start_on_control(stage.cluster)?;
    stage.cluster.apply(&json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "closed"},
        "webhooks": [{
            "name": "closed.example.com", "failurePolicy": "Fail", "sideEffects": "None", "timeoutSeconds": 5,
            "admissionReviewVersions": ["v1"], "clientConfig": {"url": "https://127.0.0.1:9999/mutate"},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        }],
    }))?;
    stage.cluster.remove_network("10-pods.conflist")?;
    stage.cluster.apply(&json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "calico-node", "namespace": "kube-system"},
        "spec": {
            "selector": {"matchLabels": {"app": "cni"}},
            "template": {
                "metadata": {"labels": {"app": "cni"}},
                "spec": {
                    "hostNetwork": true, "automountServiceAccountToken": false,
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{"name": "c", "image": image::NAME, "imagePullPolicy": "Never"}],
                },
            },
        },
    }))?;
    let blocked = Wanted { condition: REACHABLE, status: "False", reason: "AdmissionBlocked", after_s: 0 };
    stage.expect("a webhook that nobody serves", blocked, RETURN)?;
    let state = agent::state(stage.cluster)?;
    ensure!(state["verdict"]["reason"] == "AdmissionBlocked", "{}", state["verdict"]);
    ensure!(state["verdict"]["subject"] == "closed.example.com", "{}", state["verdict"]);
    ensure!(state["consequences"][0]["reason"] == "CNIConfigMissing", "{}", state["consequences"]);
    // Its own host has seen how the connects to the webhook ended.
    let mut last = Value::Null;
    let seen = until("the control plane's host has seen it", PROOF, || {
        last = agent::control_state(stage.cluster)?["verdict"].clone();
        let words = last["message"].as_str().unwrap_or_default();
        let joined = words.ends_with("seen on this host: refused: nothing listens here");
        Ok((last["reason"] == "AdmissionBlocked" && joined).then_some(()))
    });
    seen.with_context(|| format!("it says {last}"))?;
    on_control.stop()?;
    stage.cluster.kubectl(&["delete", "mutatingwebhookconfiguration", "closed"])?;
    stage.cluster.kubectl(&["delete", "daemonset", "calico-node", "-n", "kube-system"])?;
    stage.cluster.install_network("10.244.0.0/24")?;
    stage.recovers()?;
    controllers.stop()?;
    stage.cluster.remove_account()
}
