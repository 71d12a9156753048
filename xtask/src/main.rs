//! Tasks of this repository: `cargo xtask setup | build | demo | test | attack | vm | e2e | fuzz | bench | docs`.
#![expect(clippy::print_stderr, reason = "a command-line tool prints errors and progress there")]
#![expect(clippy::print_stdout, reason = "a command-line tool prints its results there")]

mod apt;
mod attack;
mod bench;
mod build;
mod demo;
mod docs;
mod e2e;
mod fuzz;
mod setup;
mod step;
mod test;
mod vm;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};

use setup::Need;

/// Tasks of this repository.
///
/// A task first installs the tools that it needs and that are missing; on systems other than Debian it names their packages.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install the tools of all tasks; prints nothing if they are there.
    Setup {
        /// Only list what is missing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Build the static release binary, with the kernel programs.
    Build,
    /// Make seven real faults in network namespaces and show what the probe reports; needs root.
    Demo,
    /// Run all tests, the live tests on this kernel and on those of the matrix; needs root.
    ///
    /// The live tests make real faults in network namespaces. `cargo xtask test live NAME` runs only some of them.
    #[command(args_conflicts_with_subcommands = true)]
    Test {
        /// Do not run the live tests on other kernels.
        #[arg(long)]
        no_matrix: bool,
        #[command(subcommand)]
        part: Option<TestPart>,
    },
    /// Attack agents as an unprivileged user and as a pod, and print the effect of each attack; needs root.
    Attack {
        /// Duration of each attack before the first fault, in seconds.
        #[arg(long = "for", value_name = "SECONDS", default_value_t = 10)]
        seconds: u64,
    },
    /// Run the live tests in virtual machines with other kernels; needs root.
    Vm {
        /// Kernels to run: `5.10`, `6.1`, `6.12`, `7.2`, `6.12-confid.` (with lockdown=confidentiality), `6.1-arm64`
        /// (runs only if named). Default: all others.
        kernels: Vec<String>,
        /// Run only tests whose name contains TEXT.
        #[arg(long, value_name = "TEXT")]
        filter: Option<String>,
    },
    /// Start a real Kubernetes node, make faults, and check its Node object; needs root.
    E2e {
        /// Run only scenes whose name contains one of these texts.
        scenes: Vec<String>,
        /// Measure instead what the agents of this many nodes cost the API server; takes 15 minutes.
        #[arg(long, conflicts_with = "scenes")]
        nodes: Option<usize>,
    },
    /// Fuzz every parser of input from outside.
    Fuzz {
        /// Targets to run, by the names of the files in tests/fuzz/targets. Default: all.
        targets: Vec<String>,
        /// Duration of each run, in seconds.
        #[arg(long = "for", value_name = "SECONDS", default_value_t = 60)]
        seconds: u64,
        /// Add inputs that reached new code to the corpus of the repository.
        #[arg(long)]
        keep: bool,
    },
    /// Measure the costs of the agent and compare them with their budgets; needs root.
    Bench {
        /// Count instructions in a virtual machine with this kernel of the matrix; shows what fentry and fexit cost
        /// where the running kernel has neither.
        #[arg(long)]
        kernel: Option<String>,
        /// Measure only the overhead of watching, with this binary. Run inside the virtual machine.
        #[arg(long, hide = true, value_name = "PROBE")]
        inside: Option<PathBuf>,
    },
    /// Generate docs/reasons.md and docs/unsafe.md.
    Docs {
        /// Do not write; fail if a page is out of date.
        #[arg(long)]
        check: bool,
    },
}

#[derive(Debug, Subcommand)]
enum TestPart {
    /// Run only the live tests whose names contain one of NAME, on this kernel.
    ///
    /// Tests a binary of the `demo` profile, which builds faster than the release binary, or the one that NETREADY_PROBE
    /// names.
    Live {
        /// Parts of test names, such as `faults::` or `closed_port`.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
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

/// Runs a task; returns false if it ran to its end and its result is a failure.
fn run(task: &Task) -> Result<bool> {
    match task {
        Task::Setup { dry_run } => setup::all(*dry_run),
        Task::Build => {
            setup::ensure(&[Need::Programs])?;
            build::release().map(|_| true)
        }
        Task::Demo => {
            require_root("the demo creates network namespaces")?;
            setup::ensure(&[Need::Programs, Need::Demo])?;
            demo::run()
        }
        Task::Test { no_matrix, part } => {
            require_root("the live tests create network namespaces and load eBPF programs")?;
            setup::ensure(&[Need::Programs, Need::Lab])?;
            match part {
                Some(TestPart::Live { names }) => test::live(names),
                None if *no_matrix => test::run(false),
                None => {
                    setup::ensure(&[Need::Machines])?;
                    test::run(true)
                }
            }
        }
        Task::Attack { seconds } => {
            require_root("the attacks run in network namespaces, on agents that load eBPF programs")?;
            setup::ensure(&[Need::Programs, Need::Lab])?;
            attack::run(*seconds)
        }
        Task::Vm { kernels, filter } => {
            require_root("the machines' file systems contain files that only root may read")?;
            setup::ensure(&[Need::Programs, Need::Lab, Need::Machines])?;
            vm::command(kernels, filter.as_deref())
        }
        Task::E2e { scenes, nodes } => {
            require_root("the node runs in namespaces")?;
            setup::ensure(&[Need::Programs, Need::Lab])?;
            e2e::run(scenes, *nodes)
        }
        Task::Fuzz { targets, seconds, keep } => {
            setup::ensure(&[Need::Fuzz])?;
            fuzz::run(targets, Duration::from_secs(*seconds), *keep)
        }
        Task::Bench { inside: Some(probe), .. } => bench::inside(probe),
        Task::Bench { kernel, .. } => {
            require_root("the benchmarks load eBPF programs")?;
            setup::ensure(&[Need::Programs, Need::Lab])?;
            if let Some(kernel) = kernel {
                setup::ensure(&[Need::Machines])?;
                vm::bench(kernel, &build::release()?)
            } else {
                let probe = build::release()?;
                build::lab()?;
                bench::run(&probe)
            }
        }
        Task::Docs { check } => docs::run(*check),
    }
}

/// Returns the top directory of the repository.
fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a directory of the repository")
}

/// Returns cargo's target directory.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top().join("target"), PathBuf::from)
}

/// Fails with instructions unless the process runs as root.
fn require_root(why: &str) -> Result<()> {
    // SAFETY: no precondition.
    if unsafe { libc::geteuid() } != 0 {
        bail!("{why}: run it as root, or with sudo -E");
    }
    Ok(())
}

/// Runs a command; its standard error is part of the error if it fails.
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
