//! Untrusted processes with the names of node components. Requires root.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use kernel_tests::{API, Cgroup, Node, Trace, spawn};
use serde_json::Value;

/// Components whose crash loops are faults of the node, and a plugin.
const NAMES: &[&str] = &["kubelet", "etcd", "kube-apiserver", "ovs-vswitchd", "bridge"];

/// Flags of `setpriv` for an unprivileged user.
pub(super) const NOBODY: &[&str] = &["--reuid=65534", "--clear-groups", "--no-new-privs"];

/// Runs [`SCRIPT`] in a shell with this executable name. Its parent is another shell, which `setpriv` starts with these
/// flags and which enters the cgroup.
fn run_as(node: &Node, name: &str, flags: &[&str], cgroup: Option<&Path>) -> Result<()> {
    let program = node.dir().join(name);
    if !program.exists() {
        fs::copy("/bin/sh", &program).with_context(|| format!("create {}", program.display()))?;
    }
    let enter = cgroup.map_or_else(String::new, |dir| format!("echo 0 > {}/cgroup.procs; ", dir.display()));
    let mut command = node.netns.command("setpriv")?;
    command.args(flags).args(["sh", "-c", &format!("{enter}\"$0\" -c \"$1\"; exit $?")]);
    run_failing_script(command.arg(&program), node)
}

/// Runs [`SCRIPT`] with the environment of a plugin, and checks its exit code.
pub(super) fn run_failing_script(command: &mut Command, node: &Node) -> Result<()> {
    command.arg(SCRIPT);
    command.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", "c1").env("CNI_NETNS", "/run/netns/none");
    command.env("CNI_IFNAME", "eth0").env("CNI_PATH", node.dir());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = spawn(command)?.wait_with_output()?;
    ensure!(output.status.code() == Some(3), "{output:?}");
    Ok(())
}

/// Prints the error of a plugin without a free address, and exits with an error like a crashing component.
const SCRIPT: &str = r#"echo '{"code":11,"msg":"no IP addresses available in range set"}'; exit 3"#;

/// Runs [`SCRIPT`] three times under each of [`NAMES`].
pub(super) fn pose_as_components(node: &Node, flags: &[&str], cgroup: Option<&Path>) -> Result<()> {
    for name in NAMES {
        for _ in 0..3 {
            run_as(node, name, flags, cgroup)?;
        }
    }
    Ok(())
}

/// Returns all verdicts so far. It adds a configuration file and waits for its report, which follows them.
pub(super) fn verdicts_so_far(trace: &mut Trace, node: &Node) -> Result<Vec<Value>> {
    node.write_config("99-marker.conf", b"{}")?;
    trace.wait_for("the marker", |line| {
        line["kind"] == "cni_config" && line.to_string().contains("99-marker")
    })?;
    fs::remove_file(node.conf_dir().join("99-marker.conf"))?;
    Ok(trace
        .seen
        .iter()
        .filter(|line| line["kind"] == "verdict")
        .map(|line| line["verdict"].clone())
        .collect())
}

/// Creates a healthy node whose directory every user can enter.
pub(super) fn healthy() -> Result<(Node, kernel_tests::Server)> {
    let (node, server) = Node::healthy()?;
    // Every user may execute the programs in it.
    fs::set_permissions(node.dir(), Permissions::from_mode(0o755))?;
    Ok((node, server))
}

#[test]
fn reports_connects_of_unprivileged_user_without_judging_them() -> Result<()> {
    let (node, _server) = healthy()?;
    let mut trace = Trace::start(&node, &["--apiserver", API])?;
    trace.wait_for_verdict("NetworkReady")?;
    node.netns.filter("output", "meta skuid 65534 tcp dport 6443 reject with tcp reset")?;
    let mut client = node.netns.command("setpriv")?;
    client.args(NOBODY).arg(node.helper_as("kubelet")?).args(["dial", API, "--count", "5"]);
    let output = spawn(client.stdout(Stdio::piped()))?.wait_with_output()?;
    let errnos = String::from_utf8_lossy(&output.stdout);
    ensure!(errnos.lines().count() == 5 && errnos.lines().all(|errno| errno != "0"), "{errnos}");
    trace.wait_for("its connect", |line| line["kind"] == "connect" && line["role"] == "untrusted")?;
    let verdicts = verdicts_so_far(&mut trace, &node)?;
    let is_of_api =
        |verdict: &Value| verdict["reason"].as_str().is_some_and(|reason| reason.starts_with("API"));
    ensure!(!verdicts.iter().any(is_of_api), "{verdicts:?}");
    Ok(())
}

/// machined starts it as user 60, without capabilities.
#[test]
fn trusts_unprivileged_etcd_of_talos() -> Result<()> {
    let (node, _server) = healthy()?;
    let cgroup = Cgroup::for_talos_service("etcd")?;
    let program = node.dir().join("etcd");
    fs::copy("/bin/sh", &program).context("create etcd")?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    // It runs until its input is closed.
    let start = |enter: &str| {
        let mut command = node.netns.command("sh")?;
        command.args(["-c", &format!("{enter}exec setpriv \"$@\""), "sh"]).args(NOBODY);
        spawn(
            command.arg("--bounding-set=-all").arg(&program).args(["-c", "read line"]).stdin(Stdio::piped()),
        )
    };
    let _untrusted = start("")?;
    let mut trusted = start(&format!("echo 0 > {}/cgroup.procs; ", cgroup.dir().display()))?;
    let (_, line) =
        trace.wait_for("the process", |line| line["kind"] == "process" && line["class"] == "etcd")?;
    ensure!(line["process"]["pid"] == trusted.id(), "{line}");
    drop(trusted.stdin.take());
    trusted.wait()?;
    Ok(())
}
