//! Replays every recording below `tests/replay` and compares the verdicts with the expected ones. `NETREADY_BLESS=1`
//! rewrites the expected verdicts; review the difference like any other.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use probe_engine::{BootTime, Effect, Engine, Finding, Line, Reason, RecordingHeader};
use serde_json::{Value, json};

/// Returns the folder of each recording, `<subject>/<name>`.
fn cases() -> Vec<PathBuf> {
    let folders = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        entries.map(|entry| entry.expect("readable").path()).filter(|path| path.is_dir()).collect()
    };
    let subjects = folders(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/replay"));
    let mut cases: Vec<_> = subjects.iter().flat_map(|subject| folders(subject)).collect();
    cases.sort();
    cases
}

/// Returns `<subject>/<name>`.
fn name_of(case: &Path) -> String {
    let parts: Vec<_> = case.iter().rev().take(2).map(|part| part.to_string_lossy()).collect();
    format!("{}/{}", parts[1], parts[0])
}

/// Normal operation: no condition may go False.
fn is_healthy(name: &str) -> bool {
    name.starts_with("healthy/")
}

/// Returns an engine with the recorded configuration, the time of its start, and the recorded observations.
fn open(recording: &str) -> (Engine, BootTime, impl Iterator<Item = Line>) {
    let mut lines = recording.lines();
    let header: RecordingHeader = serde_json::from_str(lines.next().expect("a header")).expect("a header");
    let read = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"));
    (Engine::new(header.config, header.started), header.started, lines.map(read))
}

/// Returns all effects of the engine in short form, with the time since the agent's start.
fn replay(recording: &str) -> Vec<Value> {
    let (mut engine, started, lines) = open(recording);
    let mut rows = Vec::new();
    let drain = |engine: &mut Engine, rows: &mut Vec<Value>, at: BootTime| {
        while let Some(effect) = engine.poll_effect() {
            rows.extend(compact(&effect, at.since(started)));
        }
    };
    let mut last = started;
    for line in lines {
        pass(&mut engine, line.at, |engine, at| drain(engine, &mut rows, at));
        engine.observe(line.at, line.observation);
        drain(&mut engine, &mut rows, line.at);
        last = line.at;
    }
    // A recording ends at an arbitrary time: deadlines of the next 30 s are included.
    pass(&mut engine, last.plus(30_000_000_000), |engine, at| drain(engine, &mut rows, at));
    rows
}

fn pass(engine: &mut Engine, until: BootTime, mut drain: impl FnMut(&mut Engine, BootTime)) {
    while let Some(deadline) = engine.next_deadline().filter(|deadline| *deadline < until) {
        engine.tick(deadline);
        drain(engine, deadline);
    }
}

fn compact(effect: &Effect, at_ns: u64) -> Option<Value> {
    let reasons = |findings: &[Finding]| findings.iter().map(|finding| finding.reason).collect::<Vec<_>>();
    let seconds = format!("{}.{:03}", at_ns / 1_000_000_000, at_ns % 1_000_000_000 / 1_000_000);
    match effect {
        Effect::Verdict(report) => Some(json!({
            "at": seconds, "verdict": report.verdict.reason, "status": report.status,
            "subject": report.verdict.subject, "message": report.verdict.message,
            "because": reasons(&report.because),
            "then": reasons(&report.consequences), "also": reasons(&report.also),
        })),
        Effect::Condition(condition) => Some(json!({
            "at": seconds, "condition": condition.condition, "status": condition.status, "reason": condition.reason,
        })),
        Effect::Ask(_) | Effect::Reread(_) => None,
    }
}

/// Returns one line of output as the expectations hold it.
fn text(row: &Value) -> String {
    let word = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let at = format!("{:>10}", word("at"));
    if row["condition"].is_string() {
        return format!("{at}  {} {} {}\n", word("condition"), word("status"), word("reason"));
    }
    let mut text = format!("{at}  ── {} {}", word("status"), word("verdict"));
    if !word("subject").is_empty() {
        text += &format!(": {}", word("subject"));
    }
    text += &format!("\n{:12}{}\n", "", word("message"));
    for list in ["because", "then", "also"] {
        let reasons: Vec<_> = row[list].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !reasons.is_empty() {
            text += &format!("{:12}{list:8} {}\n", "", reasons.join(", "));
        }
    }
    text
}

