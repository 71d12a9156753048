//! What one does with this repository: `cargo xtask setup | build | demo | test | attack | vm | e2e | fuzz | bench | docs`.
#![expect(clippy::print_stderr, reason = "a tool for developers talks on its terminal")]
#![expect(clippy::print_stdout, reason = "as above")]

mod apt;
mod attack;
mod bench;
mod build;
mod demo;
mod docs;
mod e2e;
mod fuzz;
mod setup;
mod test;
mod vm;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};

/// Tasks of the repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what is missing; silent and instant when all is there.
    Setup {
        /// Only say what is missing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Build the static release binary.
    Build,
    /// Play real faults in namespaces and show what the probe says; needs root.
    Demo,
    /// Run every test, the live ones as root, on this kernel and on those of the matrix.
    Test {
        /// Only on this kernel.
        #[arg(long)]
        no_matrix: bool,
    },
    /// Attack agents as an unprivileged user and as a pod, and print what it came to; needs root.
    Attack {
        /// How long each attack lasts before the first fault, in seconds.
        #[arg(long = "for", value_name = "SECONDS", default_value_t = 10)]
        seconds: u64,
    },
    /// Run the live tests inside machines with other kernels; needs root.
    Vm {
        /// Only these: `5.10`, `6.1`, `6.12`, `7.2`, `6.12-confid.` (with lockdown=confidentiality), `6.1-arm64`
        /// (only when it is named).
        kernels: Vec<String>,
        /// Only tests whose name contains this.
        #[arg(long, value_name = "TEXT")]
        filter: Option<String>,
    },
    /// Boot a real Kubernetes node, break it, and look at its Node object; needs root.
    E2e {
        /// Only scenes whose name contains one of these.
        scenes: Vec<String>,
        /// Measure instead what the agents of so many nodes cost the API server; a quarter of an hour.
        #[arg(long, conflicts_with = "scenes")]
        nodes: Option<usize>,
    },
    /// Give hostile bytes to everything that reads bytes from outside.
    Fuzz {
        /// Only these; the files of tests/fuzz/targets are their names.
        targets: Vec<String>,
        /// How long each runs, in seconds.
        #[arg(long = "for", value_name = "SECONDS", default_value_t = 60)]
        seconds: u64,
        /// Add what was found new to the corpus that is kept.
        #[arg(long)]
        keep: bool,
    },
    /// Measure against the budgets; needs root.
    Bench {
        /// Inside a machine with this kernel of the matrix, counting instructions: what fentry and fexit cost
        /// where this kernel has none.
        #[arg(long)]
        kernel: Option<String>,
        /// Only what watching costs others, with this binary: what runs inside the machine.
        #[arg(long, hide = true, value_name = "PROBE")]
        inside: Option<PathBuf>,
    },
    /// Write docs/reasons.md and docs/unsafe.md.
    Docs {
        /// Fail when it is not what would be written.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    match run(&Cli::parse().task) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// False when the task was done and its answer is no.
fn run(task: &Task) -> Result<bool> {
    if let Task::Setup { dry_run } = task {
        return setup::run(*dry_run);
    }
    if let Task::Bench { inside: Some(probe), .. } = task {
        return bench::inside(probe);
    }
    if !setup::run(false)? {
        return Ok(false);
    }
    match task {
        Task::Setup { .. } => Ok(true),
        Task::Build => build::release().map(|_| true),
        Task::Demo => {
            root("the demo makes network namespaces")?;
            build::release()?;
            build::lab()?;
            demo::run()
        }
        Task::Test { no_matrix } => test::run(!no_matrix),
        Task::Attack { seconds } => {
            root("the attacks run in network namespaces, on agents that load eBPF programs")?;
            attack::run(*seconds)
        }
        Task::Vm { kernels, filter } => {
            root("the machines' file systems are made of files that only root may read")?;
            vm::command(kernels, filter.as_deref())
        }
        Task::E2e { scenes, nodes } => {
            root("the node lives in namespaces")?;
            e2e::run(scenes, *nodes)
        }
        Task::Fuzz { targets, seconds, keep } => fuzz::run(targets, Duration::from_secs(*seconds), *keep),
        Task::Bench { kernel, .. } => {
            root("the benchmarks load eBPF programs")?;
            let probe = build::release()?;
            if let Some(kernel) = kernel {
                return vm::bench(kernel, &probe);
            }
            build::lab()?;
            bench::run(&probe)
        }
        Task::Docs { check } => docs::run(*check),
    }
}

/// Top of the repository.
fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository")
}

/// Where cargo puts what it builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top().join("target"), PathBuf::from)
}

/// Fails with the way out when this is not root.
fn root(why: &str) -> Result<()> {
    // SAFETY: no precondition.
    if unsafe { libc::geteuid() } != 0 {
        bail!("{why}: this needs root; run it as root or with sudo -E");
    }
    Ok(())
}

/// Runs a command at the top of the repository, with its output shown.
fn shown(command: &mut Command) -> Result<()> {
    let status = command
        .current_dir(top())
        .status()
        .with_context(|| format!("run {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{} failed: {status}", command.get_program().display());
    }
    Ok(())
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
