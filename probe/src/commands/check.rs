//! `probe check`: one verdict now.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anstyle::Style;
use anyhow::Result;
use probe_engine::{Status, Writes};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;

use super::until_stopped;
use crate::app::{self, About, App};
use crate::cli::{CheckArgs, Output};
use crate::exit::Exit;
use crate::report::{Context, Document, Link};
use crate::sinks::layout::{BAD, FAINT, GOOD, UNSURE, paint, width, wrap};
use crate::threads::Threads;

/// How long a running agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Largest answer that is read: a report has at most 32 lines of evidence of 512 bytes.
const ANSWER: u64 = 1 << 20;

/// See the module.
pub(crate) async fn run(args: CheckArgs) -> Result<Exit> {
    let settings = args.node.settings()?;
    let from_agent = if args.no_agent { None } else { ask_agent(&args.socket).await };
    let (document, unsupported) = if let Some(document) = from_agent {
        (document, None)
    } else {
        let node = settings.node.clone();
        let (mut app, mut judge) = App::start(Arc::new(settings), Threads::here())?;
        app::run((&mut app, &mut judge), &mut [], until_stopped(Some(args.watch))?).await?;
        let About { wall, unsupported, .. } = judge.about().clone();
        (Document::new(&judge.report(), &Context::here(&node, wall)), unsupported)
    };
    if let Some(why) = &unsupported {
        crate::warn(&format!("{why}; this answer is made without eBPF"));
    }
    match args.output {
        Output::Json => anstream::println!("{}", serde_json::to_string_pretty(&document)?),
        Output::Text => anstream::print!("{}", text(&document, width())?),
    }
    let exit = Exit::of(document.verdict.reason, document.verdict.status);
    // A fault that is proven without eBPF is a fault; anything else is not worth much then.
    Ok(match (unsupported, exit) {
        (Some(_), Exit::Ready | Exit::Unknown) => Exit::Unsupported,
        (_, exit) => exit,
    })
}

/// The running agent's report; `None` when there is none, or none that answers in time.
async fn ask_agent(socket: &Path) -> Option<Document> {
    let answer = async {
        let stream = UnixStream::connect(socket).await.ok()?;
        let mut bytes = Vec::new();
        stream.take(ANSWER).read_to_end(&mut bytes).await.ok()?;
        serde_json::from_slice(&bytes).ok()
    };
    tokio::time::timeout(PATIENCE, answer).await.ok().flatten()
}

/// For people: the verdict, why, what hangs from it, what to look at, the proof.
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
    if verdict.status == Status::False {
        paragraph(&mut out, width, "look at", &verdict.remedy, Style::new());
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
    for gap in &document.gaps {
        paragraph(&mut out, width, "not seen", &format!("{}: {}", gap.signal, gap.why), UNSURE);
    }
    Ok(out)
}

fn links(out: &mut String, width: usize, label: &str, links: &[Link]) {
    for link in links {
        paragraph(out, width, label, &format!("{}: {}", link.reason, link.message), Style::new());
    }
}

/// A label in a column of its own, the words beside it.
fn paragraph(out: &mut String, width: usize, label: &str, words: &str, style: Style) {
    for (index, line) in wrap(words, width.saturating_sub(12)).iter().enumerate() {
        let label = if index == 0 { label } else { "" };
        // Writing to a String does not fail.
        let _ = writeln!(out, "  {label:<9} {}", paint(style, line));
    }
}

#[cfg(test)]
mod tests {
    use probe_engine::{Config, Engine, Mono};

    use super::*;
    use crate::clock::Wall;

    #[test]
    fn the_text_fits_its_width_and_has_no_control_characters() {
        let engine = Engine::new(Config::default(), Mono(0));
        let context = Context { node: "n".into(), boot_id: "b".into(), wall: Wall { offset_ns: 0 } };
        let document = Document::new(&engine.report(), &context);
        let text = anstream::adapter::strip_str(&text(&document, 60).expect("writes")).to_string();
        assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
        assert!(text.starts_with("n: unknown: Learning"), "{text}");
        assert!(text.chars().all(|c| !c.is_control() || c == '\n'));
    }
}
