//! What fills up, what is missing, what is over. Needs root.

use anyhow::{Result, ensure};
use kernel_tests::{API, Dial, Node, Server, Trace};

fn node() -> Result<(Node, Server)> {
    let node = Node::new()?;
    node.install_config()?;
    let server = node.serve_api()?;
    Ok((node, server))
}

#[test]
fn a_module_that_does_not_come_is_named() -> Result<()> {
    let (node, _server) = node()?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    ensure!(node.netns.ip("link add x0 type nosuchkind").is_err());
    if trace.gap("module.request").is_some() {
        // The kernel's refusal stands in.
        let (_, line) = trace.wait_for("the refused link", |line| line["kind"] == "netlink_error")?;
        ensure!(line["errno"] == libc::EOPNOTSUPP || line["text"] == "Unknown device type", "{line}");
        return Ok(());
    }
    let verdict = trace.wait_for_verdict("KernelModuleMissing")?;
    ensure!(verdict.line["verdict"]["subject"] == "nosuchkind", "{}", verdict.line);
    Ok(())
}

/// EMFILE is what a used-up `fs.inotify.max_user_instances` answers, and a used-up table of descriptors.
#[test]
fn a_kubelet_that_gets_no_inotify_instance_is_told() -> Result<()> {
    let (node, _server) = node()?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let mut kubelet = node.client("kubelet", &Dial { to: "/", flags: &["--inotify"] })?;
    ensure!(kubelet.errno()? == libc::EMFILE);
    if trace.gap("limit.inotify").is_some() {
        return Ok(());
    }
    let verdict = trace.wait_for_verdict("RuntimeLimitExceeded")?;
    ensure!(verdict.line["verdict"]["subject"] == "inotify", "{}", verdict.line);
    Ok(())
}

#[test]
fn an_expired_token_of_a_plugin_is_told_with_its_file() -> Result<()> {
    let (node, _server) = node()?;
    // {"alg":"none"} and {"exp":1000}
    let kubeconfig = "users:\n- name: calico\n  user: {token: eyJhbGciOiJub25lIn0.eyJleHAiOjEwMDB9.x}\n";
    std::fs::write(node.conf_dir().join("calico-kubeconfig"), kubeconfig)?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let verdict = trace.wait_for_verdict("CredentialExpired")?;
    let subject = verdict.line["verdict"]["subject"].as_str().unwrap_or_default();
    ensure!(subject.ends_with("/calico-kubeconfig"), "{}", verdict.line);
    Ok(())
}

#[test]
fn the_settings_that_pod_networks_need_are_told_at_start() -> Result<()> {
    let (node, _server) = node()?;
    let set = |value: &str| -> Result<()> {
        let mut sysctl = node.netns.command("sysctl")?;
        ensure!(sysctl.args(["-qw", &format!("net.ipv4.ip_forward={value}")]).status()?.success());
        Ok(())
    };
    for value in ["1", "0"] {
        set(value)?;
        let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
        let is_it = |line: &serde_json::Value| {
            line["kind"] == "sysctl" && line["name"] == "net.ipv4.ip_forward" && line["value"] == value
        };
        if !trace.seen.iter().any(is_it) {
            trace.wait_for("the setting", is_it)?;
        }
    }
    Ok(())
}
