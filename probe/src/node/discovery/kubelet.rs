//! The kubelet's configuration: its command line, its `--config` file with the drop-ins of `--config-dir`, and its defaults.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::distributions::StartConfig;
use super::program::flag;
use super::proxy::Proxy;
use super::{MAX_PATH_LEN, absolute, files_below};
use crate::node::file;
use crate::settings::{Known, POD_LOGS, ServerHost, Settings};
use crate::text::clean;
use crate::yaml;

/// Defaults of the kubelet, as of Kubernetes 1.36 (pkg/kubelet/apis/config/v1beta1/defaults.go, cmd/kubelet/app/options). The
/// default endpoint exists since 1.27; before 1.24 it was Docker's.
pub(super) const ENDPOINT: &str = "/run/containerd/containerd.sock";
const ROOT: &str = "/var/lib/kubelet";
const DRIVER: &str = "cgroupfs";
/// Maximum number of drop-in files.
const MAX_DROP_INS: usize = 64;
/// Maximum number of addresses of the cluster DNS; the kubelet itself uses three.
const MAX_DNS_SERVERS: usize = 8;

/// Flags that a kubelet was started with, and their source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flags {
    /// In readable form: `kubelet`, `/var/snap/microk8s/current/args/kubelet`, `default of k3s`.
    pub(super) source: String,
    /// Arguments in a form that [`flag`] parses.
    pub(super) words: Vec<String>,
}

impl Flags {
    fn known(&self, name: &str) -> Option<Known<String>> {
        if name.is_empty() {
            return None;
        }
        let value = flag(&self.words, name).filter(|value| !value.is_empty())?;
        Some(Known::of(value.to_owned(), &format_args!("{} --{name}", self.source)))
    }
}

/// The kubelet's settings. A setting is `None` if it is not configured or unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kubelet {
    pub(crate) kubeconfig: Option<Known<PathBuf>>,
    pub(crate) bootstrap_kubeconfig: Option<Known<PathBuf>>,
    /// Path of the CRI socket with control characters escaped.
    pub(crate) runtime_endpoint: Option<Known<String>>,
    /// Root directory of its files.
    pub(crate) root: Option<Known<PathBuf>>,
    /// Directory of its client certificates, in which `kubelet-client-current.pem` is the one in use.
    pub(crate) certificates: Option<Known<PathBuf>>,
    /// `systemd` or `cgroupfs`, regardless of what the runtime reports.
    pub(crate) cgroup_driver: Option<Known<String>>,
    pub(crate) static_pods: Option<Known<PathBuf>>,
    /// Directory of pod logs.
    pub(crate) pod_logs: Option<Known<PathBuf>>,
    pub(crate) node_name: Option<Known<String>>,
    pub(crate) node_ip: Option<Known<String>>,
    pub(crate) cluster_domain: Option<Known<String>>,
    pub(crate) cluster_dns: Option<Known<Vec<IpAddr>>>,
    /// The proxy in its environment.
    pub(crate) proxy: Option<Proxy>,
}

impl Kubelet {
    /// Determines the settings from what the kubelet was started with.
    pub(super) fn find(settings: &Settings, start: &StartConfig) -> Self {
        let StartConfig { flags, defaults, .. } = start;
        Self::from(&Sources { flags, files: files(settings, flags), defaults: defaults.as_ref() })
    }

    fn from(sources: &Sources<'_>) -> Self {
        let path = |flag, key, default| sources.get(flag, key, default)?.filter_map(|value| absolute(&value));
        let text = |flag, key| sources.get(flag, key, None).map(|known| known.map(|value| shown(&value)));
        let root = path("root-dir", "", Some(ROOT));
        let certificates =
            path("cert-dir", "", None).or_else(|| Some(root.clone()?.map(|root| root.join("pki"))));
        let endpoint = sources.get("container-runtime-endpoint", "containerRuntimeEndpoint", None);
        let driver = sources.get("cgroup-driver", "cgroupDriver", Some(DRIVER));
        Self {
            kubeconfig: path("kubeconfig", "", None),
            bootstrap_kubeconfig: path("bootstrap-kubeconfig", "", None),
            runtime_endpoint: endpoint.and_then(|known| known.filter_map(|value| socket(&value))),
            root,
            certificates,
            cgroup_driver: driver.filter(|known| matches!(known.value.as_str(), "systemd" | "cgroupfs")),
            pod_logs: path("", "podLogsDir", Some(POD_LOGS)),
            static_pods: path("pod-manifest-path", "staticPodPath", None),
            node_name: text("hostname-override", ""),
            node_ip: text("node-ip", ""),
            cluster_domain: text("cluster-domain", "clusterDomain"),
            cluster_dns: sources.cluster_dns(),
            proxy: None,
        }
    }

