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
/// Where the agent's metrics are read.
const METRICS: &str = "127.0.0.1:9729";
/// How often the start is measured.
const STARTS: usize = 7;
/// How often on and off are compared, in turn: a shared machine is busier now and then by ten times what is looked for.
const ROUNDS: usize = 15;
/// How long each turn takes.
const TURN: Duration = Duration::from_millis(500);

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
    rows.extend(load(probe)?);
    print(&rows);
    costs(probe, ROUNDS)?;
    Ok(true)
}

/// What watching costs others, on a processor whose clock counts instructions and which is never busy with anything
/// else.
pub(crate) fn inside(probe: &Path) -> Result<bool> {
    costs(probe, 3)?;
    Ok(true)
}

fn print(rows: &[Row]) {
    println!("\n{:<40} {:>16} {:>12}", "what", "measured", "budget");
    println!("{}", "─".repeat(76));
    for row in rows {
        let mark = if row.met { "✔" } else { "✘" };
        println!("{:<40} {:>16} {:>12}  {mark}", row.what, row.measured, row.budget);
    }
}

/// Answers with how often a second it could be done.
type Work = fn() -> Result<f64>;

/// What watching costs whom: the agent, the agent without tracepoints of system calls, and the one-liners that
/// people write for the same events.
fn costs(probe: &Path, rounds: usize) -> Result<()> {
    let works: [(&str, &str, Work); 5] = [
        ("refused connect, unwatched", ">= 0.93", || connects(UNWATCHED)),
        ("refused connect, watched", ">= 0.93", || connects(WATCHED)),
        ("exec of a static binary", ">= 0.98", execs),
        ("getppid", "+ 5 ns", || Ok(getppids())),
        ("write of a byte to a file", "+ 25 ns", writes),
    ];
    let watchers: [(&str, &dyn Fn() -> Result<Agent>); 3] = [
        ("agent", &|| Ok(Agent::start(probe, &[])?.0)),
        ("lean", &|| Ok(Agent::start(probe, &["--hooks", "lean"])?.0)),
        ("bpftrace", &bpftrace),
    ];
    // What is compared runs on one processor, what watches wherever it likes.
    pin()?;
    // What listens to a watcher is a second thread, and a program with two pays more for each use of a descriptor: it
    // has two without a watcher as well.
    let (_stay, until) = channel::<()>();
    std::thread::spawn(move || until.recv());
    println!(
        "\nrate with a watcher / without, half of how far its quarters lie apart, and nanoseconds more for each"
    );
    println!(
        "(getppid(2) alone takes {:.0} ns here; the budgets were set where it takes 83)\n",
        1e9 / getppids()
    );
    print!("{:<28}", "");
    for (name, _) in watchers {
        print!("{name:>27}");
    }
    println!("{:>12}", "budget");
    println!("{}", "─".repeat(121));
    for (what, budget, work) in works {
        print!("{what:<28}");
        for (_, start) in watchers {
            match on_off(start, work, rounds) {
                Ok(Cost { ratio, spread, more_ns }) => {
                    print!("{:>27}", format!("{ratio:.3} ±{spread:.3} {more_ns:>+7.0} ns"));
                }
                Err(_) => print!("{:>27}", "not here"),
            }
            std::io::Write::flush(&mut std::io::stdout())?;
        }
        println!("{budget:>12}");
    }
    Ok(())
}

/// The agent, with files of its own; ended when dropped.
struct Agent(Child);

impl Agent {
    /// Starts it and waits until it says that it watches; also answers how long that took.
    fn start(probe: &Path, args: &[&str]) -> Result<(Self, Duration)> {
        let dir = std::env::temp_dir().join(format!("netready-bench-{}", std::process::id()));
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

    /// Processor time of the agent so far, in clock ticks: utime and stime, proc(5).
    fn cpu_ticks(&self) -> Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let times = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
        Ok(times.sum())
    }

