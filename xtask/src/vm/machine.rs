//! One boot of one kernel under QEMU, without KVM: the same on every machine that builds this.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Arch;
use super::arch::Clock;
use super::kernel::{Kernel, Series};

/// Longest that a machine may run: more than twice what the slowest takes. That of another architecture is emulated
/// more slowly.
const PATIENCE: Duration = Duration::from_mins(30);
const PATIENCE_ACROSS: Duration = Duration::from_hours(1);
/// How long before that it prints what it still runs.
const UNFINISHED: Duration = Duration::from_mins(2);
/// Memory in MiB: the file system, two tests and their agents at a time.
const MEMORY: &str = "1536";

/// What a machine said.
#[derive(Clone, Debug)]
pub(super) struct Said {
    /// Its results, line by line.
    pub(super) text: String,
    /// From the start of QEMU to its end.
    pub(super) took: Duration,
}

/// Boots `kernel` with the two archives and waits for its end; the consoles are kept in `dir`.
pub(super) fn run(
    kernel: &Kernel,
    series: Series,
    clock: Clock,
    archives: &[&Path],
    dir: &Path,
) -> Result<Said> {
    // Now and then QEMU's emulation of cmpxchg16b ends a kernel with a double fault: not the kernel's doing.
    for attempt in 1.. {
        let said = boot(kernel, series, clock, archives, dir)?;
        let console = read(&dir.join("console.log"));
        if said.text.contains("machine: exit ") {
            return Ok(said);
        }
        if attempt > 1 || !console.contains("double fault") {
            bail!(
                "the machine ended without a result; its console is in {}:\n{}",
                dir.display(),
                last_lines(&console)
            );
        }
    }
    unreachable!("the loop ends by a return")
}

fn boot(kernel: &Kernel, series: Series, clock: Clock, archives: &[&Path], dir: &Path) -> Result<Said> {
    let initrd: PathBuf = dir.join("initrd");
    // The kernel unpacks archives that follow each other, each compressed by itself.
    let mut whole = fs::File::create(&initrd)?;
    for archive in archives {
        std::io::copy(&mut fs::File::open(archive)?, &mut whole)?;
    }
    drop(whole);
    let (console, result) = (dir.join("console.log"), dir.join("result.log"));
    let started = Instant::now();
    let (port, results) = series.arch.ports();
    let append = series.append;
    let patience = if series.arch == Arch::Amd64 { PATIENCE } else { PATIENCE_ACROSS };
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
        // What the kernel does not know itself goes into the environment of its first process. QEMU keeps what it has
        // translated by the program's own addresses: where these are the same each time, all takes half as long.
        .arg(format!(
            "console={port} results={results} unfinished={} panic=-1 quiet mitigations=off init_on_alloc=0 \
             norandmaps {append}",
            patience.saturating_sub(UNFINISHED).as_secs()
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("start QEMU")?;
    loop {
        if qemu.try_wait()?.is_some() {
            break;
        }
        if started.elapsed() > patience {
            let _ = qemu.kill();
            let _ = qemu.wait();
            bail!(
                "the machine did not end within {} s; see {}. Its results end with:\n{}\nIts console ends with:\n{}",
                patience.as_secs(),
                dir.display(),
                end_of_results(&read(&result)),
                last_lines(&read(&console))
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let _ = fs::remove_file(&initrd);
    Ok(Said { text: read(&result), took: started.elapsed() })
}

/// Returns the text of a log; an absent one is empty.
fn read(log: &Path) -> String {
    String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned()
}

/// Returns what a machine that did not end still ran, or else its last results.
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
