//! Numbers against their budgets, as a table. Never a test: a number says something of one machine only.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kernel_tests::now_ns;

use crate::build;

/// A port of the loopback on which nobody listens, watched; and one that is not watched.
const WATCHED: &str = "127.0.0.1:6443";
const UNWATCHED: &str = "127.0.0.1:6553";
/// How often on and off are compared, in turn.
const ROUNDS: usize = 7;
/// How long each turn takes.
const TURN: Duration = Duration::from_millis(700);

/// One row.
struct Row {
    what: &'static str,
    measured: String,
    budget: &'static str,
    met: bool,
}

/// Measures everything and prints the table; always true, because a missed budget is a number too.
pub(crate) fn run(probe: &Path) -> Result<bool> {
    let bytes = std::fs::metadata(probe)?.len();
    let mut rows = vec![Row {
        what: "static binary",
        measured: format!("{:.1} MB", build::megabytes(bytes)),
        budget: "<= 12 MB",
        met: build::is_static(probe)? && bytes <= build::MAX_BYTES,
    }];
    rows.extend(start(probe)?);
    rows.extend(latency(probe)?);
    for (what, addr, budget) in [
        ("refused connects on/off, unwatched", UNWATCHED, ">= 0.93"),
        ("refused connects on/off, watched", WATCHED, ">= 0.93"),
    ] {
        let ratio = on_off(probe, || connects(addr))?;
        rows.push(Row { what, measured: format!("{ratio:.3}"), budget, met: ratio >= 0.93 });
    }
    let ratio = on_off(probe, execs)?;
    rows.push(Row {
        what: "exec of a static binary on/off",
        measured: format!("{ratio:.3}"),
        budget: ">= 0.98",
        met: ratio >= 0.98,
    });
    println!("\n{:<36} {:>16} {:>12}", "what", "measured", "budget");
    println!("{}", "─".repeat(72));
    for row in rows {
        let mark = if row.met { "✔" } else { "✘" };
        println!("{:<36} {:>16} {:>12}  {mark}", row.what, row.measured, row.budget);
    }
    Ok(true)
}

/// The agent, with files of its own; ended when dropped.
struct Agent(Child);

impl Agent {
    /// Starts it and waits until it says that it watches; also answers how long that took.
    fn start(probe: &Path) -> Result<(Self, Duration)> {
        let dir = std::env::temp_dir().join(format!("netready-bench-{}", std::process::id()));
        let started = Instant::now();
        let mut child = Command::new(probe)
            .args(["run", "--apiserver", WATCHED, "--no-ask", "--metrics-address", "127.0.0.1:0"])
            .arg("--state-file")
            .arg(dir.join("state.json"))
            .arg("--socket")
            .arg(dir.join("probe.sock"))
            .stderr(Stdio::piped())
            .spawn()
            .context("start the agent")?;
        let mut said = BufReader::new(child.stderr.take().context("the agent has an output")?);
        let agent = Self(child);
        let mut line = String::new();
        while !line.contains("watching") {
            line.clear();
            ensure!(said.read_line(&mut line)? > 0, "the agent ended before it watched");
        }
        // The agent's own words: when the last program was attached, which is before the state is read.
        let words = line.split("attached in ").nth(1).and_then(|rest| rest.split(' ').next());
        let took = words.and_then(|ms| ms.parse().ok()).map_or(started.elapsed(), Duration::from_millis);
        // Whatever else it says must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Ok((agent, took))
    }

    fn resident_kb(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(probe: &Path) -> Result<Vec<Row>> {
    let mut times = Vec::new();
    let mut resident = 0;
    for _ in 0..ROUNDS {
        let (agent, took) = Agent::start(probe)?;
        times.push(took);
        // Once the state at start is read and the loop turns.
        std::thread::sleep(Duration::from_millis(500));
        resident = resident.max(agent.resident_kb()?);
    }
    times.sort_unstable();
    let median = times[times.len() / 2];
    Ok(vec![
        Row {
            what: "start to all attached (median)",
            measured: format!("{} ms", median.as_millis()),
            budget: "<= 100 ms",
            met: median <= Duration::from_millis(100),
        },
        Row {
            what: "resident memory after start",
            measured: format!("{:.1} MB", build::megabytes(resident << 10)),
            budget: "<= 15 MB",
            met: resident <= 15 << 10,
        },
    ])
}

/// From the end of a refused connect to its line at the other end of the trace's pipe.
fn latency(probe: &Path) -> Result<Vec<Row>> {
    let mut child = Command::new(probe)
        .args(["trace", "-o", "json", "--no-ask", "--apiserver", WATCHED, "--only", "api"])
        .stdout(Stdio::piped())
        .spawn()
        .context("start the trace")?;
    let output = child.stdout.take().context("the trace has an output")?;
    let trace = Agent(child);
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send((now_ns(), line)).is_err() {
                return;
            }
        }
    });
    let patience = Duration::from_secs(10);
    while !lines.recv_timeout(patience).context("the trace starts")?.1.contains("snapshot_done") {}
    let mut times = Vec::new();
    for _ in 0..400 {
        let refused = TcpStream::connect(WATCHED).is_err();
        let ended = now_ns();
        ensure!(refused, "somebody listens on {WATCHED}");
        loop {
            let (arrived, line) = lines.recv_timeout(patience).context("a line for the connect")?;
            if line.contains("\"kind\":\"connect\"") {
                times.push(arrived.saturating_sub(ended));
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(7));
    }
    drop(trace);
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    let row = |what, ns: u64, budget, limit: u64| Row {
        what,
        measured: format!("{}.{} ms", ns / 1_000_000, ns % 1_000_000 / 100_000),
        budget,
        met: ns <= limit * 1_000_000,
    };
    Ok(vec![
        row("event to line in the trace, median", at(50), "<= 5 ms", 5),
        row("event to line in the trace, p99", at(99), "<= 25 ms", 25),
    ])
}

/// The median of the ratios with the agent and without, in turn, so that a drifting machine does not matter.
fn on_off(probe: &Path, work: impl Fn() -> Result<f64>) -> Result<f64> {
    work()?;
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let off = work()?;
        let (agent, _) = Agent::start(probe)?;
        let on = work()?;
        drop(agent);
        let again = work()?;
        ratios.push(on * 2.0 / (off + again));
    }
    ratios.sort_by(f64::total_cmp);
    Ok(ratios[ratios.len() / 2])
}

fn connects(addr: &str) -> Result<f64> {
    let addr = addr.parse::<std::net::SocketAddr>()?;
    rate(|| {
        ensure!(TcpStream::connect(addr).is_err(), "somebody listens on {addr}");
        Ok(())
    })
}

fn execs() -> Result<f64> {
    // Static, tiny and on every Debian: the dynamic loader itself, asked for its version, would do more.
    rate(|| {
        let mut child = Command::new("/sbin/ldconfig").arg("--version").stdout(Stdio::piped()).spawn()?;
        let mut text = String::new();
        child.stdout.take().context("it has an output")?.read_to_string(&mut text)?;
        child.wait()?;
        Ok(())
    })
}

/// How often `once` can be done in a second.
#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn rate(once: impl Fn() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    let mut count = 0_u64;
    while started.elapsed() < TURN {
        once()?;
        count += 1;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}
