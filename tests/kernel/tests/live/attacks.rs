//! Attacks by an unprivileged user or a pod, which must not change, hide or delay a verdict; `cargo xtask attack` prints
//! the result of each. Requires root.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kernel_tests::{API, Cgroup, Dial, Node, OTHER_API, Server, Trace, now_ns, patience, spawn};
use serde_json::{Value, json};

use super::untrusted::{NOBODY, healthy, pose_as_components, run_failing_script, verdicts_so_far};

/// The agent's limit of processes, and a larger number of processes.
const MAX_PROCESSES: &str = "64";
const CROWD_SIZE: &str = "200";
/// More connections than the agent has room for (`CONNECT_SLOTS` and `MAX_CONNECTS`).
const CONNECTIONS: &str = "9000";
/// How often an action is repeated until it is reported.
const ATTEMPTS: usize = 3;

/// A healthy node under attack, and the agent's reports.
struct Testbed {
    node: Node,
    _server: Server,
    trace: Trace,
    row: Value,
}

impl Testbed {
    /// Prepares a node for the attack, which has this name in the table.
    fn new(attack: &str) -> Result<Self> {
        let (node, server) = healthy()?;
        let trace = Self::agent(&node)?;
        Ok(Self { node, _server: server, trace, row: json!({ "attack": attack }) })
    }

    /// Starts an agent, and waits until it reports a healthy node.
    fn agent(node: &Node) -> Result<Trace> {
        // On an emulated processor a handshake takes seconds during a flood.
        let ask = format!("{}s", 4 * patience());
        let flags =
            ["--apiserver", API, "--role", "worker", "--max-processes", MAX_PROCESSES, "--ask-timeout", &ask];
        let mut trace = Trace::start(node, &flags)?;
        trace.wait_for_verdict("NetworkReady")?;
        Ok(trace)
    }

    /// Checks during the attack that the verdict stays, and that a fault and the exits and failures of root's components are
    /// reported.
    fn check_during_attack(&mut self) -> Result<()> {
        let seconds = std::env::var("NETREADY_ATTACK_SECONDS").ok().and_then(|text| text.parse().ok());
        std::thread::sleep(Duration::from_secs(seconds.unwrap_or(0)));
        self.check_stays_ready()?;
        let mut took = |act: &dyn Fn() -> Result<()>, reason| {
            let before = now_ns();
            act()?;
            let verdict = self.trace.wait_for_verdict(reason)?;
            Ok::<_, anyhow::Error>(json!(verdict.arrived_ns.saturating_sub(before).div_ceil(1_000_000)))
        };
        self.row["faultMs"] = took(&|| self.node.remove_config(), "CNIConfigMissing")?;
        self.row["repairMs"] = took(&|| self.node.install_config(), "NetworkReady")?;
        check_root_is_reported(&self.node, &mut self.trace)
    }

    /// Ends the attack, checks that no events were lost, and appends the row of the table to `NETREADY_ATTACK_ROWS`.
    fn finish(mut self, attack: impl Sized) -> Result<()> {
        drop(attack);
        let lost = self.trace.lost();
        ensure!(lost == 0, "{lost} events were lost");
        self.row["lost"] = json!(lost);
        let throttled = self.trace.seen.iter().filter(|line| line["kind"] == "throttled");
        self.row["throttled"] = throttled.filter_map(|line| line["count"].as_u64()).sum::<u64>().into();
        if let Some(rows) = std::env::var_os("NETREADY_ATTACK_ROWS") {
            let mut rows = File::options().create(true).append(true).open(rows)?;
            rows.write_all(format!("{}\n", self.row).as_bytes())?;
        }
        Ok(())
    }

    /// Fails if the verdict has changed since it became `NetworkReady`.
    fn check_stays_ready(&mut self) -> Result<()> {
        let verdicts = verdicts_so_far(&mut self.trace, &self.node)?;
        let mut since = verdicts.iter().skip_while(|verdict| verdict["reason"] != "NetworkReady");
        // Newer kernels skip runs of a program while another task is interrupted inside it, which is a loss until the state
        // is read again.
        let is_loss = self.trace.skipped_runs() > 0;
        let is_wrong = |verdict: &&Value| {
            verdict["reason"] != "NetworkReady" && !(is_loss && verdict["reason"] == "ProbeDegraded")
        };
        let wrong = since.find(is_wrong);
        ensure!(wrong.is_none(), "{}", wrong.cloned().unwrap_or_default());
        Ok(())
    }
}

