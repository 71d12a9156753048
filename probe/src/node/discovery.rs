//! What this node really uses. A path is a guess; what the running kubelet and the running container runtime are
//! configured for is a fact. Only where no kubelet runs, a table of distributions says where to look.

mod containerd;
mod crio;
mod distributions;
mod kubelet;
#[cfg(test)]
mod nodes;
mod program;
pub(crate) mod proxy;

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use probe_engine::{CgroupDrivers, ProcessClass, is_same_path};

use self::distributions::{DISTRIBUTIONS, Started};
use self::kubelet::Flags;
use super::cni_dirs;
use super::kubeconfig::Kubeconfig;
use super::processes::Found;
use crate::settings::{CniSettings, Known, Settings};
use crate::text::clean;

pub(crate) use containerd::NETNS_DIR;
pub(crate) use kubelet::{Kubelet, socket};
pub(crate) use program::Program;

/// Longest path and name that is kept.
const PATH: usize = 256;

/// Returns a path with control characters escaped.
pub(super) fn shown(path: &Path) -> String {
    clean(path.as_os_str().as_bytes(), PATH)
}

/// `path` without a slash at its end; `None` for one that is relative.
pub(super) fn absolute(path: &str) -> Option<PathBuf> {
    Some(Path::new(path)).filter(|path| path.is_absolute()).map(|path| path.components().collect())
}

/// Every file below `dir`, in the order of their paths; `None` where there are more than `most`.
fn files_below(settings: &Settings, dir: &Path, most: usize) -> Option<Vec<PathBuf>> {
    let (mut found, mut todo) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(settings.on_host(&dir)).into_iter().flatten().flatten() {
            let path = dir.join(entry.file_name());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => todo.push(path),
                _ => found.push(path),
            }
            if found.len() + todo.len() > most {
                return None;
            }
        }
    }
    found.sort();
    Some(found)
}

/// What a container runtime is configured for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RuntimeConfig {
    /// The socket that it listens on.
    pub(crate) endpoint: Option<Known<String>>,
    pub(crate) cni: CniSettings,
    pub(crate) sandbox_image: Option<Known<String>>,
    /// The cgroup driver for containers, where the kubelet relies on this configuration for it.
    pub(crate) cgroup_driver: Option<Known<String>>,
    /// Set when its CRI plugin is disabled.
    pub(crate) without_cri: Option<Known<()>>,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Discovery {
    pub(crate) kubelet: Kubelet,
    /// Whether a kubelet runs.
    pub(crate) kubelet_runs: bool,
    /// Whether one runs, or files of a distribution show that this host has one.
    pub(crate) is_installed: bool,
    /// Whether the program that embeds the kubelet also runs an API server.
    pub(crate) with_api_server: bool,
    /// The runtime behind the kubelet's endpoint, by name: `containerd`, `crio`, `cri-dockerd`; empty where it is not known.
    pub(crate) runtime: String,
    pub(crate) runtime_config: RuntimeConfig,
    /// Contradictions between these settings, one sentence each.
    pub(crate) notes: Vec<String>,
}

impl Discovery {
    /// From the processes that run.
    pub(crate) fn of(settings: &Settings, processes: &[Found]) -> Self {
        Self::find(settings, &Program::all(processes))
    }

    /// As [`Self::of`], and points `settings` to the directories that were found.
    pub(crate) fn followed(settings: &Settings, processes: &[Found]) -> Self {
        let discovery = Self::of(settings, processes);
        settings.cni.configure(discovery.runtime_config.cni.clone());
        if let Some(logs) = discovery.kubelet.pod_logs.clone() {
            settings.pod_logs.configure(Some(logs));
        }
        // At once: until it is restarted a runtime may use something else than what it is configured for.
        cni_dirs::learn(settings, processes);
        discovery
    }

    /// From the programs that matter among them.
    pub(crate) fn find(settings: &Settings, programs: &[Program]) -> Self {
        let started = started(settings, programs);
        // Without a kubelet its defaults say nothing.
        let mut kubelet =
            if started.flags.is_empty() { Kubelet::default() } else { Kubelet::find(settings, &started) };
        let kubelets = || programs.iter().filter(|program| program.class == ProcessClass::Kubelet);
        let kubelet_runs = kubelets().next().is_some();
        // k3s shows it by its files.
        let with_api_server =
            programs.iter().any(|program| program.flag("start-control-plane") == Some("true"));
        let is_installed = kubelet_runs || !started.flags.is_empty();
        kubelet.proxy = kubelets().find_map(|program| program.proxy.clone());
        let mut found = Self { kubelet, kubelet_runs, is_installed, with_api_server, ..Self::default() };
        let named = settings.runtime_endpoint.as_ref().and_then(|path| socket(&path.to_string_lossy()));
        let endpoint = named.or_else(|| Some(found.kubelet.runtime_endpoint.as_ref()?.value.clone()));
        let mut runtimes: Vec<_> = programs
            .iter()
            .filter_map(|program| Some((&program.name, of_runtime(settings, program)?)))
            .collect();
        let serves = |wanted: &str| {
            let is_served = |config: &RuntimeConfig| {
                config.endpoint.as_ref().is_some_and(|served| is_same_path(&served.value, wanted))
            };
            runtimes.iter().position(|(_, config)| is_served(config))
        };
        let at = match &endpoint {
            Some(endpoint) => serves(endpoint),
            None if runtimes.len() == 1 => Some(0),
            None => serves(kubelet::ENDPOINT),
        };
        if let Some((name, config)) = at.map(|at| runtimes.swap_remove(at)) {
            found.runtime.clone_from(name);
            found.runtime_config = config;
            return found;
        }
        if let (Some(endpoint), Some((name, RuntimeConfig { endpoint: Some(served), .. }))) =
            (&endpoint, runtimes.first())
        {
            found.notes.push(format!(
                "the kubelet uses {endpoint}, but no runtime listens there; {name} listens on {}",
                served.value
            ));
        }
        let is_crio = endpoint.as_deref().is_some_and(|endpoint| endpoint.ends_with("/crio.sock"));
        found.runtime_config = if is_crio {
            crio::find(settings, None)
        } else {
            containerd::of_file(settings, &started.containerd)
        };
        found
    }

