//! The configuration of containerd: its file, in each version of the format, with the files that it imports.

mod releases;

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use self::releases::{File, IMAGES, RUNTIME, TABLES};
use super::program::Program;
use super::{MAX_PATH_LEN, RuntimeConfig, absolute};
use crate::node::file;
use crate::settings::{CniSettings, Known, Settings};
use crate::text::clean;

/// Defaults of containerd (defaults/defaults_linux.go, internal/cri/config/config_unix.go).
pub(super) const FILE: &str = "/etc/containerd/config.toml";
const SOCKET: &str = "/run/containerd/containerd.sock";
const STATE: &str = "/run/containerd";
const CONF_DIR: &str = "/etc/cni/net.d";
const DEFAULT: &str = "default of containerd";
/// Directory in which containerd mounts network namespaces, unless they are under its state directory
/// (internal/cri/server/sandbox_run.go).
pub(crate) const NETNS_DIR: &str = "/var/run/netns";
const NETNS_UNDER_STATE: &str = "io.containerd.grpc.v1.cri/netns";
/// Maximum number of files.
const MAX_FILES: usize = 32;

/// Returns the configuration of a running containerd.
pub(super) fn of_program(settings: &Settings, program: &Program) -> RuntimeConfig {
    let path = program.flag("config").or_else(|| program.flag("c")).unwrap_or(FILE);
    let mut files = ConfigFiles::read(settings, Path::new(path));
    files.state = program.flag("state").and_then(absolute).or(files.state);
    let mut config = files.config();
    if let Some(address) = program.flag("address").or_else(|| program.flag("a")) {
        let address = clean(address.as_bytes(), MAX_PATH_LEN);
        config.endpoint = Some(Known::of(address, &"containerd --address"));
    }
    config
}

/// Returns the configuration in a file, regardless of whether containerd runs.
pub(super) fn of_file(settings: &Settings, path: &Path) -> RuntimeConfig {
    ConfigFiles::read(settings, path).config()
}

/// The configuration files of containerd.
struct ConfigFiles {
    /// Whether all files were read, and a release accepts them.
    is_complete: bool,
    /// Files in the order in which they are merged.
    files: Vec<File>,
    /// The plugin configuration that each release derives from the files.
    readings: Vec<Table>,
    /// State directory; `None` for the default.
    state: Option<PathBuf>,
}

impl ConfigFiles {
    fn read(settings: &Settings, path: &Path) -> Self {
        let (mut files, mut is_complete) = (Vec::new(), true);
        let mut pending = VecDeque::from([path.to_owned()]);
        let mut seen = BTreeSet::new();
        while let Some(path) = pending.pop_front() {
            if !seen.insert(path.clone()) {
                continue;
            }
            if seen.len() > MAX_FILES {
                is_complete = false;
                break;
            }
            let on_host = settings.on_host(&path);
            let config = match file::read_text(&on_host) {
                Some(text) => text.parse::<Table>().ok(),
                // A missing file is treated as empty: containerd uses its defaults.
                None if !on_host.exists() => Some(Table::new()),
                None => None,
            };
            let Some(config) = config else {
                is_complete = false;
                continue;
            };
            for import in strings(config.get("imports")) {
                pending.extend(resolve(settings, &path, import));
            }
            files.push((path, config));
        }
        Self::new(files, is_complete)
    }

    fn new(files: Vec<File>, is_complete: bool) -> Self {
        let readings = releases::readings(&files);
        let state = files.iter().rev().find_map(|(_, config)| absolute(config.get("state")?.as_str()?));
        Self { is_complete: is_complete && !readings.is_empty(), files, readings, state }
    }

    /// Returns the settings. Missing settings have containerd's defaults, except the plugin directory, whose default depends on
    /// the distribution's package.
    fn config(&self) -> RuntimeConfig {
        let path = |value: &Value| absolute(value.as_str()?);
        RuntimeConfig {
            endpoint: self.address(),
            cni: CniSettings {
                conf_dir: self.runtime_setting(&["cni", "conf_dir"], path, Some(CONF_DIR.into())),
                bin_dirs: self.bin_dirs(),
                max_files: self.runtime_setting(&["cni", "max_conf_num"], max_files, Some(1)),
                netns_dir: self.netns_dir(),
            },
            sandbox_image: self.sandbox_image(),
            cgroup_driver: self.cgroup_driver(),
            cri_disabled: self.cri_disabled(),
        }
    }

