//! What containerd is configured for: its file, in each of its versions, with what that imports.

mod releases;

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use self::releases::{File, IMAGES, RUNTIME, TABLES};
use super::program::Program;
use super::{PATH, RuntimeConfig, absolute};
use crate::node::file;
use crate::settings::{CniSettings, Known, Settings};
use crate::text::clean;

/// Its default file, and its defaults (defaults/defaults_linux.go, internal/cri/config/config_unix.go).
pub(super) const FILE: &str = "/etc/containerd/config.toml";
const ADDRESS: &str = "/run/containerd/containerd.sock";
const STATE: &str = "/run/containerd";
const CONF_DIR: &str = "/etc/cni/net.d";
const DEFAULT: &str = "default of containerd";
/// Where it binds network namespaces, unless below its state directory (internal/cri/server/sandbox_run.go).
pub(crate) const NETNS_DIR: &str = "/var/run/netns";
const NETNS_BELOW_STATE: &str = "io.containerd.grpc.v1.cri/netns";
/// Most files that are read.
const FILES: usize = 32;

/// From the file that a running containerd was started with.
pub(super) fn of_program(settings: &Settings, program: &Program) -> RuntimeConfig {
    let path = program.flag("config").or_else(|| program.flag("c")).unwrap_or(FILE);
    let mut read = Read::all(settings, Path::new(path));
    read.state = program.flag("state").and_then(absolute).or(read.state);
    let mut config = read.config();
    if let Some(address) = program.flag("address").or_else(|| program.flag("a")) {
        let address = clean(address.as_bytes(), PATH);
        config.endpoint = Some(Known::of(address, &"containerd --address"));
    }
    config
}

/// From a file, whether containerd runs or not.
pub(super) fn of_file(settings: &Settings, path: &Path) -> RuntimeConfig {
    Read::all(settings, path).config()
}

/// What its files say.
struct Read {
    /// Every file was read.
    is_whole: bool,
    /// In the order in which they are merged.
    files: Vec<File>,
    /// What each release that accepts them makes of their plugins.
    readings: Vec<Table>,
    /// Its state directory, where that is not the default.
    state: Option<PathBuf>,
}

impl Read {
    fn all(settings: &Settings, path: &Path) -> Self {
        let (mut files, mut is_whole) = (Vec::new(), true);
        let mut pending = VecDeque::from([path.to_owned()]);
        let mut seen = BTreeSet::new();
        while let Some(path) = pending.pop_front() {
            if !seen.insert(path.clone()) {
                continue;
            }
            if seen.len() > FILES {
                is_whole = false;
                break;
            }
            let on_host = settings.on_host(&path);
            let config = match file::read_text(&on_host) {
                Some(text) => text.parse::<Table>().ok(),
                // Without its default file it has its defaults.
                None if !on_host.exists() => Some(Table::new()),
                None => None,
            };
            let Some(config) = config else {
                is_whole = false;
                continue;
            };
            for import in texts(config.get("imports")) {
                pending.extend(resolve(settings, &path, import));
            }
            files.push((path, config));
        }
        Self::of(files, is_whole)
    }

    fn of(files: Vec<File>, is_whole: bool) -> Self {
        let readings = releases::readings(&files);
        let state = files.iter().rev().find_map(|(_, config)| absolute(config.get("state")?.as_str()?));
        Self { is_whole: is_whole && !readings.is_empty(), files, readings, state }
    }

    /// What it leaves out has containerd's defaults; the one of plugin directories is another in each distribution's package.
    fn config(&self) -> RuntimeConfig {
        let path = |value: &Value| absolute(value.as_str()?);
        RuntimeConfig {
            endpoint: self.address(),
            cni: CniSettings {
                conf_dir: self.runtime(&["cni", "conf_dir"], path, Some(CONF_DIR.into())),
                bin_dirs: self.bin_dirs(),
                max_files: self.runtime(&["cni", "max_conf_num"], max_files, Some(1)),
                netns_dir: self.netns_dir(),
            },
            sandbox_image: self.sandbox_image(),
            cgroup_driver: self.driver(),
            without_cri: self.without_cri(),
        }
    }

