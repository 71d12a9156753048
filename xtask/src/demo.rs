//! A demo: real faults, one after the other, and the verdicts of the probe.

use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kernel_tests::{API, Client, Dial, Node, Sandbox, Server, Trace, now_ns, probe_binary};

use crate::build;

/// One scene: the action, what a kubelet prints after it, and the expected verdict.
struct Scene {
    action: &'static str,
    /// Real messages of kubelet and containerd, all of which are symptoms.
    kubelet: &'static str,
    expected: &'static str,
    /// An independent fault that must be listed too.
    also: &'static str,
}

const HEALTHY: Scene =
    Scene { action: "a healthy node", kubelet: "Ready", expected: "NetworkReady", also: "" };
const NO_CONFIG: Scene = Scene {
    action: "CNI configuration removed",
    kubelet: "cni plugin not initialized",
    expected: "CNIConfigMissing",
    also: "",
};
const REFUSED: Scene = Scene {
    action: "API server stopped",
    kubelet: "dial tcp 10.99.0.1:6443: connection refused",
    expected: "APIServerRefused",
    also: "",
};
const BOTH: Scene = Scene {
    action: "both at once",
    kubelet: "cni plugin not initialized, connection refused",
    expected: "APIServerRefused",
    also: "CNIConfigMissing",
};
const NO_PLUGIN: Scene = Scene {
    action: "plugin portmap removed",
    kubelet: "failed to find plugin \"portmap\" in path",
    expected: "CNIBinaryMissing",
    also: "",
};
const EXHAUSTED: Scene = Scene {
    action: "a second pod in a /30",
    kubelet: "failed to setup network for sandbox",
    expected: "IPAMExhausted",
    also: "",
};
const RECOVERED: Scene =
    Scene { action: "everything repaired", kubelet: "Ready", expected: "NetworkReady", also: "" };

/// The result of a scene.
struct Answer {
    scene: &'static Scene,
    /// The reason of the verdict, and of the independent fault.
    reasons: String,
    is_right: bool,
    millis: f64,
}

/// Builds what the demo runs and plays all scenes; returns false if a verdict was wrong or an event was lost.
pub(crate) fn run() -> Result<bool> {
    let probe = build::under_test(build::demo)?;
    build::lab()?;
    // SAFETY: no other thread exists: those that followed the builds have been joined.
    unsafe { std::env::set_var("NETREADY_PROBE", probe) };
    let mut stage = Stage::open()?;
    let mut answers = vec![stage.judge(&HEALTHY, stage.born)?];

    let at = stage.scene(&NO_CONFIG);
    stage.node.remove_config()?;
    answers.push(stage.judge(&NO_CONFIG, at)?);
    stage.node.install_config()?;
    stage.repaired()?;

    let at = stage.scene(&REFUSED);
    stage.api = None;
    answers.push(stage.judge(&REFUSED, at)?);

    let at = stage.scene(&BOTH);
    stage.node.remove_config()?;
    answers.push(stage.judge(&BOTH, at)?);
    stage.node.install_config()?;
    stage.api = Some(stage.node.serve_api()?);
    stage.repaired()?;

    let at = stage.scene(&NO_PLUGIN);
    let (plugin, away) = (stage.node.bin_dir().join("portmap"), stage.node.dir().join("portmap"));
    std::fs::rename(&plugin, &away)?;
    answers.push(stage.judge(&NO_PLUGIN, at)?);
    std::fs::rename(&away, &plugin)?;
    stage.repaired()?;

    let at = stage.scene(&EXHAUSTED);
    let config = stage.node.plugin_config("10.244.9.0/30");
    let first = Sandbox::new("web-1")?;
    ensure!(
        first.run(&stage.node, "ADD", &config)?.status.success(),
        "the first pod does not get the only address"
    );
    let second = Sandbox::new("web-2")?;
    let at = at.max(now_ns());
    ensure!(!second.run(&stage.node, "ADD", &config)?.status.success(), "the second pod gets an address");
    answers.push(stage.judge(&EXHAUSTED, at)?);

    let at = stage.scene(&RECOVERED);
    first.run(&stage.node, "DEL", &config)?;
    let third = Sandbox::new("web-3")?;
    ensure!(third.run(&stage.node, "ADD", &config)?.status.success(), "the address was not freed");
    answers.push(stage.judge(&RECOVERED, at)?);
    stage.close(&answers)
}

/// The test node, the trace whose verdicts are checked, and the one that is shown.
struct Stage {
    node: Node,
    api: Option<Server>,
    trace: Trace,
    shown: Shown,
    _kubelet: Client,
    born: u64,
    number: usize,
}

impl Stage {
    fn open() -> Result<Self> {
        let node = Node::new()?;
        node.install_config()?;
        let api = node.serve_api()?;
        heading(1, &HEALTHY);
        let born = now_ns();
        let shown = Shown::start(&node)?;
        let trace = Trace::start(&node, &["--apiserver", API])?;
        let kubelet = node.client("kubelet", &Dial { to: API, flags: &["--every", "250"] })?;
        Ok(Self { node, api: Some(api), trace, shown, _kubelet: kubelet, born, number: 1 })
    }

