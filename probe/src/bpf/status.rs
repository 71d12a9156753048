//! What became of each hook.

use probe_common::Hook;

/// One row of the hook table after loading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HookStatus {
    /// Which one.
    pub(crate) hook: Hook,
    /// What became of it.
    pub(crate) state: HookState,
}

/// Probed by trying, never by reading a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HookState {
    /// In use.
    Attached,
    /// The kernel refused it.
    Missing {
        /// One line: the kernel's words.
        why: String,
        /// What is not seen without it, and what stands in.
        cost: &'static str,
    },
}
