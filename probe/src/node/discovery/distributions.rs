//! The flags that each distribution passes to its kubelet. They are used if the kubelet's command line is not available: the
//! kubelet is embedded in another program, or does not run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::containerd;
use super::kubelet::Flags;
use super::program::{Program, flag};
use crate::node::file;
use crate::settings::Settings;
use crate::yaml;

/// Flag of MicroK8s' kubelite that names a file with the kubelet's flags.
const ARGS_FILE: &str = "kubelet-args-file";

/// A distribution of Kubernetes. An empty string means that the distribution has no such setting.
pub(super) struct Distribution {
    /// Common name.
    pub(super) name: &'static str,
    /// Programs that embed the kubelet; empty if the kubelet is a separate process.
    pub(super) programs: &'static [&'static str],
    /// Default data directory, the value of `{data}` in the other fields.
    pub(super) data: &'static str,
    /// Environment variable that overrides the data directory.
    pub(super) data_variable: &'static str,
    /// Variables that occur in its argument files, with their default values.
    pub(super) variables: &'static [(&'static str, &'static str)],
    /// Environment file that contains kubelet flags.
    pub(super) environment: &'static str,
    /// YAML configuration file, whose keys are flag names (`data-dir`, `kubelet-arg`).
    pub(super) config: &'static str,
    /// Paths, each of which exists only on nodes of this distribution.
    pub(super) marker_files: &'static [&'static str],
    /// Flags that it passes to the kubelet.
    pub(super) kubelet: &'static [&'static str],
    /// Flags that replace the kubelet's own defaults.
    pub(super) defaults: &'static [&'static str],
    /// Configuration file of its containerd; empty for the default path.
    pub(super) containerd: &'static str,
}

/// Default values of the rows.
const BASE: Distribution = Distribution {
    name: "other",
    programs: &[],
    data: "",
    data_variable: "",
    variables: &[],
    config: "",
    environment: "",
    marker_files: &[],
    kubelet: &[],
    defaults: &[],
    containerd: "",
};

const K3S: Distribution = Distribution {
    name: "k3s",
    programs: &["k3s", "k3s-server", "k3s-agent"],
    data: "/var/lib/rancher/k3s",
    data_variable: "K3S_DATA_DIR",
    config: "/etc/rancher/k3s/config.yaml",
    marker_files: &["{data}/agent/kubelet.kubeconfig"],
    kubelet: &[
        "--kubeconfig={data}/agent/kubelet.kubeconfig",
        "--config-dir={data}/agent/etc/kubelet.conf.d",
    ],
    defaults: &["--container-runtime-endpoint=unix:///run/k3s/containerd/containerd.sock"],
    containerd: "{data}/agent/etc/containerd/config.toml",
    ..BASE
};

