//! Every test, with one summary at the end.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::vm::table::{self, Column};
use crate::{build, vm};

/// Runs what needs no root, then the live tests; false when one failed.
pub(crate) fn run(matrix: bool) -> Result<bool> {
    let probe = build::release()?;
    let mut total = Counts::default();
    let mut plain = build::cargo();
    plain.args(["test", "--workspace", "--exclude", "kernel-tests", "--no-fail-fast", "--", "--quiet"]);
    total.add("unit, property, replay and command-line tests", &mut plain)?;
    let mut live = build::cargo();
    // Two at a time: each has a probe, a client and a server of its own, and this is for two cores.
    live.args(["test", "--package", "kernel-tests", "--no-fail-fast", "--", "--test-threads", "2"]);
    let lines = total.add("live tests on this kernel", live.env("NETREADY_PROBE", &probe))?;
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

/// What this kernel allows.
fn doctor(probe: &Path) -> Result<Value> {
    let output = Command::new(probe).args(["doctor", "-o", "json"]).output().context("run probe doctor")?;
    serde_json::from_slice(&output.stdout).context("read the answer of probe doctor")
}

/// The sum of the test runners' summaries.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    /// Failed tests, and runners that failed without a failed test: they did not build, or were killed.
    pub(crate) failed: u64,
    /// Of those that passed, the ones that failed when they ran beside others.
    pub(crate) flaky: u64,
}

impl Counts {
    /// Runs the tests, shows their lines, and returns them.
    pub(crate) fn add(&mut self, what: &str, command: &mut Command) -> Result<Vec<String>> {
        println!("\n── {what}");
        let mut child = command.stdout(Stdio::piped()).spawn().context("run the tests")?;
        let before = self.failed;
        let mut lines = Vec::new();
        for line in BufReader::new(child.stdout.take().context("the tests have an output")?).lines() {
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

    /// The last line of every run.
    pub(crate) fn summary(&self) -> String {
        let flaky = if self.flaky > 0 { format!(", {} flaky", self.flaky) } else { String::new() };
        format!("{} passed, {} failed{flaky}", self.passed, self.failed)
    }

    /// Returns whether nothing failed.
    pub(crate) const fn are_good(&self) -> bool {
        self.failed == 0
    }

    /// `test result: ok. 25 passed; 0 failed; …`
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
    fn the_runner_s_summaries_add_up() {
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
