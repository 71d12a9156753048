//! What many agents cost their API server: the real one, and agents that are real but for their eyes.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use kernel_tests::API;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Running, interrupted};
use crate::pki;

/// The agents start within this time, one after the other: as long as there is between two heartbeats, so that these
/// are as even at once as they are after a day.
const START: Duration = Duration::from_mins(5);
/// The first of them comes six minutes after its agent's start at the latest.
const FIRST_HEARTBEATS: Duration = Duration::from_mins(1);
const STEADY: Duration = Duration::from_mins(3);
/// How long the API server is away, and how long it is watched after.
const OUTAGE: Duration = Duration::from_mins(2);
const RETURN: Duration = Duration::from_mins(3);

/// Everything that grows, at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// Writes of conditions that succeeded.
    written: u64,
    /// Both ways, with headers, of everything between agents and API server.
    bytes: u64,
    /// Processor time of the API server, in hundredths of a second.
    ticks: u64,
}

/// What happened between the first and the last of some samples, one a second.
struct Window(Vec<Sample>);

impl Window {
    fn of(&self, what: impl Fn(&Sample) -> u64) -> f64 {
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else { return 0.0 };
        number(what(last).saturating_sub(what(first)))
    }

    fn seconds(&self) -> f64 {
        number(self.0.len().saturating_sub(1).max(1) as u64)
    }

    fn writes_a_second(&self) -> f64 {
        self.of(|sample| sample.written) / self.seconds()
    }

    fn peak(&self, seconds: usize) -> f64 {
        let spans = self.0.windows(seconds + 1).map(|span| span[seconds].written - span[0].written);
        number(spans.max().unwrap_or(0)) / number(seconds as u64)
    }

    fn kilobytes_a_second(&self) -> f64 {
        self.of(|sample| sample.bytes) / 1000.0 / self.seconds()
    }

