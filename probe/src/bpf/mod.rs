//! The kernel half, from user space: load, attach, read, count.

mod btf;
mod hooks;
mod layout;
mod load;
mod reader;
mod skips;
mod status;
mod tracefs;
mod watch;

pub(crate) use hooks::HOOKS;
pub(crate) use load::{Kernel, load};
pub(crate) use reader::Reader;
pub(crate) use skips::Skips;
pub(crate) use status::{HookState, HookStatus};
pub(crate) use watch::Watch;

/// Why no program can be loaded here at all: no privilege, or a kernel without what they need.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unsupported(pub(crate) String);
