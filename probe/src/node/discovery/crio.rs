//! The configuration of CRI-O: its file and its drop-ins, of which later ones take precedence.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::program::Program;
use super::{MAX_PATH_LEN, RuntimeConfig, absolute, files_below};
use crate::node::file;
use crate::settings::{CniSettings, Known, Settings};
use crate::text::clean;

/// Defaults of CRI-O (pkg/config/config_unix.go, config.go). The default of the plugin directories is not included because it
/// depends on the distribution's package.
const FILE: &str = "/etc/crio/crio.conf";
const DROP_INS: &str = "/etc/crio/crio.conf.d";
const SOCKET: &str = "/var/run/crio/crio.sock";
const CONF_DIR: &str = "/etc/cni/net.d";
/// CRI-O mounts network namespaces in the subdirectory `netns` (internal/config/nsmgr/nsmgr_linux.go).
const NAMESPACES_DIR: &str = "/var/run";
const DEFAULT: &str = "default of CRI-O";
/// Maximum number of drop-in files.
const MAX_FILES: usize = 64;

/// Returns the configuration in CRI-O's files; the flags of a running `program` take precedence.
pub(super) fn find(settings: &Settings, program: Option<&Program>) -> RuntimeConfig {
    let flag = |name: &str| program.and_then(|program| program.flag(name)).map(str::to_owned);
    let drop_ins =
        files_below(settings, Path::new(flag("config-dir").as_deref().unwrap_or(DROP_INS)), MAX_FILES);
    let mut is_complete = drop_ins.is_some();
    let paths = [PathBuf::from(flag("config").as_deref().unwrap_or(FILE))]
        .into_iter()
        .chain(drop_ins.into_iter().flatten());
    let mut configs = Vec::new();
    for path in paths {
        let on_host = settings.on_host(&path);
        match file::read_text(&on_host).map(|text| text.parse::<Table>()) {
            Some(Ok(config)) => configs.push((path, config)),
            None if !on_host.exists() => {}
            _ => is_complete = false,
        }
    }
    let config = |table: &str, key: &str| {
        let value = |(path, config): &(PathBuf, Table)| {
            Some(Known::of(config.get("crio")?.get(table)?.get(key)?.clone(), &path.display()))
        };
        configs.iter().rev().find_map(value)
    };
    let get = |name: &str, table: &str, key: &str, default: Option<&str>| {
        let set = flag(name).map(|value| Known::of(value, &format_args!("crio --{name}")));
        let configured = || config(table, key)?.filter_map(|value| Some(value.as_str()?.to_owned()));
        let default = || default.filter(|_| is_complete).map(|value| Known::of(value.to_owned(), &DEFAULT));
        let known = set.or_else(configured).filter(|known| !known.value.is_empty()).or_else(default)?;
        Some(known.map(|value| clean(value.as_bytes(), MAX_PATH_LEN)))
    };
    let path = |known: Option<Known<String>>| known?.filter_map(|value| absolute(&value));
    let listed = |value: &Value| {
        let dirs: Vec<_> = value.as_array()?.iter().filter_map(|dir| absolute(dir.as_str()?)).collect();
        (!dirs.is_empty()).then_some(dirs)
    };
    let bin_dirs = flag("cni-plugin-dir")
        .map(|dirs| Known::of(dirs.split(',').filter_map(absolute).collect(), &"crio --cni-plugin-dir"))
        .or_else(|| config("network", "plugin_dirs")?.filter_map(|value| listed(&value)));
    RuntimeConfig {
        endpoint: get("listen", "api", "listen", Some(SOCKET)),
        cni: CniSettings {
            conf_dir: path(get("cni-config-dir", "network", "network_dir", Some(CONF_DIR))),
            bin_dirs,
            // CRI-O uses the first valid file.
            max_files: None,
            netns_dir: path(get("namespaces-dir", "runtime", "namespaces_dir", Some(NAMESPACES_DIR)))
                .map(|known| known.map(|dir| dir.join("netns"))),
        },
        sandbox_image: get("pause-image", "image", "pause_image", None),
        cgroup_driver: get("cgroup-manager", "runtime", "cgroup_manager", Some("systemd")),
        cri_disabled: None,
    }
}

#[cfg(test)]
mod tests {
    use crate::settings::tests::host;

    use super::*;

    #[test]
    fn netns_directory_is_read_from_a_drop_in() {
        let drop_in = "[crio.runtime]\nnamespaces_dir = '/data/ns'\n";
        for (files, wanted) in
            [(&[("etc/crio/crio.conf.d/10.conf", drop_in)][..], "/data/ns/netns"), (&[], "/var/run/netns")]
        {
            let (settings, _root) = host(files);
            let dir = find(&settings, None).cni.netns_dir.expect("known").value;
            assert_eq!(dir, Path::new(wanted));
        }
    }
}
