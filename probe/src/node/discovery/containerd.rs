//! What containerd is configured for: its file, in each of its versions, with what that imports.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::program::Program;
use super::{PATH, RuntimeConfig, absolute};
use crate::node::file;
use crate::settings::{Known, Settings};
use crate::text::clean;

/// Its default file, and its defaults (defaults/defaults_linux.go, internal/cri/config/config_unix.go).
pub(super) const FILE: &str = "/etc/containerd/config.toml";
const ADDRESS: &str = "/run/containerd/containerd.sock";
const CONF_DIR: &str = "/etc/cni/net.d";
const DEFAULT: &str = "default of containerd";
/// Most files that are read.
const FILES: usize = 32;
/// Most runtime handlers whose options are kept.
const HANDLERS: usize = 64;

/// From the file that a running containerd was started with.
pub(super) fn of_program(settings: &Settings, program: &Program) -> RuntimeConfig {
    let path = program.flag("config").or_else(|| program.flag("c")).unwrap_or(FILE);
    let mut config = of_file(settings, Path::new(path));
    if let Some(address) = program.flag("address").or_else(|| program.flag("a")) {
        let address = clean(address.as_bytes(), PATH);
        config.endpoint = Some(Known::of(address, &"containerd --address"));
    }
    config
}

/// From a file, whether containerd runs or not. What it leaves out has containerd's defaults; the one of plugin directories
/// is another in each distribution's package.
pub(super) fn of_file(settings: &Settings, path: &Path) -> RuntimeConfig {
    let mut read = Read::default();
    read.all(settings, path);
    // A file that cannot be read may say anything.
    let default = |value: &str| read.is_whole.then(|| Known::of(value.to_owned(), &DEFAULT));
    RuntimeConfig {
        cgroup_driver: read.driver(),
        endpoint: read.address.or_else(|| default(ADDRESS)),
        conf_dir: read.conf_dir.or_else(|| Some(default(CONF_DIR)?.map(PathBuf::from))),
        bin_dirs: read.bin_dirs,
        sandbox_image: read.sandbox_image,
        without_cri: read.without_cri,
    }
}

/// What its files say, the last one winning.
#[derive(Default)]
struct Read {
    /// Every file was read.
    is_whole: bool,
    /// Only containerd 2 reads it.
    is_of_2: bool,
    address: Option<Known<String>>,
    conf_dir: Option<Known<PathBuf>>,
    bin_dirs: Option<Known<Vec<PathBuf>>>,
    sandbox_image: Option<Known<String>>,
    default_handler: Option<String>,
    /// `SystemdCgroup` of each runtime handler.
    systemd: BTreeMap<String, Known<bool>>,
    without_cri: Option<Known<()>>,
}

impl Read {
    fn all(&mut self, settings: &Settings, path: &Path) {
        self.is_whole = true;
        let mut pending = VecDeque::from([path.to_owned()]);
        let mut seen = BTreeSet::new();
        while let Some(path) = pending.pop_front() {
            if !seen.insert(path.clone()) {
                continue;
            }
            if seen.len() > FILES {
                self.is_whole = false;
                return;
            }
            let on_host = settings.on_host(&path);
            let config = match file::read_text(&on_host) {
                Some(text) => text.parse::<Table>().ok(),
                // Without its default file it has its defaults.
                None if !on_host.exists() => Some(Table::new()),
                None => None,
            };
            let Some(config) = config else {
                self.is_whole = false;
                continue;
            };
            self.take(&path, &config);
            for import in texts(config.get("imports")) {
                pending.extend(resolve(settings, &path, import));
            }
        }
    }

