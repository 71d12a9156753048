//! The live timeline: one line per operation, and each change of the verdict.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anstyle::Style;
use probe_engine::{
    Access, Answer, BootTime, ClientRole, CniEnd, Connect, Connection, Effect, Finding, Observation, Outcome,
    Process, ProcessEvent, Report, SocketConnect, Status, http_status, socket_words,
};

use super::Sink;
use super::layout::{BAD, FAINT, GOOD, UNSURE, paint, shorten, took, wrap};
use super::topic::Filter;
use crate::clock::Wall;
use crate::report::time_of_day;

/// Width of the time and the topic: `03:04:05.678  api    `.
const MARGIN: usize = 21;

/// How long identical consecutive lines are counted instead of printed. Then the count is printed, and the next such line is
/// printed with its own time.
const REPEATED_FOR_NS: u64 = 5_000_000_000;

/// Name of the agent's executable.
const AGENT: &str = "probe";

/// The last line that was printed.
struct Printed {
    at: BootTime,
    /// The line without its time and its duration.
    line: String,
    /// How many identical lines followed.
    repeated: u64,
}

/// Writes the timeline as text for a terminal.
pub(crate) struct Timeline<W> {
    out: W,
    wall: Wall,
    width: usize,
    filter: Filter,
    own: Vec<IpAddr>,
    /// The last outcome of the agent's own connects; only a change is printed.
    asked: BTreeMap<SocketAddr, Outcome>,
    pub(super) ready: bool,
    /// The last answer of the container runtime; only a change is printed.
    runtime: String,
    shown: Option<Finding>,
    last: Option<Printed>,
    /// The first failure of the output; the command fails with it.
    broken: Option<std::io::Error>,
}

