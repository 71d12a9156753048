//! What the running kubelet is configured for: a path is a guess, its command line is a fact.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::file;
use super::processes::{Found, is_of_the_host};
use crate::settings::Settings;
use crate::text::clean;

/// Longest path that is kept.
const PATH: usize = 256;
/// Longest command line that is read: a kubelet's has a few kilobytes.
const COMMAND_LINE: usize = 128 * 1024;
/// The default of the kubelet's `cgroupDriver`.
const DRIVER: &str = "cgroupfs";

/// Returns the CRI socket that the kubelet among `processes` is configured for, as a path with control characters
/// escaped: by `--container-runtime-endpoint`, then by `containerRuntimeEndpoint` in the file of `--config`.
///
/// `None` without a kubelet of its own (k3s and others have it inside), and where it names none.
pub(super) fn runtime_endpoint(settings: &Settings, processes: &[Found]) -> Option<String> {
    kubelets(processes).find_map(|words| endpoint(settings, &words))
}

/// Returns where the kubelet among `processes` keeps its files, by `--root-dir`; `None` without one, and where it names none.
pub(super) fn root_dir(processes: &[Found]) -> Option<PathBuf> {
    kubelets(processes)
        .find_map(|words| flag(&words, "root-dir").map(PathBuf::from).filter(|dir| dir.is_absolute()))
}

/// Returns the kubeconfigs that the kubelets among `processes` are started with, in the order in which they use them: by
/// `--kubeconfig` and `--bootstrap-kubeconfig`. Empty without one, and where they name none.
pub(super) fn kubeconfigs(processes: &[Found]) -> Vec<PathBuf> {
    kubelets(processes).flat_map(|words| named_kubeconfigs(&words)).collect()
}

fn named_kubeconfigs(words: &[String]) -> Vec<PathBuf> {
    let named = ["kubeconfig", "bootstrap-kubeconfig"].into_iter().filter_map(|name| flag(words, name));
    named.map(PathBuf::from).filter(|path| path.is_absolute()).collect()
}

/// Returns who makes the cgroups of pods for the kubelet among `processes`, by its own configuration: `--cgroup-driver`, then
/// `cgroupDriver` in the file of `--config`, then its default. `None` without one, where that file cannot be read, and where
/// files of `--config-dir` may say something else.
pub(super) fn cgroup_driver(settings: &Settings, processes: &[Found]) -> Option<String> {
    kubelets(processes).find_map(|words| driver(settings, &words))
}

/// Programs that embed a kubelet have flags of their own: they are none.
fn kubelets(processes: &[Found]) -> impl Iterator<Item = Vec<String>> {
    command_lines(processes, "kubelet")
}

/// The command lines of the processes of this name. Only a process that no unprivileged user can have started counts: a pod
/// on the host network may run a program of any name.
pub(super) fn command_lines(processes: &[Found], name: &'static str) -> impl Iterator<Item = Vec<String>> {
    let is_ours = move |found: &&Found| found.actor.name == name && is_of_the_host(found.actor.pid);
    processes.iter().filter(is_ours).filter_map(|found| command_line(found.actor.pid))
}

/// The words of a process; `None` when it is gone.
fn command_line(pid: u32) -> Option<Vec<String>> {
    let mut bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    bytes.truncate(COMMAND_LINE);
    Some(bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect())
}

/// The file of `--config`.
fn configuration(settings: &Settings, words: &[String]) -> Option<Value> {
    let text = file::read_text(&settings.on_host(Path::new(flag(words, "config")?)))?;
    serde_yaml_ng::from_str(&text).ok()
}

fn driver(settings: &Settings, words: &[String]) -> Option<String> {
    let configured = || {
        let config = configuration(settings, words)?;
        config.get("cgroupDriver").map_or(Some(DRIVER), Value::as_str).map(str::to_owned)
    };
    let driver = match flag(words, "cgroup-driver") {
        Some(driver) => driver.to_owned(),
        None if flag(words, "config-dir").is_some() => return None,
        None if flag(words, "config").is_some() => configured()?,
        None => DRIVER.to_owned(),
    };
    matches!(driver.as_str(), "systemd" | "cgroupfs").then_some(driver)
}

fn endpoint(settings: &Settings, words: &[String]) -> Option<String> {
    let configured =
        || Some(configuration(settings, words)?.get("containerRuntimeEndpoint")?.as_str()?.to_owned());
    let endpoint = flag(words, "container-runtime-endpoint").map(str::to_owned).or_else(configured)?;
    socket(&endpoint)
}