/// The known distributions. The first row with an existing marker file wins: nodes of an earlier row may also have the marker
/// file of a later one. `tests/nodes` names the source of each value.
pub(super) const DISTRIBUTIONS: &[Distribution] = &[
    K3S,
    // The same kubelet and containerd as k3s, as separate processes.
    Distribution {
        name: "RKE2",
        programs: &[],
        data: "/var/lib/rancher/rke2",
        data_variable: "RKE2_DATA_DIR",
        config: "/etc/rancher/rke2/config.yaml",
        ..K3S
    },
    Distribution {
        name: "MicroK8s",
        programs: &["kubelite"],
        data: "/var/snap/microk8s/current",
        data_variable: "SNAP_DATA",
        variables: &[
            ("SNAP_DATA", "/var/snap/microk8s/current"),
            ("SNAP_COMMON", "/var/snap/microk8s/common"),
        ],
        marker_files: &["{data}/args/kubelet"],
        kubelet: &["--kubelet-args-file={data}/args/kubelet"],
        containerd: "{data}/args/containerd.toml",
        ..BASE
    },
    Distribution {
        name: "k0s",
        data: "/var/lib/k0s",
        marker_files: &["{data}/kubelet.conf"],
        kubelet: &[
            "--kubeconfig={data}/kubelet.conf",
            "--root-dir={data}/kubelet",
            "--container-runtime-endpoint=unix:///run/k0s/containerd.sock",
        ],
        containerd: "/etc/k0s/containerd.toml",
        ..BASE
    },
    Distribution {
        name: "Talos",
        marker_files: &["/etc/kubernetes/kubeconfig-kubelet"],
        kubelet: &[
            "--kubeconfig=/etc/kubernetes/kubeconfig-kubelet",
            "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubeconfig",
            "--config=/etc/kubernetes/kubelet.yaml",
        ],
        containerd: "/etc/cri/containerd.toml",
        ..BASE
    },
    Distribution {
        name: "Bottlerocket",
        marker_files: &["/etc/kubernetes/kubelet/kubeconfig"],
        kubelet: &[
            "--kubeconfig=/etc/kubernetes/kubelet/kubeconfig",
            "--config=/etc/kubernetes/kubelet/config",
        ],
        ..BASE
    },
    Distribution {
        name: "EKS",
        marker_files: &["/etc/kubernetes/kubelet/config.json"],
        kubelet: &[
            "--kubeconfig=/var/lib/kubelet/kubeconfig",
            "--config=/etc/kubernetes/kubelet/config.json",
        ],
        ..BASE
    },
    Distribution {
        name: "OpenShift",
        marker_files: &["/etc/kubernetes/apiserver-url.env"],
        kubelet: &[
            "--kubeconfig=/var/lib/kubelet/kubeconfig",
            "--bootstrap-kubeconfig=/etc/kubernetes/kubeconfig",
            "--config=/etc/kubernetes/kubelet.conf",
            "--container-runtime-endpoint=unix:///var/run/crio/crio.sock",
        ],
        ..BASE
    },
    Distribution {
        name: "Kubespray",
        marker_files: &["/etc/kubernetes/kubelet-config.yaml"],
        kubelet: &[
            "--kubeconfig=/etc/kubernetes/kubelet.conf",
            "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf",
            "--config=/etc/kubernetes/kubelet-config.yaml",
        ],
        ..BASE
    },
    Distribution {
        name: "kubeadm",
        environment: "/var/lib/kubelet/kubeadm-flags.env",
        marker_files: &["/etc/kubernetes/kubelet.conf", "/etc/kubernetes/bootstrap-kubelet.conf"],
        kubelet: &[
            "--kubeconfig=/etc/kubernetes/kubelet.conf",
            "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf",
            "--config=/var/lib/kubelet/config.yaml",
        ],
        ..BASE
    },
    // kops, AKS, GKE.
    Distribution {
        marker_files: &["/var/lib/kubelet/kubeconfig"],
        kubelet: &["--kubeconfig=/var/lib/kubelet/kubeconfig"],
        ..BASE
    },
];

/// The flags that a kubelet is started with, and the configuration of its distribution.
#[derive(Default)]
pub(super) struct StartConfig {
    /// Flags, highest precedence first.
    pub(super) flags: Vec<Flags>,
    /// Flags that replace the kubelet's own defaults.
    pub(super) defaults: Option<Flags>,
    /// Configuration file of the distribution's containerd.
    pub(super) containerd: PathBuf,
}

impl Distribution {
    /// Returns whether one of its marker files exists on this host.
    pub(super) fn is_present(&self, settings: &Settings) -> bool {
        let data = self.data_dir(settings);
        self.marker_files.iter().any(|path| settings.on_host(Path::new(&expand_data(path, &data))).exists())
    }

    /// Returns what the kubelet embedded in `program` was started with; without a program, what it would be started with.
    pub(super) fn start_config(&self, settings: &Settings, program: Option<&Program>) -> StartConfig {
        let flag_of = |name| program.and_then(|program| program.flag(name)).map(str::to_owned);
        let mut variables = program.map(|program| program.variables.clone()).unwrap_or_default();
        let data = flag_of("data-dir").or_else(|| variables.get(self.data_variable).cloned());
        let data = data.unwrap_or_else(|| self.data_dir(settings));
        for (name, value) in self.variables {
            variables.entry((*name).to_owned()).or_insert_with(|| (*value).to_owned());
        }
        let mut flags: Vec<_> = self.configured_flags(settings).into_iter().collect();
        flags.extend(args_file(settings, self.environment, &variables));
        let words: Vec<_> = self.kubelet.iter().map(|word| expand_data(word, &data)).collect();
        if let Some(file) = flag_of(ARGS_FILE).or_else(|| flag(&words, ARGS_FILE).map(str::to_owned)) {
            flags.extend(args_file(settings, &file, &variables));
        }
        let source = format!("default of {}", self.name);
        let defaults = self.defaults.iter().map(|word| expand_data(word, &data)).collect();
        flags.push(Flags { source: source.clone(), words });
        StartConfig {
            flags,
            defaults: Some(Flags { source, words: defaults }),
            containerd: PathBuf::from(match self.containerd {
                "" => containerd::FILE.to_owned(),
                file => expand_data(file, &data),
            }),
        }
    }