    /// Returns the value on which all releases agree, else the default; with the last file that contains one of `keys`.
    ///
    /// Returns `None` if the releases differ, if there is no default, and instead of the default if a file cannot be read: it
    /// may contain another value.
    fn agreed<T: PartialEq>(
        &self,
        keys: &[&[&str]],
        get: impl Fn(&Table) -> Option<T>,
        default: Option<T>,
    ) -> Option<Known<T>> {
        let mut values = self.readings.iter().map(get);
        let first = values.next()?;
        if values.any(|value| value != first) {
            return None;
        }
        let Some(value) = first else {
            return default.filter(|_| self.is_complete).map(|value| Known::of(value, &DEFAULT));
        };
        let holds = |config: &Table| {
            let tables = TABLES.iter().filter_map(|name| config.get("plugins")?.get(name));
            tables.into_iter().any(|table| keys.iter().any(|keys| lookup(Some(table), keys).is_some()))
        };
        let (path, _) = self.files.iter().rfind(|(_, config)| holds(config)).or(self.files.first())?;
        Some(Known::of(value, &path.display()))
    }

    /// Returns a setting of the CRI runtime plugin.
    fn runtime_setting<T: PartialEq>(
        &self,
        keys: &[&str],
        get: impl Fn(&Value) -> Option<T>,
        default: Option<T>,
    ) -> Option<Known<T>> {
        self.agreed(&[keys], |plugins| get(lookup(plugins.get(RUNTIME), keys)?), default)
    }

    fn bin_dirs(&self) -> Option<Known<Vec<PathBuf>>> {
        let (one, several) = (["cni", "bin_dir"], ["cni", "bin_dirs"]);
        let get = |plugins: &Table| {
            let runtime = plugins.get(RUNTIME);
            let one = lookup(runtime, &one).and_then(Value::as_str);
            let dirs: Vec<_> = strings(lookup(runtime, &several)).chain(one).filter_map(absolute).collect();
            Some(dirs).filter(|dirs| !dirs.is_empty())
        };
        self.agreed(&[&several, &one], get, None)
    }

    fn netns_dir(&self) -> Option<Known<PathBuf>> {
        let under_state = self.state.as_deref().unwrap_or(Path::new(STATE)).join(NETNS_UNDER_STATE);
        let known = self.runtime_setting(&["netns_mounts_under_state_dir"], Value::as_bool, Some(false))?;
        Some(known.map(|is_under_state| if is_under_state { under_state } else { NETNS_DIR.into() }))
    }

    fn sandbox_image(&self) -> Option<Known<String>> {
        let get = |plugins: &Table| string(lookup(plugins.get(IMAGES), &["pinned_images", "sandbox"]));
        self.agreed(&[&["pinned_images", "sandbox"], &["sandbox_image"]], get, None)
    }

    /// Returns the cgroup driver of the default runtime handler.
    ///
    /// Returns `None` for a configuration that only containerd 2 accepts: containerd 2 reports its driver to the kubelet (CRI
    /// `RuntimeConfig`), which uses it instead of its own setting. Also `None` if a file cannot be read.
    fn cgroup_driver(&self) -> Option<Known<String>> {
        if !self.is_complete || releases::require_containerd_2(&self.files) {
            return None;
        }
        let handlers = ["containerd", "runtimes"];
        let get = |plugins: &Table| {
            let runtime = plugins.get(RUNTIME);
            let name = string(lookup(runtime, &["containerd", "default_runtime_name"]));
            let handler = lookup(runtime, &handlers)?.get(name.as_deref().unwrap_or("runc"));
            lookup(handler, &["options", "SystemdCgroup"])?.as_bool()
        };
        let known = self.agreed(&[&handlers], get, Some(false))?;
        Some(known.map(|systemd| if systemd { "systemd" } else { "cgroupfs" }.to_owned()))
    }

