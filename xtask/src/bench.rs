//! Measurements and their budgets, as a table. Not a test: the numbers depend on the machine.

mod costs;

use std::io::{BufRead as _, BufReader, Read};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kernel_tests::now_ns;

pub(crate) use costs::inside;

use crate::build;

/// Two ports of the loopback interface without listeners. The probe watches the first.
const WATCHED: &str = "127.0.0.1:6443";
const UNWATCHED: &str = "127.0.0.1:6553";
/// Address of the agent's metrics.
const METRICS: &str = "127.0.0.1:9729";
/// Number of measurements of the start.
const STARTS: usize = 7;

/// One row of the table.
struct Row {
    what: &'static str,
    measured: String,
    budget: &'static str,
    met: bool,
}

/// Measures everything and prints the table. Returns true even if a budget is missed: that is a result, not a failure.
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
    rows.extend(load(probe)?);
    print(&rows);
    costs::compare(probe, costs::ROUNDS)?;
    Ok(true)
}

fn print(rows: &[Row]) {
    println!("\n{:<40} {:>16} {:>12}", "measurement", "measured", "budget");
    println!("{}", "─".repeat(76));
    for row in rows {
        let mark = if row.met { "✔" } else { "✘" };
        println!("{:<40} {:>16} {:>12}  {mark}", row.what, row.measured, row.budget);
    }
}

/// A running agent, with files of its own; killed when dropped.
struct Agent(Child);

impl Agent {
    /// Starts the agent and waits until it watches; also returns how long that took.
    fn start(probe: &Path, args: &[&str]) -> Result<(Self, Duration)> {
        let dir = files();
        let started = Instant::now();
        let mut child = anywhere(&mut Command::new(probe))
            .args(["run", "--apiserver", WATCHED, "--no-ask", "--metrics-address", METRICS])
            .args(args)
            .arg("--state-file")
            .arg(dir.join("state.json"))
            .arg("--socket")
            .arg(dir.join("probe.sock"))
            .arg("--journal")
            .arg(dir.join("journal.jsonl"))
            .stderr(Stdio::piped())
            .spawn()
            .context("start the agent")?;
        let stderr = child.stderr.take().context("standard error of the agent")?;
        let agent = Self(child);
        let line = watching(stderr).context("the agent")?;
        // The agent prints when the last program was attached, which is before it reads the state at start.
        let ms = line.split("attached in ").nth(1).and_then(|rest| rest.split(' ').next());
        let took = ms.and_then(|ms| ms.parse().ok()).map_or(started.elapsed(), Duration::from_millis);
        Ok((agent, took))
    }

    /// Returns the processor time of the agent, including exited threads: clock_getcpuclockid(3).
    fn cpu(&self) -> Result<Duration> {
        let mut clock = 0;
        // SAFETY: `clock` is live.
        let answer = unsafe { libc::clock_getcpuclockid(self.0.id().cast_signed(), &raw mut clock) };
        ensure!(answer == 0, "find the agent's clock: {}", std::io::Error::from_raw_os_error(answer));
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is live.
        let answer = unsafe { libc::clock_gettime(clock, &raw mut time) };
        ensure!(answer == 0, "read the agent's clock: {}", std::io::Error::last_os_error());
        Ok(Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec)?))
    }

    /// Waits until the agent is idle: it reads the state at start while it already watches. Gives up after 10 s.
    fn settle(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut quiet = Instant::now();
        // The agent regularly reads its counters, which takes less than 10 ms.
        let tens_of_ms = || Ok::<_, anyhow::Error>(self.cpu()?.as_millis() / 10);
        let mut used = tens_of_ms()?;
        while quiet.elapsed() < Duration::from_millis(300) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            let now = tens_of_ms()?;
            if now != used {
                (quiet, used) = (Instant::now(), now);
            }
        }
        Ok(())
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
        let _ = std::fs::remove_dir_all(files());
    }
}

/// Waits for the line by which a watcher reports that it watches.
fn watching(output: impl Read + Send + 'static) -> Result<String> {
    let mut output = BufReader::new(output);
    let mut line = String::new();
    while !line.contains("watching") {
        line.clear();
        ensure!(output.read_line(&mut line)? > 0, "exited before it watched");
    }
    // Further output must not fill the pipe.
    std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    Ok(line)
}

/// Returns the directory of an agent's files.
fn files() -> PathBuf {
    std::env::temp_dir().join(format!("netready-bench-{}", std::process::id()))
}

