//! Who makes the cgroups of containers: runtime and kubelet must agree, or systemd and the runtime undo each
//! other's work and every container is ended again and again.

use std::path::Path;

use probe_engine::CgroupDrivers;
use toml::{Table, Value};

use super::file;
use super::kubelet::{self, command_lines, flag};
use super::processes::Found;
use crate::settings::Settings;

/// The default path of containerd's configuration file.
const CONTAINERD: &str = "/etc/containerd/config.toml";

/// The cgroup drivers that the running kubelet and the running containerd are configured for. `None` when either
/// configuration cannot be read, and when the kubelet asks the runtime.
pub(super) fn find(settings: &Settings, processes: &[Found]) -> Option<CgroupDrivers> {
    let mut containerds = command_lines(processes, "containerd");
    // With two of them, which one makes the containers is not known here.
    let (words, None) = (containerds.next()?, containerds.next()) else { return None };
    let path = flag(&words, "config").or_else(|| flag(&words, "c")).unwrap_or(CONTAINERD);
    let runtime = of_containerd(&file::read_text(&settings.on_host(Path::new(path)))?)?;
    Some(CgroupDrivers { runtime: runtime.to_owned(), kubelet: kubelet::cgroup_driver(settings, processes)? })
}

/// The cgroup driver in containerd's configuration file, or its default.
///
/// `None` for version 3, which only containerd 2 reads: it reports its driver to the kubelet (`RuntimeConfig` in CRI), and
/// since Kubernetes 1.31 the kubelet uses that, whatever its own configuration says. Also `None` when an imported file may
/// set it.
fn of_containerd(config: &str) -> Option<&'static str> {
    let config: Table = config.parse().ok()?;
    let plugin = match config.get("version").map_or(Some(1), Value::as_integer)? {
        1 => "cri",
        2 => "io.containerd.grpc.v1.cri",
        _ => return None,
    };
    let cri = config.get("plugins").and_then(|plugins| plugins.get(plugin));
    let containerd = cri.and_then(|cri| cri.get("containerd"));
    let name = containerd.and_then(|containerd| containerd.get("default_runtime_name")?.as_str());
    let options = containerd.and_then(|containerd| {
        containerd
            .get("runtimes")?
            .get(name.unwrap_or("runc"))?
            .get("options")?
            .get("SystemdCgroup")?
            .as_bool()
    });
    match options {
        Some(true) => Some("systemd"),
        Some(false) => Some("cgroupfs"),
        // Its default.
        None => config.get("imports").is_none().then_some("cgroupfs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_and_the_version_of_the_file_decide() {
        let runc = |version: &str, plugin: &str, value: &str| {
            let table = format!("[plugins.{plugin}.containerd.runtimes.runc.options]");
            of_containerd(&format!("{version}\n{table}\n  SystemdCgroup = {value}\n"))
        };
        let second = "'io.containerd.grpc.v1.cri'";
        assert_eq!(runc("version = 2", second, "true # as the kubelet"), Some("systemd"));
        assert_eq!(runc("version = 2", second, "false"), Some("cgroupfs"));
        assert_eq!(runc("", "cri", "true"), Some("systemd"));
        assert_eq!(runc("version = 1", "cri", "false"), Some("cgroupfs"));
        // A name of another version says nothing.
        assert_eq!(runc("version = 2", "cri", "true"), Some("cgroupfs"));
        assert_eq!(runc("version = 3", second, "true"), None);
        assert_eq!(runc("version = 3", "'io.containerd.cri.v1.runtime'", "true"), None);
        assert_eq!(runc("imports = ['/etc/containerd/conf.d/*.toml']", "other", "true"), None);
    }

    #[test]
    fn only_the_options_of_the_runtime_in_use_count() {
        let config = r#"
            version = 2
            [plugins."io.containerd.grpc.v1.cri".containerd]
              default_runtime_name = "crun"
              [plugins."io.containerd.grpc.v1.cri".containerd.runtimes]
                runc.options.SystemdCgroup = true
                crun.options = { SystemdCgroup = false }
        "#;
        assert_eq!(of_containerd(config), Some("cgroupfs"));
        assert_eq!(of_containerd(&config.replace("\"crun\"", "\"runc\"")), Some("systemd"));
        assert_eq!(of_containerd("version = 2\n"), Some("cgroupfs"));
        assert_eq!(of_containerd("[plugins\n"), None);
        assert_eq!(of_containerd("version = 'two'\n"), None);
    }
}
