//! `probe check`: prints the current verdict.

mod settled;

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anstyle::Style;
use anyhow::Result;
use probe_engine::{Reason, Status, Writes};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;

use super::until_stopped;
use crate::app::{self, About, App};
use crate::cli::{CheckArgs, Output};
use crate::exit::Exit;
use crate::report::{Context, Document, GapRow, Link};
use crate::sinks::layout::{BAD, FAINT, GOOD, UNSURE, paint, width, wrap};
use crate::threads::Threads;
use settled::Settled;

/// Timeout of the answer of a running agent.
const PATIENCE: Duration = Duration::from_secs(1);
/// Largest answer that is read, in bytes: a report has at most 32 lines of evidence of 512 bytes.
const ANSWER: u64 = 1 << 20;

/// Runs the command. Returns the exit code of the verdict.
pub(crate) async fn run(args: CheckArgs) -> Result<Exit> {
    let settings = args.node.settings()?;
    let from_agent = if args.no_agent { None } else { ask_agent(&args.socket).await };
    let (document, unsupported) = if let Some(document) = from_agent {
        (document, None)
    } else {
        let node = settings.node.clone();
        let (mut app, mut judge) = App::start(Arc::new(settings), Threads::here())?;
        let (mut settled, is_decided) = Settled::new();
        let stopped = until_stopped(Some(args.watch))?;
        let over = async {
            tokio::select! {
                () = stopped => {}
                Ok(()) = is_decided => {}
            }
        };
        app::run((&mut app, &mut judge), &mut [&mut settled], over).await?;
        let About { wall, unsupported, .. } = judge.about().clone();
        (Document::new(&judge.report(), &Context::here(&node, wall)), unsupported)
    };
    if let Some(why) = &unsupported {
        crate::warn(&format!("{why}; continuing without eBPF"));
    }
    match args.output {
        Output::Json => anstream::println!("{}", serde_json::to_string_pretty(&document)?),
        Output::Text => anstream::print!("{}", text(&document, width())?),
    }
    let exit = Exit::of(document.verdict.reason, document.verdict.status);
    // A fault that is proven without eBPF is a fault. Everything else proves little without it.
    Ok(match (unsupported, exit) {
        (Some(_), Exit::Ready | Exit::Unknown) => Exit::Unsupported,
        (_, exit) => exit,
    })
}

/// Returns the report of the running agent; `None` if no agent runs, or if it does not answer within [`PATIENCE`].
async fn ask_agent(socket: &Path) -> Option<Document> {
    let answer = async {
        let stream = UnixStream::connect(socket).await.ok()?;
        let mut bytes = Vec::new();
        stream.take(ANSWER).read_to_end(&mut bytes).await.ok()?;
        serde_json::from_slice(&bytes).ok()
    };
    tokio::time::timeout(PATIENCE, answer).await.ok().flatten()
}

/// Width of the column of labels; the longest is `not observed`.
const LABEL: usize = 12;

/// Formats the report for a terminal: the verdict, its chain and the next step, then the conditions and the evidence. Signals
/// that this host does not offer are one line, except those for whose lack something is `ProbeDegraded`.
pub(super) fn text(document: &Document, width: usize) -> Result<String> {
    let verdict = &document.verdict;
    let (word, style) = match verdict.status {
        Status::True => ("ready", GOOD),
        Status::False => ("not ready", BAD),
        Status::Unknown => ("unknown", UNSURE),
    };
    let mut out = String::new();
    let head = format!("{}: {word}: {}", document.node, verdict.reason);
    writeln!(out, "{}  {}", paint(style, &head), paint(FAINT, &format!("since {}", verdict.since)))?;
    paragraph(&mut out, width, "", &verdict.message, Style::new());
    links(&mut out, width, "because", &document.because);
    links(&mut out, width, "then", &document.consequences);
    links(&mut out, width, "also", &document.also);
    if verdict.status != Status::True {
        paragraph(&mut out, width, "next:", &verdict.remedy, Style::new());
    }
    let (decisive, others) = gaps(document);
    for gap in decisive {
        paragraph(&mut out, width, "not observed", &format!("{}: {}", gap.signal, gap.why), UNSURE);
    }
    for condition in &document.conditions {
        let line = format!("{} = {} ({})", condition.condition, condition.status.as_str(), condition.reason);
        paragraph(&mut out, width, "writes", &line, FAINT);
    }
    match &document.condition_writes {
        Some(Writes { problem: Some(why), .. }) => {
            paragraph(&mut out, width, "", &format!("not on the Node object: {why}"), UNSURE);
        }
        Some(Writes { by, .. }) => paragraph(&mut out, width, "", &format!("by {by}"), FAINT),
        None => {}
    }
    for line in document.evidence.iter().rev().take(6).rev() {
        let time = line.at.get(11..23).unwrap_or(&line.at);
        paragraph(&mut out, width, "saw", &format!("{time} {}", line.text), FAINT);
    }
    if others > 0 {
        let signals = if others == 1 { "signal" } else { "signals" };
        let line = format!("{others} {signals} limited on this host: probe doctor");
        paragraph(&mut out, width, "not observed", &line, FAINT);
    }
    Ok(out)
}