/// Checks that the failure of a plugin and the exit of a component that root starts on the host are reported.
fn check_root_is_reported(node: &Node, trace: &mut Trace) -> Result<()> {
    let [etcd, bridge] = ["etcd", "bridge"].map(|name| node.dir().join(name));
    for program in [&etcd, &bridge] {
        if !program.exists() {
            fs::copy("/bin/sh", program).with_context(|| format!("create {}", program.display()))?;
        }
    }
    repeat_until_reported(trace, "the exit of etcd", is_exit_of_etcd, || {
        let status = spawn(node.netns.command(&etcd)?.args(["-c", "exit 3"]))?.wait()?;
        ensure!(status.code() == Some(3), "{status}");
        Ok(())
    })?;
    // Otherwise the environment is read from /proc, and this plugin exits before that.
    if trace.gap("cni.exec.environment").is_none() {
        let run = || run_failing_script(node.netns.command(&bridge)?.arg("-c"), node);
        repeat_until_reported(
            trace,
            "its verdict",
            |line| line["verdict"]["reason"] == "IPAMExhausted",
            run,
        )?;
    }
    Ok(())
}

fn is_exit_of_etcd(line: &Value) -> bool {
    line["kind"] == "process" && line["process"]["name"] == "etcd" && line["event"] == "exited"
}

/// Performs an action until it is reported. It is repeated only if the kernel has skipped runs of a program meanwhile, which
/// may have been those for the action.
fn repeat_until_reported(
    trace: &mut Trace,
    what: &str,
    is_it: impl Fn(&Value) -> bool,
    act: impl Fn() -> Result<()>,
) -> Result<()> {
    for remaining in (0..ATTEMPTS).rev() {
        let skipped = trace.skipped_runs();
        act()?;
        match trace.wait_for(what, &is_it) {
            Err(_) if remaining > 0 && trace.skipped_runs() > skipped => {}
            seen => return seen.map(drop),
        }
    }
    unreachable!("the last attempt returns")
}

/// Starts [`CROWD_SIZE`] sleeping processes of an executable with this name, as an unprivileged user.
fn start_crowd(node: &Node, name: &str, environment: &[(&str, &str)]) -> Result<Group> {
    // Not in the directory of plugins: where the environment of programs cannot be read, a program of this name that
    // root runs would be taken for a plugin.
    let dir = node.dir().join("crowd");
    fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
    let program = dir.join(name);
    fs::copy("/bin/busybox", &program).with_context(|| format!("create {}", program.display()))?;
    let mut command = node.netns.command("setpriv")?;
    command.args(NOBODY).arg(node.helper_as("helper")?).args(["crowd", CROWD_SIZE]).arg(program);
    command.args(["sleep", "600"]).envs(environment.iter().copied());
    let mut crowd = Group::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    let output = crowd.0.stdout.take().context("the output is not piped")?;
    let line = BufReader::new(output).lines().next().context("the crowd has exited")??;
    ensure!(line == "ready", "{line}");
    Ok(crowd)
}

/// Starts an endless script as an unprivileged user, with the environment of a plugin.
fn start_script(node: &Node, script: &str) -> Result<Group> {
    let mut command = node.netns.command("setpriv")?;
    command.args(NOBODY);
    // There, other tests run on the same processor.
    if patience() > 1 {
        command.args(["nice", "-n", "19"]);
    }
    // Exported by the user's shell, because setpriv itself runs as root.
    let script = format!("export CNI_COMMAND=ADD; {script}");
    command.args(["sh", "-c", &script]).stderr(Stdio::null());
    Group::start(command.stdin(Stdio::piped()))
}

/// Checks an agent that started before the processes, and another one that starts after them.
fn check_crowd(attack: &str, name: &str, environment: &[(&str, &str)]) -> Result<()> {
    let mut testbed = Testbed::new(attack)?;
    let crowd = start_crowd(&testbed.node, name, environment)?;
    testbed.check_during_attack()?;
    check_root_is_reported(&testbed.node, &mut Testbed::agent(&testbed.node)?)?;
    testbed.finish(crowd)
}

