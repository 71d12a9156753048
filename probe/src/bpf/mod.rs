//! User-space side of the kernel programs: loads and attaches them, reads their events and counters.

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
pub(crate) use skips::{How, Skips, Unreported};
pub(crate) use status::{HookState, HookStatus};
pub(crate) use watch::Watch;

/// Why no kernel program can be loaded on this host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsupported {
    /// The build made a stub in place of the programs: see `build.rs`.
    #[error("built without its kernel programs: run `cargo xtask build`")]
    Stub,
    /// A capability is missing, without which the agent cannot inspect the node by other means either.
    #[error("{0}")]
    Privilege(String),
    /// The kernel lacks a feature that the programs need. Everything else still works.
    #[error("{0}")]
    Kernel(String),
}
