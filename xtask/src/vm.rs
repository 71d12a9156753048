//! The kernel matrix: the live tests inside virtual machines with other kernels.

mod arch;
mod image;
mod kernel;
mod machine;
pub(crate) mod table;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context as _, Result, ensure};

pub(crate) use arch::Arch;

use crate::test::{self, Counts};
use crate::{build, setup, target};
use arch::Clock;
use image::Contents;
use kernel::{MATRIX, OTHERS, Series, Store};
use machine::Outcome;
use table::Column;

/// Number of machines that run in parallel: one for each processor of the smallest host that is used for development.
const PARALLEL: usize = 2;

/// Results of the matrix.
#[derive(Debug, Default)]
pub(crate) struct Matrix {
    pub(crate) columns: Vec<Column>,
    /// A machine that returns no result counts as a failed test.
    pub(crate) counts: Counts,
}

/// Runs `cargo xtask vm` and prints the table; returns false if a test or a machine failed.
pub(crate) fn command(names: &[String], filter: Option<&str>) -> Result<bool> {
    table::check(&test::live_tests()?)?;
    let matrix = run(names, filter)?;
    table::print(&matrix.columns);
    println!("\n{}", matrix.counts.summary());
    Ok(matrix.counts.are_good())
}

/// Boots the kernels that `names` lists, or those of [`MATRIX`], and runs the live tests whose names contain `filter`, or all.
pub(crate) fn run(names: &[String], filter: Option<&str>) -> Result<Matrix> {
    let wanted: Vec<Series> = if names.is_empty() {
        MATRIX.to_vec()
    } else {
        names.iter().map(|name| named(name)).collect::<Result<_>>()?
    };
    let dir = target().join("vm");
    let mut queue = Vec::new();
    for arch in [Arch::Amd64, Arch::Arm64] {
        let wanted: Vec<_> = wanted.iter().filter(|series| series.arch == arch).collect();
        if wanted.is_empty() {
            continue;
        }
        let store = Store::open(&dir, arch)?;
        let base = base(&dir, arch, &store, filter)?;
        for series in wanted {
            queue.push((*series, store.kernel(*series)?, base.clone()));
        }
    }
    // Runs on the newest kernels take longest. They start first, so that the last ones are short.
    queue.sort_by_key(|(series, ..)| series.weight());
    let queue = Mutex::new(queue);
    let worker = || -> Vec<(Series, Result<Outcome>, Option<Result<Outcome>>)> {
        let mut done = Vec::new();
        loop {
            let Some((series, kernel, base)) = queue.lock().ok().and_then(|mut queue| queue.pop()) else {
                return done;
            };
            println!("Linux {:<24} started", kernel.release);
            let outcome = one(series, Clock::Time, &kernel, &base, &dir.join(series.name), &[]);
            println!("Linux {:<24} {}", kernel.release, summary(&outcome));
            let failed =
                outcome.as_ref().map_or(Vec::new(), |outcome| column(series, &outcome.text).failed());
            // Tests that run in parallel compete for one emulated processor, and from Linux 7 on they interrupt each other inside
            // programs, which the kernel then skips. A test that passes alone counts as flaky, and its first output is printed.
            let alone = (!failed.is_empty()).then(|| {
                println!("Linux {:<24} running again, alone: {}", kernel.release, failed.join(", "));
                one(series, Clock::Time, &kernel, &base, &dir.join(series.name).join("alone"), &failed)
            });
            done.push((series, outcome, alone));
        }
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..PARALLEL).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    let mut matrix = Matrix::default();
    // In the order of the table, whichever machine finished first.
    for series in MATRIX.iter().chain(OTHERS) {
        let Some((_, outcome, alone)) = results.iter().find(|(done, ..)| done == series) else { continue };
        match outcome {
            Ok(outcome) => {
                let mut column = column(*series, &outcome.text);
                // A test runner that was killed reports no failed test.
                let is_broken = !outcome.text.contains("machine: exit 0") && column.failed().is_empty();
                matrix.counts.failed += u64::from(is_broken);
                let mut text = outcome.text.as_str();
                if let Some(Ok(alone)) = alone {
                    let before = column.failed();
                    column.tests.extend(self::column(*series, &alone.text).tests);
                    text = &alone.text;
                    let after = column.failed();
                    for test in before.iter().filter(|test| !after.contains(test)) {
                        println!(
                            "Linux {}: {test} is flaky: it failed in parallel with others and passed alone\n{}",
                            series.name,
                            output_of(test, &outcome.text)
                        );
                        matrix.counts.flaky += 1;
                    }
                }
                let passed = column.tests.values().filter(|passed| **passed).count();
                matrix.counts.passed += passed as u64;
                matrix.counts.failed += (column.tests.len() - passed) as u64;
                for test in &column.failed() {
                    let log = dir.join(series.name);
                    println!("Linux {}: {test} failed; see {}", series.name, log.display());
                    println!("{}", output_of(test, text));
                }
                matrix.columns.push(column);
            }
            Err(error) => {
                matrix.counts.failed += 1;
                println!("Linux {}: {error:#}", series.name);
            }
        }
    }
    Ok(matrix)
}

