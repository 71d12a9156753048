//! Entry points for `tests/fuzz`: one for each parser of external input. They exist only in fuzzing builds.
//!
//! Each accepts any bytes, must not panic, and checks the result as far as possible: no control characters, and no text
//! above its length limit.

use crate::commands::replay::read;
pub use crate::enrich::fuzz::{plugin_output, record};
pub use crate::node::fuzz::{cni_config, cri, dns, kubeconfig, netlink, node_config, ovsdb};

use probe_engine::{Engine, Line, RecordingHeader};

use crate::text::{HIDDEN, clean, redact};

/// Parses a recording as `probe replay` does, and passes every valid line through the engine.
pub fn recording(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let header = lines.next().and_then(|line| read::<RecordingHeader>(line).ok());
    let Some(header) = header else { return };
    let mut engine = Engine::new(header.config, header.started);
    for line in lines.filter_map(|line| read::<Line>(line).ok()) {
        // The engine may set any number of deadlines, but never one that has passed.
        for _ in 0..64 {
            let Some(deadline) = engine.next_deadline().filter(|deadline| *deadline < line.at) else { break };
            engine.tick(deadline);
        }
        engine.observe(line.at, line.observation);
        while engine.poll_effect().is_some() {}
        let report = engine.report();
        for verdict in [&report.verdict].into_iter().chain(&report.because).chain(&report.consequences) {
            assert!(verdict.message.len() <= 512 && is_clean(&verdict.message), "{:?}", verdict.message);
        }
    }
}

/// Redacts external text once and twice: it must not become much longer.
pub fn text(bytes: &[u8]) {
    let shown = clean(bytes, 1 << 20);
    assert!(is_clean(&shown), "{shown:?}");
    let once = redact(bytes);
    assert!(once.len() <= bytes.len() * 4 + HIDDEN.len());
    assert!(redact(&once).len() <= once.len() * 4 + HIDDEN.len());
}

/// Returns whether a text has no control characters, which a terminal would interpret.
pub(crate) fn is_clean(text: &str) -> bool {
    !text.chars().any(char::is_control)
}
