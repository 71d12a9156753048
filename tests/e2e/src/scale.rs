//! The cost of many agents for their API server: a real API server, and real agents without their observers.

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

/// The agents start one after the other within this time, which is the interval of heartbeats: their writes are therefore
/// spread as evenly at once as they are after a day.
const START: Duration = Duration::from_mins(5);
/// The first heartbeat of an agent is at most six minutes after its start.
const FIRST_HEARTBEATS: Duration = Duration::from_mins(1);
const STEADY: Duration = Duration::from_mins(3);
/// How long the API server is down, and how long it is measured afterwards.
const OUTAGE: Duration = Duration::from_mins(2);
const RETURN: Duration = Duration::from_mins(3);

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// Writes of conditions that succeeded.
    written: u64,
    /// Bytes between agents and API server in both directions, with headers.
    bytes: u64,
    /// Processor time of the API server, in hundredths of a second.
    ticks: u64,
}

/// Samples, one a second.
struct Window(Vec<Sample>);

impl Window {
    fn of(&self, what: impl Fn(&Sample) -> u64) -> f64 {
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else { return 0.0 };
        to_f64(what(last).saturating_sub(what(first)))
    }

    fn seconds(&self) -> f64 {
        to_f64(self.0.len().saturating_sub(1).max(1) as u64)
    }

    fn writes_a_second(&self) -> f64 {
        self.of(|sample| sample.written) / self.seconds()
    }

    fn peak(&self, seconds: usize) -> f64 {
        let spans = self.0.windows(seconds + 1).map(|span| span[seconds].written - span[0].written);
        to_f64(spans.max().unwrap_or(0)) / to_f64(seconds as u64)
    }

    fn kilobytes_a_second(&self) -> f64 {
        self.of(|sample| sample.bytes) / 1000.0 / self.seconds()
    }

    /// Returns the processor time of the API server in percent of one processor.
    fn percent(&self) -> f64 {
        self.of(|sample| sample.ticks) / self.seconds()
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few minutes")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

/// Measures a cluster of this many nodes in normal operation and after an outage, and prints the results.
pub(crate) fn measure(assets: &Path, nodes: usize) -> Result<()> {
    // The limit also applies to child processes, which hold a connection of each agent.
    raise_file_limit()?;
    let mut cluster = Cluster::new(assets)?;
    allow_port_reuse(&cluster)?;
    cluster.start_etcd()?;
    cluster.start_api()?;
    create(&cluster, nodes)?;
    let idle = sample_for(&cluster, None, Duration::from_secs(20))?;
    let counts = cluster.file("counts");
    let mut command = cluster.host.netns.command(std::env::current_exe()?)?;
    command.arg("agents").arg(nodes.to_string()).arg(cluster.file("admin.conf")).arg(API).arg(&counts);
    let agents =
        Running::start(crate::node_host::kill_with_parent(&mut command), &cluster.file("agents.log"))?;
    println!("{nodes} agents start");
    let start = sample_for(&cluster, Some(&agents), START + FIRST_HEARTBEATS)?;
    let steady = sample_for(&cluster, Some(&agents), STEADY)?;
    cluster.api.take().context("not running")?.stop()?;
    println!("the API server of {nodes} nodes is down");
    every_second(OUTAGE, || Ok(()))?;
    // Agents reach it before it is ready.
    let back = Timestamp::now();
    cluster.start_api()?;
    let storm = sample_for(&cluster, Some(&agents), RETURN)?;
    let right = count_right(&cluster, back.as_second())?;
    let requests = requests(&cluster)?;
    let [all, own] = agents.memory_mib().context("the agents are not running")?;
    println!(
        "\n{nodes} nodes, memory of all agents in one process: {all:.0} MiB ({own:.0} MiB of it anonymous)"
    );
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
    println!("{right} of {nodes} nodes have the right condition {} s after the return", RETURN.as_secs());
    ensure!(right == nodes, "{} nodes have a wrong condition", nodes - right);
    Ok(())
}

/// Enlarges and reuses the range of local ports. The agents share an address, unlike nodes; each of them connects to the API
/// server every ten seconds, and a used port stays in TIME_WAIT for a minute, so 2,000 agents would exhaust the ports.
fn allow_port_reuse(cluster: &Cluster) -> Result<()> {
    let mut sysctl = cluster.host.netns.command("sysctl")?;
    let settings = ["net.ipv4.ip_local_port_range=1024 65535", "net.ipv4.tcp_tw_reuse=1"];
    kernel_tests::run(sysctl.arg("-q").arg("-w").args(settings)).map(|_| ())
}

/// Samples once a second for `time`.
fn sample_for(cluster: &Cluster, agents: Option<&Running>, time: Duration) -> Result<Window> {
    let mut samples = Vec::new();
    every_second(time, || {
        samples.push(sample(cluster, agents)?);
        Ok(())
    })?;
    Ok(Window(samples))
}

/// Calls `each` once a second for `time`.
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
    let api = cluster.api.as_ref().context("the API server is not running")?.pid();
    let stat = fs::read_to_string(format!("/proc/{api}/stat")).context("the API server has exited")?;
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks().zip(ticks()).map_or(0, |(user, system)| user + system);
    let Some(agents) = agents else { return Ok(Sample { ticks, ..Sample::default() }) };
    let dev =
        fs::read_to_string(format!("/proc/{}/net/dev", agents.pid())).context("the agents have exited")?;
    let eth0 = dev.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap_or_default();
    let fields: Vec<u64> = eth0.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    let bytes = fields.first().zip(fields.get(8)).map_or(0, |(received, sent)| received + sent);
    let counts = fs::read_to_string(cluster.file("counts")).unwrap_or_default();
    Ok(Sample { written: counts.trim().parse().unwrap_or(0), bytes, ticks })
}

/// Creates Node objects of a realistic size: most of an object are the names of images.
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

/// Returns how many Node objects report a reachable API server since its return.
fn count_right(cluster: &Cluster, back_s: i64) -> Result<usize> {
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

/// Returns the requests that the API server has counted since its start.
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

/// Runs many agents, and writes the number of successful writes to a file twice a second.
pub(crate) fn agents(mut args: impl Iterator<Item = String>) -> Result<()> {
    let mut next = |what: &str| args.next().with_context(|| format!("missing argument: {what}"));
    let nodes: usize = next("number of nodes")?.parse().context("read the number of nodes")?;
    let kubeconfig = next("kubeconfig")?;
    let api: SocketAddr = next("address of the API server")?.parse().context("read the address")?;
    let counts = next("file for the counts")?;
    let writes = probe::simulation::Writes::default();
    let local = tokio::task::LocalSet::new();
    for index in 0..nodes {
        let (kubeconfig, writes) = (kubeconfig.clone(), writes.clone());
        local.spawn_local(async move {
            let delay = START.mul_f64(to_f64(index as u64) / to_f64(nodes.max(1) as u64));
            tokio::time::sleep(delay).await;
            let result = probe::simulation::agent(&name(index), Path::new(&kubeconfig), api, writes).await;
            // An agent does not exit by itself.
            eprintln!("the agent of {} has exited: {result:?}", name(index));
        });
    }
    let report = async {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let written = writes.ended("ok");
            let new = format!("{counts}.new");
            fs::write(&new, written.to_string())?;
            fs::rename(&new, &counts)?;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    local.block_on(&runtime, report)
}

/// Raises the soft limit of open files to the hard one.
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
