//! Fuzzing of every parser of input from outside, for a bounded time, starting from the corpus of the repository.
//!
//! libFuzzer with the pinned compiler. Stable releases have the coverage pass and lack only the sanitizers, which the code under
//! test, safe Rust, does not need.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::vm::Arch;
use crate::{build, step, target, top};

/// Longest input, in bytes. A configuration or a datagram is shorter than 32 KB; the lines of recordings have a few hundred
/// bytes.
const MAX_INPUT: u32 = 32 << 10;
/// Limits of the time for one input, in seconds, and of the memory of a run: both far above what is observed.
const INPUT_LIMIT_S: u32 = 10;
const MEMORY_MB: u32 = 1024;
/// The target whose corpus includes the recordings of the replay tests.
const RECORDING: &str = "recording";
/// Number of runs in parallel, for two cores.
const PARALLEL: usize = 2;

const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// Runs the targets in `named`, or all, each for `time`. With `keep`, inputs that reached new code are added to the corpus of the
/// repository. Returns false if a target failed.
pub(crate) fn run(named: &[String], time: Duration, keep: bool) -> Result<bool> {
    let targets = targets(named)?;
    build()?;
    let mut is_good = true;
    for some in targets.chunks(PARALLEL) {
        let running: Vec<_> = some.iter().map(|target| Run::start(target, time)).collect::<Result<_>>()?;
        for run in running {
            is_good &= run.finish()?;
        }
    }
    if is_good && keep {
        targets.iter().filter(|target| *target != RECORDING).try_for_each(|target| merge(target))?;
    }
    Ok(is_good)
}

fn dir() -> PathBuf {
    top().join("tests/fuzz")
}

/// Returns the targets in `named`, or all: the files in `tests/fuzz/targets`.
fn targets(named: &[String]) -> Result<Vec<String>> {
    let files = fs::read_dir(dir().join("targets")).context("list the fuzz targets")?;
    let stem = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    let mut all: Vec<_> = files.filter_map(|file| stem(file.ok()?.path())).collect();
    all.sort();
    if let Some(unknown) = named.iter().find(|name| !all.contains(name)) {
        bail!("unknown fuzz target {unknown:?}; known are {}", all.join(", "));
    }
    Ok(if named.is_empty() { all } else { named.to_vec() })
}

fn build() -> Result<()> {
    let mut cargo = build::cargo_without_programs();
    // With a named target, the flags are not applied to build scripts.
    cargo.args(["build", "--release", "--locked", "--target", Arch::Amd64.target()]);
    cargo.arg("--manifest-path").arg(dir().join("Cargo.toml")).arg("--target-dir").arg(target().join("fuzz"));
    cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    step::cargo("building the fuzz targets", &mut cargo).map(drop)
}

fn binary(name: &str) -> PathBuf {
    target().join("fuzz").join(Arch::Amd64.target()).join("release").join(name)
}

/// Returns the directory in which runs collect the inputs that they find.
fn found(name: &str) -> PathBuf {
    target().join("fuzz/corpus").join(name)
}

/// Returns the directories of the repository with inputs for a target.
fn kept(name: &str) -> Vec<PathBuf> {
    let own = dir().join("corpus").join(name);
    let replays = (name == RECORDING).then(|| top().join("tests/replay"));
    [Some(own), replays].into_iter().flatten().filter(|dir| dir.is_dir()).collect()
}

/// A running target.
struct Run {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Run {
    fn start(name: &str, time: Duration) -> Result<Self> {
        let found = found(name);
        fs::create_dir_all(&found).with_context(|| format!("create {}", found.display()))?;
        let log = target().join("fuzz").join(format!("{name}.log"));
        let output = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut command = Command::new(binary(name));
        command.arg(found).args(kept(name)).args([
            format!("-max_total_time={}", time.as_secs()),
            format!("-max_len={MAX_INPUT}"),
            format!("-timeout={INPUT_LIMIT_S}"),
            format!("-rss_limit_mb={MEMORY_MB}"),
            format!("-artifact_prefix={}/{name}-", target().join("fuzz").display()),
            "-print_final_stats=1".to_owned(),
        ]);
        let child = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn();
        Ok(Self { name: name.to_owned(), child: child.with_context(|| format!("run {name}"))?, log })
    }

    fn finish(mut self) -> Result<bool> {
        let status = self.child.wait()?;
        let log = String::from_utf8_lossy(&fs::read(&self.log)?).into_owned();
        if status.success() {
            println!("{:<16} {}", self.name, summary(&log));
            return Ok(true);
        }
        println!("{:<16} failed: {status}", self.name);
        let errors = log.lines().filter(|line| line.contains("panicked") || line.contains("ERROR"));
        errors
            .chain(log.lines().filter(|line| line.contains("Test unit written")))
            .for_each(|line| println!("  {line}"));
        println!("  log: {}\n  to reproduce: {} FILE", self.log.display(), binary(&self.name).display());
        Ok(false)
    }
}

/// Summarizes a log by its statistics (`stat::number_of_executed_units: 1234`) and the last line about coverage.
fn summary(log: &str) -> String {
    let stat = |name: &str| {
        let line = log.lines().find_map(|line| line.strip_prefix("stat::")?.strip_prefix(name));
        line.map_or("?", |rest| rest.trim_start_matches(':').trim())
    };
    let edges = log.lines().rev().find_map(|line| line.split("cov: ").nth(1)?.split(' ').next());
    format!(
        "{:>9} inputs, {:>5} edges, {:>4} MB",
        stat("number_of_executed_units"),
        edges.unwrap_or("?"),
        stat("peak_rss_mb")
    )
}

/// Adds the fewest inputs to the repository's corpus that reach code which no input there reaches.
fn merge(name: &str) -> Result<()> {
    let own = dir().join("corpus").join(name);
    fs::create_dir_all(&own)?;
    let mut command = Command::new(binary(name));
    // The corpus is part of the repository: inputs are small, and coverage does not count how often code ran.
    command
        .args(["-set_cover_merge=1", "-use_counters=0", "-max_len=2048"])
        .arg(&own)
        .arg(found(name))
        .stderr(Stdio::null());
    let status = command.status().with_context(|| format!("merge the inputs of {name}"))?;
    ensure!(status.success(), "merge the inputs of {name}: {status}");
    println!("{name:<16} {} inputs in the corpus", count(&own));
    Ok(())
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_is_summarized() {
        let log = "#2 INITED cov: 10 ft: 11\n#9 DONE   cov: 231 ft: 400 corp: 9/99b\nstat::number_of_executed_units: 1234\nstat::peak_rss_mb:              45\n";
        assert_eq!(summary(log), "     1234 inputs,   231 edges,   45 MB");
    }

    #[test]
    fn unknown_targets_are_rejected() {
        assert!(targets(&[]).expect("a list of targets").contains(&"record".to_owned()));
        assert!(targets(&["nonsense".to_owned()]).is_err());
    }
}