impl<W: Write> Timeline<W> {
    /// Writes lines of at most `width` characters to `out`.
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
            shown: None,
            last: None,
            broken: None,
        }
    }

    /// Prints what is pending. Returns the first failure of the output.
    pub(crate) fn finish(mut self) -> Option<std::io::Error> {
        self.print_repeated();
        self.broken
    }

    /// Prints one line: what happened, and how it ended in its colour.
    pub(super) fn line(&mut self, at: BootTime, topic: &str, what: &str, style: Style, end: &str) {
        self.line_with(at, topic, what, style, end, "");
    }

    /// Prints one line, and how long the operation took. A line that differs from the last one only in this is a repetition.
    fn line_with(&mut self, at: BootTime, topic: &str, what: &str, style: Style, end: &str, took: &str) {
        if self.is_repetition(at, format!("{topic} {what}  {end}")) {
            return;
        }
        let end = format!("{end}{took}");
        let room = self.width.saturating_sub(MARGIN);
        let time = time_of_day(self.wall, at);
        let whole = format!("{what}  {end}");
        let mut text = String::new();
        if whole.chars().count() <= room {
            text.push_str(&format!("{} {topic:<6} {what}  {}\n", paint(FAINT, &time), paint(style, &end)));
        } else {
            text.push_str(&format!("{} {topic:<6} {}\n", paint(FAINT, &time), shorten(what, room)));
            for part in wrap(&end, room.saturating_sub(2)) {
                text.push_str(&format!("{:MARGIN$}  {}\n", "", paint(style, &part)));
            }
        }
        self.write(&text);
    }

    /// Returns whether the line is the same as the last one, and counts it if so.
    fn is_repetition(&mut self, at: BootTime, line: String) -> bool {
        if let Some(last) = &mut self.last
            && last.line == line
            && at.since(last.at) < REPEATED_FOR_NS
        {
            last.repeated += 1;
            return true;
        }
        self.print_repeated();
        self.last = Some(Printed { at, line, repeated: 0 });
        false
    }

    /// Prints how many lines were the same as the last one, if any were.
    fn print_repeated(&mut self) {
        let Some(Printed { repeated, .. }) = self.last.take() else { return };
        let times = match repeated {
            0 => return,
            1 => "once".to_owned(),
            2 => "twice".to_owned(),
            count => format!("{count} times"),
        };
        self.write(&format!("{:MARGIN$}{}\n", "", paint(FAINT, &format!("… repeated {times}"))));
    }

    fn write(&mut self, text: &str) {
        let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        if let (Err(error), None) = (written, &self.broken) {
            self.broken = Some(error);
        }
    }

    fn connect(&mut self, at: BootTime, connect: &Connect) {
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
        let end = format!("{}{syn}{}", outcome.words(), from.unwrap_or_default());
        self.line_with(at, "api", &what, style, &end, &format!("  {}", took(connect.took_ns)));
    }

    fn answer(&mut self, at: BootTime, answer: &Answer) {
        let (style, how) = match (&answer.tls, answer.status) {
            (Some(failure), _) => (BAD, failure.words()),
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
            let answer_text =
                kubelet.alert.clone().or_else(|| kubelet.status.map(http_status)).unwrap_or_default();
            self.line(at, "cred", &kubelet.file, style, &format!("{} answered {answer_text}", answer.to));
        }
    }

    /// Prints connections that ended without an answer, and those that are stalled.
    fn connection(&mut self, at: BootTime, connection: &Connection) {
        let Some(outcome) = Outcome::of_connection(connection).filter(|outcome| outcome.is_failure()) else {
            return;
        };
        let elsewhere = if connection.host_netns { "" } else { " (in a pod)" };
        let client = &connection.client;
        let what = format!("{}[{}]{elsewhere} → {}", client.name, client.pid, connection.to);
        let bytes = format!("{} bytes out, {} in", connection.acked, connection.received);
        let age = connection.age_ns.max(connection.unacked_ns);
        let end = format!("{}, {bytes}", outcome.words());
        self.line_with(at, "api", &what, BAD, &end, &format!("  {}", took(age)));
    }

    fn socket(&mut self, at: BootTime, connect: &SocketConnect) {
        // Runtimes and their clients connect all the time: only failures are printed.
        if connect.errno != 0 {
            let what = format!("{}[{}] → {}", connect.client.name, connect.client.pid, connect.path);
            self.line(at, "socket", &what, BAD, &socket_words(connect.errno));
        }
    }

    fn cni(&mut self, at: BootTime, end: &CniEnd) {
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
            (false, ..) => end.exit.words(),
        };
        let style = match (end.exit.success(), end.start.command.as_str()) {
            (true, _) => GOOD,
            (false, "ADD") => BAD,
            // Ordinary clean-up includes DELs that fail.
            (false, _) => UNSURE,
        };
        let refused = end.sockets.iter().find(|socket| socket.errno != 0 && !end.exit.success());
        let socket = refused.map(|socket| format!("; {} {}", socket.path, socket_words(socket.errno)));
        let socket = socket.unwrap_or_default();
        self.line_with(
            at,
            "cni",
            &what,
            style,
            &format!("{how}{socket}"),
            &format!("  {}", took(end.took_ns)),
        );
    }

    fn process(&mut self, at: BootTime, process: &Process) {
        let what = process.process.with_pid();
        match &process.event {
            ProcessEvent::Found => {}
            ProcessEvent::Started => self.line(at, "proc", &what, FAINT, "started"),
            ProcessEvent::Exited { .. } => {
                let how = process.event.words().unwrap_or_default();
                self.line(at, "proc", &what, UNSURE, &how);
            }
        }
    }

    fn verdict(&mut self, at: BootTime, report: &Report) {
        self.print_repeated();
        let (mark, style) = match report.status {
            Status::True => ("✔", GOOD),
            Status::False => ("✘", BAD),
            Status::Unknown => ("?", UNSURE),
        };
        let room = self.width.saturating_sub(6);
        let before = self.shown.as_ref().map_or("", |finding| finding.reason.as_str());
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
            paragraph("next:", &report.remedy);
        }
        self.shown = Some(report.verdict.clone());
        self.write(&text);
    }
}