    /// The cgroup drivers that kubelet and runtime use; `None` where one of them is not known.
    ///
    /// A kubelet uses the one that the runtime reports, whatever it is configured for (`KubeletCgroupDriverFromCRI`, on by
    /// default since Kubernetes 1.31). That an earlier one does not is not known here.
    pub(crate) fn cgroup_drivers(&self, settings: &Settings) -> Option<CgroupDrivers> {
        // One that does not run is configured for nothing yet.
        if self.runtime.is_empty() || !self.kubelet_runs {
            return None;
        }
        if let Some(reported) = settings.cgroup_driver.value() {
            return Some(CgroupDrivers { runtime: reported.clone(), kubelet: reported });
        }
        let (kubelet, runtime) = (&self.kubelet.cgroup_driver, &self.runtime_config.cgroup_driver);
        let (kubelet, runtime) = kubelet.as_ref().zip(runtime.as_ref())?;
        Some(CgroupDrivers { runtime: runtime.value.clone(), kubelet: kubelet.value.clone() })
    }

    /// Every setting that is known, with its source, as the node is looked at with these `settings`.
    pub(crate) fn rows(&self, settings: &Settings) -> Vec<(&'static str, Known<String>)> {
        fn path(known: Option<&Known<PathBuf>>) -> Option<Known<String>> {
            known.cloned().map(|known| known.map(|path| shown(&path)))
        }
        fn list<T>(values: Vec<T>, show: impl Fn(T) -> String) -> String {
            values.into_iter().map(show).collect::<Vec<_>>().join(", ")
        }
        fn by_flag<T>(value: Option<T>, flag: &str) -> Option<Known<T>> {
            value.map(|value| Known::of(value, &flag))
        }
        let (kubelet, runtime) = (&self.kubelet, &self.runtime_config);
        let endpoint = settings.runtime_endpoint.clone();
        let endpoint = path(by_flag(endpoint, "--runtime-endpoint").as_ref());
        let kubeconfig = by_flag(settings.kubeconfig.clone(), "--kubeconfig").or(kubelet.kubeconfig.clone());
        let (dns, proxy) = (kubelet.cluster_dns.clone(), kubelet.proxy.as_ref());
        let max_files = settings.cni.max_files();
        let files = |most| if most == 0 { "all".to_owned() } else { format!("the first {most}") };
        let reported = settings.cgroup_driver.known().filter_map(|driver| driver);
        let rows = [
            ("node name", kubelet.node_name.clone()),
            ("node IP", kubelet.node_ip.clone()),
            ("kubeconfig", path(kubeconfig.as_ref())),
            ("bootstrap kubeconfig", path(kubelet.bootstrap_kubeconfig.as_ref())),
            ("TLS bootstrap", Kubeconfig::bootstrap_state(settings, kubelet)),
            ("kubelet's credential", Kubeconfig::credential_source(settings, kubelet)),
            (
                "kubelet's proxy",
                proxy.map(|proxy| Known::of(proxy.url.clone(), &"environment of the kubelet")),
            ),
            ("kubelet's files", path(kubelet.root.as_ref())),
            ("static pods", path(kubelet.static_pods.as_ref())),
            ("pod logs", path(kubelet.pod_logs.as_ref())),
            ("cluster domain", kubelet.cluster_domain.clone()),
            ("cluster DNS", dns.map(|dns| dns.map(|dns| list(dns, |ip| ip.to_string())))),
            ("kubelet's cgroup driver", kubelet.cgroup_driver.clone()),
            ("runtime endpoint", endpoint.or(kubelet.runtime_endpoint.clone()).or(runtime.endpoint.clone())),
            ("runtime's cgroup driver", reported.or(runtime.cgroup_driver.clone())),
            ("sandbox image", runtime.sandbox_image.clone()),
            ("CRI", runtime.without_cri.clone().map(|known| known.map(|()| "disabled".to_owned()))),
            ("CNI configurations", path(Some(&settings.cni.known_conf()))),
            ("CNI plugins", Some(settings.cni.known_bin().map(|dirs| list(dirs, |dir| shown(&dir))))),
            (
                "CNI files loaded",
                Some(max_files).filter(|known| known.value != 1).map(|known| known.map(files)),
            ),
            ("network namespaces", path(Some(&settings.cni.known_netns()))),
        ];
        rows.into_iter().filter_map(|(name, known)| Some((name, known?))).collect()
    }
}

