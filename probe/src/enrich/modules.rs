//! Modules that the kernel requested: which of them are relevant, and whether they were loaded.

use std::collections::BTreeMap;
use std::path::Path;

use probe_engine::{Actor, BootTime, ModuleMissing};

/// How long loading a module may take, nanoseconds: modprobe takes milliseconds, with a slow disk a second.
const LOAD_TIMEOUT: u64 = 3_000_000_000;
/// Maximum number of pending requests.
const MAX_PENDING: usize = 64;

/// Aliases under which the kernel requests modules that pod networks need, and the names of these modules. For links the alias
/// usually contains the name of the module, see [`LINK`].
const ALIASES: &[(&str, &str)] = &[
    ("net-pf-16-proto-16-family-ovs_datapath", "openvswitch"),
    ("net-pf-16-proto-16-family-ovs_vport", "openvswitch"),
    ("net-pf-16-proto-16-family-wireguard", "wireguard"),
    ("net-pf-16-proto-16-family-IPVS", "ip_vs"),
    ("iptable_filter", "iptable_filter"),
    ("iptable_nat", "iptable_nat"),
    ("ip_tables", "ip_tables"),
    ("ip_set", "ip_set"),
    ("nf_conntrack", "nf_conntrack"),
    ("br_netfilter", "br_netfilter"),
];
/// Prefix of the aliases of link kinds.
const LINK: &str = "rtnl-link-";
/// Prefix of the aliases of Open vSwitch's port types.
const VPORT: &str = "vport-type-";

#[derive(Debug, Default)]
pub(super) struct Modules {
    /// Requests by alias, with their time and the process that caused them.
    pending: BTreeMap<String, (BootTime, Actor)>,
    /// Modules that were reported as missing and have not been loaded since.
    reported: BTreeMap<String, Actor>,
}

impl Modules {
    /// Takes a request of the kernel for a module.
    pub(super) fn requested(&mut self, at: BootTime, alias: String, process: Actor) {
        let is_relevant = module_of(&alias).is_some();
        if is_relevant && (self.pending.len() < MAX_PENDING || self.pending.contains_key(&alias)) {
            self.pending.entry(alias).or_insert((at, process));
        }
    }

    /// Returns the modules that were not loaded within [`LOAD_TIMEOUT`], once for each request, and the reported ones that have been
    /// loaded since.
    pub(super) fn missing(&mut self, now: BootTime) -> Vec<ModuleMissing> {
        let due = self.pending.extract_if(.., |_, (at, _)| now.since(*at) >= LOAD_TIMEOUT);
        let missing = due.filter_map(|(alias, (_, process))| {
            let name = module_of(&alias)?.to_owned();
            (!is_loaded(&name)).then_some(ModuleMissing { name, process, came: false })
        });
        let mut changes: Vec<_> = missing.collect();
        let loaded = self.reported.extract_if(.., |name, _| is_loaded(name));
        changes.extend(loaded.map(|(name, process)| ModuleMissing { name, process, came: true }));
        for missing in changes.iter().filter(|missing| !missing.came) {
            if self.reported.len() < MAX_PENDING {
                self.reported.insert(missing.name.clone(), missing.process.clone());
            }
        }
        changes
    }
}

/// Returns the module behind an alias; `None` if pod networks do not need it.
fn module_of(alias: &str) -> Option<&str> {
    if let Some((_, module)) = ALIASES.iter().find(|(known, _)| *known == alias) {
        return Some(module);
    }
    // Type 5 of Open vSwitch's ports is geneve. The other types are loaded with their links.
    if alias.strip_prefix(VPORT) == Some("5") {
        return Some("vport_geneve");
    }
    let kind = alias.strip_prefix(LINK)?;
    // Open vSwitch first tries the link kinds of its former out-of-tree module, and continues without them.
    (!kind.is_empty() && !kind.contains('/') && !kind.starts_with("ovs_")).then_some(kind)
}

fn is_loaded(module: &str) -> bool {
    let name = module.replace('-', "_");
    Path::new("/sys/module").join(name).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_only_missing_modules_of_pod_networks() {
        let mut modules = Modules::default();
        let who = Actor { pid: 7, name: "ovs-vswitchd".into() };
        modules.requested(BootTime(0), "rtnl-link-nosuchkind".into(), who.clone());
        modules.requested(BootTime(0), "char-major-10-200".into(), who.clone());
        modules.requested(BootTime(0), "rtnl-link-../../etc".into(), who.clone());
        modules.requested(BootTime(0), "rtnl-link-ovs_geneve".into(), who.clone());
        assert_eq!(modules.missing(BootTime(LOAD_TIMEOUT - 1)), []);
        let missing = modules.missing(BootTime(LOAD_TIMEOUT));
        assert_eq!(missing, [ModuleMissing { name: "nosuchkind".into(), process: who, came: false }]);
        assert_eq!(modules.missing(BootTime(2 * LOAD_TIMEOUT)), []);
    }
}
