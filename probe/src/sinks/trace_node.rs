//! The timeline's lines on the node itself: namespaces, links, limits, modules, clock.

use std::io::Write;

use probe_engine::{Mono, Observation, refusal};

use super::layout::{BAD, FAINT, UNSURE};
use super::trace::Timeline;

impl<W: Write> Timeline<W> {
    /// One line, or none.
    pub(super) fn of_node(&mut self, at: Mono, observation: &Observation) {
        match observation {
            Observation::Netns(netns) if self.ready => {
                let verb = if netns.up { "created by" } else { "ended, seen by" };
                let who = format!("{verb} {}[{}]", netns.process.name, netns.process.pid);
                self.line(at, "netns", &format!("net:[{}]", netns.inum), FAINT, &who);
            }
            Observation::Link(link) if self.ready => {
                let state = match (link.present, link.up) {
                    (false, _) => "gone",
                    (true, true) => "up",
                    (true, false) => "down",
                };
                self.line(at, "link", &format!("{} {}", link.name, link.link_kind), FAINT, state);
            }
            Observation::NetlinkError(error) => {
                let what = format!("{}[{}]", error.process.name, error.process.pid);
                self.line(at, "link", &what, UNSURE, &format!("refused {}", refusal(error)));
            }
            Observation::RouteGone(gone) => {
                let what = format!("{}[{}]", gone.process.name, gone.process.pid);
                let kind = if gone.rule { "rule from" } else { "route to" };
                self.line(at, "link", &what, UNSURE, &format!("removed the {kind} {}", gone.object));
            }
            Observation::Limit(limit) => {
                let style = if limit.used >= limit.max { BAD } else { FAINT };
                let what = format!("{} {}", limit.what, limit.subject);
                self.line(at, "limit", &what, style, &format!("{} of {}", limit.used, limit.max));
            }
            Observation::LimitHit(hit) => {
                let what = format!("{}[{}]", hit.process.name, hit.process.pid);
                self.line(at, "limit", &what, BAD, &format!("got no {}: errno {}", hit.what, hit.errno));
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
                let who =
                    format!("asked for by {}[{}], did not come", missing.process.name, missing.process.pid);
                self.line(at, "link", &what, BAD, &who);
            }
            _ => {}
        }
    }
}