/// Returns the runtime's configuration; `None` for a program that sets up no pod networks.
fn of_runtime(settings: &Settings, program: &Program) -> Option<RuntimeConfig> {
    match program.name.as_str() {
        "containerd" => Some(containerd::of_program(settings, program)),
        "crio" => Some(crio::find(settings, Some(program))),
        "cri-dockerd" => Some(cri_dockerd(program)),
        _ => None,
    }
}

/// cri-dockerd has no configuration file, only flags (config/options.go in its source).
fn cri_dockerd(program: &Program) -> RuntimeConfig {
    let get = |name: &str, default: &str| match program.flag(name) {
        Some(value) => Known::of(value.to_owned(), &format_args!("cri-dockerd --{name}")),
        None => Known::of(default.to_owned(), &"default of cri-dockerd"),
    };
    let endpoint = get("container-runtime-endpoint", "unix:///run/cri-dockerd.sock");
    RuntimeConfig {
        endpoint: endpoint.filter_map(|endpoint| socket(&endpoint)),
        cni: CniSettings {
            conf_dir: get("cni-conf-dir", "/etc/cni/net.d").filter_map(|dir| absolute(&dir)),
            bin_dirs: Some(
                get("cni-bin-dir", "/opt/cni/bin").map(|dirs| dirs.split(',').filter_map(absolute).collect()),
            ),
            max_files: None,
            // Plugins get /proc/PID/ns/net (core/sandbox_helpers.go).
            netns_dir: None,
        },
        ..RuntimeConfig::default()
    }
}

/// What the kubelet that runs was started with; where none runs, what the distribution whose files are here starts it with.
fn started(settings: &Settings, programs: &[Program]) -> Started {
    let here =
        || DISTRIBUTIONS.iter().find(|row| row.is_here(settings)).map(|row| row.started(settings, None));
    let nowhere = || Started { containerd: PathBuf::from(containerd::FILE), ..Started::default() };
    let kubelets = || programs.iter().filter(|program| program.class == ProcessClass::Kubelet);
    if let Some(kubelet) = kubelets().find(|program| program.name == "kubelet") {
        let flags = vec![Flags { source: kubelet.name.clone(), words: kubelet.words.clone() }];
        return Started { flags, defaults: None, ..here().unwrap_or_else(nowhere) };
    }
    let embedding = |program: &Program| {
        let row = DISTRIBUTIONS.iter().find(|row| row.programs.contains(&program.name.as_str()))?;
        Some(row.started(settings, Some(program)))
    };
    kubelets().find_map(embedding).or_else(here).unwrap_or_else(nowhere)
}

/// The configuration files of kubelets and runtimes, of any content.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &str) {
    let words = distributions::words_of(text.to_owned(), &std::collections::BTreeMap::new());
    let shown = containerd::fuzz(text).into_iter().chain(kubelet::fuzz(text, words)).chain(proxy::fuzz(text));
    for text in shown {
        assert!(crate::fuzz::is_clean(&text), "{text:?}");
    }
}

#[cfg(test)]
mod tests {
    use crate::settings::tests::host;

    use super::*;

    #[test]
    fn the_reported_cgroup_driver_is_the_one_of_both() {
        let (settings, _root) = host(&[
            ("etc/containerd/config.toml", "version = 2\n"),
            (
                "kubelet.yaml",
                "containerRuntimeEndpoint: /run/containerd/containerd.sock\ncgroupDriver: systemd\n",
            ),
        ]);
        let program = |name: &str, class, flag: &str| Program {
            name: name.to_owned(),
            class,
            words: vec![name.to_owned(), flag.to_owned()],
            variables: std::collections::BTreeMap::new(),
            proxy: None,
        };
        let programs = [
            program("kubelet", ProcessClass::Kubelet, "--config=/kubelet.yaml"),
            program("containerd", ProcessClass::Runtime, ""),
        ];
        let discovery = Discovery::find(&settings, &programs);
        let drivers = || {
            let CgroupDrivers { runtime, kubelet } = discovery.cgroup_drivers(&settings).expect("known");
            let rows = discovery.rows(&settings);
            let row = rows.into_iter().find(|(name, _)| *name == "runtime's cgroup driver").expect("a row").1;
            [runtime, kubelet, row.value, row.source]
        };
        assert_eq!(drivers(), ["cgroupfs", "systemd", "cgroupfs", "default of containerd"]);
        settings.cgroup_driver.report(Some(Known::of(Some("systemd".to_owned()), &"CRI RuntimeConfig")));
        assert_eq!(drivers(), ["systemd", "systemd", "systemd", "CRI RuntimeConfig"]);
        // A runtime that does not report it any more.
        settings.cgroup_driver.report(None);
        assert_eq!(drivers()[0], "cgroupfs");
    }
}
