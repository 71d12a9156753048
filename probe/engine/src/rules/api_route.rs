//! The kernel has no way to the API address.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::net::IpAddr;

use super::{Causes, Fault};
use crate::facts::Facts;
use crate::reason::Reason;

/// With who took it away, when that was seen.
pub(super) fn no_route(facts: &Facts, to: IpAddr) -> String {
    // The kernel's own removals have no process.
    let gone = facts.routes_gone.values().filter(|known| known.value.process.pid != 0);
    let gone = gone.filter_map(|known| Some(((known.value.covers(to)?, known.since), &known.value)));
    let taken = gone.max_by_key(|(order, _)| *order);
    let who = taken.map(|(_, gone)| format!("; {} removed {}", gone.process.who(), gone.words()));
    format!("cannot be reached: there is no route{}", who.unwrap_or_default())
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
