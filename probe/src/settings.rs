//! What is meant: the checked form of what was typed (`cli.rs`), shared by every command.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use probe_engine::{Role, TargetKind};
use tokio::sync::watch;

use crate::bpf::HookSet;

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
    /// Where the runtime reads network configurations and looks for plugins.
    pub(crate) cni: CniDirs,
    /// Where runtimes bind network namespaces; inside `host_root`.
    pub(crate) netns_dir: PathBuf,
    /// Where Open vSwitch has its sockets; inside `host_root`.
    pub(crate) ovs_run_dir: PathBuf,
    /// CRI socket; inside `host_root`. `None`: the usual ones are tried.
    pub(crate) runtime_endpoint: Option<PathBuf>,
    /// What this host is for, when a person says so.
    pub(crate) role: Option<Role>,
    /// Root of the host's file system as this process sees it: `/`, or `/proc/1/root` in a container.
    pub(crate) host_root: PathBuf,
    /// Bytes of the ring buffer; a power of two and a multiple of the page size.
    pub(crate) ring_bytes: u32,
    /// How much may be spent on watching.
    pub(crate) hooks: HookSet,
    /// Ask the API addresses now and then (`--no-ask` turns it off): connect, then close.
    pub(crate) ask: bool,
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

/// One address of an `--apiserver`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiServer {
    /// Address and port; the port defaults to 6443.
    pub(crate) addr: SocketAddr,
    /// `service=ADDR` marks the cluster's Service address; `None`: to be found out.
    pub(crate) kind: Option<TargetKind>,
    /// The name that was given, when it was not the address.
    pub(crate) name: Option<String>,
}

/// The directories of CNI, inside the host's root: as named by hand, else as found in what the runtime does, else the usual
/// ones. Shared by everything that reads them.
#[derive(Clone, Debug)]
pub(crate) struct CniDirs {
    conf: watch::Sender<PathBuf>,
    bin: watch::Sender<Vec<PathBuf>>,
    /// Named by hand: what the runtime does changes nothing.
    is_conf_set: bool,
    is_bin_set: bool,
}

/// The default of containerd and CRI-O.
const CONF_DIR: &str = "/etc/cni/net.d";
/// The defaults of containerd (upstream, Fedora, Debian) and CRI-O.
const BIN_DIRS: [&str; 3] = ["/opt/cni/bin", "/usr/libexec/cni", "/usr/lib/cni"];

impl CniDirs {
    /// From what was named by hand; `bin` is empty when nothing was.
    pub(crate) fn new(conf: Option<PathBuf>, bin: Vec<PathBuf>) -> Self {
        let (is_conf_set, is_bin_set) = (conf.is_some(), !bin.is_empty());
        let bin = if is_bin_set { bin } else { BIN_DIRS.map(PathBuf::from).to_vec() };
        Self {
            conf: watch::Sender::new(conf.unwrap_or_else(|| PathBuf::from(CONF_DIR))),
            bin: watch::Sender::new(bin),
            is_conf_set,
            is_bin_set,
        }
    }

    /// Where the runtime reads network configurations.
    pub(crate) fn conf(&self) -> PathBuf {
        self.conf.borrow().clone()
    }

    /// Where the runtime looks for plugins, in order.
    pub(crate) fn bin(&self) -> Vec<PathBuf> {
        self.bin.borrow().clone()
    }

    /// The runtime was seen to read another directory.
    pub(crate) fn learn_conf(&self, dir: PathBuf) {
        learn(&self.conf, self.is_conf_set, dir);
    }

    /// The runtime was seen to look for plugins elsewhere.
    pub(crate) fn learn_bin(&self, dirs: Vec<PathBuf>) {
        learn(&self.bin, self.is_bin_set, dirs);
    }

    /// Resolves when one of them changes after this call.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> + use<> {
        let (mut conf, mut bin) = (self.conf.subscribe(), self.bin.subscribe());
        async move {
            // The senders live as long as the settings do.
            tokio::select! {
                _ = conf.changed() => {}
                _ = bin.changed() => {}
            }
        }
    }
}

fn learn<T: PartialEq>(known: &watch::Sender<T>, is_set: bool, new: T) {
    known.send_if_modified(|known| {
        let is_news = !is_set && *known != new;
        if is_news {
            *known = new;
        }
        is_news
    });
}

impl Settings {
    /// `path` of the host as this process sees it.
    pub(crate) fn on_host(&self, path: &Path) -> PathBuf {
        match path.strip_prefix("/") {
            Ok(relative) => self.host_root.join(relative),
            Err(_) => self.host_root.join(path),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

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
}
