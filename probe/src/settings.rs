//! Settings that all commands share: the validated form of the command line (`cli.rs`).

mod discovered;

use std::collections::VecDeque;
use std::fmt::{self, Display};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use probe_engine::{Role, TargetKind};

use crate::bpf::HookSet;
use crate::text::clean;

pub(crate) use discovered::{CniDirs, CniSettings, POD_LOGS, Setting};

/// How the node is observed. All settings have defaults for a usual node.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Name of the node in reports: `--node-name`, `NODE_NAME`, or the host name.
    pub(crate) node: String,
    /// API addresses given by `--apiserver`, in addition to discovered ones.
    pub(crate) apiservers: Vec<ApiServer>,
    /// Do not discover API addresses, use only `apiservers`. Set if `--apiserver` is given.
    pub(crate) only_named: bool,
    /// Kubeconfig whose `server:` is an API address; `None`: that of the kubelet, if it is found.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Directories from which the container runtime reads network configurations and plugins, and where it binds network namespaces.
    pub(crate) cni: CniDirs,
    /// Directory of the kubelet's pod logs, inside `host_root`.
    pub(crate) pod_logs: Setting<PathBuf>,
    /// The cgroup driver that the container runtime reports over CRI.
    pub(crate) cgroup_driver: Setting<Option<String>>,
    /// Directory of Open vSwitch's sockets, inside `host_root`; `None`: auto-detected.
    pub(crate) ovs_run_dir: Option<PathBuf>,
    /// CRI socket, inside `host_root`; `None`: the usual ones are tried.
    pub(crate) runtime_endpoint: Option<PathBuf>,
    /// Role of this host, if set by a flag.
    pub(crate) role: Option<Role>,
    /// Root of the host's file system as this process sees it: `/`, or `/proc/1/root` in a container.
    pub(crate) host_root: PathBuf,
    /// Bytes of the ring buffer; a power of two and a multiple of the page size.
    pub(crate) ring_bytes: u32,
    /// Maximum entries in the kernel programs' table of watched processes.
    pub(crate) max_processes: u32,
    /// Which hooks to attach, by their cost.
    pub(crate) hooks: HookSet,
    /// Connect to the API addresses periodically (`--no-ask` disables it).
    pub(crate) ask: bool,
    /// Read the kubelet's Node object with the kubelet's credential (`--no-kubelet-credentials` disables it).
    pub(crate) kubelet_credentials: bool,
    /// Timeout of one such request.
    pub(crate) ask_timeout: Duration,
    /// Interval between two requests to an address that responds, ± 20 %.
    pub(crate) ask_every: Duration,
    /// Interval between two requests to an address that does not respond, ± 20 %.
    pub(crate) ask_again: Duration,
    /// How long a condition without proof has the reason `Learning` after the start.
    pub(crate) start_grace: Duration,
    /// How long a failure must last despite retries before a condition becomes False.
    pub(crate) fail_hold: Duration,
    /// How long any plugin may run; `None`: a limit for each, by how long it is known to wait.
    pub(crate) plugin_limit: Option<Duration>,
}

/// An API server given by `--apiserver`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiServer {
    /// Its address or name, as given.
    pub(crate) host: ServerHost,
    /// Its port; by default 6443, and 443 for a URL and for a Service.
    pub(crate) port: u16,
    /// `service=ADDR` marks the cluster's Service address; `None`: unknown.
    pub(crate) kind: Option<TargetKind>,
}

/// Host part of a server's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ServerHost {
    Address(IpAddr),
    /// A name, resolved like that of a kubeconfig's server.
    Name(String),
}

/// The value of a setting, and its source for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known<T> {
    pub(crate) value: T,
    pub(crate) source: String,
}

/// Maximum length of a source, bytes.
const SOURCE: usize = 256;

impl<T> Known<T> {
    pub(crate) fn of(value: T, source: &dyn Display) -> Self {
        Self { value, source: clean(source.to_string().as_bytes(), SOURCE) }
    }

