//! What each distribution starts its kubelet with. Used where the command line does not show it: the kubelet runs inside
//! another program, or does not run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::containerd;
use super::kubelet::Flags;
use super::program::{Program, flag};
use crate::node::file;
use crate::settings::Settings;

/// The flag that names a file with the kubelet's flags.
const ARGS_FILE: &str = "kubelet-args-file";

/// One distribution.
pub(super) struct Distribution {
    /// Its usual name.
    pub(super) name: &'static str,
    /// Programs that embed the kubelet; empty where it is a process of its own.
    pub(super) programs: &'static [&'static str],
    /// Its default data directory, which stands for `{data}` in the other fields.
    pub(super) data: &'static str,
    /// The environment variable that overrides it; empty when there is none.
    pub(super) variable: &'static str,
    /// Variables that its argument files use, with their usual values.
    pub(super) variables: &'static [(&'static str, &'static str)],
    /// An environment file that holds kubelet flags; empty when there is none.
    pub(super) environment: &'static str,
    /// Its YAML configuration file, whose keys are the names of its flags (`data-dir`, `kubelet-arg`); empty when there is
    /// none.
    pub(super) config: &'static str,
    /// Paths of which each exists only on its nodes.
    pub(super) marks: &'static [&'static str],
    /// The flags that it passes to the kubelet.
    pub(super) kubelet: &'static [&'static str],
    /// Flags that replace the kubelet's own defaults.
    pub(super) defaults: &'static [&'static str],
    /// The configuration file of its containerd; empty for the default path.
    pub(super) containerd: &'static str,
}

/// What a row does not say.
const OTHER: Distribution = Distribution {
    name: "other",
    programs: &[],
    data: "",
    variable: "",
    variables: &[],
    config: "",
    environment: "",
    marks: &[],
    kubelet: &[],
    defaults: &[],
    containerd: "",
};

const K3S: Distribution = Distribution {
    name: "k3s",
    programs: &["k3s", "k3s-server", "k3s-agent"],
    data: "/var/lib/rancher/k3s",
    variable: "K3S_DATA_DIR",
    config: "/etc/rancher/k3s/config.yaml",
    marks: &["{data}/agent/kubelet.kubeconfig"],
    kubelet: &[
        "--kubeconfig={data}/agent/kubelet.kubeconfig",
        "--config-dir={data}/agent/etc/kubelet.conf.d",
    ],
    defaults: &["--container-runtime-endpoint=unix:///run/k3s/containerd/containerd.sock"],
    containerd: "{data}/agent/etc/containerd/config.toml",
    ..OTHER
};

/// The first row whose mark exists wins: nodes of an earlier row may also have the mark of a later one. `tests/nodes` names the
/// source of each fact.
pub(super) const DISTRIBUTIONS: &[Distribution] = &[
    K3S,
    // Its kubelet and containerd are k3s', as processes of their own.
    Distribution {
        name: "RKE2",
        programs: &[],
        data: "/var/lib/rancher/rke2",
        variable: "RKE2_DATA_DIR",
        config: "/etc/rancher/rke2/config.yaml",
        ..K3S
    },
    Distribution {
        name: "MicroK8s",
        programs: &["kubelite"],
        data: "/var/snap/microk8s/current",
        variable: "SNAP_DATA",
        variables: &[
            ("SNAP_DATA", "/var/snap/microk8s/current"),
            ("SNAP_COMMON", "/var/snap/microk8s/common"),
        ],
        marks: &["{data}/args/kubelet"],
        kubelet: &["--kubelet-args-file={data}/args/kubelet"],
        containerd: "{data}/args/containerd.toml",
        ..OTHER
    },
    Distribution {
        name: "k0s",
        data: "/var/lib/k0s",
        marks: &["{data}/kubelet.conf"],
        kubelet: &[
            "--kubeconfig={data}/kubelet.conf",
            "--root-dir={data}/kubelet",
            "--container-runtime-endpoint=unix:///run/k0s/containerd.sock",
        ],
        containerd: "/etc/k0s/containerd.toml",
        ..OTHER
    },
    Distribution {
        name: "Talos",
        marks: &["/etc/kubernetes/kubeconfig-kubelet"],
        kubelet: &[
            "--kubeconfig=/etc/kubernetes/kubeconfig-kubelet",
            "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubeconfig",
            "--config=/etc/kubernetes/kubelet.yaml",
        ],
        containerd: "/etc/cri/containerd.toml",
        ..OTHER
    },
    Distribution {
        name: "Bottlerocket",
        marks: &["/etc/kubernetes/kubelet/kubeconfig"],
        kubelet: &[
            "--kubeconfig=/etc/kubernetes/kubelet/kubeconfig",
            "--config=/etc/kubernetes/kubelet/config",
        ],
        ..OTHER
    },
    Distribution {
        name: "EKS",
        marks: &["/etc/kubernetes/kubelet/config.json"],
        kubelet: &[
            "--kubeconfig=/var/lib/kubelet/kubeconfig",
            "--config=/etc/kubernetes/kubelet/config.json",
        ],
        ..OTHER
    },
    Distribution {
        name: "OpenShift",
        marks: &["/etc/kubernetes/apiserver-url.env"],
        kubelet: &[
            "--kubeconfig=/var/lib/kubelet/kubeconfig",
            "--bootstrap-kubeconfig=/etc/kubernetes/kubeconfig",
            "--config=/etc/kubernetes/kubelet.conf",
            "--container-runtime-endpoint=unix:///var/run/crio/crio.sock",
        ],
        ..OTHER
    },
    Distribution {
        name: "Kubespray",
        marks: &["/etc/kubernetes/kubelet-config.yaml"],
        kubelet: &[
            "--kubeconfig=/etc/kubernetes/kubelet.conf",
            "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf",
            "--config=/etc/kubernetes/kubelet-config.yaml",
        ],
        ..OTHER
    },
    Distribution {
        name: "kubeadm",
        environment: "/var/lib/kubelet/kubeadm-flags.env",
        marks: &["/etc/kubernetes/kubelet.conf", "/etc/kubernetes/bootstrap-kubelet.conf"],
        kubelet: &[
            "--kubeconfig=/etc/kubernetes/kubelet.conf",
            "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf",
            "--config=/var/lib/kubelet/config.yaml",
        ],
        ..OTHER
    },
    // kops, AKS, GKE.
    Distribution {
        marks: &["/var/lib/kubelet/kubeconfig"],
        kubelet: &["--kubeconfig=/var/lib/kubelet/kubeconfig"],
        ..OTHER
    },
];

