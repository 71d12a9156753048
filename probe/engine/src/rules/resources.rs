//! Full tables and disks, reached limits, expired credentials, missing kernel modules.

use alloc::format;
use alloc::vec::Vec;

use super::Fault;
use crate::facts::{Facts, ReadCredential};
use crate::limits::SECOND;
use crate::memory::{Seen, UNTIL_CHANGED};
use crate::observation::{BootTime, CONNTRACK, Limit, ProcessClass};
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    let mut faults = Vec::new();
    faults.extend(credentials(facts));
    for Seen { value: hit, since, .. } in facts.hits.values() {
        let message = format!("{} {}", hit.process.with_pid(), hit.words());
        faults.push(Fault::new(Reason::RuntimeLimitExceeded, hit.what.as_str(), message, *since));
    }
    for Seen { value: limit, since, .. } in facts.full.values() {
        if limit.what == CONNTRACK {
            let message = format!(
                "the connection tracking table is full: {} of {} entries (net.netfilter.nf_conntrack_max); new \
                 connections are dropped, established ones continue",
                limit.used, limit.max
            );
            let fault = Fault::new(Reason::ConntrackExhausted, "nf_conntrack", message, *since);
            faults.push(fault.state());
        }
    }
    faults.extend(space(facts));
    faults.extend(inotify(facts));
    for Seen { value: missing, since, .. } in facts.modules.values() {
        let message = format!(
            "kernel module {} is not available: the kernel requested it for {}",
            missing.name,
            missing.process.with_pid()
        );
        faults.push(Fault::new(Reason::KernelModuleMissing, missing.name.as_str(), message, *since));
    }
    faults
}

/// Judges file systems without space for what runtime, kubelet and IPAM write: without space no sandbox is created.
fn space(facts: &Facts) -> Vec<Fault> {
    let full = facts.full.values().filter(|Seen { value: limit, .. }| {
        let is_space = matches!(limit.what.as_str(), "disk" | "inodes");
        is_space && limit.class.is_some_and(|class| class != ProcessClass::Etcd)
    });
    let fault = |Seen { value: limit, since, .. }: &Seen<Limit, UNTIL_CHANGED>| {
        let what = if limit.what == "inodes" { "inodes" } else { "bytes" };
        let message = format!(
            "the file system of {} is full: {} of {} {what} used; the runtime cannot create sandboxes",
            limit.subject, limit.used, limit.max
        );
        Fault::new(Reason::RuntimeLimitExceeded, limit.subject.as_str(), message, *since)
    };
    full.map(fault).collect()
}

/// Judges the limit of inotify instances. A reached limit does not affect processes that have an instance: it is a
/// fault only while the kubelet or the runtime fails, which need one to start.
fn inotify(facts: &Facts) -> Option<Fault> {
    let Seen { value: limit, since, .. } = facts.full.values().find(|known| known.value.what == "inotify")?;
    let needs = |class| matches!(class, ProcessClass::Kubelet | ProcessClass::Runtime);
    let fails = facts.lives_of(|_, class| needs(class)).any(|(_, life)| life.loops(facts.now));
    if facts.hits.contains_key("inotify") || !fails && facts.dead_endpoint().is_none() {
        return None;
    }
    let message = format!(
        "root's processes use {} of {} inotify instances (fs.inotify.max_user_instances); kubelet and runtime need one \
         to start",
        limit.used, limit.max
    );
    Some(Fault::new(Reason::RuntimeLimitExceeded, "inotify", message, *since))
}

/// Judges credentials by the boot clock from the time when they were read: a credential expires without a change of its
/// file.
fn credentials(facts: &Facts) -> Vec<Fault> {
    let seconds = |credential: i64, at: BootTime| {
        let passed = i64::try_from(facts.now.since(at) / SECOND).unwrap_or(i64::MAX);
        credential.saturating_sub(passed)
    };
    let mut faults = Vec::new();
    for ReadCredential { credential, at } in facts.credentials.values() {
        let (owner, file) = (&credential.owner, &credential.file);
        let message = if seconds(credential.valid_in_s, *at) > 0 {
            format!("the credential of {owner} in {file} is not valid yet: this host's clock may be wrong")
        } else if seconds(credential.expires_in_s, *at) <= 0 {
            format!("the credential of {owner} in {file} has expired")
        } else {
            continue;
        };
        faults.push(Fault::new(Reason::CredentialExpired, file.as_str(), message, *at).state());
    }
    faults
}
