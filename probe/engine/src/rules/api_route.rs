//! This host has no route to the API address.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::net::IpAddr;

use super::{Causes, Fault};
use crate::facts::Facts;
use crate::reason::Reason;

/// Returns the message for an address without a route, to follow the address; with the process that removed the route,
/// if known.
pub(super) fn no_route(facts: &Facts, to: IpAddr) -> String {
    // Removals by the kernel have no process.
    let removed = facts.routes_gone.values().filter(|known| known.value.process.pid != 0);
    let removed = removed.filter_map(|known| Some(((known.value.covers(to)?, known.since), &known.value)));
    let newest = removed.max_by_key(|(order, _)| *order);
    let by = newest.map(|(_, gone)| format!("; {} removed {}", gone.process.who(), gone.words()));
    format!("is unreachable: no route to the address{}", by.unwrap_or_default())
}

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    facts
        .targets_in_order()
        .into_iter()
        .filter_map(|(addr, ledger)| {
            let route = facts.routes.get(&addr.ip())?;
            (route.value != 0).then(|| {
                let message = format!("{} {}", ledger.label(addr), no_route(facts, addr.ip()));
                let fault = Fault::new(Reason::APIRouteMissing, addr.to_string(), message, route.since);
                fault.state().may_come_from(Causes::Route)
            })
        })
        .collect()
}
