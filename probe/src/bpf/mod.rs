//! The kernel half, from user space: load, attach, read, count.

mod btf;
mod hooks;
mod layout;
mod load;
mod reader;
mod runs;
mod skips;
mod status;
mod tracefs;
mod watch;

pub(crate) use hooks::{HOOKS, HookSet, Row};
pub(crate) use load::{Kernel, load};
pub(crate) use reader::Reader;
pub(crate) use skips::{How, Missed, Skips};
pub(crate) use status::{HookState, HookStatus};
pub(crate) use watch::Watch;

/// Why no program can be loaded here at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsupported {
    /// A capability is missing: nothing else could be looked at either.
    #[error("{0}")]
    Privilege(String),
    /// The kernel lacks what the programs need: everything else still works.
    #[error("{0}")]
    Kernel(String),
}
