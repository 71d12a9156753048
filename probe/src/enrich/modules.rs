//! Modules that the kernel asked for: which of them matter, and whether they came.

use std::collections::BTreeMap;
use std::path::Path;

use probe_engine::{Actor, ModuleMissing, Mono};

/// How long a module may take to load: modprobe takes milliseconds, a slow disk a second.
const LOADING: u64 = 3_000_000_000;
/// Most requests that wait at once.
const WAITING: usize = 64;

/// Aliases under which the kernel asks for what pod networks need, and the modules behind them. The rest of
/// an alias of links is the module's own name, as a rule.
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
const LINK: &str = "rtnl-link-";
const VPORT: &str = "vport-type-";

#[derive(Debug, Default)]
pub(super) struct Modules {
    waiting: BTreeMap<String, (Mono, Actor)>,
    /// Those that were told and have not come since.
    told: BTreeMap<String, Actor>,
}

impl Modules {
    pub(super) fn requested(&mut self, at: Mono, alias: String, process: Actor) {
        if matters(&alias).is_some() && (self.waiting.len() < WAITING || self.waiting.contains_key(&alias)) {
            self.waiting.entry(alias).or_insert((at, process));
        }
    }

    /// Those that had their time, once for each request; and those that came after all.
    pub(super) fn missing(&mut self, now: Mono) -> Vec<ModuleMissing> {
        let due = self.waiting.extract_if(.., |_, (at, _)| now.since(*at) >= LOADING);
        let missing = due.filter_map(|(alias, (_, process))| {
            let name = matters(&alias)?.to_owned();
            (!is_loaded(&name)).then_some(ModuleMissing { name, process, came: false })
        });
        let mut news: Vec<_> = missing.collect();
        let came = self.told.extract_if(.., |name, _| is_loaded(name));
        news.extend(came.map(|(name, process)| ModuleMissing { name, process, came: true }));
        for missing in news.iter().filter(|missing| !missing.came) {
            if self.told.len() < WAITING {
                self.told.insert(missing.name.clone(), missing.process.clone());
            }
        }
        news
    }
}

fn matters(alias: &str) -> Option<&str> {
    if let Some((_, module)) = ALIASES.iter().find(|(known, _)| *known == alias) {
        return Some(module);
    }
    // Type 5 of OVS' ports is geneve; others are loaded by their link.
    if alias.strip_prefix(VPORT) == Some("5") {
        return Some("vport_geneve");
    }
    let kind = alias.strip_prefix(LINK)?;
    // Open vSwitch tries the kinds of its own old module first, and goes on without.
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
    fn only_what_pod_networks_need_is_waited_for() {
        let mut modules = Modules::default();
        let who = Actor { pid: 7, name: "ovs-vswitchd".into() };
        modules.requested(Mono(0), "rtnl-link-nosuchkind".into(), who.clone());
        modules.requested(Mono(0), "char-major-10-200".into(), who.clone());
        modules.requested(Mono(0), "rtnl-link-../../etc".into(), who.clone());
        modules.requested(Mono(0), "rtnl-link-ovs_geneve".into(), who.clone());
        assert_eq!(modules.missing(Mono(LOADING - 1)), []);
        let missing = modules.missing(Mono(LOADING));
        assert_eq!(missing, [ModuleMissing { name: "nosuchkind".into(), process: who, came: false }]);
        assert_eq!(modules.missing(Mono(2 * LOADING)), []);
    }
}
