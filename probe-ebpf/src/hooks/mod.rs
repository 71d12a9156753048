//! One file per family.

mod connect;
mod drops;
mod exec;
mod exit;
mod files;
mod limits;
mod netns;
mod rtnetlink;
mod stdout;
mod tcp;

/// Runs the body of a hook and counts the reason when it could not report.
macro_rules! run {
    ($hook:expr, $body:expr) => {{
        if let Err(skip) = $body {
            crate::skip::count($hook, skip);
        }
        0
    }};
}
use run;

/// Where `ret` stands in every `sys_exit_*` record.
const SYS_EXIT_RET: usize = 16;