    /// A value that all releases find in the same way, else the default; with the last file that holds one of `keys`.
    ///
    /// `None` where the releases differ, where there is no default, and for a default when a file cannot be read: that may say
    /// anything.
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
            return default.filter(|_| self.is_whole).map(|value| Known::of(value, &DEFAULT));
        };
        let holds = |config: &Table| {
            let tables = TABLES.iter().filter_map(|name| config.get("plugins")?.get(name));
            tables.into_iter().any(|table| keys.iter().any(|keys| at(Some(table), keys).is_some()))
        };
        let (path, _) = self.files.iter().rfind(|(_, config)| holds(config)).or(self.files.first())?;
        Some(Known::of(value, &path.display()))
    }

    /// A setting of the CRI runtime.
    fn runtime<T: PartialEq>(
        &self,
        keys: &[&str],
        get: impl Fn(&Value) -> Option<T>,
        default: Option<T>,
    ) -> Option<Known<T>> {
        self.agreed(&[keys], |plugins| get(at(plugins.get(RUNTIME), keys)?), default)
    }

    fn bin_dirs(&self) -> Option<Known<Vec<PathBuf>>> {
        let (one, several) = (["cni", "bin_dir"], ["cni", "bin_dirs"]);
        let get = |plugins: &Table| {
            let runtime = plugins.get(RUNTIME);
            let one = at(runtime, &one).and_then(Value::as_str);
            let dirs: Vec<_> = texts(at(runtime, &several)).chain(one).filter_map(absolute).collect();
            Some(dirs).filter(|dirs| !dirs.is_empty())
        };
        self.agreed(&[&several, &one], get, None)
    }

    fn netns_dir(&self) -> Option<Known<PathBuf>> {
        let below_state = self.state.as_deref().unwrap_or(Path::new(STATE)).join(NETNS_BELOW_STATE);
        let known = self.runtime(&["netns_mounts_under_state_dir"], Value::as_bool, Some(false))?;
        Some(known.map(|is_below| if is_below { below_state } else { NETNS_DIR.into() }))
    }

    fn sandbox_image(&self) -> Option<Known<String>> {
        let get = |plugins: &Table| text(at(plugins.get(IMAGES), &["pinned_images", "sandbox"]));
        self.agreed(&[&["pinned_images", "sandbox"], &["sandbox_image"]], get, None)
    }

    /// The cgroup driver of the default runtime handler.
    ///
    /// `None` for a configuration that only containerd 2 accepts: containerd 2 reports its driver to the kubelet (CRI
    /// `RuntimeConfig`), which uses it instead of its own setting. Also `None` when a file cannot be
    /// read.
    fn driver(&self) -> Option<Known<String>> {
        if !self.is_whole || releases::are_of_2(&self.files) {
            return None;
        }
        let handlers = ["containerd", "runtimes"];
        let get = |plugins: &Table| {
            let runtime = plugins.get(RUNTIME);
            let name = text(at(runtime, &["containerd", "default_runtime_name"]));
            let handler = at(runtime, &handlers)?.get(name.as_deref().unwrap_or("runc"));
            at(handler, &["options", "SystemdCgroup"])?.as_bool()
        };
        let known = self.agreed(&[&handlers], get, Some(false))?;
        Some(known.map(|systemd| if systemd { "systemd" } else { "cgroupfs" }.to_owned()))
    }

    fn address(&self) -> Option<Known<String>> {
        let own = |config: &Table| {
            let grpc = config.get("plugins").and_then(|plugins| plugins.get("io.containerd.server.v1.grpc"));
            text(at(grpc, &["address"])).or_else(|| text(at(config.get("grpc"), &["address"])))
        };
        let known = |(path, config): &File| Some(Known::of(own(config)?, &path.display()));
        let default = || self.is_whole.then(|| Known::of(ADDRESS.to_owned(), &DEFAULT));
        self.files.iter().rev().find_map(known).or_else(default)
    }

    fn without_cri(&self) -> Option<Known<()>> {
        let disables = |(_, config): &&File| {
            texts(config.get("disabled_plugins")).any(|plugin| TABLES[..3].contains(&plugin))
        };
        self.files.iter().rfind(disables).map(|(path, _)| Known::of((), &path.display()))
    }
}

/// A limit of files; go-cni takes a negative one for none (`loadFromConfDir`).
fn max_files(value: &Value) -> Option<u32> {
    Some(u32::try_from(value.as_integer()?.max(0)).unwrap_or(0))
}

/// A text that is not empty, with control characters escaped.
fn text(value: Option<&Value>) -> Option<String> {
    let text = value?.as_str().filter(|text| !text.is_empty())?;
    Some(clean(text.as_bytes(), PATH))
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
    let config = Read::of(vec![(PathBuf::from(FILE), config)], true).config();
    let shown = [config.endpoint, config.sandbox_image, config.cgroup_driver].into_iter().flatten();
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
        let known = found(files).cni.conf_dir?;
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
        let below_state = "/run/containerd/io.containerd.grpc.v1.cri/netns";
        let some = |values: [&str; 4]| values.map(|value| Some(value.to_owned()));
        let second = some(["/two/net.d", "/two/bin", below_state, "pause:2"]);
        assert_eq!(values(&[("c.toml", config)]), second);
        // Only releases of containerd 2 read the tables of version 3 in such a file. There they win, but for two.
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
        // containerd 1 replaces the whole table by that of an imported file, and containerd 2 merges them.
        let more = "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'pause:4'\n";
        let [a, b] = ["a.toml", "b.toml"];
        let merged = [None, None, None, Some("pause:4".to_owned())];
        assert_eq!(values(&[(a, &imports(b, 2)), (b, more)]), merged);
        // With a file of version 3 it is containerd 2, whose releases differ in what they migrate.
        let third = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '/three/net.d'\n";
        assert_eq!(
            values(&[(a, &imports(b, 2)), (b, third)]),
            [Some("/three/net.d".into()), None, None, None]
        );
        // In a file of version 3 they mean nothing before containerd 2.3, which migrates them as well.
        assert_eq!(values(&[(a, &imports(b, 3)), (b, "version = 3\n")]), [None, None, None, None]);
        assert_eq!(values(&[(a, "version = 5\n")]), [None, None, None, None]);
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
        assert_eq!(found.cni.bin_dirs.map(|known| known.value), Some(vec!["/a".into(), "/c".into()]));
        assert_eq!(found.sandbox_image.map(|known| known.value).as_deref(), Some("pause:1"));
        assert!(found.without_cri.is_some());
    }
}
