//! Processes that read and write the runtime's configuration, and the agent's own. Requires root.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kernel_tests::{API, Agent, Client, Dial, Node, Trace};
use serde_json::Value;

/// Starts a process with the name of a runtime that reads one file periodically.
fn runtime(node: &Node, file: &str, every_ms: &str) -> Result<Client> {
    let path = node.conf_dir().join(file);
    let path = path.to_string_lossy().into_owned();
    node.client("containerd", &Dial { to: &path, flags: &["--read", "--every", every_ms] })
}

/// Waits for an access to the directory, or for the gap of file systems on which renames and removals cannot be observed;
/// returns whether they can.
fn observes_accesses(trace: &mut Trace) -> Result<bool> {
    let access = |line: &Value| line["kind"] == "conf_access" && line["access"] != "opened";
    let gap = |line: &Value| line["kind"] == "gap" && line["signal"] == "cni.config.access";
    if !trace.seen.iter().any(|line| access(line) || gap(line)) {
        trace.wait_for("an access to the directory", |line| access(line) || gap(line))?;
    }
    Ok(!trace.seen.iter().any(gap))
}

/// A kubeconfig at a usual path may be stale, and an unprivileged program named kubelet is not the node's kubelet.
#[test]
fn discovers_api_server_of_running_kubelet() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let write = |name: &str, server: &str| {
        let path = node.dir().join(name);
        let dir = path.parent().context("no parent directory")?;
        std::fs::create_dir_all(dir)?;
        let text = format!("clusters:\n- name: a\n  cluster: {{server: 'https://{server}'}}\n");
        std::fs::write(&path, text).context("write a kubeconfig")
    };
    write("host/etc/kubernetes/kubelet.conf", "10.99.9.1:6443")?;
    write("host/opt/strange/kubelet.conf", "10.99.9.2:6443")?;
    let targets = |trace: &Trace| -> Vec<String> {
        let targets = trace.seen.iter().filter(|line| line["kind"] == "api_target");
        targets.filter_map(|line| Some(line["addr"].as_str()?.to_owned())).collect()
    };
    let root = node.dir().join("host");
    let start = || Trace::start(&node, &["--no-ask", "--host-root", &root.to_string_lossy()]);

    let flags = ["--nobody", "--every", "300", "--kubeconfig=/opt/strange/kubelet.conf"];
    let mut unprivileged = node.client("kubelet", &Dial { to: API, flags: &flags })?;
    // It drops its privileges before its first connect.
    unprivileged.errno()?;
    let found = targets(&start()?);
    ensure!(found == ["10.99.9.1:6443"], "with an unprivileged program: {found:?}");

    write("host/opt/ours/kubelet.conf", API)?;
    let flags = ["--every", "300", "--kubeconfig=/opt/ours/kubelet.conf"];
    let _kubelet = node.client("kubelet", &Dial { to: API, flags: &flags })?;
    let found = targets(&start()?);
    ensure!(found == [API], "with a kubelet: {found:?}");
    Ok(())
}

#[test]
fn names_process_that_removed_configuration() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let path = node.conf_dir().join("10-pods.conflist");
    std::fs::remove_file(&path)?;
    trace.wait_for_verdict("CNIConfigMissing")?;
    if !observes_accesses(&mut trace)? {
        return Ok(());
    }
    let me = std::process::id();
    let is_named = |line: &Value| {
        let message = line["verdict"]["message"].as_str().unwrap_or_default();
        message.contains(&format!("[{me}] removed 10-pods.conflist"))
    };
    if !trace.seen.iter().any(is_named) {
        trace.wait_for("the process that removed it", is_named)?;
    }
    Ok(())
}

/// containerd ignores a file that was renamed into its directory from another one.
#[test]
fn reports_valid_config_file_not_opened_by_runtime() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let idle_runtime = runtime(&node, "10-pods.conflist", "600000")?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    node.install_config()?;
    if !observes_accesses(&mut trace)? {
        // Renames are not observed on this file system; writes are.
        let path = node.conf_dir().join("10-pods.conflist");
        let bytes = std::fs::read(&path)?;
        std::fs::write(&path, bytes)?;
    }
    let verdict = trace.wait_for_verdict("CNIConfigNotLoaded")?;
    let message = verdict.line["verdict"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("containerd") && message.contains("has not opened it"), "{message}");
    drop(idle_runtime);
    let _runtime = runtime(&node, "10-pods.conflist", "500")?;
    trace.wait_for("the recovery", |line| {
        line["kind"] == "verdict" && line["verdict"]["reason"] != "CNIConfigNotLoaded"
    })?;
    Ok(())
}

