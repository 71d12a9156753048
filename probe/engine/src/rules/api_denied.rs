//! connect(2) is denied before a packet leaves: cgroup eBPF, a security module, seccomp.

use alloc::format;
use alloc::string::ToString as _;
use alloc::vec::Vec;

use super::Fault;
use crate::facts::Facts;
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    facts
        .targets_in_order()
        .into_iter()
        .filter_map(|(addr, ledger)| {
            let since = ledger.denied.values().map(|failure| failure.since).min()?;
            let who: Vec<_> = ledger.denied.keys().map(|role| role.as_str()).collect();
            let message = format!(
                "connect to {} is denied on this host before a packet leaves: a cgroup eBPF program, \
                 a security module or seccomp; clients: {}",
                ledger.label(addr),
                who.join(", ")
            );
            Some(Fault::new(Reason::APIBPFDenied, addr.to_string(), message, since))
        })
        .collect()
}
