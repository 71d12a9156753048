//! The flags and configuration formats of a release. Each program is asked for them, so that the same scenes run on any
//! release.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use kernel_tests::{PLUGINS, run};
use serde_json::{Value, json};

use crate::image;

/// Where the runtime serves.
pub(crate) const RUNTIME: &str = "unix:///run/containerd/containerd.sock";

/// See the module.
pub(crate) struct Dialect {
    /// A kubelet before 1.27 takes its runtime from flags, and uses Docker unless they say otherwise.
    runtime_flags: bool,
    /// A kubelet from 1.31 on refuses to start on a host with cgroup v1 unless configured to.
    refuses_cgroup_v1: bool,
    /// Containerd from version 2 on has another format of configuration.
    containerd_v3: bool,
}

impl Dialect {
    /// Asks the kubelet, and the containerd of the PATH.
    pub(crate) fn ask(kubelet: &Path) -> Result<Self> {
        let help = run(Command::new(kubelet).arg("--help")).context("ask the kubelet for its flags")?;
        let has = |flag: &str| help.lines().any(|line| line.split_whitespace().next() == Some(flag));
        let default = run(Command::new("containerd").args(["config", "default"]))
            .context("ask containerd for its configuration")?;
        Ok(Self {
            runtime_flags: has("--container-runtime"),
            refuses_cgroup_v1: has("--fail-cgroupv1"),
            containerd_v3: default.lines().any(|line| line.trim() == "version = 3"),
        })
    }

    /// Returns whether the runtime makes the network of a sandbox before it looks for the image.
    pub(crate) const fn makes_networks_first(&self) -> bool {
        self.containerd_v3
    }

    /// Returns the kubelet's flags for the runtime.
    pub(crate) fn kubelet_flags(&self) -> Vec<String> {
        if self.runtime_flags {
            vec!["--container-runtime=remote".to_owned(), format!("--container-runtime-endpoint={RUNTIME}")]
        } else {
            Vec::new()
        }
    }

    /// Adds what not every release knows: a kubelet does not start with an unknown field.
    pub(crate) fn kubelet_config(&self, config: &mut Value) {
        if !self.runtime_flags {
            config["containerRuntimeEndpoint"] = json!(RUNTIME);
        }
        if self.refuses_cgroup_v1 {
            config["failCgroupV1"] = json!(false);
        }
    }

    /// Containerd's configuration: its directory is `root`, and it reads networks from `conf_dir`.
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

/// Where the reference plugins are: in the directory that `NETREADY_E2E_NODE` names, or where Debian puts them.
pub(crate) fn plugins() -> PathBuf {
    match std::env::var_os("NETREADY_E2E_NODE") {
        Some(dir) => Path::new(&dir).join("cni/bin"),
        None => PLUGINS.into(),
    }
}
