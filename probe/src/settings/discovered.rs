//! Settings that are discovered on the node while the agent runs, shared by all their readers.

use std::path::PathBuf;

use tokio::sync::watch;

use super::Known;

/// The default of containerd and CRI-O.
const CONF_DIR: &str = "/etc/cni/net.d";
/// The defaults of containerd (upstream, Fedora, Debian) and CRI-O.
const BIN_DIRS: [&str; 3] = ["/opt/cni/bin", "/usr/libexec/cni", "/usr/lib/cni"];
/// The default of containerd and CRI-O, which use its old name below /var.
const NETNS_DIR: &str = "/run/netns";
/// The default of the kubelet's `podLogsDir` (pkg/kubelet/apis/config/v1beta1/defaults.go).
pub(crate) const POD_LOGS: &str = "/var/log/pods";

/// A setting, with what is known about it.
#[derive(Clone, Debug)]
pub(crate) struct Setting<T>(watch::Sender<Candidates<T>>);

/// Candidates for a setting, by precedence: a flag, what the container runtime is observed to use, what it reports over CRI,
/// its configuration, the default.
#[derive(Clone, Debug)]
struct Candidates<T> {
    flag: Option<Known<T>>,
    observed: Option<Known<T>>,
    reported: Option<Known<T>>,
    configured: Option<Known<T>>,
    default: Known<T>,
}

impl<T> Candidates<T> {
    fn best(&self) -> &Known<T> {
        let known = [&self.flag, &self.observed, &self.reported, &self.configured];
        known.into_iter().flatten().next().unwrap_or(&self.default)
    }
}

impl<T: Clone + PartialEq> Setting<T> {
    /// Creates a setting with this default. `value` is that of the command line, if `flag` is given.
    pub(crate) fn new(value: Option<T>, flag: &str, default: T) -> Self {
        let flag = value.map(|value| Known::of(value, &flag));
        let default = Known::of(default, &"default");
        let known = Candidates { flag, observed: None, reported: None, configured: None, default };
        Self(watch::Sender::new(known))
    }

    /// Returns the effective value, with its source.
    pub(crate) fn known(&self) -> Known<T> {
        self.0.borrow().best().clone()
    }

    /// Returns the effective value.
    pub(crate) fn value(&self) -> T {
        self.0.borrow().best().value.clone()
    }

    /// Sets the value that the container runtime is observed to use.
    fn observe(&self, known: Known<T>) {
        self.change(|candidates| candidates.observed = Some(known));
    }

    /// Sets the value that the container runtime reports over CRI; `None` if it reports none.
    pub(crate) fn report(&self, known: Option<Known<T>>) {
        self.change(|candidates| candidates.reported = known);
    }

    /// Sets the configured value; `None` if it is not known.
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

/// CNI settings that a container runtime reports or is configured with; `None` for those that are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CniSettings {
    /// Directory of network configurations.
    pub(crate) conf_dir: Option<Known<PathBuf>>,
    /// Directories of plugins, in the order of the search.
    pub(crate) bin_dirs: Option<Known<Vec<PathBuf>>>,
    /// How many configurations are loaded; 0 for all.
    pub(crate) max_files: Option<Known<u32>>,
    /// Directory in which network namespaces are bound.
    pub(crate) netns_dir: Option<Known<PathBuf>>,
}

/// Directories of CNI, inside the host's root.
#[derive(Clone, Debug)]
pub(crate) struct CniDirs {
    conf: Setting<PathBuf>,
    bin: Setting<Vec<PathBuf>>,
    max_files: Setting<u32>,
    netns: Setting<PathBuf>,
}

impl CniDirs {
    /// Creates the settings from the values of the command line; `bin` is empty if none is given.
    pub(crate) fn new(conf: Option<PathBuf>, bin: Vec<PathBuf>, netns: Option<PathBuf>) -> Self {
        let bin = Some(bin).filter(|bin| !bin.is_empty());
        Self {
            conf: Setting::new(conf, "--cni-conf-dir", PathBuf::from(CONF_DIR)),
            bin: Setting::new(bin, "--cni-bin-dir", BIN_DIRS.map(PathBuf::from).to_vec()),
            // The default of containerd.
            max_files: Setting::new(None, "", 1),
            netns: Setting::new(netns, "--netns-dir", PathBuf::from(NETNS_DIR)),
        }
    }

    /// Returns the directory of network configurations.
    pub(crate) fn conf(&self) -> PathBuf {
        self.conf.value()
    }

    /// Returns the directories of plugins, in the order of the search.
    pub(crate) fn bin(&self) -> Vec<PathBuf> {
        self.bin.value()
    }

    /// Returns the directory in which network namespaces are bound.
    pub(crate) fn netns(&self) -> PathBuf {
        self.netns.value()
    }

    /// Returns how many configurations the container runtime loads, with the source; 0 for all.
    pub(crate) fn max_files(&self) -> Known<u32> {
        self.max_files.known()
    }

    /// Returns [`Self::conf`] with its source.
    pub(crate) fn known_conf(&self) -> Known<PathBuf> {
        self.conf.known()
    }

    /// Returns [`Self::bin`] with its source.
    pub(crate) fn known_bin(&self) -> Known<Vec<PathBuf>> {
        self.bin.known()
    }

    /// Returns [`Self::netns`] with its source.
    pub(crate) fn known_netns(&self) -> Known<PathBuf> {
        self.netns.known()
    }

    /// Records that the container runtime was observed to read this directory.
    pub(crate) fn learn_conf(&self, dir: PathBuf) {
        self.conf.observe(Known::of(dir, &"watched by the container runtime"));
    }

    /// Records that the container runtime was observed to search these directories for plugins.
    pub(crate) fn learn_bin(&self, dirs: Vec<PathBuf>) {
        self.bin.observe(Known::of(dirs, &"CNI_PATH of the plugins that run"));
    }

    /// Sets what the container runtime reports over CRI.
    pub(crate) fn report(&self, reported: CniSettings) {
        self.conf.report(reported.conf_dir);
        self.bin.report(reported.bin_dirs);
        self.max_files.report(reported.max_files);
        self.netns.report(reported.netns_dir);
    }

    /// Sets what the container runtime is configured with.
    pub(crate) fn configure(&self, configured: CniSettings) {
        self.conf.configure(configured.conf_dir);
        self.bin.configure(configured.bin_dirs);
        self.max_files.configure(configured.max_files);
        self.netns.configure(configured.netns_dir);
    }

    /// Resolves when a setting that affects the reading of configurations changes after this call.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> + use<> {
        let (mut conf, mut bin) = (self.conf.0.subscribe(), self.bin.0.subscribe());
        let mut max_files = self.max_files.0.subscribe();
        async move {
            // `changed` cannot fail: the senders live as long as the settings.
            tokio::select! {
                _ = conf.changed() => {}
                _ = bin.changed() => {}
                _ = max_files.changed() => {}
            }
        }
    }
}
