//! Attacks by an unprivileged user or a pod, which must not change, hide or delay a verdict; `cargo xtask attack` prints what each
//! of them came to. Needs root.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kernel_tests::{API, Cgroup, Dial, ELSEWHERE, Node, Server, Trace, now_ns, patience, spawn};
use serde_json::{Value, json};

use super::untrusted::{NOBODY, fails, healthy, judged, pose_as_components};

/// Places for processes, and more processes than that.
const PLACES: &str = "64";
const CROWD: &str = "200";
/// More connections than they have places for (`CONNECT_SLOTS` and `MAX_CONNECTS`).
const CONNECTIONS: &str = "9000";
/// How often something is done until it is seen.
const ATTEMPTS: usize = 3;

/// A healthy node under attack, and what the agent there reported.
struct Arena {
    node: Node,
    _server: Server,
    trace: Trace,
    row: Value,
}

impl Arena {
    /// Before the attack, which has this name in the table.
    fn new(attack: &str) -> Result<Self> {
        let (node, server) = healthy()?;
        let trace = Self::agent(&node)?;
        Ok(Self { node, _server: server, trace, row: json!({ "attack": attack }) })
    }

    /// Starts an agent, and waits until it has judged the node.
    fn agent(node: &Node) -> Result<Trace> {
        // Where the processor is emulated a handshake beside a flood takes seconds.
        let ask = format!("{}s", 4 * patience());
        let flags =
            ["--apiserver", API, "--role", "worker", "--max-processes", PLACES, "--ask-timeout", &ask];
        let mut trace = Trace::start(node, &flags)?;
        trace.wait_for_verdict("NetworkReady")?;
        Ok(trace)
    }

    /// During the attack: the verdict stays, a fault is reported, and so are components of the node that exit or fail.
    fn withstands(&mut self) -> Result<()> {
        let seconds = std::env::var("NETREADY_ATTACK_SECONDS").ok().and_then(|text| text.parse().ok());
        std::thread::sleep(Duration::from_secs(seconds.unwrap_or(0)));
        self.stays_ready()?;
        let mut took = |act: &dyn Fn() -> Result<()>, reason| {
            let before = now_ns();
            act()?;
            let verdict = self.trace.wait_for_verdict(reason)?;
            Ok::<_, anyhow::Error>(json!(verdict.arrived_ns.saturating_sub(before).div_ceil(1_000_000)))
        };
        self.row["faultMs"] = took(&|| self.node.remove_config(), "CNIConfigMissing")?;
        self.row["repairMs"] = took(&|| self.node.install_config(), "NetworkReady")?;
        reports_those_of_root(&self.node, &mut self.trace)
    }

