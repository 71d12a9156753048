//! Compares the addresses that host-local has assigned with the sandboxes to which they can belong.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use probe_engine::{Leases, Observation};

use super::{cni_parse, file, namespaces};
use crate::settings::Settings;
use crate::text::clean;

/// Most files of one directory that are counted: a /16 has 65,536 addresses.
const FILES: usize = 65_536;
/// Most directories that are polled.
const DIRS: usize = 16;
/// Longest path that is reported.
const PATH: usize = 256;
/// Granularity of the reported difference: a single pod that starts or stops is not reported.
const STEP: u64 = 4;

/// Reports when the leases and the sandboxes of a node diverge or converge.
#[derive(Debug, Default)]
pub(super) struct Monitor {
    dirs: BTreeSet<PathBuf>,
    /// The difference reported last for each directory, in units of [`STEP`].
    reported: BTreeMap<PathBuf, u64>,
}

impl Monitor {
    /// Reads from the CNI configuration in which directories host-local keeps its leases.
    pub(super) fn find_dirs(&mut self, settings: &Settings) {
        let dir = settings.on_host(&settings.cni.conf());
        let files = fs::read_dir(dir).into_iter().flatten().flatten().take(FILES);
        let configs = files.filter_map(|entry| file::read(&entry.path()).ok());
        let dirs = configs.filter_map(|bytes| cni_parse::lease_dir(&bytes));
        self.dirs = dirs.map(|dir| settings.on_host(&dir)).take(DIRS).collect();
    }

    /// Reports directories whose number of leases has moved away from or closer to the number of sandboxes.
    pub(super) fn poll(&mut self, settings: &Settings, changes: &mut Vec<Observation>) {
        if self.dirs.is_empty() {
            return;
        }
        let namespaces = namespaces::bound(settings).len() as u64;
        for dir in &self.dirs {
            let held = leases_in(dir);
            let difference = held.abs_diff(namespaces) / STEP;
            if self.reported.insert(dir.clone(), difference) != Some(difference) {
                let dir = clean(dir.as_os_str().as_encoded_bytes(), PATH);
                changes.push(Observation::Leases(Leases { dir, held, namespaces }));
            }
        }
    }
}

/// Returns the number of leases in a directory. Each is a file whose name is the address; on some systems
/// with underscores in place of the colons of IPv6.
fn leases_in(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().flatten().take(FILES);
    let is_lease = |name: &str| name.replace('_', ":").parse::<IpAddr>().is_ok();
    files.filter(|entry| entry.file_name().to_str().is_some_and(is_lease)).count() as u64
}
