//! Discovers the paths and settings that this node uses from the configuration of the running kubelet and container runtime,
//! not from well-known paths. If no kubelet runs, a table of distributions provides the paths.

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

use self::distributions::{DISTRIBUTIONS, StartConfig};
use self::kubelet::Flags;
use super::cni_dirs;
use super::kubeconfig::Kubeconfig;
use super::processes::Found;
use crate::settings::{CniSettings, Known, Settings};
use crate::text::clean;

pub(crate) use containerd::NETNS_DIR;
pub(crate) use kubelet::{Kubelet, socket};
pub(crate) use program::Program;

/// Maximum length of a path or name, bytes.
const MAX_PATH_LEN: usize = 256;

/// Returns a path with control characters escaped.
pub(super) fn shown(path: &Path) -> String {
    clean(path.as_os_str().as_bytes(), MAX_PATH_LEN)
}

/// Returns `path` without trailing slashes; `None` if it is relative.
pub(super) fn absolute(path: &str) -> Option<PathBuf> {
    Some(Path::new(path)).filter(|path| path.is_absolute()).map(|path| path.components().collect())
}

/// Returns every file below `dir`, sorted by path; `None` if there are more than `max`.
fn files_below(settings: &Settings, dir: &Path, max: usize) -> Option<Vec<PathBuf>> {
    let (mut found, mut pending) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(settings.on_host(&dir)).into_iter().flatten().flatten() {
            let path = dir.join(entry.file_name());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => pending.push(path),
                _ => found.push(path),
            }
            if found.len() + pending.len() > max {
                return None;
            }
        }
    }
    found.sort();
    Some(found)
}

/// The configuration of a container runtime. A setting is `None` if it is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RuntimeConfig {
    /// The socket that it listens on.
    pub(crate) endpoint: Option<Known<String>>,
    pub(crate) cni: CniSettings,
    pub(crate) sandbox_image: Option<Known<String>>,
    /// The cgroup driver for containers; `None` also if the kubelet does not depend on this setting.
    pub(crate) cgroup_driver: Option<Known<String>>,
    /// Set if the CRI plugin is disabled.
    pub(crate) cri_disabled: Option<Known<()>>,
}

/// The discovered settings of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Discovery {
    pub(crate) kubelet: Kubelet,
    /// Whether a kubelet runs.
    pub(crate) kubelet_is_running: bool,
    /// Whether a kubelet runs, or files of a distribution show that one is installed.
    pub(crate) is_installed: bool,
    /// Whether the program that embeds the kubelet also runs an API server.
    pub(crate) runs_api_server: bool,
    /// Name of the runtime that serves the kubelet's endpoint: `containerd`, `crio` or `cri-dockerd`; empty if unknown.
    pub(crate) runtime: String,
    pub(crate) runtime_config: RuntimeConfig,
    /// Contradictions between these settings, one sentence each.
    pub(crate) notes: Vec<String>,
}

impl Discovery {
    /// Discovers the settings from the running processes.
    pub(crate) fn of(settings: &Settings, processes: &[Found]) -> Self {
        Self::find(settings, &Program::all(processes))
    }

    /// Same as [`Self::of`], and stores the discovered directories in `settings`.
    pub(crate) fn followed(settings: &Settings, processes: &[Found]) -> Self {
        let discovery = Self::of(settings, processes);
        settings.cni.configure(discovery.runtime_config.cni.clone());
        if let Some(logs) = discovery.kubelet.pod_logs.clone() {
            settings.pod_logs.configure(Some(logs));
        }
        // Done immediately: until it is restarted, a runtime may use other directories than those in its configuration.
        cni_dirs::learn(settings, processes);
        discovery
    }