    pub(crate) fn map<U>(self, with: impl FnOnce(T) -> U) -> Known<U> {
        Known { value: with(self.value), source: self.source }
    }

    pub(crate) fn filter_map<U>(self, with: impl FnOnce(T) -> Option<U>) -> Option<Known<U>> {
        Some(Known { value: with(self.value)?, source: self.source })
    }
}

impl Display for ServerHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip) => ip.fmt(f),
            Self::Name(name) => f.pad(name),
        }
    }
}

impl Settings {
    /// Returns the path by which this process reaches `path` of the host. Symbolic links are resolved as on the host: this
    /// process would follow an absolute one into its own container.
    pub(crate) fn on_host(&self, path: &Path) -> PathBuf {
        let relative = path.strip_prefix("/").unwrap_or(path);
        // The targets of symbolic links in /proc need not be paths.
        if self.host_root == Path::new("/") || relative.starts_with("proc") {
            return self.host_root.join(relative);
        }
        self.host_root.join(resolve(&self.host_root, relative))
    }
}

/// Maximum number of symbolic links in a path; the kernel's limit (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Resolves symbolic links and `..` in `path`, so that it never leaves `root`. Returns a path relative to `root`.
fn resolve(root: &Path, path: &Path) -> PathBuf {
    let parts =
        |path: &Path| path.components().map(|part| part.as_os_str().to_owned()).collect::<VecDeque<_>>();
    let (mut done, mut todo, mut links) = (PathBuf::new(), parts(path), 0);
    while let Some(part) = todo.pop_front() {
        match part.to_str() {
            Some("/" | ".") => continue,
            Some("..") => {
                done.pop();
                continue;
            }
            _ => {}
        }
        match fs::read_link(root.join(&done).join(&part)) {
            Ok(target) if links < MAX_LINKS => {
                links += 1;
                if target.is_absolute() {
                    done.clear();
                }
                parts(&target).into_iter().rev().for_each(|part| todo.push_front(part));
            }
            _ => done.push(part),
        }
    }
    done
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use clap::Parser;
    use tempfile::TempDir;

    use super::Settings;
    use crate::cli::NodeArgs;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        node: NodeArgs,
    }

    /// Returns the settings of a command line with these flags.
    pub(crate) fn settings(flags: &[&str]) -> Settings {
        Line::parse_from([&["probe"], flags].concat()).node.settings().expect("settings")
    }

    /// Returns the settings of a host with these files, and its root, which is removed when dropped.
    pub(crate) fn host(files: &[(&str, &str)]) -> (Settings, TempDir) {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            fs::write(path, text).expect("written");
        }
        (settings(&["--host-root", root.path().to_str().expect("a text")]), root)
    }

    #[test]
    fn resolves_symbolic_links_as_the_host_does() {
        let root = tempfile::tempdir().expect("a directory");
        let at = |path: &str| root.path().join(path);
        for (link, target) in [
            ("etc/cni/net.d", "/var/snap/current/net.d"),
            ("var/snap/current", "8612"),
            ("etc/up", "../../../../etc/hosts"),
            ("etc/loop", "loop"),
            ("proc/1/ns", "net:[1]"),
        ] {
            fs::create_dir_all(at(link).parent().expect("a directory")).expect("made");
            symlink(target, at(link)).expect("linked");
        }
        let settings = settings(&["--host-root", root.path().to_str().expect("a text")]);
        for (path, wanted) in [
            ("/etc/cni/net.d/10.conf", "var/snap/8612/net.d/10.conf"),
            ("/etc/hosts", "etc/hosts"),
            ("/etc/up", "etc/hosts"),
            ("/no/such/../file", "no/file"),
            ("/etc/loop", "etc/loop"),
            ("/proc/1/ns", "proc/1/ns"),
        ] {
            assert_eq!(settings.on_host(Path::new(path)), at(wanted), "{path}");
        }
    }
}