    fn address(&self) -> Option<Known<String>> {
        let own = |config: &Table| {
            let grpc = config.get("plugins").and_then(|plugins| plugins.get("io.containerd.server.v1.grpc"));
            string(lookup(grpc, &["address"])).or_else(|| string(lookup(config.get("grpc"), &["address"])))
        };
        let known = |(path, config): &File| Some(Known::of(own(config)?, &path.display()));
        let default = || self.is_complete.then(|| Known::of(SOCKET.to_owned(), &DEFAULT));
        self.files.iter().rev().find_map(known).or_else(default)
    }

    fn cri_disabled(&self) -> Option<Known<()>> {
        let disables = |(_, config): &&File| {
            strings(config.get("disabled_plugins")).any(|plugin| TABLES[..3].contains(&plugin))
        };
        self.files.iter().rfind(disables).map(|(path, _)| Known::of((), &path.display()))
    }
}

/// Returns the maximum number of CNI files, 0 for no limit: go-cni treats a negative value the same (`loadFromConfDir`).
fn max_files(value: &Value) -> Option<u32> {
    Some(u32::try_from(value.as_integer()?.max(0)).unwrap_or(0))
}

/// Returns a non-empty string with control characters escaped.
fn string(value: Option<&Value>) -> Option<String> {
    let text = value?.as_str().filter(|text| !text.is_empty())?;
    Some(clean(text.as_bytes(), MAX_PATH_LEN))
}

/// Returns the value at a path of keys below `table`.
fn lookup<'a>(table: Option<&'a Value>, keys: &[&str]) -> Option<&'a Value> {
    keys.iter().try_fold(table?, |table, key| table.get(key))
}

fn strings(list: Option<&Value>) -> impl Iterator<Item = &str> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// Returns the files of an import, which is relative to the importing file, and a glob pattern if it contains `*`.
fn resolve(settings: &Settings, parent: &Path, import: &str) -> Vec<PathBuf> {
    let path = parent.parent().unwrap_or(Path::new("/")).join(import);
    if !import.contains('*') {
        return vec![path];
    }
    let pattern = settings.on_host(&path);
    let found = pattern.to_str().and_then(|pattern| glob::glob(pattern).ok()).into_iter().flatten().flatten();
    let of_host = |found: PathBuf| Some(Path::new("/").join(found.strip_prefix(&settings.host_root).ok()?));
    found.filter_map(of_host).take(MAX_FILES).collect()
}

/// Fuzz target: a file of any content. Returns the texts that may be printed.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &str) -> Vec<String> {
    let Ok(config) = text.parse::<Table>() else { return Vec::new() };
    let config = ConfigFiles::new(vec![(PathBuf::from(FILE), config)], true).config();
    let shown = [config.endpoint, config.sandbox_image, config.cgroup_driver].into_iter().flatten();
    shown.flat_map(|known| [known.value, known.source]).collect()
}

#[cfg(test)]
mod tests {
    use crate::settings::tests::host;

    use super::*;

    /// Returns the configuration of containerd with these files; the first is its main file.
    fn found(files: &[(&str, &str)]) -> RuntimeConfig {
        let (settings, _root) = host(files);
        of_file(&settings, &Path::new("/").join(files[0].0))
    }

    fn driver(config: &str) -> Option<String> {
        found(&[("config.toml", config)]).cgroup_driver.map(|known| known.value)
    }

    fn conf_dir(files: &[(&str, &str)]) -> Option<(String, String)> {
        let known = found(files).cni.conf_dir?;
        Some((known.value.display().to_string(), known.source))
    }

    #[test]
    fn cgroup_driver_is_read_from_the_table_of_the_file_version() {
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
        // The table of another version has no effect, except that containerd 2 migrates the table of a file of version 2.
        assert_eq!(runc("version = 2", "cri", "true").as_deref(), Some("cgroupfs"));
        assert_eq!(runc("version = 2", third, "true"), None);
        assert_eq!(runc("version = 3", second, "true"), None);
        assert_eq!(runc("version = 3", third, "true"), None);
        assert_eq!(driver("[plugins\n"), None);
        assert_eq!(driver("version = 2\n").as_deref(), Some("cgroupfs"));
    }