fn start(probe: &Path) -> Result<Vec<Row>> {
    let mut times = Vec::new();
    let mut resident = 0;
    for _ in 0..STARTS {
        let (agent, took) = Agent::start(probe, &[])?;
        times.push(took);
        // By then it has read the state at start.
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

/// Measures the time from a refused connect until its line of the trace is read from the pipe.
fn latency(probe: &Path) -> Result<Vec<Row>> {
    let mut child = Command::new(probe)
        .args(["trace", "-o", "json", "--no-ask", "--apiserver", WATCHED, "--only", "api"])
        .stdout(Stdio::piped())
        .spawn()
        .context("start the trace")?;
    let output = child.stdout.take().context("standard output of the trace")?;
    let trace = Agent(child);
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send((now_ns(), line)).is_err() {
                return;
            }
        }
    });
    let limit = Duration::from_secs(10);
    while !lines.recv_timeout(limit).context("wait for the state at start")?.1.contains("snapshot_done") {}
    let mut times = Vec::new();
    for _ in 0..400 {
        let is_refused = TcpStream::connect(WATCHED).is_err();
        let ended = now_ns();
        ensure!(is_refused, "a program listens on {WATCHED}");
        loop {
            let (arrived, line) = lines.recv_timeout(limit).context("wait for the line of a connect")?;
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

/// Measures the agent under load for a minute: connects and execs of other programs, and a kubelet whose connects are refused.
fn load(probe: &Path) -> Result<Vec<Row>> {
    const TIME: Duration = Duration::from_mins(1);
    let (agent, _) = Agent::start(probe, &[])?;
    let before = agent.resident_kb()?;
    let stop = Instant::now() + TIME;
    let started = agent.cpu()?;
    let dir = tempfile::TempDir::new()?;
    let kubelet = dir.path().join("kubelet");
    let helper = crate::target().join("debug/lab-helper");
    std::fs::copy(&helper, &kubelet).with_context(|| format!("copy {}", helper.display()))?;
    let mut watched = Command::new(&kubelet)
        .args(["dial", WATCHED, "--every", "10", "--count", "3000"])
        .stdout(Stdio::null())
        .spawn()?;
    let (done, execs) = std::thread::scope(|scope| {
        let connects = scope.spawn(|| paced(20_000, stop, || drop(TcpStream::connect(UNWATCHED))));
        let execs = scope.spawn(|| {
            paced(200, stop, || {
                let mut command = Command::new("/bin/busybox");
                drop(command.arg("true").stdout(Stdio::null()).status());
            })
        });
        (connects.join().unwrap_or(0), execs.join().unwrap_or(0))
    });
    watched.wait()?;
    std::thread::sleep(Duration::from_secs(1));
    let used = agent.cpu()?.saturating_sub(started);
    let grown = agent.resident_kb()?.saturating_sub(before);
    let metrics = metrics()?;
    let sum = |name: &str| -> u64 {
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    };
    let seen = sum("netready_api_connects_total{client=\"kubelet\"");
    let lost = sum("netready_events_lost_total");
    let percent = 100.0 * used.as_secs_f64() / TIME.as_secs_f64();
    println!("load: {done} connects, {execs} execs, {} by a watched process", 3000);
    Ok(vec![
        Row {
            what: "load: events of the watched process",
            measured: format!("{seen} of 3000"),
            budget: "all",
            met: seen == 3000 && lost == 0,
        },
        Row {
            what: "load: agent's share of one core",
            measured: format!("{percent:.1} %"),
            budget: "<= 15 %",
            met: percent <= 15.0,
        },
        Row {
            what: "load: growth of memory",
            measured: format!("{:.1} MB", build::megabytes(grown << 10)),
            budget: "flat",
            met: grown <= 2 << 10,
        },
    ])
}

/// Calls `once` at `rate` calls a second until `until`; returns the number of calls.
fn paced(rate: u32, until: Instant, once: impl Fn()) -> u64 {
    let started = Instant::now();
    let mut count = 0_u32;
    while Instant::now() < until {
        if started.elapsed() < Duration::from_secs(1) * count / rate {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        once();
        count += 1;
    }
    u64::from(count)
}

fn metrics() -> Result<String> {
    let mut stream = TcpStream::connect(METRICS).context("connect to the metrics")?;
    std::io::Write::write_all(&mut stream, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Lets a command run on every processor: the watcher is not pinned to the one on which is measured.
fn anywhere(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt as _;

    let unpin = || {
        // SAFETY: an all-zero set is valid, the macro writes inside it, and the call reads it. The kernel ignores processors that do
        // not exist.
        let answer = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            (0..1024).for_each(|processor| libc::CPU_SET(processor, &mut set));
            libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
        };
        if answer == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: sched_setaffinity(2) is async-signal-safe, and nothing is allocated on the way.
    unsafe { command.pre_exec(unpin) }
}
