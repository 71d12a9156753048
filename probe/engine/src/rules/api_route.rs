//! The kernel has no way to the API address.

use alloc::format;
use alloc::string::ToString as _;
use alloc::vec::Vec;

use super::{Fault, causes};
use crate::evidence::Facts;
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    facts
        .targets_in_order()
        .into_iter()
        .filter_map(|(addr, _)| {
            let (errno, since) = *facts.routes.get(&addr.ip())?;
            (errno != 0).then(|| {
                let message = format!("{addr} cannot be reached: there is no route");
                let fault = Fault::new(Reason::APIRouteMissing, addr.to_string(), message, since);
                fault.state().may_come_from(causes::OF_NO_ROUTE)
            })
        })
        .collect()
}