    /// Returns the kubelet flags in the distribution's own configuration file.
    fn configured_flags(&self, settings: &Settings) -> Option<Flags> {
        let config = self.configuration(settings)?;
        let arguments = config.get("kubelet-arg").and_then(Value::as_array).into_iter().flatten();
        let mut words: Vec<_> = arguments.filter_map(|word| Some(format!("--{}", word.as_str()?))).collect();
        let endpoint = config.get("container-runtime-endpoint").and_then(Value::as_str);
        words.extend(endpoint.map(|endpoint| format!("--container-runtime-endpoint={endpoint}")));
        Some(Flags { source: self.config.to_owned(), words })
    }

    fn configuration(&self, settings: &Settings) -> Option<Value> {
        let path = Some(self.config).filter(|path| !path.is_empty())?;
        yaml::parse(file::read_text(&settings.on_host(Path::new(path)))?.as_bytes()).ok()
    }

    /// Returns the data directory in the distribution's configuration file, else the default.
    fn data_dir(&self, settings: &Settings) -> String {
        let configured = || Some(self.configuration(settings)?.get("data-dir")?.as_str()?.to_owned());
        configured().unwrap_or_else(|| self.data.to_owned())
    }
}

fn expand_data(text: &str, data: &str) -> String {
    text.replace("{data}", data)
}

/// Reads a file with flags in the form of MicroK8s and kubeadm: comments after `#`, variables in shell syntax, and possibly a
/// variable assignment before the flags. Returns `None` if there is no such file.
fn args_file(settings: &Settings, path: &str, variables: &BTreeMap<String, String>) -> Option<Flags> {
    if path.is_empty() {
        return None;
    }
    let text = file::read_text(&settings.on_host(Path::new(path)))?;
    Some(Flags { source: path.to_owned(), words: flags_in(text, variables) })
}

/// Returns the flags in such a file.
pub(super) fn flags_in(mut text: String, variables: &BTreeMap<String, String>) -> Vec<String> {
    for (name, value) in variables {
        text = text.replace(&format!("${{{name}}}"), value).replace(&format!("${name}"), value);
    }
    let lines = text.lines().filter_map(|line| line.split('#').next());
    let bare = |word: &str| {
        let word = word.find("--").map_or(word, |at| &word[at..]);
        word.replace(['"', '\''], "")
    };
    lines.flat_map(str::split_whitespace).map(bare).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::settings::tests::settings;

    use super::*;

    #[test]
    fn reads_flags_from_argument_and_environment_files() {
        let root = tempfile::tempdir().expect("a directory");
        let settings = settings(&["--host-root", root.path().to_str().expect("a text")]);
        let variables = BTreeMap::from([("SNAP_DATA".to_owned(), "/snap".to_owned())]);
        for (text, wanted) in [
            ("--a=${SNAP_DATA}/x\n# --b\n--c $SNAP_DATA\n", &["--a=/snap/x", "--c", "/snap"][..]),
            ("KUBELET_KUBEADM_ARGS=\"--a=1 --b=2\"\n", &["--a=1", "--b=2"]),
            ("--labels=\"a--b,c\"", &["--labels=a--b,c"]),
            ("", &[]),
        ] {
            fs::write(root.path().join("args"), text).expect("written");
            let flags = args_file(&settings, "/args", &variables).expect("readable");
            assert_eq!(flags.words, wanted, "{text}");
        }
        assert_eq!(args_file(&settings, "/nothing", &variables), None);
    }

    #[test]
    fn reads_data_directory_from_the_configuration_of_the_distribution() {
        let root = tempfile::tempdir().expect("a directory");
        let settings = settings(&["--host-root", root.path().to_str().expect("a text")]);
        let config = root.path().join("etc/rancher/k3s/config.yaml");
        fs::create_dir_all(config.parent().expect("a directory")).expect("made");
        fs::write(config, "data-dir: /data\nkubelet-arg: [node-ip=10.0.0.1, 7]\n").expect("written");
        let row = DISTRIBUTIONS.iter().find(|row| row.name == "k3s").expect("a row");
        assert!(!row.is_present(&settings));
        let start = row.start_config(&settings, None);
        let words: Vec<_> = start.flags.iter().flat_map(|flags| &flags.words).collect();
        assert!(words.contains(&&"--node-ip=10.0.0.1".to_owned()), "{words:?}");
        assert!(words.contains(&&"--kubeconfig=/data/agent/kubelet.kubeconfig".to_owned()), "{words:?}");
        assert_eq!(start.containerd, Path::new("/data/agent/etc/containerd/config.toml"));
    }
}