/// The value of a flag in both of its forms, with one dash or two; the last one counts.
pub(super) fn flag<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    let bare = |word: &'a String| word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
    words.iter().enumerate().rev().find_map(|(at, word)| match bare(word)?.split_once('=') {
        Some((known, value)) => (known == name).then_some(value),
        None => (bare(word)? == name).then(|| words.get(at + 1).map(String::as_str)).flatten(),
    })
}

/// `unix:///run/x.sock`, `unix:/run/x.sock` or `/run/x.sock`; `None` for anything that is no Unix socket.
pub(super) fn socket(endpoint: &str) -> Option<String> {
    let path =
        endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint);
    let path = PathBuf::from(path);
    path.is_absolute().then(|| clean(path.as_os_str().as_bytes(), PATH))
}

#[cfg(test)]
mod tests {
    use crate::settings::tests::settings;

    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_endpoint_is_the_flag_s_then_the_configuration_s() {
        let root = tempfile::tempdir().expect("a directory");
        fs::write(root.path().join("kubelet.yaml"), "containerRuntimeEndpoint: unix:///run/a.sock\n")
            .expect("written");
        let host_root = root.path().to_str().expect("a text");
        let settings = settings(&["--host-root", host_root]);
        for (line, wanted) in [
            ("kubelet --config=/kubelet.yaml", Some("/run/a.sock")),
            ("kubelet --config /kubelet.yaml --v=2", Some("/run/a.sock")),
            (
                "kubelet --config=/kubelet.yaml --container-runtime-endpoint=unix:///run/b.sock",
                Some("/run/b.sock"),
            ),
            ("kubelet -container-runtime-endpoint /run/c.sock", Some("/run/c.sock")),
            (
                "kubelet --container-runtime-endpoint=/run/c.sock --container-runtime-endpoint=unix:/run/d.sock",
                Some("/run/d.sock"),
            ),
            ("kubelet --container-runtime-endpoint=tcp://127.0.0.1:1", None),
            ("kubelet --config=/nothing.yaml", None),
            ("kubelet --config", None),
            ("kubelet", None),
        ] {
            assert_eq!(endpoint(&settings, &words(line)).as_deref(), wanted, "{line}");
        }
    }

    #[test]
    fn kubeconfigs_are_named_by_flags() {
        for (line, wanted) in [
            ("kubelet --bootstrap-kubeconfig=/b --kubeconfig=/k --config=/c", &["/k", "/b"][..]),
            ("kubelet --kubeconfig /k", &["/k"]),
            ("kubelet --kubeconfig=k --bootstrap-kubeconfig=", &[]),
            ("kubelet --kubeconfig", &[]),
        ] {
            let wanted: Vec<_> = wanted.iter().map(PathBuf::from).collect();
            assert_eq!(named_kubeconfigs(&words(line)), wanted, "{line}");
        }
    }

    #[test]
    fn the_driver_is_the_flag_s_then_the_configuration_s_then_the_default() {
        let root = tempfile::tempdir().expect("a directory");
        for (name, text) in [
            ("systemd", "kind: KubeletConfiguration\ncgroupDriver: systemd\n"),
            ("silent", "kind: KubeletConfiguration\n"),
            ("list", "cgroupDriver: [systemd]\n"),
            ("broken", ": : :\n\t"),
        ] {
            fs::write(root.path().join(name), text).expect("written");
        }
        let settings = settings(&["--host-root", root.path().to_str().expect("a text")]);
        for (line, wanted) in [
            ("kubelet --config=/systemd", Some("systemd")),
            ("kubelet --config=/systemd --cgroup-driver=cgroupfs", Some("cgroupfs")),
            ("kubelet --config=/silent", Some("cgroupfs")),
            ("kubelet", Some("cgroupfs")),
            ("kubelet --cgroup-driver=systemd", Some("systemd")),
            ("kubelet --cgroup-driver=other", None),
            ("kubelet --config=/systemd --config-dir=/drop-in", None),
            ("kubelet --config-dir=/drop-in --cgroup-driver=systemd", Some("systemd")),
            ("kubelet --config=/list", None),
            ("kubelet --config=/broken", None),
            ("kubelet --config=/nothing", None),
        ] {
            assert_eq!(driver(&settings, &words(line)).as_deref(), wanted, "{line}");
        }
    }
}
