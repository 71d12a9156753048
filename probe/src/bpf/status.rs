//! Outcome of loading and attaching each hook.

use probe_common::Hook;

/// State of one row of the hook table after loading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HookStatus {
    /// The hook.
    pub(crate) hook: Hook,
    /// Whether and how it is attached.
    pub(crate) state: HookState,
}

impl HookStatus {
    /// Returns whether the hook reports removed routes, so that no fallback is needed.
    pub(crate) fn reports_routes(&self) -> bool {
        self.hook == Hook::Rtnetlink && matches!(self.state, HookState::Attached { is_fallback: false, .. })
    }

    /// Returns whether the hook is attached.
    pub(crate) fn attached(&self) -> bool {
        matches!(self.state, HookState::Attached { .. })
    }
}

/// State of a hook, found by trying to attach it, never by comparing kernel versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HookState {
    /// A program is attached.
    Attached {
        /// What it is attached to: `tp_btf/…`, `fentry/…`, `fexit/…`, `tracepoint/syscalls/…`.
        source: String,
        /// The program's name in the object.
        program: &'static str,
        /// The program is a fallback: a better one is not available on this kernel.
        is_fallback: bool,
        /// Limitation against the preferred program: the signal, and an explanation.
        limitation: Option<(&'static str, &'static str)>,
    },
    /// The kernel refused all programs of the hook.
    Missing {
        /// The kernel's errors, on one line.
        why: String,
        /// What is not observed without the hook, and the fallback.
        cost: &'static str,
    },
}