    #[test]
    fn tables_of_version_2_are_migrated_as_containerd_2_does() {
        let config = r#"
            version = 2
            [plugins."io.containerd.grpc.v1.cri"]
            sandbox_image = "pause:2"
            netns_mounts_under_state_dir = true
            [plugins."io.containerd.grpc.v1.cri".cni]
            bin_dir = "/two/bin"
            conf_dir = "/two/net.d"
        "#;
        let values = |files: &[(&str, &str)]| {
            let RuntimeConfig { cni, sandbox_image, .. } = found(files);
            let path = |known: Option<Known<PathBuf>>| known.map(|known| known.value.display().to_string());
            let dirs = cni.bin_dirs.map(|known| known.value[0].display().to_string());
            [path(cni.conf_dir), dirs, path(cni.netns_dir), sandbox_image.map(|known| known.value)]
        };
        let under_state = "/run/containerd/io.containerd.grpc.v1.cri/netns";
        let some = |values: [&str; 4]| values.map(|value| Some(value.to_owned()));
        let second = some(["/two/net.d", "/two/bin", under_state, "pause:2"]);
        assert_eq!(values(&[("c.toml", config)]), second);
        // Only containerd 2 reads tables of version 3 in such a file. They take precedence, except for two settings.
        let both = format!(
            "{config}\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '/three/net.d'\nbin_dirs = ['/three/bin']\n\
             [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = 'pause:3'\n"
        );
        let mut unsure = second.clone();
        unsure[0] = None;
        assert_eq!(values(&[("c.toml", &both)]), unsure);
        let imports = |file: &str, version| {
            format!("imports = ['/{file}']\nversion = {version}\n{}", config.replace("version = 2", ""))
        };
        // containerd 1 replaces the whole table with that of an imported file, and containerd 2 merges them.
        let more = "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'pause:4'\n";
        let [a, b] = ["a.toml", "b.toml"];
        let merged = [None, None, None, Some("pause:4".to_owned())];
        assert_eq!(values(&[(a, &imports(b, 2)), (b, more)]), merged);
        // Only containerd 2 accepts a file of version 3, and its releases differ in what they migrate.
        let third = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '/three/net.d'\n";
        assert_eq!(
            values(&[(a, &imports(b, 2)), (b, third)]),
            [Some("/three/net.d".into()), None, None, None]
        );
        // In a file of version 3 they have no effect before containerd 2.3, which also migrates them.
        assert_eq!(values(&[(a, &imports(b, 3)), (b, "version = 3\n")]), [None, None, None, None]);
        assert_eq!(values(&[(a, "version = 5\n")]), [None, None, None, None]);
    }

    #[test]
    fn cgroup_driver_is_that_of_the_default_runtime_handler() {
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
    fn imports_override_and_an_unreadable_import_makes_values_unknown() {
        let main = "version = 3\nimports = ['/conf.d/*.toml', 'more.toml']\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '/one'\n";
        let dir = |dir: &str| {
            format!("version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '{dir}'\n")
        };
        let [two, three] = ["/two", "/three"].map(dir);
        let known = |value: &str, source: &str| Some((value.to_owned(), source.to_owned()));
        assert_eq!(conf_dir(&[("c.toml", main)]), known("/one", "/c.toml"));
        assert_eq!(conf_dir(&[("c.toml", main), ("conf.d/1.toml", &two)]), known("/two", "/conf.d/1.toml"));
        let all = [("c.toml", main), ("conf.d/1.toml", two.as_str()), ("more.toml", &three)];
        assert_eq!(conf_dir(&all), known("/three", "/more.toml"));
        assert_eq!(
            conf_dir(&[("c.toml", "version = 3\n")]),
            known("/etc/cni/net.d", "default of containerd")
        );
        assert_eq!(conf_dir(&[("c.toml", "version = 3\nimports = ['b.toml']\n"), ("b.toml", "[")]), None);
        // The file imports itself.
        assert!(conf_dir(&[("c.toml", "version = 3\nimports = ['c.toml', '*.toml']\n")]).is_some());
    }

    #[test]
    fn reads_directories_disabled_plugins_and_the_address() {
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
        assert_eq!(found.cni.bin_dirs.map(|known| known.value), Some(vec!["/a".into(), "/c".into()]));
        assert_eq!(found.sandbox_image.map(|known| known.value).as_deref(), Some("pause:1"));
        assert!(found.cri_disabled.is_some());
    }
}
