//! Lines of the timeline about the node itself: namespaces, links, limits, modules, clock.

use std::io::Write;

use probe_engine::{BootTime, Limit, NameState, Observation, Ovs, OvsDatabase, Sandbox, errno_words};

use super::layout::{BAD, FAINT, GOOD, UNSURE, took};
use super::trace::Timeline;

impl<W: Write> Timeline<W> {
    /// Prints at most one line.
    pub(super) fn of_node(&mut self, at: BootTime, observation: &Observation) {
        match observation {
            Observation::Netns(netns) if self.ready => {
                let verb = if netns.up { "created by" } else { "removed, observed in" };
                let who = format!("{verb} {}[{}]", netns.process.name, netns.process.pid);
                self.line(at, "netns", &format!("net:[{}]", netns.inum), FAINT, &who);
            }
            Observation::NetnsName(name) => {
                let state = match name.state {
                    NameState::Bound => "bound",
                    NameState::Unbound => "unbound",
                    NameState::Stale => "stale: a file without a namespace",
                };
                let style = if name.state == NameState::Stale { UNSURE } else { FAINT };
                self.line(at, "netns", &name.path, style, state);
            }
            Observation::Sandbox(sandbox) => self.sandbox(at, sandbox),
            // Most hosts do not run Open vSwitch.
            Observation::Ovs(ovs) if *ovs != Ovs::default() => self.ovs(at, ovs),
            Observation::OvsPort(port) => {
                let end = if port.up { "port added" } else { "port removed" };
                self.line(at, "ovs", &format!("{} {}", port.name, port.port_kind), FAINT, end);
            }
            Observation::OvsUpcalls(upcalls) if upcalls.lost > 0 => {
                self.line(at, "ovs", &upcalls.datapath, BAD, &format!("{} upcalls lost", upcalls.lost));
            }
            Observation::Link(link) if self.ready => {
                let state = match (link.present, link.up) {
                    (false, _) if link.moved_to.is_some() => "moved to another namespace",
                    (false, _) => "removed",
                    (true, true) => "up",
                    (true, false) => "down",
                };
                let place = match link.netns {
                    None => String::new(),
                    Some(0) => " in another namespace".to_owned(),
                    Some(inum) => format!(" in net:[{inum}]"),
                };
                self.line(at, "link", &format!("{} {}{place}", link.name, link.link_kind), FAINT, state);
            }
            Observation::NetlinkError(error) => {
                let what = error.process.with_pid();
                self.line(at, "link", &what, UNSURE, &format!("refused {}", error.words()));
            }
            Observation::RouteGone(route) if route.back => {
                self.line(at, "link", &route.words(), GOOD, "added again");
            }
            // A removal without a process follows from one that was printed with its process.
            Observation::RouteGone(route) if route.process.pid == 0 => {}
            Observation::RouteGone(route) => {
                let what = route.process.with_pid();
                self.line(at, "link", &what, UNSURE, &format!("removed {}", route.words()));
            }
            Observation::Limit(limit) => self.limit(at, limit),
            Observation::LimitHit(hit) => {
                let what = hit.process.with_pid();
                self.line(at, "limit", &what, BAD, &hit.words());
            }
            Observation::Stuck(stuck) => {
                let who = stuck.process.with_pid();
                match stuck.how {
                    Some(how) => self.line(at, "proc", &who, BAD, how.words()),
                    None => self.line(at, "proc", &who, GOOD, "makes progress again"),
                }
            }
            Observation::CgroupDrivers(drivers) => {
                let agree = drivers.kubelet == drivers.runtime;
                let what = format!("kubelet {}, runtime {}", drivers.kubelet, drivers.runtime);
                self.line(at, "proc", "cgroup drivers", if agree { FAINT } else { BAD }, &what);
            }
            Observation::Leases(leases) => {
                let what = format!("{} leases for {} namespaces", leases.held, leases.namespaces);
                self.line(at, "cni", &leases.dir, FAINT, &what);
            }
            Observation::PluginFile(file) => {
                let what = file.process.with_pid();
                let how = if file.write { "cannot replace" } else { "cannot execute" };
                let how = format!("{how} {}: {}", file.plugin, errno_words(file.errno));
                self.line(at, "cni", &what, BAD, &how);
            }
            Observation::PacketsDropped(dropped) => {
                let what = format!("{} packets on {}", dropped.count, dropped.device);
                self.line(at, "link", &what, UNSURE, &format!("dropped: {}", dropped.reason));
            }
            Observation::Credential(credential) => {
                let style =
                    if credential.expires_in_s < 0 || credential.valid_in_s > 0 { BAD } else { FAINT };
                let left = format!("expires in {} h", credential.expires_in_s / 3600);
                self.line(at, "cred", &credential.file, style, &left);
            }
            Observation::ClockStep { by_ms } => {
                self.line(at, "clock", "the wall clock was set", UNSURE, &format!("by {by_ms} ms"));
            }
            Observation::ModuleMissing(missing) => {
                let what = format!("module {}", missing.name);
                let came = if missing.came { "loaded after a delay" } else { "not loaded" };
                let who = format!("requested by {}[{}], {came}", missing.process.name, missing.process.pid);
                self.line(at, "link", &what, if missing.came { FAINT } else { BAD }, &who);
            }
            _ => {}
        }
    }

    fn limit(&mut self, at: BootTime, limit: &Limit) {
        let style = if limit.is_full() { BAD } else { FAINT };
        let what = format!("{} {}", limit.what, limit.subject);
        self.line(at, "limit", &what, style, &format!("{} of {}", limit.used, limit.max));
    }

    fn ovs(&mut self, at: BootTime, ovs: &Ovs) {
        let module = if ovs.module { "module loaded" } else { "no module" };
        let what = format!("{module}, datapaths: {}", list(&ovs.datapaths));
        match &ovs.database {
            None => self.line(at, "ovs", &what, FAINT, "no database"),
            Some(OvsDatabase { error: Some(error), .. }) => {
                self.line(at, "ovs", &what, BAD, &format!("database: {error}"));
            }
            Some(database) => {
                let behind = if database.behind { ", changes pending" } else { "" };
                self.line(at, "ovs", &what, FAINT, &format!("bridges: {}{behind}", list(&database.bridges)));
                for failed in &database.failed {
                    self.line(
                        at,
                        "ovs",
                        &format!("{} {}", failed.name, failed.port_kind),
                        UNSURE,
                        &failed.error,
                    );
                }
            }
        }
    }

    /// Prints the steps of a sandbox on one line: `shop/web-1: made 0 ms, ADD bridge ▸ host-local 3 ms (29 ms), …`.
    fn sandbox(&mut self, at: BootTime, sandbox: &Sandbox) {
        let who = sandbox
            .pod
            .as_ref()
            .map_or_else(|| format!("sandbox {:.12}", sandbox.container_id), |pod| format!("sandbox {pod}"));
        let steps = sandbox.steps.iter().map(|step| {
            let failed = if step.ok { "" } else { " failed" };
            let what = if step.what.is_empty() { String::new() } else { format!(" {}", step.what) };
            format!("{}{what}{failed} at {}", step.step.words(), took(step.after_ns))
        });
        let cleaned = if sandbox.added { "" } else { "DEL without an ADD: " };
        let story = format!("{cleaned}{}", steps.collect::<Vec<_>>().join(", "));
        self.line(at, "cni", &who, if sandbox.ok { FAINT } else { UNSURE }, &story);
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
