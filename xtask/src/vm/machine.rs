//! One boot of one kernel under QEMU, without KVM, so that it behaves the same on every host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Arch;
use super::arch::Clock;
use super::kernel::{Kernel, Series};

/// Longest run of a machine: more than twice the time of the slowest. Another architecture is emulated more slowly.
const LIMIT: Duration = Duration::from_mins(30);
const LIMIT_OTHER_ARCH: Duration = Duration::from_hours(1);
/// Time before the limit at which the machine lists what it still runs.
const UNFINISHED: Duration = Duration::from_mins(2);
/// Memory in MiB, for the file system and for the tests and agents that run at the same time.
const MEMORY: &str = "1536";

/// Result of one run of a machine.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// What it wrote to the port for results.
    pub(super) text: String,
    /// From the start of QEMU to its exit.
    pub(super) took: Duration,
}

/// Boots `kernel` with the archives as its file system, and waits until the machine turns itself off. The consoles are kept in
/// `dir`.
pub(super) fn run(
    kernel: &Kernel,
    series: Series,
    clock: Clock,
    archives: &[&Path],
    dir: &Path,
) -> Result<Outcome> {
    // QEMU's emulation of cmpxchg16b occasionally crashes a kernel with a double fault, which is not a bug of the kernel.
    for attempt in 1.. {
        let outcome = boot(kernel, series, clock, archives, dir)?;
        let console = read(&dir.join("console.log"));
        if outcome.text.contains("machine: exit ") {
            return Ok(outcome);
        }
        if attempt > 1 || !console.contains("double fault") {
            bail!(
                "the machine turned off without a result; its console is in {}:\n{}",
                dir.display(),
                last_lines(&console)
            );
        }
    }
    unreachable!("the loop is left by a return")
}

fn boot(kernel: &Kernel, series: Series, clock: Clock, archives: &[&Path], dir: &Path) -> Result<Outcome> {
    let initrd: PathBuf = dir.join("initrd");
    // The kernel unpacks concatenated archives, each of which is compressed separately.
    let mut whole = fs::File::create(&initrd)?;
    for archive in archives {
        std::io::copy(&mut fs::File::open(archive)?, &mut whole)?;
    }
    drop(whole);
    let (console, result) = (dir.join("console.log"), dir.join("result.log"));
    let started = Instant::now();
    let (port, results) = series.arch.ports();
    let append = series.append;
    let limit = if series.arch == Arch::Amd64 { LIMIT } else { LIMIT_OTHER_ARCH };
    let mut qemu = series.arch.qemu(clock);
    if port != results {
        qemu.arg("-serial").arg(format!("file:{}", console.display()));
    }
    let mut qemu = qemu
        .args(["-smp", "1", "-m", MEMORY])
        .args(["-nodefaults", "-nic", "none", "-display", "none", "-no-reboot"])
        .arg("-serial")
        .arg(format!("file:{}", result.display()))
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&initrd)
        .arg("-append")
        // The kernel passes parameters that it does not know to the first process, as its environment. QEMU caches translated
        // code by virtual address: without randomized addresses everything takes half as long.
        .arg(format!(
            "console={port} results={results} unfinished={} panic=-1 quiet mitigations=off init_on_alloc=0 \
             norandmaps {append}",
            limit.saturating_sub(UNFINISHED).as_secs()
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("start QEMU")?;
    loop {
        if qemu.try_wait()?.is_some() {
            break;
        }
        if started.elapsed() > limit {
            let _ = qemu.kill();
            let _ = qemu.wait();
            bail!(
                "the machine still runs after {} s; see {}. Its last results:\n{}\nThe end of its console:\n{}",
                limit.as_secs(),
                dir.display(),
                end_of_results(&read(&result)),
                last_lines(&read(&console))
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let _ = fs::remove_file(&initrd);
    Ok(Outcome { text: read(&result), took: started.elapsed() })
}

/// Returns the text of a log, which is empty if the file does not exist.
fn read(log: &Path) -> String {
    String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned()
}

/// Returns the list of what a machine still ran, or else its last results.
fn end_of_results(text: &str) -> String {
    match text.split_once("machine: unfinished") {
        Some((_, unfinished)) => unfinished.lines().take(60).collect::<Vec<_>>().join("\n"),
        None => last_lines(text),
    }
}

fn last_lines(text: &str) -> String {
    let last: Vec<_> = text.lines().rev().take(12).collect();
    last.into_iter().rev().collect::<Vec<_>>().join("\n")
}
