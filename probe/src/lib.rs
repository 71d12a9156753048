//! `probe` reports why a Kubernetes node is not ready, from evidence inside the kernel.
#![cfg_attr(
    fuzzing,
    allow(dead_code, reason = "fuzzing builds contain the entry points of the parsers, but not the program")
)]

mod app;
mod bpf;
mod cli;
mod clock;
mod commands;
mod enrich;
mod exit;
mod feed;
#[cfg(fuzzing)]
pub mod fuzz;
#[cfg(not(fuzzing))]
mod kube;
mod lock;
mod node;
mod privileges;
mod report;
mod settings;
#[cfg(not(fuzzing))]
pub mod simulation;
mod sinks;
mod text;
mod threads;
mod yaml;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::bpf::Unsupported;
use crate::cli::{Cli, Color, Command, UsageError};
use crate::exit::Exit;

/// Runs the program: parses its arguments and returns its exit code.
pub fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| warn(&format!("internal error: {panic}").replace('\n', " "))));
    threads::share_memory();
    // On a usage error, clap prints its message and exits with code 2.
    let cli = Cli::parse();
    match cli.color {
        Color::Auto => {}
        Color::Always => anstream::ColorChoice::Always.write_global(),
        Color::Never => anstream::ColorChoice::Never.write_global(),
    }
    if cli.verbose {
        commands::kernel_log::show();
    }
    match dispatch(cli.command) {
        Ok(exit) => exit.into(),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            warn(&format!("{error:#}"));
            if error.is::<UsageError>() {
                Exit::Usage.into()
            } else if error.is::<Unsupported>() {
                Exit::Unsupported.into()
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Replay(args) => commands::replay::run(&args),
        Command::Explain(args) => commands::explain::run(&args),
        Command::Doctor(args) => with_loop(commands::doctor::run(args)),
        Command::Check(args) => with_loop(commands::check::run(args)),
        Command::Trace(args) => with_loop(commands::trace::run(args)),
        #[cfg(not(fuzzing))]
        Command::Run(args) => with_loop(commands::run::run(args)),
        #[cfg(fuzzing)]
        Command::Run(_) => unreachable!("no fuzz target runs a command"),
    }
}

/// Runs a command on one thread, which is enough because it waits most of the time, and keeps events in order. Only the agent
/// starts further threads.
fn with_loop(command: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let runtime = threads::runtime()?;
    let exit = runtime.block_on(command);
    // Do not wait for a thread that reads from a disk that does not respond.
    runtime.shutdown_background();
    exit
}

/// Writes one line to standard error; no other function does. Secrets are redacted here because errors of libraries, and the
/// log of the kernel programs with `-v`, are not redacted before.
pub(crate) fn warn(text: &str) {
    let text = text::redact_text(text);
    // There is no other place to report a failure of this write.
    let _ = writeln!(anstream::stderr().lock(), "probe: {text}");
}

/// Returns whether an error is due to a closed pipe: the reader of the output has exited, which is not a failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
    };
    error.chain().any(|cause| kind(cause) == Some(std::io::ErrorKind::BrokenPipe))
}
