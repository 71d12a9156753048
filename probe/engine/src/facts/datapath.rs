//! Links, routes and packets: what the kernel refuses, drops and forwards.

use alloc::format;
use alloc::vec::Vec;

use super::Facts;
use crate::errno::EADDRINUSE;
use crate::limits;
use crate::memory::{Memory, Seen};
use crate::observation::{
    BootTime, Link, NetlinkError, Ovs, OvsUpcalls, PacketsDropped, ProcessClass, RouteGone,
};

/// Changes requested from ovs-vswitchd that are still pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Behind {
    pub(crate) since: BootTime,
}

impl Memory for Behind {
    fn deadlines(&self, _now: BootTime, at: &mut dyn FnMut(BootTime)) {
        at(self.since.plus(limits::BEHIND));
    }
}

/// Errors of rtnetlink(7) as strerror(3) and Go print them, in lower case.
pub(crate) const ERRNOS: &[(u32, &str)] = &[
    (1, "operation not permitted"),
    (16, "device or resource busy"),
    (17, "file exists"),
    (19, "no such device"),
    (22, "invalid argument"),
    (34, "numerical result out of range"),
    (95, "operation not supported"),
    (97, "address family not supported"),
    (98, "address already in use"),
    (99, "cannot assign requested address"),
    (101, "network is unreachable"),
    (113, "no route to host"),
];

/// Returns whether another link has the same VNI. The text is that of drivers/net/vxlan/vxlan_core.c; a link of the same name
/// is refused without it.
pub(crate) fn is_taken_vni(error: &NetlinkError) -> bool {
    error.text.contains("VNI already exists")
}

impl Facts {
    pub(super) fn netlink_error(&mut self, at: BootTime, error: &NetlinkError) {
        // Only requests of plugins, agents and runtimes concern the node.
        if error.cni || error.class.is_some() {
            let who = &error.process;
            self.line(at, "link.error", format!("{}: the kernel refused {}", who.with_pid(), error.words()));
        }
        // Agents request links that exist already and kinds of links that a kernel may lack: ovs-vswitchd does at each start.
        // A port or a VNI of another link stays taken.
        let agent = error.class == Some(ProcessClass::CniAgent);
        let is_port = error.errno == EADDRINUSE && matches!(error.request.as_str(), "newlink" | "setlink");
        if agent && (is_port || is_taken_vni(error)) {
            self.refused_links.see(error.object.clone(), error.clone(), at);
        }
    }

    /// A link that is up was created after all. Returns whether it had been refused.
    pub(super) fn link(&mut self, link: &Link) -> bool {
        if self.refused_links.is_empty() || !(link.present && link.up && link.netns.is_none()) {
            return false;
        }
        let by_name = self.refused_links.remove(&link.name);
        let by_index = self.refused_links.remove(&format!("#{}", link.index));
        by_name.or(by_index).is_some()
    }

    pub(super) fn route_gone(&mut self, at: BootTime, gone: &RouteGone) {
        let key = (gone.rule, gone.object.clone());
        if gone.back {
            self.routes_gone.remove(&key);
            return;
        }
        let who = &gone.process;
        if who.pid != 0 {
            self.line(at, "route.gone", format!("{} removed {}", who.with_pid(), gone.words()));
        }
        let removed = || Seen::new(gone.clone(), at);
        let Some(known) = self.routes_gone.get_or_insert_with(key, removed) else { return };
        // One source reports the process, another one the device.
        if known.value.process.pid == 0 {
            known.value.process.clone_from(who);
        }
        if known.value.device.is_empty() {
            known.value.device.clone_from(&gone.device);
        }
    }

    pub(super) fn ovs(&mut self, at: BootTime, ovs: Ovs) {
        let behind = ovs.database.as_ref().is_some_and(|database| database.behind);
        self.behind = behind.then(|| self.behind.unwrap_or(Behind { since: at }));
        let known = self.ovs.as_ref().and_then(|(known, _)| known.database.as_ref());
        let known: Vec<_> = known.into_iter().flat_map(|known| known.failed.clone()).collect();
        let failed = ovs.database.iter().flat_map(|database| &database.failed);
        for failed in failed.filter(|failed| !known.contains(failed)) {
            self.line(at, "ovs.interface", format!("{}: {}", failed.name, failed.error));
        }
        if let Some(error) = ovs.database.as_ref().and_then(|database| database.error.as_ref()) {
            self.line(at, "ovs.database", error.clone());
        }
        self.ovs = Some((ovs, at));
    }

    pub(super) fn upcalls(&mut self, at: BootTime, upcalls: OvsUpcalls) {
        if upcalls.lost == 0 {
            self.upcalls_lost = None;
            return;
        }
        let since = self.upcalls_lost.as_ref().map_or(at, |(_, since)| *since);
        if self.upcalls_lost.is_none() {
            let text = format!("{} upcalls of the datapath {} lost", upcalls.lost, upcalls.datapath);
            self.line(at, "ovs.upcall", text);
        }
        self.upcalls_lost = Some((upcalls, since));
    }

    pub(super) fn packets_dropped(&mut self, at: BootTime, dropped: PacketsDropped) {
        if !self.dropping.contains_key(&dropped.device) {
            let PacketsDropped { reason, device, count } = &dropped;
            self.line(at, "packet.drop", format!("{count} packets dropped on {device}: {reason}"));
        }
        self.dropping.see(dropped.device.clone(), dropped, at);
    }
}
