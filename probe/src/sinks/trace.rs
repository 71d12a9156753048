//! The live timeline: one line per operation, the verdict as it changes.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use anstyle::Style;
use probe_engine::{
    Access, Answer, ClientRole, CniEnd, Connect, Connection, Effect, Finding, Mono, Observation, Outcome,
    Process, ProcessEvent, Report, SocketConnect, Status, TlsFailure, http_status, socket_errno,
};

use super::Sink;
use super::layout::{BAD, FAINT, GOOD, UNSURE, paint, shorten, took, wrap};
use super::topic::Filter;
use crate::clock::Wall;
use crate::report::time_of_day;

/// Width of the time and the topic: `03:04:05.678  api    `.
const MARGIN: usize = 21;

/// Writes for people.
pub(crate) struct Timeline<W> {
    out: W,
    wall: Wall,
    width: usize,
    filter: Filter,
    own: Vec<IpAddr>,
    /// How the agent's own questions ended last: only a change is worth a line.
    asked: BTreeMap<SocketAddr, Outcome>,
    pub(super) ready: bool,
    /// What the container runtime answered last: only a change is worth a line.
    runtime: String,
    said: Option<Finding>,
    /// The first failure of the output; the command ends with it.
    pub(crate) broken: Option<std::io::Error>,
}

impl<W: Write> Timeline<W> {
    /// Lines of at most `width` characters to `out`.
    pub(crate) fn new(out: W, wall: Wall, width: usize, filter: Filter) -> Self {
        Self {
            out,
            wall,
            width,
            filter,
            own: Vec::new(),
            asked: BTreeMap::new(),
            ready: false,
            runtime: String::new(),
            said: None,
            broken: None,
        }
    }

    /// One line: what happened, then how it ended, in its colour.
    pub(super) fn line(&mut self, at: Mono, topic: &str, what: &str, style: Style, end: &str) {
        let room = self.width.saturating_sub(MARGIN);
        let time = time_of_day(self.wall, at);
        let whole = format!("{what}  {end}");
        let mut text = String::new();
        if whole.chars().count() <= room {
            text.push_str(&format!("{} {topic:<6} {what}  {}\n", paint(FAINT, &time), paint(style, end)));
        } else {
            text.push_str(&format!("{} {topic:<6} {}\n", paint(FAINT, &time), shorten(what, room)));
            for part in wrap(end, room.saturating_sub(2)) {
                text.push_str(&format!("{:MARGIN$}  {}\n", "", paint(style, &part)));
            }
        }
        self.write(&text);
    }

    fn write(&mut self, text: &str) {
        let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        if let (Err(error), None) = (written, &self.broken) {
            self.broken = Some(error);
        }
    }

    fn connect(&mut self, at: Mono, connect: &Connect) {
        let outcome = Outcome::of(connect, &self.own);
        if connect.role == ClientRole::Probe && self.asked.insert(connect.to, outcome) == Some(outcome) {
            return;
        }
        let style = if outcome == Outcome::Ok {
            GOOD
        } else if outcome.is_failure() {
            BAD
        } else {
            FAINT
        };
        let elsewhere = if connect.host_netns { "" } else { " (in a pod)" };
        let via = connect.via.map(|via| format!(" (sent to {via})")).unwrap_or_default();
        let what =
            format!("{}[{}]{elsewhere} → {}{via}", connect.client.name, connect.client.pid, connect.to);
        let syn = match connect.end.retransmits {
            0 => String::new(),
            again => format!(", {} SYN", again + 1),
        };
        let from = connect.end.icmp.and_then(|icmp| icmp.from).map(|from| format!(", ICMP from {from}"));
        let end = format!("{}{syn}{}  {}", outcome.words(), from.unwrap_or_default(), took(connect.took_ns));
        self.line(at, "api", &what, style, &end);
    }

