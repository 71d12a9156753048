//! Times of the engine that can be configured.

use serde::{Deserialize, Serialize};

use crate::limits::SECOND;

/// Times of the verdict contract (`docs/verdicts.md` §4); nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Config {
    /// How long an agent without any proof reports `Learning`. Default 60 s.
    pub start_grace_ns: u64,
    /// How long a failure that is retried must last before a condition goes False. Default 5 s.
    pub fail_hold_ns: u64,
    /// How long a side must be clean before its condition goes True again. Default 10 s.
    pub clean_ns: u64,
    /// A condition's status changes at most once in this time. Default 10 s.
    pub min_change_ns: u64,
    /// How long any plugin may run; replaces the limits of the individual plugins. Default none.
    pub plugin_limit_ns: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            start_grace_ns: 60 * SECOND,
            fail_hold_ns: 5 * SECOND,
            clean_ns: 10 * SECOND,
            min_change_ns: 10 * SECOND,
            plugin_limit_ns: None,
        }
    }
}
