//! Addresses that host-local has given out, beside the sandboxes that they may belong to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use probe_engine::{Leases, Observation};

use super::{cni_parse, file, namespaces};
use crate::settings::Settings;
use crate::text::clean;

/// Most files of one directory that are counted: a /16 has 65,536 addresses.
const FILES: usize = 65_536;
/// Most directories.
const DIRS: usize = 16;
/// Longest path that is kept.
const PATH: usize = 256;
/// A pod more or less is no news: how much the difference must change.
const NEWS: u64 = 4;

/// What was told last.
#[derive(Debug, Default)]
pub(super) struct Told {
    dirs: BTreeSet<PathBuf>,
    differences: BTreeMap<PathBuf, u64>,
}

impl Told {
    /// Looks up where the configured networks keep their leases.
    pub(super) fn configured(&mut self, settings: &Settings) {
        let dir = settings.on_host(&settings.cni.conf());
        let files = fs::read_dir(dir).into_iter().flatten().flatten().take(FILES);
        let configs = files.filter_map(|entry| file::read(&entry.path()).ok());
        let dirs = configs.filter_map(|bytes| cni_parse::lease_dir(&bytes));
        self.dirs = dirs.map(|dir| settings.on_host(&dir)).take(DIRS).collect();
    }

    /// Tells of directories in which leases and sandboxes have drifted apart, or together.
    pub(super) fn look(&mut self, settings: &Settings, seen: &mut Vec<Observation>) {
        if self.dirs.is_empty() {
            return;
        }
        let namespaces = namespaces::bound(settings).len() as u64;
        for dir in &self.dirs {
            let held = held(dir);
            let news = held.abs_diff(namespaces) / NEWS;
            if self.differences.insert(dir.clone(), news) != Some(news) {
                let dir = clean(dir.as_os_str().as_encoded_bytes(), PATH);
                seen.push(Observation::Leases(Leases { dir, held, namespaces }));
            }
        }
    }
}

/// A lease is a file whose name is its address; of IPv6, with underscores where the colons are on some systems.
fn held(dir: &std::path::Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().flatten().take(FILES);
    let is_lease = |name: &str| name.replace('_', ":").parse::<IpAddr>().is_ok();
    files.filter(|entry| entry.file_name().to_str().is_some_and(is_lease)).count() as u64
}
