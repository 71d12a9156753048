//! API server names that do not resolve.

use alloc::format;
use alloc::string::String;

use super::{Facts, Ledger};
use crate::limits;
use crate::memory::Memory;
use crate::observation::{BootTime, NameFailure, NameLookup};

/// A name that does not resolve.
#[derive(Clone, Debug)]
pub(crate) struct Unresolved {
    /// The resolver that was queried last.
    pub(crate) resolver: String,
    /// Its answer.
    pub(crate) failure: NameFailure,
    /// The URL of the proxy whose name it is.
    pub(crate) proxy: Option<String>,
    pub(crate) since: BootTime,
    last: BootTime,
}

impl Memory for Unresolved {
    fn until(&self) -> Option<BootTime> {
        Some(self.last.plus(limits::CONNECT_FAILURE))
    }
}

impl Facts {
    pub(super) fn name_lookup(&mut self, at: BootTime, lookup: NameLookup) {
        let NameLookup { name, resolver, failure, proxy } = lookup;
        let Some(failure) = failure else {
            if self.unresolved.remove(&name).is_some() {
                self.line(at, "dns", format!("{name} resolves again ({resolver})"));
            }
            return;
        };
        let known = self.unresolved.get(&name);
        let since = known.map_or(at, |known| known.since);
        if known.is_none_or(|known| known.failure != failure) {
            self.line(at, "dns", format!("{name}: {resolver} {}", failure.words()));
        }
        self.unresolved.put(name, Unresolved { resolver, failure, proxy, since, last: at });
    }

    /// Returns whether clients can connect to an address of this name.
    pub(crate) fn works_by_name(&self, name: &str) -> bool {
        let of_name = |ledger: &&Ledger| ledger.name.as_deref() == Some(name);
        self.targets.values().filter(of_name).any(Ledger::works)
    }
}