    fn answer(&mut self, at: Mono, answer: &Answer) {
        let (style, how) = match (&answer.tls, answer.status) {
            (Some(TlsFailure::Closed), _) => (BAD, "ends the connection before an answer".to_owned()),
            (Some(TlsFailure::Silent), _) => (BAD, "is silent after the handshake of TCP".to_owned()),
            (Some(TlsFailure::Alert { alert }), _) => (BAD, format!("TLS alert {alert}")),
            (Some(TlsFailure::Proxy { status }), _) => (BAD, format!("refuses CONNECT: {status}")),
            (Some(TlsFailure::Other { why }), _) => (BAD, format!("TLS: {why}")),
            (None, Some(status @ 500..)) => (BAD, format!("/readyz {status} {}", answer.failing.join(", "))),
            (None, status) => (GOOD, format!("/readyz {}", status.unwrap_or(0))),
        };
        let what = format!("asked {}", answer.to);
        self.line(at, "api", &what, style, &how);
        if let Some(untrusted) = &answer.untrusted {
            self.line(at, "api", &what, BAD, &format!("not issued by the CAs in {}", untrusted.file));
        }
        if let Some(kubelet) = &answer.kubelet {
            let style = if kubelet.accepts() { FAINT } else { BAD };
            let said = kubelet.alert.clone().or_else(|| kubelet.status.map(http_status)).unwrap_or_default();
            self.line(at, "cred", &kubelet.file, style, &format!("{} answers {said}", answer.to));
        }
    }

    /// Only what is worth a line: an end without an answer, and silence.
    fn connection(&mut self, at: Mono, connection: &Connection) {
        let Some(outcome) = Outcome::of_connection(connection).filter(|outcome| outcome.is_failure()) else {
            return;
        };
        let elsewhere = if connection.host_netns { "" } else { " (in a pod)" };
        let client = &connection.client;
        let what = format!("{}[{}]{elsewhere} → {}", client.name, client.pid, connection.to);
        let bytes = format!("{} bytes out, {} in", connection.acked, connection.received);
        let age = connection.age_ns.max(connection.unacked_ns);
        self.line(at, "api", &what, BAD, &format!("{}, {bytes}  {}", outcome.words(), took(age)));
    }

    fn socket(&mut self, at: Mono, connect: &SocketConnect) {
        // What works is too much to read: runtimes and their clients talk all the time.
        if connect.errno != 0 {
            let what = format!("{}[{}] → {}", connect.client.name, connect.client.pid, connect.path);
            self.line(at, "socket", &what, BAD, &socket_errno(connect.errno));
        }
    }

    fn cni(&mut self, at: Mono, end: &CniEnd) {
        let mut what = format!("{} {}", end.start.command, end.start.plugin);
        for delegate in &end.delegates {
            what.push_str(&format!(" ▸ {}", delegate.plugin));
        }
        if let Some(pod) = &end.start.pod {
            what.push_str(&format!("  {pod}"));
        }
        let spoken =
            end.delegates.iter().rev().find_map(|delegate| delegate.error.as_ref()).or(end.error.as_ref());
        let how = match (end.exit.success(), end.exit.signal, spoken) {
            (true, ..) => "ok".to_owned(),
            (false, 0, Some(error)) => format!("exit {}: code {}: {}", end.exit.code, error.code, error.msg),
            (false, 0, None) => format!("exit {}", end.exit.code),
            (false, signal, _) => format!("ended by signal {signal}"),
        };
        let style = match (end.exit.success(), end.start.command.as_str()) {
            (true, _) => GOOD,
            (false, "ADD") => BAD,
            // DEL fails in ordinary clean-up.
            (false, _) => UNSURE,
        };
        let refused = end.sockets.iter().find(|socket| socket.errno != 0 && !end.exit.success());
        let socket = refused.map(|socket| format!("; {} {}", socket.path, socket_errno(socket.errno)));
        let socket = socket.unwrap_or_default();
        self.line(at, "cni", &what, style, &format!("{how}{socket}  {}", took(end.took_ns)));
    }

    fn process(&mut self, at: Mono, process: &Process) {
        let what = format!("{}[{}]", process.process.name, process.process.pid);
        match &process.event {
            ProcessEvent::Found => {}
            ProcessEvent::Started => self.line(at, "proc", &what, FAINT, "started"),
            ProcessEvent::Exited { exit, sender, oom, .. } => {
                let mut how = match exit.signal {
                    0 => format!("ended, exit code {}", exit.code),
                    signal => format!("ended by signal {signal}"),
                };
                if let Some(sender) = sender {
                    how.push_str(&format!(", sent by {}[{}]", sender.name, sender.pid));
                }
                if *oom {
                    how.push_str(", out of memory");
                }
                self.line(at, "proc", &what, UNSURE, &how);
            }
        }
    }

