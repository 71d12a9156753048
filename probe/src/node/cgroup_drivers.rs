//! Who makes the cgroups of containers: runtime and kubelet must agree, or systemd and the runtime undo each
//! other's work and every container is ended again and again.

use std::path::Path;

use probe_engine::CgroupDrivers;

use super::file;
use crate::settings::Settings;

const CONTAINERD: &[&str] = &[
    "/etc/containerd/config.toml",
    "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
];
const KUBELET: &str = "/var/lib/kubelet/config.yaml";

/// What both are told to do; `None` when one of them does not say.
pub(super) fn find(settings: &Settings) -> Option<CgroupDrivers> {
    let read = |path: &str| {
        let bytes = file::read(&settings.on_host(Path::new(path))).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    let runtime = CONTAINERD.iter().find_map(|path| containerd(&read(path)?))?;
    Some(CgroupDrivers { runtime: runtime.to_owned(), kubelet: kubelet(&read(KUBELET)?)?.to_owned() })
}

/// `SystemdCgroup = true` among the options of runc, in any version of the file.
fn containerd(config: &str) -> Option<&'static str> {
    let values = config.lines().filter_map(|line| line.trim().strip_prefix("SystemdCgroup"));
    let mut values = values.filter_map(|rest| rest.trim_start().strip_prefix('='));
    let value = values.next_back()?;
    Some(if value.trim().starts_with("true") { "systemd" } else { "cgroupfs" })
}

fn kubelet(config: &str) -> Option<&'static str> {
    let value: serde_yaml_ng::Value = serde_yaml_ng::from_str(config).ok()?;
    match value.get("cgroupDriver")?.as_str()? {
        "systemd" => Some("systemd"),
        "cgroupfs" => Some("cgroupfs"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_files_are_read_as_their_owners_do() {
        let toml = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\n  SystemdCgroup = false\n";
        assert_eq!(containerd(toml), Some("cgroupfs"));
        assert_eq!(containerd(&toml.replace("false", "true # as the kubelet")), Some("systemd"));
        assert_eq!(containerd("# SystemdCgroup = true\n"), None);
        assert_eq!(kubelet("kind: KubeletConfiguration\ncgroupDriver: systemd\n"), Some("systemd"));
        assert_eq!(kubelet("cgroupDriver: [1]\n"), None);
        assert_eq!(kubelet(": : :\n\t"), None);
    }
}