/// Returns the kernel with this name.
fn named(name: &str) -> Result<Series> {
    let all = || MATRIX.iter().chain(OTHERS);
    let known = || all().map(|series| series.name).collect::<Vec<_>>().join(", ");
    let series = all().find(|series| series.name == name);
    series.copied().with_context(|| format!("unknown kernel {name:?}; known are {}", known()))
}

/// Measures inside a machine what watching costs other programs on one of these kernels, in instructions. This program runs in
/// the machine too.
pub(crate) fn bench(name: &str, probe: &Path) -> Result<bool> {
    let series = named(name)?;
    ensure!(
        series.arch == Arch::Amd64,
        "{name}: the benchmark runs on kernels of this host's architecture only"
    );
    let dir = target().join("vm");
    let kernel = Store::open(&dir, series.arch)?.kernel(series)?;
    let (helper, _) = build::static_lab(series.arch)?;
    let this = std::env::current_exe().context("find the executable of xtask")?;
    let base = dir.join("base-bench.zst");
    let contents =
        Contents { probe, helper: &helper, tests: &[], filter: None, system: None, bench: Some(&this) };
    image::base(&base, &dir.join("stage"), &contents)?;
    let outcome = one(series, Clock::Instructions, &kernel, &base, &dir.join(format!("bench-{name}")), &[])?;
    println!("Linux {}; one nanosecond is one instruction", kernel.release);
    for line in outcome.text.lines().filter(|line| !line.starts_with("machine: ")) {
        println!("{line}");
    }
    Ok(outcome.text.contains("machine: exit 0"))
}

/// Makes the part of the file system that all machines of an architecture share.
fn base(dir: &Path, arch: Arch, store: &Store, filter: Option<&str>) -> Result<PathBuf> {
    let (probe, system) = match arch {
        Arch::Amd64 => (build::under_test(build::release)?, None),
        Arch::Arm64 => {
            setup::arm64()?;
            (build::release_for(arch)?, Some(store.system("bookworm", image::PACKAGES)?))
        }
    };
    let (helper, tests) = build::static_lab(arch)?;
    let base = dir.join(format!("base-{}.zst", arch.debian()));
    let contents = Contents {
        probe: &probe,
        helper: &helper,
        tests: &tests,
        filter,
        system: system.as_deref(),
        bench: None,
    };
    image::base(&base, &dir.join("stage"), &contents)?;
    Ok(base)
}

/// Parses the results of one machine: the output of `probe doctor` between two marks, and the tests.
fn column(series: Series, text: &str) -> Column {
    let between = |rest: &str| Some(rest.split_once("machine: end")?.0.trim().to_owned());
    let doctor = text.split_once("machine: doctor").and_then(|(_, rest)| between(rest)).unwrap_or_default();
    let doctor = serde_json::from_str(&doctor).unwrap_or_default();
    Column::new(series.name, text.lines(), doctor)
}

/// Boots one machine. It runs only the tests in `alone`, one after the other, or all tests if `alone` is empty.
fn one(
    series: Series,
    clock: Clock,
    kernel: &kernel::Kernel,
    base: &Path,
    dir: &Path,
    alone: &[String],
) -> Result<Outcome> {
    std::fs::create_dir_all(dir)?;
    let stage = dir.join("stage");
    let modules = dir.join("modules.zst");
    image::modules(kernel, &modules, &stage)?;
    let mut archives = vec![base, &modules];
    let only = dir.join("alone.zst");
    if !alone.is_empty() {
        image::alone(alone, &only, &stage)?;
        archives.push(&only);
    }
    machine::run(kernel, series, clock, &archives, dir)
}

/// Returns what the test runner printed of a failed test.
fn output_of<'a>(test: &str, text: &'a str) -> &'a str {
    let output = text.split_once(&format!("{test} stdout ----")).map_or("", |(_, output)| output);
    let ends = ["\n---- ", "\nfailures:"].into_iter().filter_map(|end| output.find(end));
    output[..ends.min().unwrap_or(output.len())].trim()
}

fn summary(outcome: &Result<Outcome>) -> String {
    match outcome {
        Ok(outcome) => {
            let tests =
                outcome.text.lines().filter(|line| line.starts_with("test ") && line.contains(" ... "));
            format!("{} tests in {} s", tests.count(), outcome.took.as_secs())
        }
        Err(_) => "no result".to_owned(),
    }
}
