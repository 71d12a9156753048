//! Flags and configuration formats of different releases. They are detected from the programs themselves, so that the same
//! scenes run on any release.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use kernel_tests::{PLUGINS, run};
use serde_json::{Value, json};

use crate::image;

/// Endpoint of the runtime.
pub(crate) const RUNTIME: &str = "unix:///run/containerd/containerd.sock";

/// The flags and formats of the installed release.
pub(crate) struct Dialect {
    /// Whether the kubelet takes its runtime from flags, and uses Docker without them: before 1.27.
    runtime_flags: bool,
    /// Whether the kubelet must be configured to start on a host with cgroup v1: since 1.31.
    refuses_cgroup_v1: bool,
    /// Whether containerd uses version 3 of its configuration format: since containerd 2.
    containerd_v3: bool,
}

impl Dialect {
    /// Detects the flags of the kubelet, and the format of the containerd in the PATH.
    pub(crate) fn detect(kubelet: &Path) -> Result<Self> {
        let help = run(Command::new(kubelet).arg("--help")).context("list the kubelet's flags")?;
        let has = |flag: &str| help.lines().any(|line| line.split_whitespace().next() == Some(flag));
        let default = run(Command::new("containerd").args(["config", "default"]))
            .context("print containerd's default configuration")?;
        Ok(Self {
            runtime_flags: has("--container-runtime"),
            refuses_cgroup_v1: has("--fail-cgroupv1"),
            containerd_v3: default.lines().any(|line| line.trim() == "version = 3"),
        })
    }

    /// Returns whether the runtime sets up the network of a sandbox before it looks for the image.
    pub(crate) const fn makes_networks_first(&self) -> bool {
        self.containerd_v3
    }

    /// Returns the kubelet's flags that select the runtime.
    pub(crate) fn kubelet_flags(&self) -> Vec<String> {
        if self.runtime_flags {
            vec!["--container-runtime=remote".to_owned(), format!("--container-runtime-endpoint={RUNTIME}")]
        } else {
            Vec::new()
        }
    }

    /// Adds fields that not every release accepts: a kubelet does not start with an unknown field.
    pub(crate) fn kubelet_config(&self, config: &mut Value) {
        if !self.runtime_flags {
            config["containerRuntimeEndpoint"] = json!(RUNTIME);
        }
        if self.refuses_cgroup_v1 {
            config["failCgroupV1"] = json!(false);
        }
    }

    /// Returns containerd's configuration, with its data in `root` and network configurations in `conf_dir`.
    pub(crate) fn containerd_config(&self, root: &Path, conf_dir: &str) -> String {
        let head = format!(
            "root = \"{}\"\nstate = \"/run/containerd\"\noom_score = 0\n\
             [grpc]\naddress = \"/run/containerd/containerd.sock\"\n",
            root.display()
        );
        let image = image::NAME;
        if self.containerd_v3 {
            format!(
                "version = 3\n{head}\
                 [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = {image:?}\n\
                 [plugins.'io.containerd.cri.v1.runtime']\nrestrict_oom_score_adj = true\n\
                 [plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = [\"/opt/cni/bin\"]\nconf_dir = {conf_dir:?}\n"
            )
        } else {
            format!(
                "version = 2\n{head}\
                 [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {image:?}\nrestrict_oom_score_adj = true\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/opt/cni/bin\"\nconf_dir = {conf_dir:?}\n"
            )
        }
    }
}

/// Returns the directory of the reference plugins: below the one that `NETREADY_E2E_NODE` names, or that of Debian.
pub(crate) fn plugins() -> PathBuf {
    match std::env::var_os("NETREADY_E2E_NODE") {
        Some(dir) => Path::new(&dir).join("cni/bin"),
        None => PLUGINS.into(),
    }
}
