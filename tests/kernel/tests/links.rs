//! Links, routes and rules: what the kernel refuses, who takes them away. Needs root.

use anyhow::{Result, ensure};
use kernel_tests::{API, Node, Sandbox, Server, Trace};

fn node() -> Result<(Node, Server)> {
    let node = Node::new()?;
    node.install_config()?;
    let server = node.serve_api()?;
    Ok((node, server))
}

/// Of every errno there is the errno; of those that the kernel explains, its words.
#[test]
fn what_the_kernel_refuses_is_told_with_its_reason_and_who_asked() -> Result<()> {
    let (node, _server) = node()?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let without_errno = trace.gap("link.error.errno").is_some();
    let without_text = trace.gap("link.error.text").is_some();
    ensure!(node.netns.ip("route add 10.9.0.0/24 via 9.9.9.9").is_err());
    let (_, line) = trace.wait_for("the refused route", |line| {
        line["kind"] == "netlink_error" && line["process"]["name"] == "ip"
    })?;
    if !without_text {
        ensure!(line["text"] == "Nexthop has invalid gateway", "{line}");
    }
    if !without_errno {
        ensure!(line["errno"] == libc::ENETUNREACH && line["request"] == "newroute", "{line}");
        if !without_text {
            ensure!(line["object"] == "10.9.0.0/24", "{line}");
        }
        node.netns.ip("link add dup0 type dummy")?;
        ensure!(node.netns.ip("link add dup0 type dummy").is_err());
        let (_, line) = trace.wait_for("the refused link", |line| {
            line["kind"] == "netlink_error" && line["errno"] == libc::EEXIST
        })?;
        ensure!(line["request"] == "newlink" && (without_text || line["object"] == "dup0"), "{line}");
    }
    Ok(())
}

#[test]
fn who_takes_a_route_or_a_rule_away_is_named() -> Result<()> {
    let (node, _server) = node()?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let without_object = trace.gap("link.error.text").is_some();
    node.netns.ip("rule add from 10.244.0.0/16 table 100")?;
    for (command, rule, object) in [
        ("rule del from 10.244.0.0/16 table 100", true, "10.244.0.0/16"),
        ("route del default", false, "default"),
    ] {
        node.netns.ip(command)?;
        let (_, line) = trace
            .wait_for("who took it away", |line| line["kind"] == "route_gone" && line["rule"] == rule)?;
        ensure!(without_object || line["object"] == object, "{line}");
        // The process may have ended before its name was looked up; its id is there.
        ensure!(line["process"]["pid"].as_u64() > Some(0), "{line}");
    }
    Ok(())
}

/// A plugin that names what the kernel refused it: the datapath is at fault, not the plugin.
#[test]
fn a_plugin_that_the_kernel_refuses_a_link_is_told_from_one_that_fails_by_itself() -> Result<()> {
    let (node, _server) = node()?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let mut config = node.plugin_config("10.244.0.0/24");
    config["mtu"] = 700_000.into();
    ensure!(!Sandbox::new("web-1")?.run(&node, "ADD", &config)?.status.success());
    let (_, end) = trace.wait_for("the end", |line| line["kind"] == "cni_end")?;
    if trace.gap("link.error.errno").is_none() {
        ensure!(end["refusals"][0]["errno"].as_u64() > Some(0), "{end}");
        ensure!(end["refusals"][0]["request"] == "newlink", "{end}");
    }
    if trace.gap("cni.stdout").is_some() {
        trace.wait_for_verdict("CNIPluginFailed")?;
    } else {
        let verdict = trace.wait_for_verdict("LinkSetupFailed")?;
        let message = verdict.line["verdict"]["message"].as_str().unwrap_or_default();
        ensure!(message.contains("the kernel refused"), "{message}");
    }
    Ok(())
}
