//! Entry points of this module for `crate::fuzz`.

use probe_common::{Event, decode};
use probe_engine::Actor;

use super::{cni, rtnetlink};
use crate::fuzz::is_clean;

/// Decodes a record of the ring buffer, and reads the texts in it.
pub fn record(bytes: &[u8]) {
    match decode(bytes) {
        Ok(Event::Rtnetlink(record)) => {
            let error = rtnetlink::refused(&record, Actor::default(), None);
            assert!(is_clean(&error.object) && is_clean(&error.text));
            let _ = rtnetlink::removed(&record, Actor::default());
        }
        Ok(event) => drop((event.hook(), event.at_ns())),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Parses the output of a plugin and its variables.
pub fn plugin_output(bytes: &[u8]) {
    if let Some(error) = cni::error_in(bytes) {
        assert!(is_clean(&error.msg) && is_clean(&error.details));
        assert!(error.msg.len() <= cni::MESSAGE && error.details.len() <= cni::MESSAGE);
    }
    if let Some(pod) = cni::pod(bytes) {
        assert!(is_clean(&pod.name) && is_clean(&pod.namespace) && is_clean(&pod.uid));
    }
    let (path, cni_path) = bytes.split_at(bytes.len() / 2);
    let _ = cni::in_cni_path(path, cni_path);
}
