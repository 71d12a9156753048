//! All tests, or the live tests whose names contain a text, with a summary at the end.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::vm::table::{self, Column};
use crate::{build, step, vm};

/// Runs the tests that need no root, then the live tests, with `matrix` on other kernels too; returns false if one failed.
pub(crate) fn run(matrix: bool) -> Result<bool> {
    table::check(&live_tests()?)?;
    let probe = build::release()?;
    let mut total = Counts::default();
    let mut plain = build::cargo();
    plain.args(["test", "--workspace", "--exclude", "kernel-tests", "--no-fail-fast", "--", "--quiet"]);
    total.add("unit, property, replay and command-line tests", &mut plain)?;
    let lines = total.add("live tests on this kernel", live_command(&[]).env("NETREADY_PROBE", &probe))?;
    if matrix {
        println!("\n── live tests on other kernels");
        let here = Column::new("here", lines.iter().map(String::as_str), doctor(&probe)?);
        let matrix = vm::run(&[], None)?;
        total.passed += matrix.counts.passed;
        total.failed += matrix.counts.failed;
        total.flaky += matrix.counts.flaky;
        let columns: Vec<_> = std::iter::once(here).chain(matrix.columns).collect();
        table::print(&columns);
    }
    println!("\n{}", total.summary());
    Ok(total.are_good())
}

/// Runs the live tests whose names contain one of `names`, on this kernel; returns false if one failed.
pub(crate) fn live(names: &[String]) -> Result<bool> {
    let tests = live_tests()?;
    if let Some(name) = names.iter().find(|name| !tests.iter().any(|test| test.contains(name.as_str()))) {
        bail!("no live test has a name that contains {name:?}; the tests are in tests/kernel/tests/live");
    }
    let probe = build::under_test(build::demo)?;
    let mut total = Counts::default();
    total.add("live tests on this kernel", live_command(names).env("NETREADY_PROBE", &probe))?;
    println!("\n{}", total.summary());
    Ok(total.are_good())
}

/// Returns a command that runs the live tests whose names contain one of `names`, or all.
fn live_command(names: &[String]) -> Command {
    let mut live = build::cargo();
    // Two at a time on two cores: each has a probe, a client and a server of its own.
    live.args(["test", "--package", "kernel-tests", "--no-fail-fast", "--", "--test-threads", "2"]);
    live.args(names);
    live
}

/// Builds the live tests and returns their names, with their modules: `faults::missing`.
pub(crate) fn live_tests() -> Result<Vec<String>> {
    let mut list = build::cargo();
    list.args(["test", "--package", "kernel-tests", "--test", "live", "--", "--list"]);
    let output = step::cargo("building the live tests", &mut list)?;
    Ok(names(&String::from_utf8_lossy(&output.stdout)))
}

/// Returns the names in the output of a test runner's `--list`.
fn names(list: &str) -> Vec<String> {
    list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

/// Returns the JSON output of `probe doctor`.
fn doctor(probe: &Path) -> Result<Value> {
    let output = Command::new(probe).args(["doctor", "-o", "json"]).output().context("run probe doctor")?;
    serde_json::from_slice(&output.stdout).context("parse the output of probe doctor")
}

/// Sums of the numbers in the test runners' summaries.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    /// Failed tests, and runners that failed without a failed test because they did not compile or were killed.
    pub(crate) failed: u64,
    /// Tests among the passed ones that failed when they ran in parallel with others.
    pub(crate) flaky: u64,
}

impl Counts {
    /// Runs tests, prints the lines of their output and returns them. cargo's own output goes to standard error.
    pub(crate) fn add(&mut self, what: &str, command: &mut Command) -> Result<Vec<String>> {
        println!("\n── {what}");
        let mut child = command.stdout(Stdio::piped()).spawn().context("run the tests")?;
        let before = self.failed;
        let mut lines = Vec::new();
        for line in BufReader::new(child.stdout.take().context("standard output of the tests")?).lines() {
            let line = line?;
            self.count(&line);
            println!("{line}");
            lines.push(line);
        }
        if !child.wait()?.success() && self.failed == before {
            self.failed += 1;
            println!("the test runner failed without a failed test");
        }
        Ok(lines)
    }

    /// Returns the last line of every run.
    pub(crate) fn summary(&self) -> String {
        let flaky = if self.flaky > 0 { format!(", {} flaky", self.flaky) } else { String::new() };
        format!("{} passed, {} failed{flaky}", self.passed, self.failed)
    }

    /// Returns whether nothing failed.
    pub(crate) const fn are_good(&self) -> bool {
        self.failed == 0
    }

    /// Adds the numbers of a line such as `test result: ok. 25 passed; 0 failed; …`.
    fn count(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        let number = |word: &str| {
            let before = rest.split(';').find_map(|part| part.trim().strip_suffix(word))?;
            before.rsplit([' ', '.']).find(|word| !word.is_empty())?.parse::<u64>().ok()
        };
        self.passed += number(" passed").unwrap_or(0);
        self.failed += number(" failed").unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_tests_have_their_names() {
        let list = "faults::missing: test\nruns: test\n\n2 tests, 0 benchmarks\n";
        assert_eq!(names(list), ["faults::missing", "runs"]);
    }

    #[test]
    fn numbers_of_test_runners_are_added() {
        let mut counts = Counts::default();
        counts.count(
            "test result: ok. 25 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        );
        counts.count("test result: FAILED. 8 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out");
        counts.count("running 3 tests");
        assert_eq!(counts.summary(), "33 passed, 2 failed");
        counts.flaky = 1;
        assert_eq!(counts.summary(), "33 passed, 2 failed, 1 flaky");
    }
}
