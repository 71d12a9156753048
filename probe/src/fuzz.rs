//! Doors for `tests/fuzz`: everything that reads bytes from outside, each by itself. No other build has them.
//!
//! Each takes any bytes, must not panic, and checks what it can of the answer: nothing that a terminal would
//! obey, nothing longer than it may be.

use crate::commands::replay::read;
pub use crate::enrich::fuzz::{plugin_output, record};
pub use crate::node::fuzz::{cni_config, cri, dns, kubeconfig, netlink, node_config, ovsdb};

use probe_engine::{Engine, Line, RecordingHeader};

use crate::text::{HIDDEN, clean, redact};

/// A recording, as `probe replay` reads it: every line that is one, through the engine.
pub fn recording(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let header = lines.next().and_then(|line| read::<RecordingHeader>(line).ok());
    let Some(header) = header else { return };
    let mut engine = Engine::new(header.config, header.started);
    for line in lines.filter_map(|line| read::<Line>(line).ok()) {
        // A deadline may be asked for again and again, but never one that has passed.
        for _ in 0..64 {
            let Some(deadline) = engine.next_deadline().filter(|deadline| *deadline < line.at) else { break };
            engine.tick(deadline);
        }
        engine.observe(line.at, line.observation);
        while engine.poll_effect().is_some() {}
        let report = engine.report();
        for said in [&report.verdict].into_iter().chain(&report.because).chain(&report.consequences) {
            assert!(said.message.len() <= 512 && is_clean(&said.message), "{:?}", said.message);
        }
    }
}

/// A text from outside, redacted once and twice: it does not become much longer.
pub fn text(bytes: &[u8]) {
    let shown = clean(bytes, 1 << 20);
    assert!(is_clean(&shown), "{shown:?}");
    let once = redact(bytes);
    assert!(once.len() <= bytes.len() * 4 + HIDDEN.len());
    assert!(redact(&once).len() <= once.len() * 4 + HIDDEN.len());
}

/// Nothing that a terminal would obey.
pub(crate) fn is_clean(text: &str) -> bool {
    !text.chars().any(char::is_control)
}