    /// Prints the title of a scene and returns the time from which verdicts belong to it: boot time, in nanoseconds.
    fn scene(&mut self, scene: &'static Scene) -> u64 {
        self.number += 1;
        heading(self.number, scene);
        now_ns()
    }

    fn judge(&mut self, scene: &'static Scene, at: u64) -> Result<Answer> {
        // The next verdict after the action counts, whatever it is.
        let is_new = |line: &serde_json::Value| {
            line["kind"] == "verdict"
                && line["atNs"].as_u64() >= Some(at)
                && line["verdict"]["reason"] != "Learning"
        };
        let (arrived, line) = self.trace.wait_for("a new verdict", is_new)?;
        let mut reasons = line["verdict"]["reason"].as_str().unwrap_or_default().to_owned();
        let also = line["also"][0]["reason"].as_str().unwrap_or_default().to_owned();
        let is_right = reasons == scene.expected && also == scene.also;
        // The shown trace must have printed the verdict before the next scene begins.
        self.shown.wait_for(if also.is_empty() { scene.expected } else { &also })?;
        if !also.is_empty() {
            reasons = format!("{reasons}, also {also}");
        }
        #[expect(clippy::cast_precision_loss, reason = "milliseconds with one decimal")]
        let millis = arrived.saturating_sub(at) as f64 / 1e6;
        Ok(Answer { scene, reasons, is_right, millis })
    }

    /// Waits until both traces report a healthy network.
    fn repaired(&mut self) -> Result<()> {
        self.trace.wait_for_verdict("NetworkReady")?;
        self.shown.wait_for("NetworkReady")
    }

    fn close(self, answers: &[Answer]) -> Result<bool> {
        let lost = self.trace.lost();
        drop(self.shown);
        table(answers);
        let wrong = answers.iter().filter(|answer| !answer.is_right).count();
        println!("\n{} scenes, {wrong} wrong answers, {lost} events lost", answers.len());
        std::io::stdout().flush()?;
        Ok(wrong == 0 && lost == 0)
    }
}

fn heading(number: usize, scene: &Scene) {
    let title = format!("▶ {number}/7  {}", scene.action);
    let (bold, plain) = if is_coloured() { ("\x1b[1;36m", "\x1b[0m") } else { ("", "") };
    println!("\n{bold}{title}{plain}\n{}", "─".repeat(78));
}

fn is_coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

fn table(answers: &[Answer]) {
    println!("\n{:<26} {:<31} {:>9}", "action", "verdict of the probe", "ms");
    println!("{}", "─".repeat(78));
    for answer in answers {
        let mark = if answer.is_right { "✔" } else { "✘" };
        let mut parts = answer.reasons.split(", ");
        let first = parts.next().unwrap_or_default();
        println!("{:<26} {mark} {first:<29} {:>9.1}", answer.scene.action, answer.millis);
        for part in parts {
            println!("{:<26}   {part}", "");
        }
        println!("  a kubelet prints: {}", answer.scene.kubelet);
        if !answer.is_right {
            println!("  expected: {} {}", answer.scene.expected, answer.scene.also);
        }
    }
}

/// Largest delay of the shown trace after the checked one.
const LAG: Duration = Duration::from_secs(5);

/// The trace that is shown, as a user would see it.
struct Shown {
    child: Child,
    lines: Receiver<String>,
    /// Number of consecutive lines about connects of the kubelet.
    attempts: u32,
}

impl Shown {
    fn start(node: &Node) -> Result<Self> {
        let mut command = node.netns.command(probe_binary()?)?;
        // `--no-ask`: this trace observes the connects of the checked trace as well.
        command.args(["trace", "--apiserver", API, "--no-ask", "--only", "api,cni", "--color"]);
        command.arg(if is_coloured() { "always" } else { "never" });
        command.arg("--cni-conf-dir").arg(node.conf_dir()).arg("--cni-bin-dir").arg(node.bin_dir());
        let mut child =
            command.env("COLUMNS", "78").stdout(Stdio::piped()).spawn().context("start the shown trace")?;
        let output = child.stdout.take().context("standard output of the trace")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines, attempts: 0 })
    }

    /// Shows lines until the verdict has the reason `reason`, and the rest of that verdict.
    fn wait_for(&mut self, reason: &str) -> Result<()> {
        let mut is_found = false;
        loop {
            let limit = if is_found { Duration::from_millis(30) } else { LAG };
            let Ok(line) = self.lines.recv_timeout(limit) else {
                ensure!(is_found, "the shown trace did not report {reason}");
                return Ok(());
            };
            let is_verdict = line.contains("──") || line.starts_with("      also");
            is_found |= is_verdict && line.contains(reason);
            self.show(&line);
        }
    }

    fn show(&mut self, line: &str) {
        // A kubelet retries repeatedly; two attempts are enough.
        self.attempts = if line.contains("kubelet[") { self.attempts + 1 } else { 0 };
        if self.attempts <= 2 {
            println!("{line}");
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