    fn verdict(&mut self, at: Mono, report: &Report) {
        let (mark, style) = match report.status {
            Status::True => ("✔", GOOD),
            Status::False => ("✘", BAD),
            Status::Unknown => ("?", UNSURE),
        };
        let room = self.width.saturating_sub(6);
        let before = self.said.as_ref().map_or("", |finding| finding.reason.as_str());
        let arrow = if before.is_empty() || before == report.verdict.reason.as_str() {
            String::new()
        } else {
            format!("{before} → ")
        };
        let reason = paint(style, &format!("{mark} {}", report.verdict.reason));
        let time = paint(FAINT, &time_of_day(self.wall, at));
        let mut text = format!("{time} {} {reason}\n", paint(FAINT, &format!("── {arrow}")));
        let mut paragraph = |label: &str, words: &str| {
            for (index, part) in wrap(words, room.saturating_sub(9)).iter().enumerate() {
                let label = if index == 0 { label } else { "" };
                text.push_str(&format!("      {label:<8} {part}\n"));
            }
        };
        paragraph("", &report.verdict.message);
        for (label, findings) in
            [("because", &report.because), ("then", &report.consequences), ("also", &report.also)]
        {
            for finding in findings {
                paragraph(label, &format!("{}: {}", finding.reason, finding.message));
            }
        }
        if report.status == Status::False {
            paragraph("look at", &report.remedy);
        }
        self.said = Some(report.verdict.clone());
        self.write(&text);
    }
}

impl<W: Write> Sink for Timeline<W> {
    fn observation(&mut self, at: Mono, observation: &Observation) {
        if let Observation::Host(host) = observation {
            self.own.clone_from(&host.addresses);
        }
        if !self.filter.wants(observation) {
            return;
        }
        match observation {
            Observation::SnapshotDone => self.ready = true,
            Observation::Connect(connect) => self.connect(at, connect),
            Observation::Answer(answer) => self.answer(at, answer),
            Observation::Connection(connection) => self.connection(at, connection),
            Observation::SocketConnect(connect) => self.socket(at, connect),
            Observation::CniEnd(end) => self.cni(at, end),
            Observation::Process(process) => self.process(at, process),
            Observation::ApiTarget(target) => {
                self.line(
                    at,
                    "api",
                    &format!("watching {}", target.addr),
                    FAINT,
                    &format!("from {}", target.source),
                );
            }
            Observation::NameLookup(lookup) => {
                let (style, end) = match &lookup.failure {
                    Some(failure) => (BAD, format!("{} {}", lookup.resolver, failure.words())),
                    None => (GOOD, format!("resolves again ({})", lookup.resolver)),
                };
                self.line(at, "dns", &lookup.name, style, &end);
            }
            Observation::Cri(cri) => {
                let (style, words) = (if cri.answer.is_well() { GOOD } else { BAD }, cri.answer.words());
                if self.runtime != words {
                    self.line(at, "cri", &cri.socket, style, &words);
                    self.runtime = words;
                }
            }
            Observation::Listener(listener) if self.ready && listener.host_netns => {
                let what = format!("{}[{}]", listener.process.name, listener.process.pid);
                let (style, verb) = if listener.up { (GOOD, "listens on") } else { (UNSURE, "no longer on") };
                self.line(at, "api", &what, style, &format!("{verb} {}", listener.local));
            }
            Observation::CniConfig(config) => {
                let mut state = match config.files.first() {
                    None => "no configuration".to_owned(),
                    Some(first) => format!("reads {}", first.name),
                };
                if !config.missing_plugins.is_empty() && !config.files.is_empty() {
                    state.push_str(&format!(", missing {}", config.missing_plugins.join(", ")));
                }
                self.line(at, "cni", &config.dir, FAINT, &state);
            }
            Observation::ConfAccess(access) if self.ready => {
                let verb = match access.access {
                    Access::Opened => "opened by",
                    Access::Written => "written by",
                    Access::Created => "created by",
                    Access::Removed => "removed by",
                    Access::RenamedFrom => "renamed away by",
                    Access::RenamedTo => "renamed into place by",
                    Access::DirectoryReplaced => "directory replaced by",
                };
                let who = format!("{verb} {}[{}]", access.process.name, access.process.pid);
                self.line(at, "cni", &access.file, FAINT, &who);
            }
            Observation::Lost(lost) => {
                self.line(at, "lost", &lost.hook, BAD, &format!("{}; the state is read again", lost.words()));
            }
            Observation::Throttled(throttled) => {
                let text = format!(
                    "{} events of processes outside the node's components not recorded",
                    throttled.count
                );
                self.line(at, "limit", &throttled.hook, FAINT, &text);
            }
            Observation::Gap(gap) => self.line(at, "gap", &gap.signal, UNSURE, &gap.why),
            other => self.of_node(at, other),
        }
    }

    fn effect(&mut self, at: Mono, effect: &Effect) {
        if let Effect::Verdict(report) = effect {
            self.verdict(at, report);
        }
    }
}
