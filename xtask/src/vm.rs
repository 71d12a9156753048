//! The kernel matrix: the live tests inside machines with other kernels.

mod image;
mod kernel;
mod machine;

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{build, target};
use image::Contents;
use kernel::{MATRIX, Series, Store};
use machine::Said;

/// How many machines run side by side: one for each processor of the smallest machine that builds this.
const SIDE_BY_SIDE: usize = 2;

/// Boots the kernels whose names are given, or all, and runs the live tests inside; false when one failed.
pub(crate) fn run(names: &[String], filter: Option<&str>) -> Result<bool> {
    let wanted: Vec<Series> = MATRIX
        .iter()
        .filter(|series| names.is_empty() || names.iter().any(|name| name == series.name))
        .copied()
        .collect();
    if let Some(name) = names.iter().find(|name| MATRIX.iter().all(|series| series.name != **name)) {
        let known: Vec<_> = MATRIX.iter().map(|series| series.name).collect();
        bail!("no kernel {name:?} in the matrix: {}", known.join(", "));
    }
    let dir = target().join("vm");
    let store = Store::open(&dir)?;
    // As the live tests do it: the binary under test may be another one.
    let probe = std::env::var_os("NETREADY_PROBE").map_or_else(build::release, |path| Ok(path.into()))?;
    let (helper, tests) = build::static_lab()?;
    let base = dir.join("base.zst");
    image::base(
        &base,
        &dir.join("stage"),
        &Contents { probe: &probe, helper: &helper, tests: &tests, filter },
    )?;

    let mut queue = Vec::new();
    for series in wanted {
        queue.push((series, store.kernel(series)?));
    }
    queue.reverse();
    let queue = Mutex::new(queue);
    let worker = || -> Vec<(Series, Result<Said>)> {
        let mut done = Vec::new();
        loop {
            let Some((series, kernel)) = queue.lock().ok().and_then(|mut queue| queue.pop()) else {
                return done;
            };
            let said = one(series, &kernel, &base, &dir.join(series.name));
            println!("Linux {:<24} {}", kernel.release, summary(&said));
            done.push((series, said));
        }
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..SIDE_BY_SIDE).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    let good =
        results.iter().all(|(_, said)| said.as_ref().is_ok_and(|said| said.text.contains("machine: exit 0")));
    for (series, said) in &results {
        report(*series, said);
    }
    Ok(good)
}

fn one(series: Series, kernel: &kernel::Kernel, base: &Path, dir: &Path) -> Result<Said> {
    std::fs::create_dir_all(dir)?;
    let modules = dir.join("modules.zst");
    image::modules(kernel, &modules, &dir.join("stage"))?;
    machine::run(kernel, series.append, &[base, &modules], dir)
}

fn summary(said: &Result<Said>) -> String {
    match said {
        Ok(said) => {
            let count = |word: &str| {
                said.text.lines().filter(|line| line.starts_with("test ") && line.ends_with(word)).count()
            };
            format!("{} passed, {} failed in {} s", count(" ok"), count(" FAILED"), said.took.as_secs())
        }
        Err(error) => format!("failed: {error:#}"),
    }
}

fn report(series: Series, said: &Result<Said>) {
    let Ok(said) = said else { return };
    for line in said.text.lines().filter(|line| line.ends_with("FAILED") && line.starts_with("test ")) {
        println!("{}: {line}", series.name);
    }
}

/// Runs a command whose words matter only when it fails.
fn quiet(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        command.get_program().display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