    /// Returns the path of the client certificate that a kubelet with certificate rotation uses.
    pub(crate) fn client_certificate(&self) -> Option<PathBuf> {
        Some(self.certificates.as_ref()?.value.join("kubelet-client-current.pem"))
    }

    /// Returns the proxy through which the kubelet connects to a server.
    pub(crate) fn proxy_for(&self, host: &ServerHost, port: u16) -> Option<&Proxy> {
        self.proxy.as_ref().filter(|proxy| proxy.covers(host, port))
    }

    /// Returns the configured kubeconfigs, in the order in which the kubelet tries them.
    pub(crate) fn kubeconfigs(&self) -> impl Iterator<Item = &Known<PathBuf>> {
        self.kubeconfig.iter().chain(&self.bootstrap_kubeconfig)
    }
}

/// The sources of settings.
struct Sources<'a> {
    flags: &'a [Flags],
    /// Configuration files, highest precedence first; `None` if one cannot be read.
    files: Option<Vec<(PathBuf, Value)>>,
    /// Flags that replace the kubelet's own defaults.
    defaults: Option<&'a Flags>,
}

impl Sources<'_> {
    /// Returns the value of the flag `name`, else of `key` in the configuration files, else the default. `name` and `key` are
    /// empty if the setting has no flag or no key. Returns `None` if a file that may contain another value cannot be read.
    fn get(&self, name: &str, key: &str, default: Option<&str>) -> Option<Known<String>> {
        if let Some(known) = self.flag(name) {
            return Some(known);
        }
        if !key.is_empty() {
            for (path, config) in self.files.as_ref()? {
                match config.get(key) {
                    // The kubelet treats an empty string as unset.
                    Some(Value::String(value)) if value.is_empty() => {}
                    Some(Value::String(value)) => return Some(Known::of(value.clone(), &path.display())),
                    Some(Value::Null) | None => {}
                    Some(_) => return None,
                }
            }
        }
        if let Some(known) = self.defaults.and_then(|defaults| defaults.known(name)) {
            return Some(known);
        }
        default.map(|value| Known::of(value.to_owned(), &"default of the kubelet"))
    }

    fn flag(&self, name: &str) -> Option<Known<String>> {
        self.flags.iter().find_map(|flags| flags.known(name))
    }

    fn cluster_dns(&self) -> Option<Known<Vec<IpAddr>>> {
        if let Some(known) = self.flag("cluster-dns") {
            return Some(known.map(|value| {
                value.split(',').filter_map(|ip| ip.parse().ok()).take(MAX_DNS_SERVERS).collect()
            }));
        }
        let named = |(path, config): &(PathBuf, Value)| {
            let addresses = config.get("clusterDNS")?.as_array()?;
            let addresses = addresses.iter().filter_map(|ip| ip.as_str()?.parse().ok()).take(MAX_DNS_SERVERS);
            Some(Known::of(addresses.collect(), &path.display()))
        };
        self.files.as_ref()?.iter().find_map(named)
    }
}

/// Reads the configuration files, highest precedence first: drop-ins in reverse order of their names, then the file itself.
fn files(settings: &Settings, flags: &[Flags]) -> Option<Vec<(PathBuf, Value)>> {
    let named =
        |name| flags.iter().find_map(|flags| flag(&flags.words, name)).filter(|path| !path.is_empty());
    let mut paths = Vec::new();
    if let Some(dir) = named("config-dir") {
        // The kubelet reads only files with this extension, including those in subdirectories.
        paths = files_below(settings, Path::new(dir), MAX_DROP_INS)?;
        paths.retain(|path| path.extension().is_some_and(|end| end == "conf"));
        paths.reverse();
    }
    paths.extend(named("config").map(PathBuf::from));
    let read = |path: PathBuf| {
        let text = file::read_text(&settings.on_host(&path))?;
        Some((path, yaml::parse(text.as_bytes()).ok()?))
    };
    paths.into_iter().map(read).collect()
}

fn shown(value: &str) -> String {
    clean(value.as_bytes(), MAX_PATH_LEN)
}

/// Returns the path of a Unix socket, given as `unix:///run/x.sock`, `unix:/run/x.sock` or `/run/x.sock`; `None` for any other
/// endpoint.
pub(crate) fn socket(endpoint: &str) -> Option<String> {
    let path =
        endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint);
    Path::new(path).is_absolute().then(|| shown(path))
}

