//! What the runtime finds where it looks for a network configuration.
//!
//! containerd takes the first file by name and stops at a bad one; CRI-O skips bad ones.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Fault;
use crate::evidence::Facts;
use crate::observation::{CniConfig, ConfContent, ConfFile, Runtime};
use crate::reason::{Reason, Side};

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let Some((config, since)) = &facts.config else { return Vec::new() };
    if let Some(error) = &config.dir_error {
        let message = format!("{} cannot be read: {error}", config.dir);
        return Vec::from([
            Fault::new(Reason::CNIConfigInvalid, config.dir.as_str(), message, *since).state()
        ]);
    }
    let Some(first) = config.files.first() else {
        let there =
            if config.dir_missing { "does not exist" } else { "holds no .conf, .conflist or .json file" };
        let message = format!("{} {there}: the CNI's agent has not written its configuration", config.dir);
        let fault = Fault::new(Reason::CNIConfigMissing, config.dir.as_str(), message, *since).state();
        // Agents write it once they have reached the API server.
        return Vec::from([fault.may_come_from(Side::Api)]);
    };
    if winner(config, facts.host.runtime).is_some() {
        return Vec::new();
    }
    let path = path(config, first);
    let message =
        format!("{path} is what the runtime reads first and it is no network configuration: {}", why(first));
    Vec::from([Fault::new(Reason::CNIConfigInvalid, path, message, *since).state()])
}

/// The file that the runtime uses, with its plugins.
pub(super) fn winner(config: &CniConfig, runtime: Runtime) -> Option<(&ConfFile, &[String])> {
    let mut files = config.files.iter();
    match runtime {
        Runtime::CriO => files.find_map(network),
        Runtime::Containerd | Runtime::Unknown => files.next().and_then(network),
    }
}

fn network(file: &ConfFile) -> Option<(&ConfFile, &[String])> {
    match &file.content {
        ConfContent::Network { plugins, .. } => Some((file, plugins)),
        _ => None,
    }
}

pub(super) fn path(config: &CniConfig, file: &ConfFile) -> String {
    format!("{}/{}", config.dir.trim_end_matches('/'), file.name)
}

fn why(file: &ConfFile) -> &str {
    match &file.content {
        ConfContent::Invalid { why } | ConfContent::Unreadable { why } => why,
        ConfContent::Network { .. } => "",
    }
}
