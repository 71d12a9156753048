//! Sysctls on which pod networks depend.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use probe_engine::{Observation, cnis};

/// Most links of CNIs whose sysctls are read.
const CNI_LINKS: usize = 64;
/// Sysctls on which pod networks depend.
const SYSCTLS: &[&str] = &[
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.forwarding",
    "net.bridge.bridge-nf-call-iptables",
    "net.ipv4.conf.all.rp_filter",
];

/// Reads the sysctls and reports those that have changed.
#[derive(Debug, Default)]
pub(super) struct Sysctls {
    /// The values reported last, by name.
    reported: BTreeMap<String, String>,
}

impl Sysctls {
    /// Reports sysctls whose value has changed.
    pub(super) fn poll(&mut self, changes: &mut Vec<Observation>) {
        let mut current = BTreeMap::new();
        for name in names() {
            let Ok(value) = fs::read_to_string(path_of(&name)) else { continue };
            let value = value.trim().to_owned();
            if self.reported.get(&name) != Some(&value) {
                changes.push(Observation::Sysctl { name: name.clone(), value: value.clone() });
            }
            current.insert(name, value);
        }
        // Those of links that were removed are dropped: names of pod links are random and would accumulate.
        self.reported = current;
    }
}

/// Returns the names of [`SYSCTLS`], and of the reverse path filters of links that a CNI created. A dot in a
/// link's name is written as a slash, as sysctl(8) does.
fn names() -> Vec<String> {
    let links = fs::read_dir("/proc/sys/net/ipv4/conf").into_iter().flatten().flatten();
    let filters = links.filter_map(|entry| {
        let link = entry.file_name().into_string().ok().filter(|link| is_cni_link(link))?;
        Some(format!("net.ipv4.conf.{}.rp_filter", link.replace('.', "/")))
    });
    SYSCTLS.iter().map(|name| (*name).to_owned()).chain(filters.take(CNI_LINKS)).collect()
}

/// Returns the file of a sysctl: the name with dots and slashes swapped.
fn path_of(name: &str) -> PathBuf {
    let swapped = name.chars().map(|c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    });
    Path::new("/proc/sys").join(swapped.collect::<String>())
}

/// Returns whether a link is named as a CNI names its links.
fn is_cni_link(name: &str) -> bool {
    cnis::link_prefixes().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_cnis_are_recognised_by_the_prefixes_of_the_table() {
        for link in ["cilium_host", "lxc1", "cali12ab", "cni0", "flannel.1", "ovn-k8s-mp0"] {
            assert!(is_cni_link(link), "{link}");
        }
        for link in ["all", "default", "lo", "eth0", "ens3", "enp0s3", "docker0"] {
            assert!(!is_cni_link(link), "{link}");
        }
    }

    #[test]
    fn dots_and_slashes_of_a_sysctl_name_are_swapped_in_its_path() {
        let path = path_of("net.ipv4.conf.flannel/1.rp_filter");
        assert_eq!(path, Path::new("/proc/sys/net/ipv4/conf/flannel.1/rp_filter"));
    }

    #[test]
    fn reads_the_sysctls_of_this_machine() {
        assert!(names().iter().any(|name| name == "net.ipv4.ip_forward"));
        let (mut sysctls, mut changes) = (Sysctls::default(), Vec::new());
        sysctls.poll(&mut changes);
        assert!(!changes.is_empty());
    }
}
