//! What is meant: the checked form of what was typed (`cli.rs`), shared by every command.

mod learnt;

use std::collections::VecDeque;
use std::fmt::{self, Display};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use probe_engine::{Role, TargetKind};

use crate::bpf::HookSet;
use crate::text::clean;

pub(crate) use learnt::{CniDirs, CniSettings, Learnt, POD_LOGS};

/// How the node is looked at. Everything has a default that fits a usual node.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Name of the node, for reports: `--node-name`, `NODE_NAME`, or the host's name.
    pub(crate) node: String,
    /// API addresses that were named by hand, besides those that are found.
    pub(crate) apiservers: Vec<ApiServer>,
    /// Do not look for API addresses: only `apiservers` counts. Set when `--apiserver` is given.
    pub(crate) only_named: bool,
    /// Kubeconfig whose `server:` is an API address; `None`: the kubelet's, where it is found.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Where the runtime reads network configurations, looks for plugins and binds network namespaces.
    pub(crate) cni: CniDirs,
    /// Where the kubelet keeps the logs of pods; inside `host_root`.
    pub(crate) pod_logs: Learnt<PathBuf>,
    /// The cgroup driver that the runtime reports over CRI.
    pub(crate) cgroup_driver: Learnt<Option<String>>,
    /// Where Open vSwitch has its sockets; inside `host_root`. `None`: looked for.
    pub(crate) ovs_run_dir: Option<PathBuf>,
    /// CRI socket; inside `host_root`. `None`: the usual ones are tried.
    pub(crate) runtime_endpoint: Option<PathBuf>,
    /// What this host is for, when a person says so.
    pub(crate) role: Option<Role>,
    /// Root of the host's file system as this process sees it: `/`, or `/proc/1/root` in a container.
    pub(crate) host_root: PathBuf,
    /// Bytes of the ring buffer; a power of two and a multiple of the page size.
    pub(crate) ring_bytes: u32,
    /// Places for watched processes, in the kernel programs' table.
    pub(crate) max_processes: u32,
    /// How much may be spent on watching.
    pub(crate) hooks: HookSet,
    /// Ask the API addresses now and then (`--no-ask` turns it off): connect, then close.
    pub(crate) ask: bool,
    /// Read the kubelet's own Node object with the kubelet's own credential (`--no-kubelet-credentials` turns it off).
    pub(crate) kubelet_credentials: bool,
    /// How long one such question may take.
    pub(crate) ask_timeout: Duration,
    /// Between two questions to an address that answers, ± 20 %.
    pub(crate) ask_every: Duration,
    /// Between two questions to an address that does not answer, ± 20 %.
    pub(crate) ask_again: Duration,
    /// How long an agent without proof says `Learning`.
    pub(crate) start_grace: Duration,
    /// How long a failure that retries must hold before a condition goes False.
    pub(crate) fail_hold: Duration,
    /// How long any plugin may run; `None`: each as long as it is known to wait.
    pub(crate) plugin_limit: Option<Duration>,
}

/// One `--apiserver`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiServer {
    /// As it was given.
    pub(crate) host: ServerHost,
    /// 6443 where none was given, 443 for a URL and for a Service.
    pub(crate) port: u16,
    /// `service=ADDR` marks the cluster's Service address; `None`: to be found out.
    pub(crate) kind: Option<TargetKind>,
}

/// What stands before the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ServerHost {
    Address(IpAddr),
    /// Looked up as a kubeconfig's.
    Name(String),
}

/// The value of a setting, and where it is from, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known<T> {
    pub(crate) value: T,
    pub(crate) source: String,
}

/// Longest source that is kept, bytes.
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
    /// `path` of the host as this process sees it. Links in it are followed as the host does: to this process an absolute
    /// one would lead back into its own container.
    pub(crate) fn on_host(&self, path: &Path) -> PathBuf {
        let relative = path.strip_prefix("/").unwrap_or(path);
        // The targets of links in /proc are not paths.
        if self.host_root == Path::new("/") || relative.starts_with("proc") {
            return self.host_root.join(relative);
        }
        self.host_root.join(followed(&self.host_root, relative))
    }
}

/// Most links in one path; the kernel's own limit (path_resolution(7)).
const LINKS: usize = 40;

/// `path` below `root`, without links and without a way out.
fn followed(root: &Path, path: &Path) -> PathBuf {
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
            Ok(target) if links < LINKS => {
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
    fn links_are_followed_as_the_host_does() {
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
