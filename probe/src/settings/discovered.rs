//! Settings that are learnt of the node while the agent runs. Shared by everything that reads them.

use std::path::PathBuf;

use tokio::sync::watch;

use super::Known;

/// The default of containerd and CRI-O.
const CONF_DIR: &str = "/etc/cni/net.d";
/// The defaults of containerd (upstream, Fedora, Debian) and CRI-O.
const BIN_DIRS: [&str; 3] = ["/opt/cni/bin", "/usr/libexec/cni", "/usr/lib/cni"];
/// The default of containerd and CRI-O, which call it by its old name below /var.
const NETNS_DIR: &str = "/run/netns";
/// The default of the kubelet's `podLogsDir` (pkg/kubelet/apis/config/v1beta1/defaults.go).
pub(crate) const POD_LOGS: &str = "/var/log/pods";

/// One setting.
#[derive(Clone, Debug)]
pub(crate) struct Learnt<T>(watch::Sender<Candidates<T>>);

/// Candidates for a setting, by precedence: a flag, what the runtime is observed to use, what it reports over CRI, what it is
/// configured for, the default.
#[derive(Clone, Debug)]
struct Candidates<T> {
    named: Option<Known<T>>,
    seen: Option<Known<T>>,
    reported: Option<Known<T>>,
    configured: Option<Known<T>>,
    default: Known<T>,
}

impl<T> Candidates<T> {
    fn best(&self) -> &Known<T> {
        let known = [&self.named, &self.seen, &self.reported, &self.configured];
        known.into_iter().flatten().next().unwrap_or(&self.default)
    }
}

impl<T: Clone + PartialEq> Learnt<T> {
    /// A setting with this default, which the flag may name.
    pub(crate) fn new(named: Option<T>, flag: &str, default: T) -> Self {
        let named = named.map(|value| Known::of(value, &flag));
        let default = Known::of(default, &"default");
        let known = Candidates { named, seen: None, reported: None, configured: None, default };
        Self(watch::Sender::new(known))
    }

    /// Its effective value, with its source.
    pub(crate) fn known(&self) -> Known<T> {
        self.0.borrow().best().clone()
    }

    /// Its effective value.
    pub(crate) fn value(&self) -> T {
        self.0.borrow().best().value.clone()
    }

    /// Takes what the runtime is observed to use.
    fn see(&self, known: Known<T>) {
        self.change(|candidates| candidates.seen = Some(known));
    }

    /// Takes what the runtime reports over CRI; `None` if it reports nothing.
    pub(crate) fn report(&self, known: Option<Known<T>>) {
        self.change(|candidates| candidates.reported = known);
    }

    /// Takes what is configured; `None` where that is not known.
    pub(crate) fn configure(&self, known: Option<Known<T>>) {
        self.change(|candidates| candidates.configured = known);
    }

    /// Changes the candidates. Receivers are notified only if the effective value changes.
    fn change(&self, how: impl FnOnce(&mut Candidates<T>)) {
        self.0.send_if_modified(|candidates| {
            let before = candidates.best().value.clone();
            how(candidates);
            candidates.best().value != before
        });
    }
}

/// What a runtime reports, or is configured for; `None` where that is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CniSettings {
    /// Where it reads network configurations.
    pub(crate) conf_dir: Option<Known<PathBuf>>,
    /// Where it looks for plugins, in order.
    pub(crate) bin_dirs: Option<Known<Vec<PathBuf>>>,
    /// How many configurations it loads; 0 for all.
    pub(crate) max_files: Option<Known<u32>>,
    /// Where it binds network namespaces.
    pub(crate) netns_dir: Option<Known<PathBuf>>,
}

/// The directories of CNI, inside the host's root.
#[derive(Clone, Debug)]
pub(crate) struct CniDirs {
    conf: Learnt<PathBuf>,
    bin: Learnt<Vec<PathBuf>>,
    max_files: Learnt<u32>,
    netns: Learnt<PathBuf>,
}

impl CniDirs {
    /// From what was named by hand; `bin` is empty when nothing was.
    pub(crate) fn new(conf: Option<PathBuf>, bin: Vec<PathBuf>, netns: Option<PathBuf>) -> Self {
        let bin = Some(bin).filter(|bin| !bin.is_empty());
        Self {
            conf: Learnt::new(conf, "--cni-conf-dir", PathBuf::from(CONF_DIR)),
            bin: Learnt::new(bin, "--cni-bin-dir", BIN_DIRS.map(PathBuf::from).to_vec()),
            // The default of containerd.
            max_files: Learnt::new(None, "", 1),
            netns: Learnt::new(netns, "--netns-dir", PathBuf::from(NETNS_DIR)),
        }
    }

    /// Where the runtime reads network configurations.
    pub(crate) fn conf(&self) -> PathBuf {
        self.conf.value()
    }

    /// Where the runtime looks for plugins, in order.
    pub(crate) fn bin(&self) -> Vec<PathBuf> {
        self.bin.value()
    }

    /// Where the runtime binds network namespaces.
    pub(crate) fn netns(&self) -> PathBuf {
        self.netns.value()
    }

    /// How many configurations the runtime loads, with its source; 0 for all.
    pub(crate) fn max_files(&self) -> Known<u32> {
        self.max_files.known()
    }

    /// As [`Self::conf`], with its source.
    pub(crate) fn known_conf(&self) -> Known<PathBuf> {
        self.conf.known()
    }

    /// As [`Self::bin`], with its source.
    pub(crate) fn known_bin(&self) -> Known<Vec<PathBuf>> {
        self.bin.known()
    }

    /// As [`Self::netns`], with its source.
    pub(crate) fn known_netns(&self) -> Known<PathBuf> {
        self.netns.known()
    }

    /// The runtime was seen to read this directory.
    pub(crate) fn learn_conf(&self, dir: PathBuf) {
        self.conf.see(Known::of(dir, &"watched by the container runtime"));
    }

    /// The runtime was seen to look for plugins there.
    pub(crate) fn learn_bin(&self, dirs: Vec<PathBuf>) {
        self.bin.see(Known::of(dirs, &"CNI_PATH of the plugins that run"));
    }

    /// Takes what the runtime reports over CRI.
    pub(crate) fn report(&self, reported: CniSettings) {
        self.conf.report(reported.conf_dir);
        self.bin.report(reported.bin_dirs);
        self.max_files.report(reported.max_files);
        self.netns.report(reported.netns_dir);
    }

    /// Takes what the runtime is configured for.
    pub(crate) fn configure(&self, configured: CniSettings) {
        self.conf.configure(configured.conf_dir);
        self.bin.configure(configured.bin_dirs);
        self.max_files.configure(configured.max_files);
        self.netns.configure(configured.netns_dir);
    }

    /// Resolves when what is read of a configuration changes after this call.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> + use<> {
        let (mut conf, mut bin) = (self.conf.0.subscribe(), self.bin.0.subscribe());
        let mut max_files = self.max_files.0.subscribe();
        async move {
            // The senders live as long as the settings do.
            tokio::select! {
                _ = conf.changed() => {}
                _ = bin.changed() => {}
                _ = max_files.changed() => {}
            }
        }
    }
}
