//! A pod sandbox, and plugins run for it as a container runtime runs them.

use std::io::Write as _;
use std::process::{Output, Stdio};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::netns::{Namespace, spawn};
use crate::node::Node;

/// A pod sandbox: a namespace that plugins set up.
#[derive(Debug)]
pub struct Sandbox {
    /// The pod's namespace.
    pub netns: Namespace,
    /// Name of the pod in `CNI_ARGS`.
    pub pod: String,
}

impl Sandbox {
    /// Creates a sandbox with an empty network namespace.
    pub fn new(pod: &str) -> Result<Self> {
        Ok(Self { netns: Namespace::new()?, pod: pod.to_owned() })
    }

    /// Runs the plugin that `config` names on `node` as a runtime does, and returns its output.
    pub fn run(&self, node: &Node, command: &str, config: &Value) -> Result<Output> {
        let plugin = config["type"].as_str().context("the configuration has no type")?;
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID=x",
            self.pod
        );
        let mut run = node.netns.command(node.bin_dir().join(plugin))?;
        run.env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", format!("{:0>64}", self.netns.name()))
            .env("CNI_NETNS", self.netns.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", args)
            .env("CNI_PATH", node.bin_dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn(&mut run)?;
        child
            .stdin
            .take()
            .context("the plugin's input is not piped")?
            .write_all(config.to_string().as_bytes())?;
        Ok(child.wait_with_output()?)
    }
}
