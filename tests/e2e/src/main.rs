//! A real node, faults on it, and what the agent writes: `cargo xtask e2e`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod agent;
mod cluster;
mod dialect;
mod image;
mod machine;
mod node_host;
mod pki;
mod scale;
mod scenes;
mod stage;
mod watch;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use cluster::{Cluster, INTERRUPTED, interrupted};
use machine::MachineState;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The first argument is the directory with kube-apiserver and kubelet; the others choose scenes by a part of their names.
/// `--nodes N` measures the cost of that many agents instead.
fn run() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let assets = args.next().context("name the directory with kube-apiserver and kubelet")?;
    if assets == "agents" {
        return scale::agents(args);
    }
    let assets = std::fs::canonicalize(&assets).with_context(|| format!("find {assets}"))?;
    let chosen: Vec<String> = args.collect();
    // The handler only sets a flag, which the owner of the cluster checks.
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed)).context("watch for Ctrl-C")?;
    node_host::adopt_orphans();
    if let [option, nodes] = chosen.as_slice()
        && option == "--nodes"
    {
        return scale::measure(&assets, nodes.parse().context("--nodes: expected a number")?);
    }
    scenes::check(&chosen)?;
    let started = Instant::now();
    let _machine = MachineState::save()?;
    let result = if chosen.is_empty() { run_all_stories(&assets) } else { run_scenes(&assets, &chosen) };
    println!("{} s in total", started.elapsed().as_secs());
    result
}

/// Runs these scenes, one after the other; on failure prints the end of each log.
fn run_scenes(assets: &Path, chosen: &[String]) -> Result<()> {
    let mut cluster = Cluster::new(assets)?;
    let result = scenes::run(&mut cluster, chosen);
    if result.is_err() {
        for log in ["kube-apiserver", "containerd", "kubelet", "probe"] {
            eprintln!("── the end of {log}.log\n{}", cluster.log(log));
        }
    }
    result
}

/// Runs all stories concurrently, each in its own process.
fn run_all_stories(assets: &Path) -> Result<()> {
    let mut stories =
        scenes::stories().map(|scenes| Story::start(assets, &scenes)).collect::<Result<Vec<_>>>()?;
    while stories.iter_mut().any(Story::runs) {
        if interrupted() {
            stories.iter_mut().for_each(Story::interrupt);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let failed = stories.into_iter().filter_map(|story| story.end().err()).count();
    ensure!(failed == 0, "{failed} stories failed");
    Ok(())
}

/// A process of this program that runs some scenes.
struct Story {
    child: Child,
    /// Collects its output except for the lines of finished scenes, which are printed immediately.
    rest: JoinHandle<String>,
}

impl Story {
    fn start(assets: &Path, scenes: &[&str]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command.arg(assets).args(scenes).stdout(Stdio::piped());
        let mut child =
            node_host::kill_with_parent(&mut command).spawn().context("start a process for a story")?;
        let output = BufReader::new(child.stdout.take().context("the output is not piped")?);
        let rest = std::thread::spawn(move || {
            let mut rest = String::new();
            for line in output.lines().map_while(Result::ok) {
                if line.starts_with(scenes::DONE) {
                    println!("{line}");
                } else {
                    rest.push_str(&line);
                    rest.push('\n');
                }
            }
            rest
        });
        Ok(Self { child, rest })
    }

    fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends SIGINT, upon which the process removes its cluster and exits.
    fn interrupt(&mut self) {
        if self.runs() {
            // SAFETY: no memory is involved; the process is our child and was not waited for.
            unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGINT) };
        }
    }

    fn end(mut self) -> Result<()> {
        let status = self.child.wait().context("wait for a story")?;
        println!("{}", self.rest.join().unwrap_or_default());
        ensure!(status.success(), "a story failed");
        Ok(())
    }
}