/// What a kubelet is started with.
#[derive(Default)]
pub(super) struct Started {
    /// Its flags, those that win first.
    pub(super) flags: Vec<Flags>,
    /// What holds in place of its defaults.
    pub(super) defaults: Option<Flags>,
    /// The configuration file of its distribution's containerd.
    pub(super) containerd: PathBuf,
}

impl Distribution {
    /// Whether its files are on this host.
    pub(super) fn is_here(&self, settings: &Settings) -> bool {
        let data = self.configured_data(settings);
        self.marks.iter().any(|mark| settings.on_host(Path::new(&placed(mark, &data))).exists())
    }

    /// What its kubelet is started with inside `program`; without one, what it would be started with.
    pub(super) fn started(&self, settings: &Settings, program: Option<&Program>) -> Started {
        let flag_of = |name| program.and_then(|program| program.flag(name)).map(str::to_owned);
        let mut variables = program.map(|program| program.variables.clone()).unwrap_or_default();
        let data = flag_of("data-dir").or_else(|| variables.get(self.variable).cloned());
        let data = data.unwrap_or_else(|| self.configured_data(settings));
        for (name, value) in self.variables {
            variables.entry((*name).to_owned()).or_insert_with(|| (*value).to_owned());
        }
        let mut flags: Vec<_> = self.configured_flags(settings).into_iter().collect();
        flags.extend(args_file(settings, self.environment, &variables));
        let words: Vec<_> = self.kubelet.iter().map(|word| placed(word, &data)).collect();
        if let Some(file) = flag_of(ARGS_FILE).or_else(|| flag(&words, ARGS_FILE).map(str::to_owned)) {
            flags.extend(args_file(settings, &file, &variables));
        }
        let source = format!("default of {}", self.name);
        let defaults = self.defaults.iter().map(|word| placed(word, &data)).collect();
        flags.push(Flags { source: source.clone(), words });
        Started {
            flags,
            defaults: Some(Flags { source, words: defaults }),
            containerd: PathBuf::from(match self.containerd {
                "" => containerd::FILE.to_owned(),
                file => placed(file, &data),
            }),
        }
    }

    /// What its own configuration file says of the kubelet.
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
        serde_yaml_ng::from_str(&file::read_text(&settings.on_host(Path::new(path)))?).ok()
    }

    fn configured_data(&self, settings: &Settings) -> String {
        let configured = || Some(self.configuration(settings)?.get("data-dir")?.as_str()?.to_owned());
        configured().unwrap_or_else(|| self.data.to_owned())
    }
}

fn placed(text: &str, data: &str) -> String {
    text.replace("{data}", data)
}

/// A file with flags, as MicroK8s and kubeadm have it: comments after `#`, variables as the shell writes them, and in front
/// of the flags maybe a variable that they are given to. `None` without one.
fn args_file(settings: &Settings, path: &str, variables: &BTreeMap<String, String>) -> Option<Flags> {
    if path.is_empty() {
        return None;
    }
    let text = file::read_text(&settings.on_host(Path::new(path)))?;
    Some(Flags { source: path.to_owned(), words: words_of(text, variables) })
}

/// The flags in such a text.
pub(super) fn words_of(mut text: String, variables: &BTreeMap<String, String>) -> Vec<String> {
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
    fn flags_are_read_from_files_in_their_forms() {
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
    fn another_place_is_read_from_the_configuration_of_the_distribution() {
        let root = tempfile::tempdir().expect("a directory");
        let settings = settings(&["--host-root", root.path().to_str().expect("a text")]);
        let config = root.path().join("etc/rancher/k3s/config.yaml");
        fs::create_dir_all(config.parent().expect("a directory")).expect("made");
        fs::write(config, "data-dir: /data\nkubelet-arg: [node-ip=10.0.0.1, 7]\n").expect("written");
        let row = DISTRIBUTIONS.iter().find(|row| row.name == "k3s").expect("a row");
        assert!(!row.is_here(&settings));
        let started = row.started(&settings, None);
        let words: Vec<_> = started.flags.iter().flat_map(|flags| &flags.words).collect();
        assert!(words.contains(&&"--node-ip=10.0.0.1".to_owned()), "{words:?}");
        assert!(words.contains(&&"--kubeconfig=/data/agent/kubelet.kubeconfig".to_owned()), "{words:?}");
        assert_eq!(started.containerd, Path::new("/data/agent/etc/containerd/config.toml"));
    }
}
