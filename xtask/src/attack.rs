//! The attacks of the live tests, and the effect of each.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::test::Counts;
use crate::{build, target};

/// Runs the attacks one after the other, each for `seconds` before the first fault, and prints a table of their effects; returns
/// false if one succeeded.
pub(crate) fn run(seconds: u64) -> Result<bool> {
    let probe = build::release()?;
    let rows = target().join("attacks.jsonl");
    let _ = fs::remove_file(&rows);
    let mut attacks = build::cargo();
    attacks.args(["test", "--quiet", "--package", "kernel-tests", "--test", "live", "--", "attacks::"]);
    attacks.args(["--test-threads", "1"]).env("NETREADY_PROBE", &probe);
    attacks.env("NETREADY_ATTACK_SECONDS", seconds.to_string()).env("NETREADY_ATTACK_ROWS", &rows);
    let mut counts = Counts::default();
    counts.add("attacks", &mut attacks)?;
    let rows = fs::read_to_string(&rows).with_context(|| format!("read {}", rows.display()))?;
    print(&rows.lines().map(serde_json::from_str).collect::<Result<Vec<_>, _>>()?);
    println!("\n{}", counts.summary());
    Ok(counts.are_good())
}

fn print(rows: &[Value]) {
    let line = |attack: &str, [fault, repair, lost, throttled]: [&str; 4]| {
        println!("{attack:<52}{fault:>12}{repair:>12}{lost:>8}{throttled:>12}");
    };
    println!();
    line("the verdict stays, and then", ["fault, ms", "repair, ms", "lost", "throttled"]);
    for row in rows {
        let numbers = ["faultMs", "repairMs", "lost", "throttled"].map(|name| row[name].to_string());
        line(row["attack"].as_str().unwrap_or_default(), numbers.each_ref().map(String::as_str));
    }
    println!(
        "\nfault, repair: from the removal of the CNI configuration, and from its return, to the verdict"
    );
}
