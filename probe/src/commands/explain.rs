//! `probe explain`: prints the meaning of reasons.

use std::fmt::Write as _;

use anyhow::Result;
use probe_engine::Reason;
use probe_engine::explain::{Explanation, explain};
use serde_json::json;

use crate::cli::{ExplainArgs, Output, UsageError};
use crate::exit::Exit;
use crate::sinks::layout::{GOOD, paint, width, wrap};

/// Runs the command.
pub(crate) fn run(args: &ExplainArgs) -> Result<Exit> {
    let reasons = match &args.reason {
        Some(name) => vec![find(name)?],
        None => Reason::ALL.to_vec(),
    };
    let explanations: Vec<_> = reasons.into_iter().map(explain).collect();
    if args.markdown {
        anstream::print!("{}", markdown(&explanations)?);
    } else if args.output == Output::Json {
        let all: Vec<_> = explanations.iter().map(|explanation| json(explanation)).collect();
        let value =
            if args.reason.is_some() { all.into_iter().next().unwrap_or_default() } else { all.into() };
        anstream::println!("{}", serde_json::to_string_pretty(&value)?);
    } else if args.reason.is_none() {
        for explanation in explanations {
            let reason = explanation.reason;
            let meaning = wrap(explanation.meaning, width().saturating_sub(40).max(30));
            anstream::println!(
                "{} {:<9} {}",
                paint(GOOD, &format!("{reason:<28}")),
                reason.side().as_str(),
                meaning[0]
            );
            for line in &meaning[1..] {
                anstream::println!("{:39}{line}", "");
            }
        }
    } else {
        for explanation in explanations {
            anstream::print!("{}", text(explanation)?);
        }
    }
    Ok(Exit::Ready)
}

fn find(name: &str) -> Result<Reason, UsageError> {
    let same = |reason: &&Reason| reason.as_str().eq_ignore_ascii_case(name);
    if let Some(reason) = Reason::ALL.iter().find(same) {
        return Ok(*reason);
    }
    let lower = name.to_lowercase();
    let near: Vec<_> = Reason::ALL
        .iter()
        .map(|reason| reason.as_str())
        .filter(|known| !lower.is_empty() && known.to_lowercase().contains(&lower))
        .take(8)
        .collect();
    let shown = crate::text::clean(name.as_bytes(), 64);
    Err(UsageError(if near.is_empty() {
        format!("unknown reason {shown:?}; `probe explain` lists all reasons")
    } else {
        format!("unknown reason {shown:?}; did you mean {}?", near.join(", "))
    }))
}

fn text(explanation: &Explanation) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let reason = explanation.reason;
    writeln!(out, "{}  ({})", paint(GOOD, reason.as_str()), reason.side().as_str())?;
    let like: Vec<_> = explanation.look_alikes.iter().map(|reason| reason.as_str()).collect();
    for (label, words) in [
        ("means", explanation.meaning),
        ("proof", explanation.evidence),
        ("not", &*like.join(", ")),
        ("next", explanation.remedy),
    ] {
        if words.is_empty() {
            continue;
        }
        for (index, line) in wrap(words, width().saturating_sub(10)).iter().enumerate() {
            writeln!(out, "  {:<7} {line}", if index == 0 { label } else { "" })?;
        }
    }
    Ok(out)
}

fn json(explanation: &Explanation) -> serde_json::Value {
    json!({
        "reason": explanation.reason,
        "side": explanation.reason.side(),
        "meaning": explanation.meaning,
        "evidence": explanation.evidence,
        "lookAlikes": explanation.look_alikes,
        "remedy": explanation.remedy,
    })
}

fn markdown(explanations: &[&'static Explanation]) -> Result<String, std::fmt::Error> {
    let mut out = String::from(
        "# Reasons\n\nMade by `cargo xtask docs` from `probe/engine/src/explain.rs`; `probe explain REASON` prints the same.\n",
    );
    for explanation in explanations {
        let reason = explanation.reason;
        writeln!(out, "\n## {reason}\n\n{} (side: {})\n", explanation.meaning, reason.side().as_str())?;
        writeln!(out, "- Proof: {}", explanation.evidence)?;
        if !explanation.look_alikes.is_empty() {
            let link = |reason: &Reason| format!("[{reason}](#{})", reason.as_str().to_lowercase());
            let like: Vec<_> = explanation.look_alikes.iter().map(link).collect();
            writeln!(out, "- Not to be mistaken for: {}", like.join(", "))?;
        }
        writeln!(out, "- Next: {}", explanation.remedy)?;
    }
    Ok(out)
}