    /// Discovers the settings from the kubelets and runtimes among the processes.
    pub(crate) fn find(settings: &Settings, programs: &[Program]) -> Self {
        let start = start_config(settings, programs);
        // Without a kubelet, the defaults of kubelets do not apply.
        let mut kubelet =
            if start.flags.is_empty() { Kubelet::default() } else { Kubelet::find(settings, &start) };
        let kubelets = || programs.iter().filter(|program| program.class == ProcessClass::Kubelet);
        let kubelet_is_running = kubelets().next().is_some();
        // The flag is that of MicroK8s' kubelite; k3s is recognised by its files.
        let runs_api_server =
            programs.iter().any(|program| program.flag("start-control-plane") == Some("true"));
        let is_installed = kubelet_is_running || !start.flags.is_empty();
        kubelet.proxy = kubelets().find_map(|program| program.proxy.clone());
        let mut found =
            Self { kubelet, kubelet_is_running, is_installed, runs_api_server, ..Self::default() };
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
            containerd::of_file(settings, &start.containerd)
        };
        found
    }

    /// Returns the cgroup drivers of kubelet and runtime; `None` if one of them is unknown.
    ///
    /// A kubelet uses the driver that the runtime reports instead of its own setting (`KubeletCgroupDriverFromCRI`, enabled by
    /// default since Kubernetes 1.31). Earlier kubelets do not; this function cannot distinguish them.
    pub(crate) fn cgroup_drivers(&self, settings: &Settings) -> Option<CgroupDrivers> {
        // The configuration of a kubelet that does not run may be incomplete.
        if self.runtime.is_empty() || !self.kubelet_is_running {
            return None;
        }
        if let Some(reported) = settings.cgroup_driver.value() {
            return Some(CgroupDrivers { runtime: reported.clone(), kubelet: reported });
        }
        let (kubelet, runtime) = (&self.kubelet.cgroup_driver, &self.runtime_config.cgroup_driver);
        let (kubelet, runtime) = kubelet.as_ref().zip(runtime.as_ref())?;
        Some(CgroupDrivers { runtime: runtime.value.clone(), kubelet: kubelet.value.clone() })
    }

    /// Returns every known setting with its name, effective value and source. Flags of the agent in `settings` override
    /// discovered values.
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
        let files = |max| if max == 0 { "all".to_owned() } else { format!("the first {max}") };
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
            ("CRI", runtime.cri_disabled.clone().map(|known| known.map(|()| "disabled".to_owned()))),
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

/// Returns the runtime's configuration; `None` for a program that does not set up pod networks.
fn of_runtime(settings: &Settings, program: &Program) -> Option<RuntimeConfig> {
    match program.name.as_str() {
        "containerd" => Some(containerd::of_program(settings, program)),
        "crio" => Some(crio::find(settings, Some(program))),
        "cri-dockerd" => Some(cri_dockerd(program)),
        _ => None,
    }
}

/// Returns the configuration of cri-dockerd, which has flags but no configuration file (config/options.go in its source).
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
            // It passes /proc/PID/ns/net to plugins (core/sandbox_helpers.go).
            netns_dir: None,
        },
        ..RuntimeConfig::default()
    }
}

/// Returns what the running kubelet was started with; if none runs, what the installed distribution starts it with.
fn start_config(settings: &Settings, programs: &[Program]) -> StartConfig {
    let installed = || {
        let distribution = DISTRIBUTIONS.iter().find(|row| row.is_present(settings))?;
        Some(distribution.start_config(settings, None))
    };
    let unknown = || StartConfig { containerd: PathBuf::from(containerd::FILE), ..StartConfig::default() };
    let kubelets = || programs.iter().filter(|program| program.class == ProcessClass::Kubelet);
    if let Some(kubelet) = kubelets().find(|program| program.name == "kubelet") {
        let flags = vec![Flags { source: kubelet.name.clone(), words: kubelet.words.clone() }];
        return StartConfig { flags, defaults: None, ..installed().unwrap_or_else(unknown) };
    }
    let embedding = |program: &Program| {
        let row = DISTRIBUTIONS.iter().find(|row| row.programs.contains(&program.name.as_str()))?;
        Some(row.start_config(settings, Some(program)))
    };
    kubelets().find_map(embedding).or_else(installed).unwrap_or_else(unknown)
}

/// Fuzz target: configuration files of kubelets and runtimes, of any content.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &str) {
    let words = distributions::flags_in(text.to_owned(), &std::collections::BTreeMap::new());
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
    fn reported_cgroup_driver_applies_to_runtime_and_kubelet() {
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
        // The runtime no longer reports it.
        settings.cgroup_driver.report(None);
        assert_eq!(drivers()[0], "cgroupfs");
    }
}