    fn take(&mut self, path: &Path, config: &Table) {
        let version = config.get("version").map_or(Some(1), Value::as_integer).unwrap_or_default();
        let source = path.display();
        let of_plugin = |name: &str| config.get("plugins").and_then(|plugins| plugins.get(name));
        // The tables of version 2 mean nothing in a file of version 3 (docs/cri/config.md). containerd 2 takes those of
        // version 3 also from a file of version 2, as AKS writes it.
        let (runtime, images) =
            (of_plugin("io.containerd.cri.v1.runtime"), of_plugin("io.containerd.cri.v1.images"));
        let old = match version {
            1 => of_plugin("cri"),
            2 => of_plugin("io.containerd.grpc.v1.cri"),
            _ => None,
        };
        self.is_of_2 |=
            version > 2 || version == 2 && old.is_none() && (runtime.is_some() || images.is_some());
        let (runtime, images) = if version < 2 || old.is_some() { (old, None) } else { (runtime, images) };
        let raw = |value: Option<&Value>| value?.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let text = |value| raw(value).map(|text| clean(text.as_bytes(), PATH));
        let grpc = of_plugin("io.containerd.server.v1.grpc");
        let address = text(at(grpc, &["address"])).or_else(|| text(at(config.get("grpc"), &["address"])));
        self.address = address.map(|address| Known::of(address, &source)).or(self.address.take());
        let dir = raw(at(runtime, &["cni", "conf_dir"])).and_then(|dir| absolute(&dir));
        self.conf_dir = dir.map(|dir| Known::of(dir, &source)).or(self.conf_dir.take());
        let mut dirs: Vec<_> = texts(at(runtime, &["cni", "bin_dirs"])).filter_map(absolute).collect();
        dirs.extend(raw(at(runtime, &["cni", "bin_dir"])).and_then(|dir| absolute(&dir)));
        if !dirs.is_empty() {
            self.bin_dirs = Some(Known::of(dirs, &source));
        }
        let image =
            text(at(images, &["pinned_images", "sandbox"])).or_else(|| text(at(runtime, &["sandbox_image"])));
        self.sandbox_image = image.map(|image| Known::of(image, &source)).or(self.sandbox_image.take());
        self.default_handler =
            text(at(runtime, &["containerd", "default_runtime_name"])).or(self.default_handler.take());
        let handlers = at(runtime, &["containerd", "runtimes"]);
        let handlers = handlers.and_then(Value::as_table).into_iter().flatten();
        for (name, handler) in handlers.take(HANDLERS) {
            let systemd = at(Some(handler), &["options", "SystemdCgroup"]).and_then(Value::as_bool);
            if let Some(systemd) = systemd {
                self.systemd.insert(name.clone(), Known::of(systemd, &source));
            }
        }
        let cri = ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"];
        if texts(config.get("disabled_plugins")).any(|plugin| cri.contains(&plugin)) {
            self.without_cri = Some(Known::of((), &source));
        }
    }

    /// The cgroup driver of the default runtime handler.
    ///
    /// `None` for a configuration that only containerd 2 accepts: containerd 2 reports its driver to the kubelet (CRI
    /// `RuntimeConfig`), which uses it since Kubernetes 1.31 instead of its own setting. Also `None` when a file cannot be
    /// read.
    fn driver(&self) -> Option<Known<String>> {
        if !self.is_whole || self.is_of_2 {
            return None;
        }
        let name = self.default_handler.as_deref().unwrap_or("runc");
        let word = |systemd| if systemd { "systemd" } else { "cgroupfs" }.to_owned();
        let set = self.systemd.get(name).cloned().map(|known| known.map(word));
        set.or_else(|| Some(Known::of(word(false), &DEFAULT)))
    }
}

/// The value below `table` that these keys lead to, one after the other.
fn at<'a>(table: Option<&'a Value>, keys: &[&str]) -> Option<&'a Value> {
    keys.iter().try_fold(table?, |table, key| table.get(key))
}

fn texts(list: Option<&Value>) -> impl Iterator<Item = &str> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// The files that an import means: relative to the file that names it, and a pattern where it has a `*`.
fn resolve(settings: &Settings, parent: &Path, import: &str) -> Vec<PathBuf> {
    let path = parent.parent().unwrap_or(Path::new("/")).join(import);
    if !import.contains('*') {
        return vec![path];
    }
    let pattern = settings.on_host(&path);
    let found = pattern.to_str().and_then(|pattern| glob::glob(pattern).ok()).into_iter().flatten().flatten();
    let of_host = |found: PathBuf| Some(Path::new("/").join(found.strip_prefix(&settings.host_root).ok()?));
    found.filter_map(of_host).take(FILES).collect()
}

/// A file of any content: what is read of it, and what a terminal would be shown.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &str) -> Vec<String> {
    let Ok(config) = text.parse::<Table>() else { return Vec::new() };
    let mut read = Read { is_whole: true, ..Read::default() };
    read.take(Path::new("/etc/containerd/config.toml"), &config);
    let _ = read.driver();
    let shown = [read.address, read.sandbox_image].into_iter().flatten();
    shown.flat_map(|known| [known.value, known.source]).collect()
}

#[cfg(test)]
mod tests {
    use crate::settings::tests::host;

    use super::*;

    /// What containerd with these files uses; the first one is its own.
    fn found(files: &[(&str, &str)]) -> RuntimeConfig {
        let (settings, _root) = host(files);
        of_file(&settings, &Path::new("/").join(files[0].0))
    }