    /// After the attack, which ends here. A plugin of root has failed meanwhile, if it could be seen.
    fn survives(mut self, attack: impl Sized) -> Result<()> {
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

    /// The verdict has been `NetworkReady` since it was for the first time.
    fn stays_ready(&mut self) -> Result<()> {
        let verdicts = judged(&mut self.trace, &self.node)?;
        let mut since = verdicts.iter().skip_while(|verdict| verdict["reason"] != "NetworkReady");
        // Newer kernels skip runs of a program while another task is interrupted inside it, which is a loss until the state is
        // read again.
        let is_loss = self.trace.left_out() > 0;
        let is_wrong = |verdict: &&Value| {
            verdict["reason"] != "NetworkReady" && !(is_loss && verdict["reason"] == "ProbeDegraded")
        };
        let wrong = since.find(is_wrong);
        ensure!(wrong.is_none(), "{}", wrong.cloned().unwrap_or_default());
        Ok(())
    }
}

/// The failed run of a plugin and the exit of a component that root starts on the host are reported.
fn reports_those_of_root(node: &Node, trace: &mut Trace) -> Result<()> {
    let [etcd, bridge] = ["etcd", "bridge"].map(|name| node.dir().join(name));
    for program in [&etcd, &bridge] {
        if !program.exists() {
            fs::copy("/bin/sh", program).with_context(|| format!("make {}", program.display()))?;
        }
    }
    until_seen(trace, "the exit of etcd", is_exit_of_etcd, || {
        let status = spawn(node.netns.command(&etcd)?.args(["-c", "exit 3"]))?.wait()?;
        ensure!(status.code() == Some(3), "{status}");
        Ok(())
    })?;
    // Otherwise the environment is read from /proc, and this plugin exits at once.
    if trace.gap("cni.exec.environment").is_none() {
        let run = || fails(node.netns.command(&bridge)?.arg("-c"), node);
        until_seen(trace, "its verdict", |line| line["verdict"]["reason"] == "IPAMExhausted", run)?;
    }
    Ok(())
}

fn is_exit_of_etcd(line: &Value) -> bool {
    line["kind"] == "process" && line["process"]["name"] == "etcd" && line["event"] == "exited"
}

/// Does something until it is seen: repeatedly only where the kernel skipped runs of a program, which may have been for it.
fn until_seen(
    trace: &mut Trace,
    what: &str,
    is_it: impl Fn(&Value) -> bool,
    act: impl Fn() -> Result<()>,
) -> Result<()> {
    for remaining in (0..ATTEMPTS).rev() {
        let skipped = trace.left_out();
        act()?;
        match trace.wait_for(what, &is_it) {
            Err(_) if remaining > 0 && trace.left_out() > skipped => {}
            seen => return seen.map(drop),
        }
    }
    unreachable!("the last attempt returns")
}

/// Starts [`CROWD`] sleeping processes of an executable with this name, as an unprivileged user.
fn crowd(node: &Node, name: &str, environment: &[(&str, &str)]) -> Result<Group> {
    // Not where plugins are installed: where the environment of programs cannot be read, root's program of this name would be
    // a plugin.
    let dir = node.dir().join("crowd");
    fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
    let program = dir.join(name);
    fs::copy("/bin/busybox", &program).with_context(|| format!("make {}", program.display()))?;
    let mut command = node.netns.command("setpriv")?;
    command.args(NOBODY).arg(node.helper_as("helper")?).args(["crowd", CROWD]).arg(program);
    command.args(["sleep", "600"]).envs(environment.iter().copied());
    let mut crowd = Group::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    let output = crowd.0.stdout.take().context("it has an output")?;
    let there = BufReader::new(output).lines().next().context("the crowd has exited")??;
    ensure!(there == "there", "{there}");
    Ok(crowd)
}

/// Runs a script without end, as an unprivileged user with the environment of a plugin.
fn script(node: &Node, script: &str) -> Result<Group> {
    let mut command = node.netns.command("setpriv")?;
    command.args(NOBODY);
    // Other tests run on the same processor there.
    if patience() > 1 {
        command.args(["nice", "-n", "19"]);
    }
    // Set by the user: it is root that runs setpriv.
    let script = format!("export CNI_COMMAND=ADD; {script}");
    command.args(["sh", "-c", &script]).stderr(Stdio::null());
    Group::start(command.stdin(Stdio::piped()))
}

/// The agent runs before the processes, and another one starts after them.
fn crowd_takes_no_room(attack: &str, name: &str, environment: &[(&str, &str)]) -> Result<()> {
    let mut arena = Arena::new(attack)?;
    let crowd = crowd(&arena.node, name, environment)?;
    arena.withstands()?;
    reports_those_of_root(&arena.node, &mut Arena::agent(&arena.node)?)?;
    arena.survives(crowd)
}

#[test]
fn withstands_sleeping_processes_with_plugin_environment() -> Result<()> {
    let environment = [("CNI_COMMAND", "ADD"), ("CNI_NETNS", "/run/netns/none")];
    crowd_takes_no_room("sleeping processes with the environment of a plugin", "bridge", &environment)
}

#[test]
fn withstands_sleeping_processes_with_component_name() -> Result<()> {
    crowd_takes_no_room("sleeping processes with the name of a component", "etcd", &[])
}

#[test]
fn withstands_many_open_connections_to_api_port() -> Result<()> {
    let mut arena = Arena::new("open connections to the API server's port")?;
    let _elsewhere = Server::start(&arena.node.netns, ELSEWHERE, &["--hold"])?;
    let flags = ["--nobody", "--hold", CONNECTIONS];
    let mut holder = arena.node.client("holder", &Dial { to: ELSEWHERE, flags: &flags })?;
    ensure!(holder.errno()? == 0, "they are not established");
    // Without end: newer kernels skip runs of a program while another task is interrupted inside it.
    let kubelet = arena.node.client("kubelet", &Dial { to: API, flags: &["--every", "100"] })?;
    let pid = kubelet.pid();
    for _ in 0..20 {
        arena.trace.wait_for("connects of the kubelet", |line| {
            line["kind"] == "connect" && line["client"]["pid"] == pid
        })?;
    }
    arena.withstands()?;
    arena.survives((holder, kubelet))
}

#[test]
fn withstands_write_and_connect_flood() -> Result<()> {
    let mut arena = Arena::new("writes and connects without a pause")?;
    let writer = script(&arena.node, "/bin/busybox yes | /bin/busybox cat > /dev/null")?;
    let dialler = arena.node.client("dialler", &Dial { to: API, flags: &["--nobody", "--every", "0"] })?;
    arena.trace.wait_for("throttled events", |line| {
        line["kind"] == "throttled" && line["hook"] == "inet_sock_set_state"
    })?;
    arena.withstands()?;
    arena.survives((writer, dialler))
}

#[test]
fn withstands_exec_flood() -> Result<()> {
    let mut arena = Arena::new("executions without a pause")?;
    let program = arena.node.dir().join("kubelet");
    fs::copy("/bin/busybox", &program).context("make kubelet")?;
    let script = script(&arena.node, &format!("while :; do {} true; done", program.display()))?;
    arena.withstands()?;
    arena.survives(script)
}

#[test]
fn withstands_netns_flood() -> Result<()> {
    let mut arena = Arena::new("network namespaces without a pause")?;
    let script = script(&arena.node, "while :; do unshare --user --map-root-user --net true; done")?;
    arena.trace.wait_for("a namespace", |line| line["kind"] == "netns")?;
    arena.withstands()?;
    arena.survives(script)
}

/// They exit like components that crash, and fail like plugins.
fn posing_changes_nothing(attack: &str, flags: &[&str], cgroup: Option<&Cgroup>) -> Result<()> {
    let mut arena = Arena::new(attack)?;
    pose_as_components(&arena.node, flags, cgroup.map(Cgroup::dir))?;
    arena.withstands()?;
    arena.survives(())
}

#[test]
fn withstands_unprivileged_user_posing_as_components() -> Result<()> {
    posing_changes_nothing("an unprivileged user that poses as components", NOBODY, None)
}

/// Root in a container with the default capabilities, which do not include `CAP_NET_ADMIN`.
#[test]
fn withstands_host_network_pod_posing_as_components() -> Result<()> {
    let cgroup = Cgroup::of_pod()?;
    let flags = ["--bounding-set=-net_admin", "unshare", "--pid", "--fork"];
    posing_changes_nothing("a pod on the host network that poses as components", &flags, Some(&cgroup))
}

/// A process and those that it started; killed when dropped.
struct Group(Child);

impl Group {
    fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(spawn(command.process_group(0))?))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Ok(group) = i32::try_from(self.0.id()) {
            // SAFETY: a signal to a process group that this test made.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        let _ = self.0.wait();
    }
}
