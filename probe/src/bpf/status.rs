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

impl HookStatus {
    /// Tells who takes routes away: nothing else has to.
    pub(crate) fn sees_routes(&self) -> bool {
        self.hook == Hook::Rtnetlink && matches!(self.state, HookState::Attached { stand_in: false, .. })
    }

    /// In use.
    pub(crate) fn attached(&self) -> bool {
        matches!(self.state, HookState::Attached { .. })
    }
}

/// Probed by trying, never by reading a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HookState {
    /// In use.
    Attached {
        /// How the kernel is watched: `tp_btf/…`, `fentry/…`, `fexit/…`, `tracepoint/syscalls/…`.
        source: String,
        /// The program's name in the object.
        program: &'static str,
        /// A better one is not there.
        stand_in: bool,
        /// What that one sees and this one does not: the signal, and why.
        less: Option<(&'static str, &'static str)>,
    },
    /// The kernel refused it.
    Missing {
        /// One line: the kernel's words.
        why: String,
        /// What is not seen without it, and what stands in.
        cost: &'static str,
    },
}