    fn driver(config: &str) -> Option<String> {
        found(&[("config.toml", config)]).cgroup_driver.map(|known| known.value)
    }

    fn conf_dir(files: &[(&str, &str)]) -> Option<(String, String)> {
        let known = found(files).conf_dir?;
        Some((known.value.display().to_string(), known.source))
    }

    #[test]
    fn the_table_and_the_version_of_the_file_decide() {
        let runc = |version: &str, plugin: &str, value: &str| {
            let table = format!("[plugins.{plugin}.containerd.runtimes.runc.options]");
            driver(&format!("{version}\n{table}\n  SystemdCgroup = {value}\n"))
        };
        let second = "'io.containerd.grpc.v1.cri'";
        let third = "'io.containerd.cri.v1.runtime'";
        assert_eq!(runc("version = 2", second, "true # as the kubelet").as_deref(), Some("systemd"));
        assert_eq!(runc("version = 2", second, "false").as_deref(), Some("cgroupfs"));
        assert_eq!(runc("", "cri", "true").as_deref(), Some("systemd"));
        assert_eq!(runc("version = 1", "cri", "false").as_deref(), Some("cgroupfs"));
        // A name of another version says nothing, but for what containerd 2 takes from a file of version 2.
        assert_eq!(runc("version = 2", "cri", "true").as_deref(), Some("cgroupfs"));
        assert_eq!(runc("version = 2", third, "true"), None);
        assert_eq!(runc("version = 3", second, "true"), None);
        assert_eq!(runc("version = 3", third, "true"), None);
        assert_eq!(driver("[plugins\n"), None);
        assert_eq!(driver("version = 2\n").as_deref(), Some("cgroupfs"));
    }

    #[test]
    fn only_the_options_of_the_runtime_in_use_count() {
        let config = r#"
            version = 2
            [plugins."io.containerd.grpc.v1.cri".containerd]
              default_runtime_name = "crun"
              [plugins."io.containerd.grpc.v1.cri".containerd.runtimes]
                runc.options.SystemdCgroup = true
                crun.options = { SystemdCgroup = false }
        "#;
        assert_eq!(driver(config).as_deref(), Some("cgroupfs"));
        assert_eq!(driver(&config.replace("\"crun\"", "\"runc\"")).as_deref(), Some("systemd"));
    }

    #[test]
    fn what_is_imported_wins_and_what_cannot_be_read_may_say_anything() {
        let main = "version = 3\nimports = ['/conf.d/*.toml', 'more.toml']\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '/one'\n";
        let dir = |dir: &str| {
            format!("version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '{dir}'\n")
        };
        let [two, three] = ["/two", "/three"].map(dir);
        let at = |value: &str, source: &str| Some((value.to_owned(), source.to_owned()));
        assert_eq!(conf_dir(&[("c.toml", main)]), at("/one", "/c.toml"));
        assert_eq!(conf_dir(&[("c.toml", main), ("conf.d/1.toml", &two)]), at("/two", "/conf.d/1.toml"));
        let all = [("c.toml", main), ("conf.d/1.toml", two.as_str()), ("more.toml", &three)];
        assert_eq!(conf_dir(&all), at("/three", "/more.toml"));
        assert_eq!(conf_dir(&[("c.toml", "version = 3\n")]), at("/etc/cni/net.d", "default of containerd"));
        assert_eq!(conf_dir(&[("c.toml", "version = 3\nimports = ['b.toml']\n"), ("b.toml", "[")]), None);
        // It imports itself.
        assert!(conf_dir(&[("c.toml", "version = 3\nimports = ['c.toml', '*.toml']\n")]).is_some());
    }

    #[test]
    fn a_list_of_directories_a_disabled_plugin_and_an_address_are_read() {
        let config = r#"
            version = 3
            disabled_plugins = ["io.containerd.grpc.v1.cri"]
            [grpc]
            address = "/run/other.sock"
            [plugins."io.containerd.cri.v1.images".pinned_images]
            sandbox = "pause:1"
            [plugins."io.containerd.cri.v1.runtime".cni]
            bin_dirs = ["/a", "b", "/c"]
        "#;
        let found = found(&[("c.toml", config)]);
        assert_eq!(found.endpoint.map(|known| known.value).as_deref(), Some("/run/other.sock"));
        assert_eq!(found.bin_dirs.map(|known| known.value), Some(vec!["/a".into(), "/c".into()]));
        assert_eq!(found.sandbox_image.map(|known| known.value).as_deref(), Some("pause:1"));
        assert!(found.without_cri.is_some());
    }
}