impl<W: Write> Sink for Timeline<W> {
    fn observation(&mut self, at: BootTime, observation: &Observation) {
        if let Observation::Host(host) = observation {
            self.own.clone_from(&host.addresses);
        }
        if !self.filter.selects(observation) {
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
                let what = listener.process.with_pid();
                let (style, verb) =
                    if listener.up { (GOOD, "listens on") } else { (UNSURE, "stopped listening on") };
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
            // The agent reads the directory after each change.
            Observation::ConfAccess(access)
                if access.access == Access::Opened && access.process.name == AGENT => {}
            Observation::ConfAccess(access) if self.ready => {
                let verb = match access.access {
                    Access::Opened => "opened by",
                    Access::Written => "written by",
                    Access::Created => "created by",
                    Access::Removed => "removed by",
                    Access::RenamedFrom => "renamed by",
                    Access::RenamedTo => "renamed into place by",
                    Access::DirectoryReplaced => "directory replaced by",
                };
                let who = format!("{verb} {}[{}]", access.process.name, access.process.pid);
                self.line(at, "cni", &access.file, FAINT, &who);
            }
            Observation::Lost(lost) => {
                self.line(at, "lost", &lost.hook, BAD, &format!("{}; reading the state again", lost.words()));
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

    fn effect(&mut self, at: BootTime, effect: &Effect) {
        if let Effect::Verdict(report) = effect {
            self.verdict(at, report);
        }
    }

    fn turn(&mut self, at: BootTime, _late: Duration) {
        if self.last.as_ref().is_some_and(|last| at.since(last.at) >= REPEATED_FOR_NS) {
            self.print_repeated();
        }
    }
}

#[cfg(test)]
mod tests {
    use probe_engine::{Actor, ConfAccess};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// The lines for these observations without their times, after a last turn at `end`.
    fn lines(observations: &[(BootTime, Observation)], end: Option<BootTime>) -> Vec<String> {
        let mut out = Vec::new();
        let mut timeline = Timeline::new(&mut out, Wall { offset_ns: 0 }, 200, Filter::default());
        for (at, observation) in observations {
            timeline.observation(*at, observation);
        }
        match end {
            Some(at) => timeline.turn(at, Duration::ZERO),
            None => assert!(timeline.finish().is_none()),
        }
        let text = anstream::adapter::strip_bytes(&out).into_vec();
        let text = String::from_utf8(text).expect("text");
        text.lines().map(|line| line.chars().skip(13).collect()).collect()
    }

    fn refused(pid: u32, took_ns: u64) -> Observation {
        let text = format!(
            r#"{{"kind":"connect","client":{{"pid":{pid},"name":"kubelet"}},"role":"kubelet","host_netns":true,
                "to":"10.0.0.1:6443","took_ns":{took_ns},"sk_err":111,"rst":true}}"#
        );
        serde_json::from_str(&text).expect("a connect")
    }

    fn access(name: &str, access: Access) -> Observation {
        let process = Actor { pid: 7, name: name.to_owned() };
        Observation::ConfAccess(ConfAccess { process, class: None, file: "10-x.conflist".to_owned(), access })
    }

    #[test]
    fn identical_consecutive_lines_are_printed_once_with_their_count() {
        let mut observations: Vec<_> =
            (0..5).map(|count| (BootTime(count), refused(812, 90_000 + count * 1000))).collect();
        observations.push((BootTime(5), refused(813, 90_000)));
        observations.push((BootTime(6), refused(813, 90_000)));
        let first = "api    kubelet[812] → 10.0.0.1:6443  connection refused by the remote host  90 µs";
        let second = first.replace("812", "813");
        let want = [first, "        … repeated 4 times", &second, "        … repeated once"];
        assert_eq!(lines(&observations, None), want);
    }

    #[test]
    fn count_of_repetitions_is_printed_after_five_seconds() {
        let observations = [0, 1, 2].map(|at| (BootTime(at * SECOND), refused(812, 90_000)));
        assert_eq!(lines(&observations, Some(BootTime(4 * SECOND))).len(), 1);
        assert_eq!(lines(&observations, Some(BootTime(5 * SECOND)))[1], "        … repeated twice");
        let later = [0, 1, 6].map(|at| (BootTime(at * SECOND), refused(812, 90_000)));
        assert_eq!(lines(&later, None).len(), 3, "the third has its own time");
    }

    #[test]
    fn reads_of_the_agent_are_not_shown() {
        let observations = [
            Observation::SnapshotDone,
            access("probe", Access::Opened),
            access("containerd", Access::Opened),
            access("probe", Access::Removed),
        ];
        let shown = lines(&observations.map(|observation| (BootTime(0), observation)), None);
        let want =
            ["cni    10-x.conflist  opened by containerd[7]", "cni    10-x.conflist  removed by probe[7]"];
        assert_eq!(shown, want);
    }
}
