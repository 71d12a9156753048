//! What watching costs other programs.

use std::io::Read as _;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Agent, UNWATCHED, WATCHED, anywhere, watching};

/// Number of alternating comparisons with and without a watcher: the load of a shared machine varies by ten times the differences
/// that are measured.
pub(super) const ROUNDS: usize = 15;
/// Duration of one measurement.
const TURN: Duration = Duration::from_millis(500);

/// Measures inside a virtual machine, whose clock counts instructions and which runs nothing else.
pub(crate) fn inside(probe: &Path) -> Result<bool> {
    compare(probe, 3)?;
    Ok(true)
}

/// Returns how many times a second the work was done.
type Work = fn() -> Result<f64>;

/// Prints what watching costs several kinds of work: by the agent, by the agent without tracepoints of system calls, and by
/// bpftrace one-liners for the same events.
pub(super) fn compare(probe: &Path, rounds: usize) -> Result<()> {
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
    // The work runs on one processor, the watchers on any.
    pin()?;
    // Each use of a descriptor costs more in a process with several threads. The output of a watcher is read by a second
    // thread, so there is one without a watcher as well.
    let (_stay, until) = channel::<()>();
    std::thread::spawn(move || until.recv());
    println!(
        "\nrate with a watcher / rate without, half of its interquartile range, and additional nanoseconds for each call"
    );
    println!(
        "(getppid(2) takes {:.0} ns here without a watcher; the budgets were set where it takes 83 ns)",
        1e9 / getppids()
    );
    let is_uniprocessor = processors() == 1;
    if is_uniprocessor {
        println!("second line of each row: without the watcher's own time, as if it had another processor");
    }
    println!();
    print!("{:<28}", "");
    for (name, _) in watchers {
        print!("{name:>27}");
    }
    println!("{:>12}", "budget");
    println!("{}", "─".repeat(121));
    for (what, budget, work) in works {
        print!("{what:<28}");
        let mut beside = String::new();
        for (_, start) in watchers {
            let [together, apart] = match on_off(start, work, rounds) {
                Ok(costs) => costs.map(|cost| cost.to_string()),
                Err(_) => ["unavailable".to_owned(), String::new()],
            };
            print!("{together:>27}");
            beside.push_str(&format!("{apart:>27}"));
            std::io::Write::flush(&mut std::io::stdout())?;
        }
        println!("{budget:>12}");
        if is_uniprocessor {
            println!("{:<28}{beside}", "");
        }
    }
    Ok(())
}

/// Starts bpftrace one-liners for the same events.
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
    let stdout = child.stdout.take().context("standard output of bpftrace")?;
    let agent = Agent(child);
    watching(stdout).context("bpftrace")?;
    Ok(agent)
}

/// What watching costs.
#[derive(Clone, Copy)]
struct Cost {
    /// Rate with the watcher / rate without.
    ratio: f64,
    /// Half of the interquartile range of the comparisons: smaller differences are noise.
    spread: f64,
    /// Additional nanoseconds for each call.
    more_ns: f64,
}

impl Cost {
    /// Returns the median of comparisons, each a rate with the watcher and one without.
    fn of(mut compared: Vec<(f64, f64)>) -> Self {
        compared.sort_by(|(on, off), (more_on, more_off)| (on / off).total_cmp(&(more_on / more_off)));
        let ratio = |(on, off): (f64, f64)| on / off;
        let quarter = compared.len() / 4;
        let spread = (ratio(compared[compared.len() - 1 - quarter]) - ratio(compared[quarter])) / 2.0;
        let (on, off) = compared[compared.len() / 2];
        Self { ratio: on / off, spread, more_ns: 1e9 / on - 1e9 / off }
    }
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} ±{:.3} {:>+7.0} ns", self.ratio, self.spread, self.more_ns)
    }
}

/// Returns what the work costs with the watcher, and what it costs if the watcher's own time is not counted. Measurements with and
/// without it alternate, so that a drift of the machine cancels out.
fn on_off(start: &dyn Fn() -> Result<Agent>, work: Work, rounds: usize) -> Result<[Cost; 2]> {
    work()?;
    let (mut together, mut apart) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let before = work()?;
        let watcher = start()?;
        watcher.settle()?;
        let (started, used) = (Instant::now(), watcher.cpu()?);
        let on = work()?;
        let (took, used) = (started.elapsed(), watcher.cpu()?.saturating_sub(used));
        drop(watcher);
        let off = f64::midpoint(before, work()?);
        together.push((on, off));
        apart.push((on * took.as_secs_f64() / took.saturating_sub(used).as_secs_f64(), off));
    }
    Ok([together, apart].map(Cost::of))
}

fn processors() -> usize {
    // SAFETY: no memory is involved.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1)
}

/// Pins this thread and its children to the last processor, because the first handles the interrupts.
fn pin() -> Result<()> {
    // SAFETY: an all-zero set is valid, the macro writes inside it, and the call reads it.
    let answer = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processors().saturating_sub(1), &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    ensure!(answer == 0, "pin to one processor: {}", std::io::Error::last_os_error());
    Ok(())
}

fn getppids() -> f64 {
    // SAFETY: no precondition.
    many(|| _ = unsafe { libc::syscall(libc::SYS_getppid) })
}

fn writes() -> Result<f64> {
    use std::os::fd::AsRawFd as _;

    let file = tempfile::tempfile_in("/dev/shm").context("create a file in memory")?;
    let fd = file.as_raw_fd();
    // SAFETY: the descriptor is open, and the byte is live.
    Ok(many(|| _ = unsafe { libc::write(fd, [0_u8].as_ptr().cast(), 1) }))
}

/// As [`rate`], for calls that take less time than reading the clock.
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
        ensure!(TcpStream::connect(addr).is_err(), "a program listens on {addr}");
        Ok(())
    })
}

fn execs() -> Result<f64> {
    // Statically linked, and also available in the machines of the matrix.
    rate(|| {
        let mut child = Command::new("/bin/busybox").arg("true").stdout(Stdio::piped()).spawn()?;
        let mut text = String::new();
        child.stdout.take().context("standard output of busybox")?.read_to_string(&mut text)?;
        child.wait()?;
        Ok(())
    })
}

/// Returns how many times a second `once` can be called.
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