#[test]
fn every_recording_gives_its_expected_verdicts() {
    let cases = cases();
    assert!(!cases.is_empty(), "there are no recordings");
    let mut wrong = Vec::new();
    let is_false = |row: &Value| row["condition"].is_string() && row["status"] == "False";
    for case in cases {
        let name = name_of(&case);
        let recording =
            fs::read_to_string(case.join("input.jsonl")).unwrap_or_else(|error| panic!("{name}: {error}"));
        let rows = replay(&recording);
        // Verdicts may change in normal operation, but no condition may become False.
        if is_healthy(&name) && rows.iter().any(is_false) {
            wrong.push(format!("{name}: a condition is False: {rows:#?}"));
        }
        let actual: String = rows.iter().map(text).collect();
        let path = case.join("expected.txt");
        if std::env::var_os("NETREADY_BLESS").is_some() {
            fs::write(&path, &actual).expect("written");
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        if actual != expected {
            wrong.push(format!("{name}: got\n{actual}expected\n{expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Repeats each healthy recording hourly for a week, which shows state that accumulates.
#[test]
fn healthy_week_has_no_fault() {
    const HOUR_NS: u64 = 3_600_000_000_000;
    // An agent sees one boot and one stop.
    let happens_once = |name: &str| name.contains("boot") || name.contains("stopped");
    for case in cases() {
        let name = name_of(&case);
        if !is_healthy(&name) || happens_once(&name) {
            continue;
        }
        let recording = fs::read_to_string(case.join("input.jsonl")).expect("a recording");
        let (mut engine, started, lines) = open(&recording);
        let lines: Vec<_> = lines.collect();
        let mut conditions = Vec::new();
        let mut drain = |engine: &mut Engine, at: BootTime| {
            while let Some(effect) = engine.poll_effect() {
                if let Effect::Condition(condition) = effect {
                    conditions.push((
                        at.since(started),
                        condition.condition,
                        condition.status,
                        condition.reason,
                    ));
                }
            }
        };
        for hour in 0..24 * 7 {
            for line in &lines {
                let at = line.at.plus(hour * HOUR_NS);
                pass(&mut engine, at, &mut drain);
                engine.observe(at, line.observation.clone());
                drain(&mut engine, at);
            }
        }
        pass(&mut engine, started.plus(24 * 7 * HOUR_NS), &mut drain);
        assert!(conditions.len() <= 4, "{name}: {conditions:#?}");
        let last = engine.report().verdict.reason;
        assert_eq!(last, Reason::NetworkReady, "{name}");
    }
}

#[test]
fn every_recording_names_its_source() {
    let unnamed: Vec<_> = cases()
        .into_iter()
        .filter(|case| {
            let recording = fs::read_to_string(case.join("input.jsonl")).expect("a recording");
            let header: RecordingHeader =
                serde_json::from_str(recording.lines().next().expect("a header")).expect("a header");
            header.source.is_empty()
        })
        .collect();
    assert!(unnamed.is_empty(), "{unnamed:?}");
}

#[test]
fn every_reason_has_a_recording() {
    let mut recorded = BTreeSet::new();
    for case in cases() {
        for row in replay(&fs::read_to_string(case.join("input.jsonl")).expect("a recording")) {
            let lists = ["because", "then", "also"].into_iter().filter_map(|name| row[name].as_array());
            let reasons = lists.flatten().chain([&row["verdict"], &row["reason"]]);
            recorded.extend(reasons.filter_map(Value::as_str).map(str::to_owned));
        }
    }
    let missing: Vec<_> = Reason::ALL.iter().filter(|reason| !recorded.contains(reason.as_str())).collect();
    assert!(missing.is_empty(), "no recording has {missing:?}");
}

/// Observations from the kernel programs, netlink and files reach the agent in parallel and some milliseconds late.
/// Neighbouring observations within this window are swapped. One second, because recordings have few that are closer.
const WINDOW_NS: u64 = 1_000_000_000;

/// Observations from the ring buffer.
const KERNEL: [&str; 14] = [
    "connect",
    "connection",
    "socket_connect",
    "listener",
    "cni_start",
    "cni_end",
    "netns",
    "netlink_error",
    "route_gone",
    "limit_hit",
    "module_missing",
    "plugin_file",
    "packets_dropped",
    "process",
];
/// Maximum number of swaps in one recording: each replays the whole recording.
const MOST: usize = 25;

/// Returns the last verdict and the last state of each condition.
fn last_states(recording: &str) -> Vec<String> {
    let rows = replay(recording);
    let last = |wanted: &dyn Fn(&Value) -> bool| rows.iter().rev().find(|row| wanted(row)).cloned();
    let verdict = last(&|row| row["verdict"].is_string());
    let of = |name: &'static str| last(&move |row| row["condition"] == name);
    let fields = |row: Option<Value>, keys: &[&str]| {
        let row = row.unwrap_or_default();
        keys.iter().map(|key| row[*key].to_string()).collect::<Vec<_>>().join(" ")
    };
    vec![
        fields(verdict, &["verdict", "status", "subject", "because", "then", "also"]),
        fields(of("NodeNetworkReady"), &["status", "reason"]),
        fields(of("APIServerReachable"), &["status", "reason"]),
    ]
}

#[test]
fn reordering_within_the_window_gives_the_same_result() {
    let (mut swaps, mut wrong) = (0, Vec::new());
    for case in cases() {
        let recording = fs::read_to_string(case.join("input.jsonl")).expect("readable");
        let lines: Vec<&str> = recording.lines().collect();
        let read = |line: &str| -> (u64, String) {
            let value: Value = serde_json::from_str(line).expect("a line");
            (value["at"].as_u64().unwrap_or(0), value["kind"].as_str().unwrap_or_default().to_owned())
        };
        let known: Vec<_> = lines.iter().map(|line| read(line)).collect();
        // The agent itself reports the state at start, in its own order.
        let start =
            known.iter().position(|(_, kind)| kind == "snapshot_done").map_or(lines.len(), |at| at + 1);
        let expected = last_states(&recording);
        let mut taken = 0;
        for at in start..lines.len().saturating_sub(1) {
            let ((one, kind), (other, next)) = (&known[at], &known[at + 1]);
            // Observations of the kernel programs are sorted; those of netlink, files and requests each keep their
            // order. A reread belongs to its loss.
            let is_one_source =
                kind == next || [kind, next].iter().all(|kind| KERNEL.contains(&kind.as_str()));
            if is_one_source || one.abs_diff(*other) > WINDOW_NS || next == "reread" || taken >= MOST {
                continue;
            }
            swaps += 1;
            taken += 1;
            let mut swapped = lines.clone();
            swapped.swap(at, at + 1);
            let actual = last_states(&(swapped.join("\n") + "\n"));
            if actual != expected {
                wrong.push(format!(
                    "{}: lines {} and {}: {actual:?}, not {expected:?}",
                    case.display(),
                    at + 1,
                    at + 2
                ));
            }
        }
    }
    assert!(swaps > 50, "only {swaps} swaps");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// After a loss the agent reads the state again and reports the differences. Without a difference nothing changes.
/// (Running plugins are all reported again, which no recording contains.)
#[test]
fn loss_and_reread_without_a_difference_change_nothing() {
    /// Maximum number of losses of each scope in one recording: each replays the whole recording.
    const MOST: usize = 4;
    let (mut losses, mut wrong) = (0, Vec::new());
    for case in cases() {
        let recording = fs::read_to_string(case.join("input.jsonl")).expect("readable");
        let lines: Vec<&str> = recording.lines().collect();
        let read = |line: &&str| serde_json::from_str::<Value>(line).expect("a line");
        let known: Vec<_> = lines.iter().map(read).collect();
        let start =
            known.iter().position(|line| line["kind"] == "snapshot_done").map_or(lines.len(), |at| at + 1);
        // Excluded: a recorded loss lasts until its own reread, and running plugins would be reported again.
        if known.iter().any(|line| line["kind"] == "lost" || line["kind"] == "cni_start") {
            continue;
        }
        let expected = last_states(&recording);
        for scope in ["sockets", "processes", "links"] {
            for after in (start..lines.len()).step_by((lines.len() - start).div_ceil(MOST).max(1)) {
                losses += 1;
                let at = known[after]["at"].as_u64().expect("a time");
                let lost = json!({"at": at, "kind": "lost", "hook": "test", "scope": scope, "count": 1});
                let reread = json!({"at": at, "kind": "reread", "scope": scope});
                let mut lines: Vec<_> = lines.iter().map(ToString::to_string).collect();
                lines.insert(after + 1, format!("{lost}\n{reread}"));
                let actual = last_states(&(lines.join("\n") + "\n"));
                if actual != expected {
                    let case = case.display();
                    wrong.push(format!(
                        "{case}: {scope} after line {}: {actual:?}, not {expected:?}",
                        after + 1
                    ));
                }
            }
        }
    }
    assert!(losses > 500, "only {losses} losses");
    assert!(wrong.is_empty(), "{} of {losses}:\n{}", wrong.len(), wrong.join("\n"));
}

/// Every change by time alone has a deadline, and skipped judgement changes nothing: additional ticks, each second and
/// after each observation, have no effects.
#[test]
fn additional_ticks_have_no_effects() {
    const STEP_NS: u64 = 1_000_000_000;
    // Longer than the longest limit of the engine.
    const AFTER_NS: u64 = 1_300_000_000_000;
    let forget = |engine: &mut Engine, _| while engine.poll_effect().is_some() {};
    let quiet = |engine: &mut Engine, at: BootTime, what: &str| {
        engine.tick(at);
        let actual = engine.poll_effect();
        assert!(actual.is_none(), "{what}, tick at {} ns: {actual:?}", at.0);
    };
    let doze = |engine: &mut Engine, from: BootTime, until: BootTime, what: &str| {
        let mut at = from;
        while at < until {
            pass(engine, at.plus(1), forget);
            quiet(engine, at, what);
            at = at.plus(STEP_NS);
        }
        pass(engine, until, forget);
    };
    for case in cases() {
        let recording = fs::read_to_string(case.join("input.jsonl")).expect("readable");
        let (mut engine, mut last, lines) = open(&recording);
        for (number, line) in lines.enumerate() {
            doze(&mut engine, last, line.at, &format!("{}, before line {}", case.display(), number + 2));
            pass(&mut engine, line.at.plus(1), forget);
            engine.observe(line.at, line.observation);
            forget(&mut engine, line.at);
            quiet(&mut engine, line.at, &format!("{}, after line {}", case.display(), number + 2));
            last = last.max(line.at);
        }
        doze(&mut engine, last, last.plus(AFTER_NS), &format!("{}, after its end", case.display()));
    }
}
