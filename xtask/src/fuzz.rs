//! Hostile bytes for everything that reads bytes from outside, for a bounded time, from the corpus that is kept.
//!
//! libFuzzer with the pinned compiler: its own coverage pass is there in every release, only the sanitizers are
//! not, and the code under test is safe Rust.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::vm::Arch;
use crate::{build, shown, target, top};

/// The longest input that is tried. A configuration or a datagram is shorter than 32 KB; recordings are lines
/// of a few hundred bytes.
const LONGEST: u32 = 32 << 10;
/// How long one input may take, and how much memory all of them: both far above what is seen.
const PATIENCE_S: u32 = 10;
const MEMORY_MB: u32 = 1024;
/// The target that is fed with the recordings of the replay tests.
const RECORDING: &str = "recording";
/// Two cores.
const AT_ONCE: usize = 2;

const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// Runs the targets named, or all, each for `time`; with `keep`, what was found new goes into the corpus that
/// the repository has. False when one ended badly.
pub(crate) fn run(named: &[String], time: Duration, keep: bool) -> Result<bool> {
    let targets = targets(named)?;
    build()?;
    let mut good = true;
    for some in targets.chunks(AT_ONCE) {
        let running: Vec<_> = some.iter().map(|target| Run::start(target, time)).collect::<Result<_>>()?;
        for run in running {
            good &= run.end()?;
        }
    }
    if good && keep {
        targets.iter().filter(|target| *target != RECORDING).try_for_each(|target| merge(target))?;
    }
    Ok(good)
}

fn dir() -> PathBuf {
    top().join("tests/fuzz")
}

/// Every file of `tests/fuzz/targets` is one.
fn targets(named: &[String]) -> Result<Vec<String>> {
    let files = fs::read_dir(dir().join("targets")).context("list the fuzz targets")?;
    let stem = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    let mut all: Vec<_> = files.filter_map(|file| stem(file.ok()?.path())).collect();
    all.sort();
    if let Some(unknown) = named.iter().find(|name| !all.contains(name)) {
        bail!("there is no fuzz target {unknown:?}; there are {}", all.join(", "));
    }
    Ok(if named.is_empty() { all } else { named.to_vec() })
}

fn build() -> Result<()> {
    let mut cargo = build::cargo();
    // The target is named, so that the flags are not those of build scripts; the kernel half never runs here.
    cargo.args(["build", "--quiet", "--release", "--locked", "--target", Arch::Amd64.target()]);
    cargo.arg("--manifest-path").arg(dir().join("Cargo.toml")).arg("--target-dir").arg(target().join("fuzz"));
    cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")).env("NETREADY_SKIP_BPF", "1");
    cargo.env_remove("NETREADY_REQUIRE_BPF");
    shown(&mut cargo)
}

fn binary(name: &str) -> PathBuf {
    target().join("fuzz").join(Arch::Amd64.target()).join("release").join(name)
}

/// What a run finds; grows from run to run.
fn found(name: &str) -> PathBuf {
    target().join("fuzz/corpus").join(name)
}

/// What the repository keeps.
fn kept(name: &str) -> Vec<PathBuf> {
    let own = dir().join("corpus").join(name);
    // A recording of the replay tests is the best start that a recording can have.
    let replays = (name == RECORDING).then(|| top().join("tests/replay"));
    [Some(own), replays].into_iter().flatten().filter(|dir| dir.is_dir()).collect()
}

/// One target that runs.
struct Run {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Run {
    fn start(name: &str, time: Duration) -> Result<Self> {
        let found = found(name);
        fs::create_dir_all(&found).with_context(|| format!("make {}", found.display()))?;
        let log = target().join("fuzz").join(format!("{name}.log"));
        let output = fs::File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let mut command = Command::new(binary(name));
        command.arg(found).args(kept(name)).args([
            format!("-max_total_time={}", time.as_secs()),
            format!("-max_len={LONGEST}"),
            format!("-timeout={PATIENCE_S}"),
            format!("-rss_limit_mb={MEMORY_MB}"),
            format!("-artifact_prefix={}/{name}-", target().join("fuzz").display()),
            "-print_final_stats=1".to_owned(),
        ]);
        let child = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn();
        Ok(Self { name: name.to_owned(), child: child.with_context(|| format!("run {name}"))?, log })
    }

    fn end(mut self) -> Result<bool> {
        let status = self.child.wait()?;
        let log = String::from_utf8_lossy(&fs::read(&self.log)?).into_owned();
        if status.success() {
            println!("{:<16} {}", self.name, summary(&log));
            return Ok(true);
        }
        println!("{:<16} ended badly: {status}", self.name);
        let words = log.lines().filter(|line| line.contains("panicked") || line.contains("ERROR"));
        words
            .chain(log.lines().filter(|line| line.contains("Test unit written")))
            .for_each(|line| println!("  {line}"));
        println!("  {}\n  again: {} FILE", self.log.display(), binary(&self.name).display());
        Ok(false)
    }
}

/// `stat::number_of_executed_units: 1234`, and the last of the lines that tell of coverage.
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

/// Adds to the repository's corpus what reaches code that nothing there reaches, as few inputs as do that. The corpus
/// of recordings are the recordings.
fn merge(name: &str) -> Result<()> {
    let own = dir().join("corpus").join(name);
    fs::create_dir_all(&own)?;
    let mut command = Command::new(binary(name));
    // Small inputs, and code rather than how often it ran: the corpus is a part of the repository.
    command
        .args(["-set_cover_merge=1", "-use_counters=0", "-max_len=2048"])
        .arg(&own)
        .arg(found(name))
        .stderr(Stdio::null());
    let status = command.status().with_context(|| format!("merge what {name} found"))?;
    ensure!(status.success(), "merge what {name} found: {status}");
    println!("{name:<16} {} inputs kept", count(&own));
    Ok(())
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_summed_up() {
        let log = "#2 INITED cov: 10 ft: 11\n#9 DONE   cov: 231 ft: 400 corp: 9/99b\nstat::number_of_executed_units: 1234\nstat::peak_rss_mb:              45\n";
        assert_eq!(summary(log), "     1234 inputs,   231 edges,   45 MB");
    }

    #[test]
    fn targets_are_named() {
        assert!(targets(&[]).expect("a list").contains(&"record".to_owned()));
        assert!(targets(&["nonsense".to_owned()]).is_err());
    }
}