/// Fuzz target: a file and flags of any content. Returns the texts that may be printed.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &str, words: Vec<String>) -> Vec<String> {
    let config = yaml::parse(text.as_bytes()).unwrap_or(Value::Null);
    let flags = [Flags { source: "kubelet".to_owned(), words }];
    let sources = Sources { flags: &flags, files: Some(vec![(PathBuf::from("/c"), config)]), defaults: None };
    let kubelet = Kubelet::from(&sources);
    let texts = [kubelet.runtime_endpoint, kubelet.node_name, kubelet.node_ip, kubelet.cluster_domain];
    texts.into_iter().flatten().flat_map(|known| [known.value, known.source]).collect()
}

#[cfg(test)]
mod tests {
    use crate::settings::tests::host;

    use super::*;

    /// Returns the settings of a kubelet with this command line on a host with these files.
    fn found(files: &[(&str, &str)], line: &str) -> Kubelet {
        let (settings, _root) = host(files);
        let words = line.split(' ').map(str::to_owned).collect();
        let flags = vec![Flags { source: "kubelet".to_owned(), words }];
        Kubelet::find(&settings, &StartConfig { flags, ..StartConfig::default() })
    }

    fn value<T>(known: Option<Known<T>>) -> Option<T> {
        known.map(|known| known.value)
    }

    #[test]
    fn flags_override_the_configuration_which_overrides_defaults() {
        let files = [
            ("a.yaml", "containerRuntimeEndpoint: unix:///run/a.sock\ncgroupDriver: systemd\n"),
            ("empty.yaml", "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: ''\n"),
            ("odd.yaml", "containerRuntimeEndpoint: [x]\ncgroupDriver: other\n"),
            ("broken.yaml", ": : :\n\t"),
        ];
        for (line, endpoint, driver) in [
            ("kubelet --config=/a.yaml", Some("/run/a.sock"), Some("systemd")),
            ("kubelet --config /a.yaml --cgroup-driver=cgroupfs", Some("/run/a.sock"), Some("cgroupfs")),
            (
                "kubelet --config=/a.yaml --container-runtime-endpoint=unix:///run/b.sock",
                Some("/run/b.sock"),
                Some("systemd"),
            ),
            ("kubelet -container-runtime-endpoint /run/c.sock", Some("/run/c.sock"), Some("cgroupfs")),
            (
                "kubelet --container-runtime-endpoint=/run/c.sock --container-runtime-endpoint=unix:/run/d.sock",
                Some("/run/d.sock"),
                Some("cgroupfs"),
            ),
            ("kubelet --container-runtime-endpoint=tcp://127.0.0.1:1", None, Some("cgroupfs")),
            ("kubelet --config=/empty.yaml", None, Some("cgroupfs")),
            ("kubelet", None, Some("cgroupfs")),
            // The value is unknown if a file cannot be read.
            ("kubelet --config=/odd.yaml", None, None),
            ("kubelet --config=/broken.yaml", None, None),
            ("kubelet --config=/nothing.yaml", None, None),
        ] {
            let found = found(&files, line);
            assert_eq!(value(found.runtime_endpoint).as_deref(), endpoint, "{line}");
            assert_eq!(value(found.cgroup_driver).as_deref(), driver, "{line}");
        }
    }

    #[test]
    fn the_last_drop_in_wins() {
        let files = [
            ("config.yaml", "cgroupDriver: cgroupfs\nstaticPodPath: /pods\nclusterDNS: [10.0.0.10]\n"),
            ("d/10-a.conf", "cgroupDriver: systemd\nclusterDNS: [10.1.0.10, x]\n"),
            ("d/20/b.conf", r#"{"clusterDomain": "b"}"#),
            ("d/30-not.yaml", "cgroupDriver: cgroupfs\n"),
        ];
        let found = found(&files, "kubelet --config=/config.yaml --config-dir=/d");
        let driver = found.cgroup_driver.expect("known");
        assert_eq!((driver.value.as_str(), driver.source.as_str()), ("systemd", "/d/10-a.conf"));
        assert_eq!(value(found.static_pods), Some(PathBuf::from("/pods")));
        assert_eq!(value(found.cluster_domain).as_deref(), Some("b"));
        assert_eq!(value(found.cluster_dns), Some(vec![[10, 1, 0, 10].into()]));
    }

    #[test]
    fn reads_kubeconfigs_from_flags() {
        for (line, wanted) in [
            ("kubelet --bootstrap-kubeconfig=/b --kubeconfig=/k --config=/c", &["/k", "/b"][..]),
            ("kubelet --kubeconfig /k", &["/k"]),
            ("kubelet --kubeconfig=k --bootstrap-kubeconfig=", &[]),
            ("kubelet --kubeconfig", &[]),
        ] {
            let found = found(&[], line);
            let named: Vec<_> = found.kubeconfigs().map(|known| known.value.clone()).collect();
            assert_eq!(named, wanted.iter().map(PathBuf::from).collect::<Vec<_>>(), "{line}");
        }
    }
}