    /// Of one processor.
    fn percent(&self) -> f64 {
        self.of(|sample| sample.ticks) / self.seconds()
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few minutes")]
fn number(count: u64) -> f64 {
    count as f64
}

/// A cluster of this many nodes, in peace and after an outage.
pub(crate) fn measure(assets: &Path, nodes: usize) -> Result<()> {
    // Of this process and those that it starts: a connection of each agent.
    raise_file_limit()?;
    let mut cluster = Cluster::new(assets)?;
    one_address_for_all(&cluster)?;
    cluster.start_etcd()?;
    cluster.start_api()?;
    create(&cluster, nodes)?;
    let idle = watch(&cluster, None, Duration::from_secs(20))?;
    let counts = cluster.file("counts");
    let mut command = cluster.place.netns.command(std::env::current_exe()?)?;
    command.arg("agents").arg(nodes.to_string()).arg(cluster.file("admin.conf")).arg(API).arg(&counts);
    let agents = Running::start(crate::place::with_us(&mut command), &cluster.file("agents.log"))?;
    println!("{nodes} agents start");
    let start = watch(&cluster, Some(&agents), START + FIRST_HEARTBEATS)?;
    let steady = watch(&cluster, Some(&agents), STEADY)?;
    cluster.api.take().context("it runs")?.stop()?;
    println!("the API server of {nodes} nodes is away");
    every_second(OUTAGE, || Ok(()))?;
    // Agents reach it before it is ready.
    let back = Timestamp::now();
    cluster.start_api()?;
    let storm = watch(&cluster, Some(&agents), RETURN)?;
    let right = right(&cluster, back.as_second())?;
    let requests = requests(&cluster)?;
    let [all, own] = agents.memory_mib().context("the agents run")?;
    println!("\n{nodes} nodes, {all:.0} MiB for their agents in one process ({own:.0} MiB its own)");
    println!("the API server alone: {:.1} % of one processor", idle.percent());
    for (name, window) in [("start", &start), ("steady", &steady), ("return", &storm)] {
        println!(
            "{name:<8} {:>7.1} writes/s, {:>7.1} in the busiest minute, {:>7.1} in the busiest 10 s, {:>8.1} kB/s, \
             {:>5.1} % of one processor",
            window.writes_a_second(),
            window.peak(60),
            window.peak(10),
            window.kilobytes_a_second(),
            window.percent()
        );
    }
    println!("requests since the return: {requests}");
    println!("{right} of {nodes} nodes say the truth {} s after the return", RETURN.as_secs());
    ensure!(right == nodes, "{} nodes do not", nodes - right);
    Ok(())
}

/// The agents share an address, as no nodes do: each of them asks the API server every ten seconds, and a port that
/// was used stays away for a minute. Without this the ports of 2,000 nodes are used up.
fn one_address_for_all(cluster: &Cluster) -> Result<()> {
    let mut sysctl = cluster.place.netns.command("sysctl")?;
    let settings = ["net.ipv4.ip_local_port_range=1024 65535", "net.ipv4.tcp_tw_reuse=1"];
    kernel_tests::run(sysctl.arg("-q").arg("-w").args(settings)).map(|_| ())
}

/// One sample a second.
fn watch(cluster: &Cluster, agents: Option<&Running>, time: Duration) -> Result<Window> {
    let mut samples = Vec::new();
    every_second(time, || {
        samples.push(sample(cluster, agents)?);
        Ok(())
    })?;
    Ok(Window(samples))
}

/// Does something once a second, for some time.
fn every_second(time: Duration, mut each: impl FnMut() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    let mut next = started;
    while started.elapsed() <= time {
        ensure!(!interrupted(), "interrupted");
        each()?;
        next += Duration::from_secs(1);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn sample(cluster: &Cluster, agents: Option<&Running>) -> Result<Sample> {
    let api = cluster.api.as_ref().context("the API server runs")?.pid();
    let stat = fs::read_to_string(format!("/proc/{api}/stat")).context("the API server has ended")?;
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks().zip(ticks()).map_or(0, |(user, system)| user + system);
    let Some(agents) = agents else { return Ok(Sample { ticks, ..Sample::default() }) };
    let dev =
        fs::read_to_string(format!("/proc/{}/net/dev", agents.pid())).context("the agents have ended")?;
    let eth0 = dev.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap_or_default();
    let fields: Vec<u64> = eth0.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    let bytes = fields.first().zip(fields.get(8)).map_or(0, |(received, sent)| received + sent);
    let counts = fs::read_to_string(cluster.file("counts")).unwrap_or_default();
    Ok(Sample { written: counts.trim().parse().unwrap_or(0), bytes, ticks })
}

/// Node objects as kubelets keep them: most of one are the names of images.
fn create(cluster: &Cluster, nodes: usize) -> Result<()> {
    let image = |index: usize| {
        json!({
            "names": [
                format!("registry.example.com/team/service-{index}@sha256:{index:064x}"),
                format!("registry.example.com/team/service-{index}:v1.2.{index}"),
            ],
            "sizeBytes": 100_000_000 + index,
        })
    };
    let images: Vec<_> = (0..50).map(image).collect();
    let items: Vec<_> = (0..nodes)
        .map(|index| {
            json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name(index)},
                "status": {"images": images, "conditions": [{
                    "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status",
                    "lastHeartbeatTime": "2026-01-02T03:04:05Z", "lastTransitionTime": "2026-01-02T03:04:05Z",
                }]},
            })
        })
        .collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    let file = pki::write(&cluster.file("nodes.json"), &list.to_string())?;
    cluster
        .kubectl(&["create", "--validate=false", "-o", "name", "-f", &file.display().to_string()])
        .map(|_| ())
}

fn name(index: usize) -> String {
    format!("node-{index}")
}

/// How many Node objects say that the API server is reachable, since a time after its return.
fn right(cluster: &Cluster, back_s: i64) -> Result<usize> {
    let text = cluster.kubectl(&["get", "--raw", "/api/v1/nodes?resourceVersion=0"])?;
    let list: Value = serde_json::from_str(&text).context("read the Node objects")?;
    let is_right = |node: &&Value| {
        let mut rows = node["status"]["conditions"].as_array().into_iter().flatten();
        rows.any(|row| {
            let since = row["lastTransitionTime"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
            row["type"] == "netready.dev/APIServerReachable"
                && row["status"] == "True"
                && since.is_some_and(|since| since.as_second() >= back_s)
        })
    };
    Ok(list["items"].as_array().into_iter().flatten().filter(is_right).count())
}

/// What the API server itself has counted since it started.
fn requests(cluster: &Cluster) -> Result<String> {
    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"])?;
    let count = |verb: &str, resource: &str| {
        let (verb, resource) = (format!("verb=\"{verb}\""), format!("resource=\"{resource}\""));
        let rows = metrics.lines().filter(|line| {
            line.starts_with("apiserver_request_total{") && line.contains(&verb) && line.contains(&resource)
        });
        rows.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
    };
    Ok(format!(
        "{} patches of nodes, {} new events, {} patches of events",
        count("PATCH", "nodes"),
        count("POST", "events"),
        count("PATCH", "events")
    ))
}

/// The other program: many agents, and how many writes succeeded, in a file that is written anew each second.
pub(crate) fn agents(mut args: impl Iterator<Item = String>) -> Result<()> {
    let mut next = |what: &str| args.next().with_context(|| format!("name {what}"));
    let nodes: usize = next("how many nodes there are")?.parse().context("read how many")?;
    let kubeconfig = next("a kubeconfig")?;
    let api: SocketAddr = next("the API server's address")?.parse().context("read the address")?;
    let counts = next("a file for the counts")?;
    let writes = probe::simulation::Writes::default();
    let local = tokio::task::LocalSet::new();
    for index in 0..nodes {
        let (kubeconfig, writes) = (kubeconfig.clone(), writes.clone());
        local.spawn_local(async move {
            let delay = START.mul_f64(number(index as u64) / number(nodes.max(1) as u64));
            tokio::time::sleep(delay).await;
            let ended = probe::simulation::agent(&name(index), Path::new(&kubeconfig), api, writes).await;
            // An agent never ends by itself.
            eprintln!("the agent of {} has ended: {ended:?}", name(index));
        });
    }
    let tell = async {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let written = writes.ended("ok");
            let new = format!("{counts}.new");
            fs::write(&new, written.to_string())?;
            fs::rename(&new, &counts)?;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    local.block_on(&runtime, tell)
}

fn raise_file_limit() -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is live and writable.
    let read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    ensure!(read == 0, "read the limit of open files");
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is live.
    let raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    ensure!(raised == 0, "raise the limit of open files");
    Ok(())
}