    /// Waits until it does nothing any more: the state at start is read while it watches already.
    fn settle(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut quiet = Instant::now();
        let mut ticks = self.cpu_ticks()?;
        while quiet.elapsed() < Duration::from_millis(300) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            let now = self.cpu_ticks()?;
            if now != ticks {
                (quiet, ticks) = (Instant::now(), now);
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
    }
}

fn start(probe: &Path) -> Result<Vec<Row>> {
    let mut times = Vec::new();
    let mut resident = 0;
    for _ in 0..STARTS {
        let (agent, took) = Agent::start(probe, &[])?;
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

/// The same events by bpftrace one-liners, as somebody would watch them by hand.
fn bpftrace() -> Result<Agent> {
    let script = "tracepoint:sock:inet_sock_set_state /args->oldstate == 2/ { printf(\"%d %d %s\\n\", args->newstate, args->dport, comm); }
tracepoint:tcp:tcp_receive_reset { printf(\"rst %d\\n\", args->dport); }
tracepoint:tcp:tcp_retransmit_skb { printf(\"again %d\\n\", args->dport); }
tracepoint:syscalls:sys_exit_connect /args->ret < 0/ { printf(\"connect %d %s\\n\", args->ret, comm); }
tracepoint:syscalls:sys_enter_write /args->fd == 1 && comm == \"bridge\"/ { printf(\"%s\\n\", str(args->buf)); }
tracepoint:syscalls:sys_exit_unshare { printf(\"unshare %d\\n\", args->ret); }
tracepoint:sched:sched_process_exec { printf(\"exec %s\\n\", str(args->filename)); }
tracepoint:sched:sched_process_exit { printf(\"exit %s\\n\", comm); }
tracepoint:signal:signal_generate /args->sig == 9 || args->sig == 15/ { printf(\"%d to %d\\n\", args->sig, args->pid); }
BEGIN { printf(\"watching\\n\"); }";
    let mount = "mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing; exec bpftrace -e \"$1\"";
    let mut child = anywhere(&mut Command::new("unshare"))
        .args(["--mount", "sh", "-c", mount, "sh", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("start bpftrace")?;
    let mut said = BufReader::new(child.stdout.take().context("it has an output")?);
    let agent = Agent(child);
    let mut line = String::new();
    while !line.contains("watching") {
        line.clear();
        ensure!(said.read_line(&mut line)? > 0, "bpftrace does not work here");
    }
    std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    Ok(agent)
}

/// What watching costs.
#[derive(Clone, Copy)]
struct Cost {
    /// Rate with it / rate without.
    ratio: f64,
    /// Half of the distance between the quarters of the comparisons: a difference below it is none.
    spread: f64,
    /// Nanoseconds more for each.
    more_ns: f64,
}

/// The median of the comparisons with the watcher and without, in turn, so that a drifting machine does not
/// matter.
fn on_off(start: &dyn Fn() -> Result<Agent>, work: Work, rounds: usize) -> Result<Cost> {
    work()?;
    let mut compared = Vec::new();
    for _ in 0..rounds {
        let before = work()?;
        let watcher = start()?;
        watcher.settle()?;
        let on = work()?;
        drop(watcher);
        let off = f64::midpoint(before, work()?);
        compared.push((on / off, 1e9 / on - 1e9 / off));
    }
    compared.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let quarter = compared.len() / 4;
    let spread = (compared[compared.len() - 1 - quarter].0 - compared[quarter].0) / 2.0;
    let (ratio, more_ns) = compared[compared.len() / 2];
    Ok(Cost { ratio, spread, more_ns })
}

/// A node under load for a minute: connects and execs of anybody, and a kubelet that is refused.
fn load(probe: &Path) -> Result<Vec<Row>> {
    const TIME: Duration = Duration::from_mins(1);
    let (agent, _) = Agent::start(probe, &[])?;
    let before = agent.resident_kb()?;
    let stop = Instant::now() + TIME;
    let started = agent.cpu_ticks()?;
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
    let ticks = agent.cpu_ticks()? - started;
    let grown = agent.resident_kb()?.saturating_sub(before);
    let metrics = metrics()?;
    let sum = |name: &str| -> u64 {
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    };
    let seen = sum("netready_api_connects_total{client=\"kubelet\"");
    let lost = sum("netready_events_lost_total");
    // A clock tick is 10 ms on every Linux that this runs on (USER_HZ).
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let percent = ticks as f64 / TIME.as_secs_f64();
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
            what: "load: memory that it grew by",
            measured: format!("{:.1} MB", build::megabytes(grown << 10)),
            budget: "flat",
            met: grown <= 2 << 10,
        },
    ])
}

/// Does it so often a second until the time is over; answers with how often it was done.
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
    let mut stream = TcpStream::connect(METRICS).context("ask for the metrics")?;
    std::io::Write::write_all(&mut stream, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// This thread and what it starts, on the last processor: the first takes the interrupts.
fn pin() -> Result<()> {
    // SAFETY: all zero is an empty set; the macros write into it; the call reads it.
    let answer = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let processors = usize::try_from(libc::sysconf(libc::_SC_NPROCESSORS_ONLN)).unwrap_or(1);
        libc::CPU_SET(processors.saturating_sub(1), &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    ensure!(answer == 0, "stay on one processor: {}", std::io::Error::last_os_error());
    Ok(())
}

/// A child runs anywhere again: what watches is not what is measured.
fn anywhere(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt as _;

    let free = || {
        // SAFETY: all ones name every processor there may be; the kernel takes those that are there.
        let answer = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            (0..1024).for_each(|processor| libc::CPU_SET(processor, &mut set));
            libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
        };
        if answer == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: sched_setaffinity(2) is async-signal-safe, and nothing is allocated on the way.
    unsafe { command.pre_exec(free) }
}

fn getppids() -> f64 {
    // SAFETY: no precondition.
    many(|| _ = unsafe { libc::syscall(libc::SYS_getppid) })
}

fn writes() -> Result<f64> {
    use std::os::fd::AsRawFd as _;

    let file = tempfile::tempfile_in("/dev/shm").context("make a file in memory")?;
    let fd = file.as_raw_fd();
    // SAFETY: an open descriptor and one live byte.
    Ok(many(|| _ = unsafe { libc::write(fd, [0_u8].as_ptr().cast(), 1) }))
}

/// As [`rate`], for what takes less than looking at the clock.
#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn many(once: impl Fn()) -> f64 {
    const BATCH: u64 = 10_000;
    let started = Instant::now();
    let mut count = 0_u64;
    while started.elapsed() < TURN {
        for _ in 0..BATCH {
            once();
        }
        count += BATCH;
    }
    count as f64 / started.elapsed().as_secs_f64()
}

fn connects(addr: &str) -> Result<f64> {
    let addr = addr.parse::<std::net::SocketAddr>()?;
    rate(|| {
        ensure!(TcpStream::connect(addr).is_err(), "somebody listens on {addr}");
        Ok(())
    })
}

fn execs() -> Result<f64> {
    // Static, and in the machines of the matrix too.
    rate(|| {
        let mut child = Command::new("/bin/busybox").arg("true").stdout(Stdio::piped()).spawn()?;
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
