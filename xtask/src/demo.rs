//! Real faults, one after the other, and what the probe says to them.

use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kernel_tests::{API, Client, Dial, Node, Sandbox, Server, Trace, now_ns, probe_binary};

/// One act: what was done, what a kubelet prints then, what the probe must say.
struct Scene {
    done: &'static str,
    /// Real texts of kubelet and containerd; symptoms all of them.
    kubelet: &'static str,
    expected: &'static str,
    /// An independent fault that must be listed beside it.
    also: &'static str,
}

const HEALTHY: Scene = Scene { done: "a healthy node", kubelet: "Ready", expected: "NetworkReady", also: "" };
const NO_CONFIG: Scene = Scene {
    done: "CNI configuration removed",
    kubelet: "cni plugin not initialized",
    expected: "CNIConfigMissing",
    also: "",
};
const REFUSED: Scene = Scene {
    done: "API server stopped",
    kubelet: "dial tcp 10.99.0.1:6443: connection refused",
    expected: "APIServerRefused",
    also: "",
};
const BOTH: Scene = Scene {
    done: "both at once",
    kubelet: "cni plugin not initialized, connection refused",
    expected: "APIServerRefused",
    also: "CNIConfigMissing",
};
const NO_PLUGIN: Scene = Scene {
    done: "plugin portmap removed",
    kubelet: "failed to find plugin \"portmap\" in path",
    expected: "CNIBinaryMissing",
    also: "",
};
const EXHAUSTED: Scene = Scene {
    done: "a second pod in a /30",
    kubelet: "failed to setup network for sandbox",
    expected: "IPAMExhausted",
    also: "",
};
const RECOVERED: Scene =
    Scene { done: "everything repaired", kubelet: "Ready", expected: "NetworkReady", also: "" };

/// How a scene ended.
struct Answer {
    scene: &'static Scene,
    said: String,
    right: bool,
    millis: f64,
}

/// Plays everything; false when one answer was wrong or an event was lost.
pub(crate) fn run() -> Result<bool> {
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
    ensure!(first.run(&stage.node, "ADD", &config)?.status.success(), "the first pod gets the only address");
    let second = Sandbox::new("web-2")?;
    let at = at.max(now_ns());
    ensure!(!second.run(&stage.node, "ADD", &config)?.status.success(), "the second pod gets none");
    answers.push(stage.judge(&EXHAUSTED, at)?);

    let at = stage.scene(&RECOVERED);
    first.run(&stage.node, "DEL", &config)?;
    let third = Sandbox::new("web-3")?;
    ensure!(third.run(&stage.node, "ADD", &config)?.status.success(), "the address is free again");
    answers.push(stage.judge(&RECOVERED, at)?);
    stage.close(&answers)
}

/// The laboratory, the trace that is judged, and the one that is shown.
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

    /// Announces a scene; answers with the time from which its answer counts.
    fn scene(&mut self, scene: &'static Scene) -> u64 {
        self.number += 1;
        heading(self.number, scene);
        now_ns()
    }

    fn judge(&mut self, scene: &'static Scene, at: u64) -> Result<Answer> {
        // The next verdict after the fault is the answer; what it is, is judged afterwards.
        let is_new = |line: &serde_json::Value| {
            line["kind"] == "verdict"
                && line["atNs"].as_u64() >= Some(at)
                && line["verdict"]["reason"] != "Learning"
        };
        let (arrived, line) = self.trace.wait_for("a new verdict", is_new)?;
        let mut said = line["verdict"]["reason"].as_str().unwrap_or_default().to_owned();
        let also = line["also"][0]["reason"].as_str().unwrap_or_default().to_owned();
        let right = said == scene.expected && also == scene.also;
        // Both traces tell the same story; the shown one must have told it before the next scene.
        self.shown.wait_for(if also.is_empty() { scene.expected } else { &also })?;
        if !also.is_empty() {
            said = format!("{said}, also {also}");
        }
        #[expect(clippy::cast_precision_loss, reason = "milliseconds with one decimal")]
        let millis = arrived.saturating_sub(at) as f64 / 1e6;
        Ok(Answer { scene, said, right, millis })
    }

    /// Waits until both traces say that all is well again.
    fn repaired(&mut self) -> Result<()> {
        self.trace.wait_for_verdict("NetworkReady")?;
        self.shown.wait_for("NetworkReady")
    }

    fn close(self, answers: &[Answer]) -> Result<bool> {
        let lost = self.trace.lost();
        drop(self.shown);
        table(answers);
        let wrong = answers.iter().filter(|answer| !answer.right).count();
        println!("\n{} scenes, {wrong} wrong answers, {lost} events lost", answers.len());
        std::io::stdout().flush()?;
        Ok(wrong == 0 && lost == 0)
    }
}

fn heading(number: usize, scene: &Scene) {
    let title = format!("▶ {number}/7  {}", scene.done);
    let (bold, plain) = if coloured() { ("\x1b[1;36m", "\x1b[0m") } else { ("", "") };
    println!("\n{bold}{title}{plain}\n{}", "─".repeat(78));
}

fn coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

fn table(answers: &[Answer]) {
    println!("\n{:<26} {:<31} {:>9}", "what was done", "what the probe said", "ms");
    println!("{}", "─".repeat(78));
    for answer in answers {
        let mark = if answer.right { "✔" } else { "✘" };
        let mut parts = answer.said.split(", ");
        let first = parts.next().unwrap_or_default();
        println!("{:<26} {mark} {first:<29} {:>9.1}", answer.scene.done, answer.millis);
        for part in parts {
            println!("{:<26}   {part}", "");
        }
        println!("  a kubelet prints: {}", answer.scene.kubelet);
        if !answer.right {
            println!("  expected: {} {}", answer.scene.expected, answer.scene.also);
        }
    }
}

/// How long the shown trace may lag behind the judged one.
const LAG: Duration = Duration::from_secs(5);

/// The trace that is shown, as a person would see it.
struct Shown {
    child: Child,
    lines: Receiver<String>,
    /// Connects of the kubelet in a row that were shown.
    tries: u32,
}

impl Shown {
    fn start(node: &Node) -> Result<Self> {
        let mut command = node.netns.command(probe_binary()?)?;
        // It does not ask: the connects of the trace that is judged are seen by this one, too.
        command.args(["trace", "--apiserver", API, "--no-ask", "--only", "api,cni", "--color"]);
        command.arg(if coloured() { "always" } else { "never" });
        command.arg("--cni-conf-dir").arg(node.conf_dir()).arg("--cni-bin-dir").arg(node.bin_dir());
        let mut child =
            command.env("COLUMNS", "78").stdout(Stdio::piped()).spawn().context("start the shown trace")?;
        let output = child.stdout.take().context("the trace has an output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines, tries: 0 })
    }

    /// Shows lines until the verdict names `reason`, and the lines that belong to it.
    fn wait_for(&mut self, reason: &str) -> Result<()> {
        let mut told = false;
        loop {
            let patience = if told { Duration::from_millis(30) } else { LAG };
            let Ok(line) = self.lines.recv_timeout(patience) else {
                ensure!(told, "the shown trace did not say {reason}");
                return Ok(());
            };
            let verdict = line.contains("──") || line.starts_with("      also");
            told |= verdict && line.contains(reason);
            self.show(&line);
        }
    }

    fn show(&mut self, line: &str) {
        // A kubelet tries again and again; the first two times make the point.
        self.tries = if line.contains("kubelet[") { self.tries + 1 } else { 0 };
        if self.tries <= 2 {
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
