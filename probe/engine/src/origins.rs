//! The origin of a root cause: the verdict's `because`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::facts::Facts;
use crate::limits;
use crate::memory::Seen;
use crate::observation::{BootTime, ProcessClass};
use crate::reason::Reason;
use crate::rules::{self, Fault};
use crate::verdict::Finding;

/// Returns the origins of `root`, nearest first.
pub(crate) fn of(root: &Fault, facts: &Facts) -> Vec<Finding> {
    let origin = match root.finding.reason {
        Reason::APIServerDown | Reason::APIServerUnhealthy => etcd(facts),
        Reason::CNIConfigMissing => rules::displaced(facts),
        _ => None,
    };
    origin.into_iter().collect()
}

/// Returns the exit of this host's etcd: the API server cannot run without it.
pub(crate) fn etcd(facts: &Facts) -> Option<Finding> {
    let lives = facts.lives_of(|_, class| class == ProcessClass::Etcd);
    let ended = lives.filter_map(|(name, life)| Some((name, life, life.ended.as_ref()?)));
    // Just after a restart of etcd the API server is not ready yet.
    let away =
        ended.filter(|(_, life, (at, _))| life.pids.is_empty() || facts.now.since(*at) < limits::CRASH_REST);
    let (name, life, (at, event)) = away.max_by_key(|(_, _, (at, _))| *at)?;
    let how = event.how()?;
    let mut message = if life.loops(facts.now) {
        format!("{name} is crash-looping: it {how}")
    } else {
        format!("{name} {how}")
    };
    let full = facts.full.values().find(|full| matches!(full.value.what.as_str(), "disk" | "inodes"));
    if let Some(Seen { value: limit, .. }) = full {
        let free = if limit.what == "inodes" { "inodes" } else { "space" };
        message.push_str(&format!("; the file system of {} has no free {free}", limit.subject));
    }
    Some(finding(Reason::EtcdDown, name, message, *at))
}

fn finding(reason: Reason, subject: &str, message: String, since: BootTime) -> Finding {
    let subject = limits::cut(String::from(subject), limits::SUBJECT);
    Finding { reason, subject, message: limits::cut(message, limits::MESSAGE), since }
}
