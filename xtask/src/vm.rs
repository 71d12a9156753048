//! The kernel matrix: the live tests inside machines with other kernels.

mod arch;
mod image;
mod kernel;
mod machine;
pub(crate) mod table;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context as _, Result, ensure};

pub(crate) use arch::Arch;

use crate::test::Counts;
use crate::{build, setup, target};
use arch::Clock;
use image::Contents;
use kernel::{MATRIX, OTHERS, Series, Store};
use machine::Said;
use table::Column;

/// How many machines run side by side: one for each processor of the smallest machine that builds this.
const SIDE_BY_SIDE: usize = 2;

/// What a matrix came to.
#[derive(Debug, Default)]
pub(crate) struct Matrix {
    pub(crate) columns: Vec<Column>,
    /// A machine without a result counts as a failed test.
    pub(crate) counts: Counts,
}

/// `cargo xtask vm`: the matrix and its table; false when something failed.
pub(crate) fn command(names: &[String], filter: Option<&str>) -> Result<bool> {
    let matrix = run(names, filter)?;
    table::print(&matrix.columns);
    println!("\n{}", matrix.counts.summary());
    Ok(matrix.counts.are_good())
}

/// Boots the kernels whose names are given, or all, and runs the live tests inside.
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
    // The newest kernels take longest, and go first: what is left at the end is short.
    queue.sort_by_key(|(series, ..)| series.weight());
    let queue = Mutex::new(queue);
    let worker = || -> Vec<(Series, Result<Said>, Option<Result<Said>>)> {
        let mut done = Vec::new();
        loop {
            let Some((series, kernel, base)) = queue.lock().ok().and_then(|mut queue| queue.pop()) else {
                return done;
            };
            let said = one(series, Clock::Time, &kernel, &base, &dir.join(series.name), &[]);
            println!("Linux {:<24} {}", kernel.release, summary(&said));
            let missed = said.as_ref().map_or(Vec::new(), |said| column(series, &said.text).failed());
            // Tests that run side by side take each other's time on one emulated processor, and from Linux 7 on interrupt each
            // other inside the programs, which the kernel then skips. One that passes alone counts as flaky, and what it printed
            // the first time is shown.
            let alone = (!missed.is_empty()).then(|| {
                println!("Linux {:<24} once more, alone: {}", kernel.release, missed.join(", "));
                one(series, Clock::Time, &kernel, &base, &dir.join(series.name).join("alone"), &missed)
            });
            done.push((series, said, alone));
        }
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..SIDE_BY_SIDE).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    let mut matrix = Matrix::default();
    // In the order of the table, whoever was first.
    for series in MATRIX.iter().chain(OTHERS) {
        let Some((_, said, alone)) = results.iter().find(|(done, ..)| done == series) else { continue };
        match said {
            Ok(said) => {
                let mut column = column(*series, &said.text);
                // A runner that was killed has no failed test.
                let is_broken = !said.text.contains("machine: exit 0") && column.failed().is_empty();
                matrix.counts.failed += u64::from(is_broken);
                let mut text = said.text.as_str();
                if let Some(Ok(alone)) = alone {
                    let before = column.failed();
                    column.tests.extend(self::column(*series, &alone.text).tests);
                    text = &alone.text;
                    let after = column.failed();
                    for test in before.iter().filter(|test| !after.contains(test)) {
                        println!(
                            "Linux {}: {test} is flaky: it failed beside others and passed alone\n{}",
                            series.name,
                            words_of(test, &said.text)
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
                    println!("{}", words_of(test, text));
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

/// The one that is called so.
fn named(name: &str) -> Result<Series> {
    let all = || MATRIX.iter().chain(OTHERS);
    let known = || all().map(|series| series.name).collect::<Vec<_>>().join(", ");
    let series = all().find(|series| series.name == name);
    series.copied().with_context(|| format!("no kernel {name:?} in the matrix: {}", known()))
}

/// What watching costs others on one of these kernels, counted in instructions. This program measures inside.
pub(crate) fn bench(name: &str, probe: &Path) -> Result<bool> {
    let series = named(name)?;
    ensure!(series.arch == Arch::Amd64, "{name}: what measures runs on this machine's architecture only");
    let dir = target().join("vm");
    let kernel = Store::open(&dir, series.arch)?.kernel(series)?;
    let (helper, _) = build::static_lab(series.arch)?;
    let this = std::env::current_exe().context("find this program")?;
    let base = dir.join("base-bench.zst");
    let contents =
        Contents { probe, helper: &helper, tests: &[], filter: None, system: None, bench: Some(&this) };
    image::base(&base, &dir.join("stage"), &contents)?;
    let said = one(series, Clock::Instructions, &kernel, &base, &dir.join(format!("bench-{name}")), &[])?;
    println!("Linux {}, a nanosecond for each instruction", kernel.release);
    for line in said.text.lines().filter(|line| !line.starts_with("machine: ")) {
        println!("{line}");
    }
    Ok(said.text.contains("machine: exit 0"))
}

/// The part that every machine of an architecture shares.
fn base(dir: &Path, arch: Arch, store: &Store, filter: Option<&str>) -> Result<PathBuf> {
    let (probe, system) = match arch {
        // As the live tests do it: the binary under test may be another one.
        Arch::Amd64 => {
            (std::env::var_os("NETREADY_PROBE").map_or_else(build::release, |path| Ok(path.into()))?, None)
        }
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

/// What stands in the results of one machine: the answer of `probe doctor` between two marks, and the tests.
fn column(series: Series, text: &str) -> Column {
    let between = |rest: &str| Some(rest.split_once("machine: end")?.0.trim().to_owned());
    let doctor = text.split_once("machine: doctor").and_then(|(_, rest)| between(rest)).unwrap_or_default();
    let doctor = serde_json::from_str(&doctor).unwrap_or_default();
    Column::new(series.name, text.lines(), doctor)
}

/// Boots one machine; `alone` are the only tests that it runs, one after the other, or none.
fn one(
    series: Series,
    clock: Clock,
    kernel: &kernel::Kernel,
    base: &Path,
    dir: &Path,
    alone: &[String],
) -> Result<Said> {
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

/// What the test runner printed of a test that failed.
fn words_of<'a>(test: &str, text: &'a str) -> &'a str {
    let words = text.split_once(&format!("{test} stdout ----")).map_or("", |(_, words)| words);
    let ends = ["\n---- ", "\nfailures:"].into_iter().filter_map(|end| words.find(end));
    words[..ends.min().unwrap_or(words.len())].trim()
}

fn summary(said: &Result<Said>) -> String {
    match said {
        Ok(said) => {
            let tests = said.text.lines().filter(|line| line.starts_with("test ") && line.contains(" ... "));
            format!("{} tests in {} s", tests.count(), said.took.as_secs())
        }
        Err(_) => "no result".to_owned(),
    }
}
