//! connect(2) is denied before a packet is sent: cgroup eBPF program, security module or seccomp.

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
            let clients: Vec<_> = ledger.denied.keys().map(|role| role.as_str()).collect();
            let message = format!(
                "connect(2) to {} is denied on this host before a packet is sent (EPERM or EACCES): cgroup eBPF program, \
                 security module or seccomp; clients: {}",
                ledger.label(addr),
                clients.join(", ")
            );
            Some(Fault::new(Reason::APIBPFDenied, addr.to_string(), message, since))
        })
        .collect()
}