/// A process that watches only the directory itself, as runtimes do, gets no events of its replacement.
#[test]
fn reports_and_follows_replaced_config_directory() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let aside = node.dir().join("net.d.old");
    std::fs::rename(node.conf_dir(), &aside)?;
    std::fs::create_dir(node.conf_dir())?;
    trace.wait_for_verdict("CNIConfigMissing")?;
    let replaced = |line: &Value| line["kind"] == "conf_access" && line["access"] == "directory_replaced";
    let gap = |line: &Value| line["kind"] == "gap" && line["signal"] == "cni.config.access";
    if !trace.seen.iter().any(|line| replaced(line) || gap(line)) {
        trace.wait_for("the replaced directory", |line| replaced(line) || gap(line))?;
    }
    std::fs::copy(aside.join("10-pods.conflist"), node.conf_dir().join("20-new.conflist"))?;
    trace.wait_for("the new file", |line| {
        line["kind"] == "cni_config" && line["files"][0]["name"] == "20-new.conflist"
    })?;
    Ok(())
}

/// An exclusive CNI agent renames the files of other CNIs whenever it starts.
#[test]
fn reports_config_file_renamed_by_other_cni_until_restored() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    for plugin in ["multus-shim", "cilium-cni"] {
        node.helper_as(plugin)?;
    }
    node.remove_config()?;
    node.write_config(
        "05-cilium.conflist",
        br#"{"cniVersion":"0.4.0","name":"cilium","plugins":[{"type":"cilium-cni"}]}"#,
    )?;
    node.write_config("00-multus.conf", br#"{"cniVersion":"0.4.0","name":"multus","type":"multus-shim"}"#)?;
    let mut trace = Trace::start(&node, &["--apiserver", API])?;
    trace.wait_for_verdict("NetworkReady")?;
    let path = node.conf_dir().join("00-multus.conf");
    let path = path.to_string_lossy().into_owned();
    let agent = node.client("cilium-agent", &Dial { to: &path, flags: &["--rename"] })?;
    if !observes_accesses(&mut trace)? {
        return Ok(());
    }
    let verdict = trace.wait_for_verdict("CNIConfigDisplaced")?;
    let message = verdict.line["verdict"]["message"].as_str().unwrap_or_default();
    let by = format!("cilium-agent[{}]", agent.pid());
    ensure!(message.contains("Multus was renamed by") && message.contains(&by), "{message}");
    ensure!(verdict.line["verdict"]["status"] == "True", "{}", verdict.line);
    drop(agent);
    std::fs::rename(format!("{path}.cilium_bak"), &path)?;
    trace.wait_for_verdict("NetworkReady")?;
    Ok(())
}

/// The kubeconfig may have been replaced since the agent started.
#[test]
fn agent_reloads_configuration_on_sighup() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let path = node.dir().join("kubeconfig");
    let write = |server: &str| {
        let text = format!("clusters: [{{name: c, cluster: {{server: 'https://{server}'}}}}]\n");
        std::fs::write(&path, text).context("write the kubeconfig")
    };
    write(API)?;
    let kubeconfig = path.to_str().context("not UTF-8")?;
    let agent = Agent::start(&node, &["--kubeconfig", kubeconfig, "--no-conditions"])?;
    agent.wait_for_verdict("NetworkReady", Duration::from_secs(20))?;
    write("10.99.0.1:7443")?;
    // SAFETY: no memory is involved; the process is our child and was not waited for.
    ensure!(unsafe { libc::kill(i32::try_from(agent.pid())?, libc::SIGHUP) } == 0);
    agent.wait_for_verdict("APIServerRefused", Duration::from_secs(10))?;
    let report = agent.report().context("no report")?;
    ensure!(report["verdict"]["subject"] == "10.99.0.1:7443", "{report}");
    Ok(())
}