#[test]
fn withstands_sleeping_processes_with_plugin_environment() -> Result<()> {
    let environment = [("CNI_COMMAND", "ADD"), ("CNI_NETNS", "/run/netns/none")];
    check_crowd("sleeping processes with the environment of a plugin", "bridge", &environment)
}

#[test]
fn withstands_sleeping_processes_with_component_name() -> Result<()> {
    check_crowd("sleeping processes with the name of a component", "etcd", &[])
}

#[test]
fn withstands_many_open_connections_to_api_port() -> Result<()> {
    let mut testbed = Testbed::new("open connections to the API server's port")?;
    let _other_api = Server::start(&testbed.node.netns, OTHER_API, &["--hold"])?;
    let flags = ["--nobody", "--hold", CONNECTIONS];
    let mut holder = testbed.node.client("holder", &Dial { to: OTHER_API, flags: &flags })?;
    ensure!(holder.errno()? == 0, "the connections are not established");
    // Repeated until it is dropped: newer kernels skip runs of a program while another task is interrupted inside it.
    let kubelet = testbed.node.client("kubelet", &Dial { to: API, flags: &["--every", "100"] })?;
    let pid = kubelet.pid();
    for _ in 0..20 {
        testbed.trace.wait_for("connects of the kubelet", |line| {
            line["kind"] == "connect" && line["client"]["pid"] == pid
        })?;
    }
    testbed.check_during_attack()?;
    testbed.finish((holder, kubelet))
}

#[test]
fn withstands_write_and_connect_flood() -> Result<()> {
    let mut testbed = Testbed::new("writes and connects without a pause")?;
    let writer = start_script(&testbed.node, "/bin/busybox yes | /bin/busybox cat > /dev/null")?;
    let dialler = testbed.node.client("dialler", &Dial { to: API, flags: &["--nobody", "--every", "0"] })?;
    testbed.trace.wait_for("throttled events", |line| {
        line["kind"] == "throttled" && line["hook"] == "inet_sock_set_state"
    })?;
    testbed.check_during_attack()?;
    testbed.finish((writer, dialler))
}

#[test]
fn withstands_exec_flood() -> Result<()> {
    let mut testbed = Testbed::new("executions without a pause")?;
    let program = testbed.node.dir().join("kubelet");
    fs::copy("/bin/busybox", &program).context("create kubelet")?;
    let script = start_script(&testbed.node, &format!("while :; do {} true; done", program.display()))?;
    testbed.check_during_attack()?;
    testbed.finish(script)
}

#[test]
fn withstands_netns_flood() -> Result<()> {
    let mut testbed = Testbed::new("network namespaces without a pause")?;
    let script = start_script(&testbed.node, "while :; do unshare --user --map-root-user --net true; done")?;
    testbed.trace.wait_for("a namespace", |line| line["kind"] == "netns")?;
    testbed.check_during_attack()?;
    testbed.finish(script)
}

/// Runs programs that exit like crashing components and fail like plugins.
fn check_posing(attack: &str, flags: &[&str], cgroup: Option<&Cgroup>) -> Result<()> {
    let mut testbed = Testbed::new(attack)?;
    pose_as_components(&testbed.node, flags, cgroup.map(Cgroup::dir))?;
    testbed.check_during_attack()?;
    testbed.finish(())
}

#[test]
fn withstands_unprivileged_user_posing_as_components() -> Result<()> {
    check_posing("an unprivileged user that poses as components", NOBODY, None)
}

/// Root in a container with the default capabilities, which do not include `CAP_NET_ADMIN`.
#[test]
fn withstands_host_network_pod_posing_as_components() -> Result<()> {
    let cgroup = Cgroup::for_pod()?;
    let flags = ["--bounding-set=-net_admin", "unshare", "--pid", "--fork"];
    check_posing("a pod on the host network that poses as components", &flags, Some(&cgroup))
}

/// A process and its descendants; killed when dropped.
struct Group(Child);

impl Group {
    fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(spawn(command.process_group(0))?))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Ok(group) = i32::try_from(self.0.id()) {
            // SAFETY: no memory is involved; the process group belongs to this test.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        let _ = self.0.wait();
    }
}