/// Returns the gaps that make the verdict or a condition `ProbeDegraded`, and the number of all others. A gap whose text is
/// already in the message belongs to neither.
fn gaps(document: &Document) -> (Vec<&GapRow>, usize) {
    let degraded = Reason::ProbeDegraded;
    let is_degraded = document.verdict.reason == degraded
        || document.conditions.iter().any(|condition| condition.reason == degraded);
    let is_quoted = |gap: &&GapRow| !gap.why.is_empty() && document.verdict.message.contains(&gap.why);
    let (decisive, others): (Vec<_>, Vec<_>) =
        document.gaps.iter().filter(|gap| !is_quoted(gap)).partition(|gap| is_degraded && gap.blind);
    (decisive, others.len())
}

fn links(out: &mut String, width: usize, label: &str, links: &[Link]) {
    for link in links {
        paragraph(out, width, label, &format!("{}: {}", link.reason, link.message), Style::new());
    }
}

/// Writes a label in its column, and the text beside it.
fn paragraph(out: &mut String, width: usize, label: &str, words: &str, style: Style) {
    for (index, line) in wrap(words, width.saturating_sub(LABEL + 3)).iter().enumerate() {
        let label = if index == 0 { label } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {label:<LABEL$} {}", paint(style, line));
    }
}

#[cfg(test)]
mod tests {
    use probe_engine::{BootTime, CniConfig, Config, Engine, Gap, Host, Observation, Role};

    use super::*;
    use crate::clock::Wall;

    fn shown(observations: Vec<Observation>, width: usize) -> String {
        let mut engine = Engine::new(Config::default(), BootTime(0));
        for observation in observations {
            engine.observe(BootTime(0), observation);
        }
        let context = Context { node: "n".into(), boot_id: "b".into(), wall: Wall { offset_ns: 0 } };
        let document = Document::new(&engine.report(), &context);
        anstream::adapter::strip_str(&text(&document, width).expect("writes")).to_string()
    }

    fn gap(signal: &str, blind: bool) -> Observation {
        Observation::Gap(Gap { signal: signal.to_owned(), why: format!("no {signal} here"), blind })
    }

    #[test]
    fn text_fits_its_width_and_has_no_control_characters() {
        let text = shown(vec![gap("link", false)], 60);
        assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
        assert!(text.starts_with("n: unknown: Learning"), "{text}");
        assert!(text.chars().all(|c| !c.is_control() || c == '\n'));
    }

    #[test]
    fn limitations_are_one_line_below_verdict_chain_and_next_step() {
        let early = vec![
            Observation::Host(Host { role: Role::Worker, ..Host::default() }),
            Observation::CniConfig(CniConfig { dir: "/etc/cni/net.d".to_owned(), ..CniConfig::default() }),
            gap("link", false),
            gap("netns", false),
            Observation::SnapshotDone,
        ];
        let text = shown(early, 200);
        let place = |words: &str| text.find(words).unwrap_or_else(|| panic!("no {words:?} in {text}"));
        assert!(place("CNIConfigMissing") < place("  next:  "), "{text}");
        assert!(place("  next:  ") < place("  writes  "), "{text}");
        assert!(text.ends_with("  not observed 2 signals limited on this host: probe doctor\n"), "{text}");
        assert!(!text.contains("no link here"), "{text}");
    }

    #[test]
    fn gap_that_makes_the_verdict_degraded_is_shown_with_its_reason() {
        let text = shown(vec![gap("link", false), gap("tcp.connect", true), gap("netns", true)], 200);
        assert!(!text.contains("tcp.connect: no tcp.connect here"), "nothing is degraded yet: {text}");
        let early = vec![gap("link", false), gap("tcp.connect", true), gap("netns", true)];
        let text = shown([early, vec![Observation::SnapshotDone]].concat(), 200);
        assert!(text.starts_with("n: unknown: ProbeDegraded"), "{text}");
        // The message quotes the first of the two.
        assert!(text.contains("(netns: no netns here)"), "{text}");
        assert!(text.contains("  not observed tcp.connect: no tcp.connect here\n"), "{text}");
        assert!(text.ends_with("  not observed 1 signal limited on this host: probe doctor\n"), "{text}");
    }
}
