//! Plants secrets in every text of every kind of observation, and searches every output for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use probe_engine::Remembered;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;

use super::*;
use crate::commands::check;
use crate::sinks::conditions::Conditions;
use crate::sinks::journal::Journal;
use crate::sinks::metrics::Metrics;
use crate::sinks::record::Recorder;
use crate::sinks::state::StateFile;

/// Markers that each of [`LEAKS`] contains, plain and in base64.
const CANARIES: [&str; 2] = ["canary42x", "dTpjYW5hcnk0Mng"];

/// Forms in which programs print secrets.
const LEAKS: [&str; 9] = [
    "https://user:canary42x@proxy:3128/x",
    "Authorization: Bearer canary42x",
    "Basic dTpjYW5hcnk0Mng=",
    "user:canary42x@host",
    "{\"token\":\"canary42x\"}",
    "password=canary42x;X=y",
    "eyJhbGciOiJSUzI1NiJ9.canary42x.c2ln",
    "-----BEGIN PRIVATE KEY-----\ncanary42x\n-----END PRIVATE KEY-----",
    "client-key-data: canary42x",
];

/// Largest recording that is replayed, in bytes. Larger ones have no kind of text that the smaller ones lack.
const LARGEST: u64 = 24 << 10;

/// Observations that no recording contains, in the form of their sources.
const OTHERS: [&str; 4] = [
    r#"{"at":1,"kind":"ovs_port","name":"p0","up":true}"#,
    r#"{"at":1,"kind":"writes","by":"account at x","problem":"it answers 403 no"}"#,
    r#"{"at":1,"kind":"throttled","hook":"h","count":1}"#,
    r#"{"at":1,"kind":"remembered","conditions":[{"condition":"APIServerReachable","status":"False","reason":"APITimeout","message":"m","since":1}]}"#,
];

/// Puts secrets into texts, wherever the result is still an observation.
#[derive(Default)]
struct Planter {
    /// Whether the text of this name in observations of this kind may be any text.
    is_free: BTreeMap<(String, String), bool>,
    planted: BTreeSet<String>,
    count: usize,
}

impl Planter {
    /// Plants secrets in one line of a recording; with `only_words` only in texts of several words, so that the engine
    /// recognises the names in it.
    fn plant(&mut self, line: &str, only_words: bool) -> Option<Value> {
        let original: Value = serde_json::from_str(line).ok()?;
        let kind = original.get("kind")?.as_str()?.to_owned();
        let mut texts = Vec::new();
        find(&original, String::new(), &mut texts);
        let mut value = original.clone();
        for pointer in texts {
            let text = original.pointer(&pointer)?.as_str()?.to_owned();
            if pointer == "/kind" || only_words && !text.contains(' ') {
                continue;
            }
            let name: String = pointer.chars().filter(|c| !c.is_ascii_digit()).collect();
            self.count += 1;
            let leak = format!("{} {text}", LEAKS[self.count % LEAKS.len()]);
            let known = self.is_free.get(&(kind.clone(), name.clone())).copied();
            if known == Some(false) {
                continue;
            }
            let before = std::mem::replace(value.pointer_mut(&pointer)?, Value::String(leak));
            if known.is_none() {
                let is_free = serde_json::from_value::<Line>(value.clone()).is_ok();
                self.is_free.insert((kind.clone(), name), is_free);
                if !is_free {
                    *value.pointer_mut(&pointer)? = before;
                }
            }
        }
        if serde_json::from_value::<Line>(value.clone()).is_err() {
            return Some(original);
        }
        if value != original {
            self.planted.insert(kind);
        }
        Some(value)
    }
}

fn find(value: &Value, pointer: String, found: &mut Vec<String>) {
    match value {
        Value::String(_) => found.push(pointer),
        Value::Array(values) => {
            values
                .iter()
                .enumerate()
                .for_each(|(index, value)| find(value, format!("{pointer}/{index}"), found));
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| find(value, format!("{pointer}/{name}"), found));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn recordings() -> Vec<String> {
    let folders = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let subjects = folders(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/replay"));
    let files = subjects.flat_map(|subject| folders(subject.path()));
    let files = files.map(|folder| folder.path().join("input.jsonl"));
    let is_small = |path: &PathBuf| fs::metadata(path).is_ok_and(|metadata| metadata.len() <= LARGEST);
    files.filter(is_small).filter_map(|path| fs::read_to_string(path).ok()).collect()
}

/// Replays every recording with planted secrets; `read` parses a line.
///
/// Returns each output by its name, and the kinds of observations in which a secret was planted.
async fn outputs(
    read: impl Fn(&[u8]) -> serde_json::Result<Line>,
) -> (BTreeMap<&'static str, String>, BTreeSet<String>) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let wall = Wall { offset_ns: 0 };
    let context = Context { node: "n".into(), boot_id: "b".into(), wall };
    let mut metrics = Metrics::new();
    let shared = metrics.shared();
    let (mut terminal, mut lines) = (Vec::new(), Vec::new());
    let mut timeline = Timeline::new(&mut terminal, wall, 10_000, Filter::default());
    let mut json = JsonLines::new(&mut lines, context.clone(), Filter::default());
    let kept = Journal::start(path("journal"), context.clone(), BootTime(0), &shared, Counter::default());
    let (mut journal, _known) = kept.expect("starts");
    let mut state = StateFile::start(path("state"), context.clone(), &shared).expect("starts");
    let (news, mut received) = mpsc::channel(1 << 16);
    let mut conditions = Conditions::new(news, &Remembered::default());
    let mut planter = Planter::default();
    let (mut recorded, mut checks) = (String::new(), String::new());
    let mut recordings = recordings();
    assert!(recordings.len() > 200, "{} recordings", recordings.len());
    let header = recordings[0].lines().next().expect("a header").to_owned();
    recordings.push(format!("{header}\n{}", OTHERS.join("\n")));
    for (number, text) in recordings.iter().enumerate() {
        let mut all = text.lines();
        let header: RecordingHeader = serde_json::from_str(all.next().expect("a header")).expect("a header");
        let mut engine = Engine::new(header.config.clone(), header.started);
        let file = path("recording");
        let _ = fs::remove_file(&file);
        let mut recorder = Recorder::create(&file, &header).expect("starts");
        let sinks: &mut [&mut dyn Sink] = &mut [
            &mut timeline,
            &mut json,
            &mut metrics,
            &mut journal,
            &mut state,
            &mut conditions,
            &mut recorder,
        ];
        for line in all {
            let Some(planted) = planter.plant(line, number % 2 == 0) else { continue };
            let line = read(planted.to_string().as_bytes()).expect("an observation");
            let at = line.at;
            let mut effects = Vec::new();
            while let Some(deadline) = engine.next_deadline().filter(|deadline| *deadline < at) {
                engine.tick(deadline);
                effects.extend(std::iter::from_fn(|| engine.poll_effect()));
            }
            for sink in sinks.iter_mut() {
                sink.observation(at, &line.observation);
                sink.judged(at, &line.observation);
            }
            engine.observe(at, line.observation);
            effects.extend(std::iter::from_fn(|| engine.poll_effect()));
            let report = engine.report();
            for sink in sinks.iter_mut() {
                for effect in &effects {
                    sink.effect(at, effect);
                }
                sink.report(at, &report);
            }
        }
        let document = Document::new(&engine.report(), &context);
        checks += &check::text(&document, 10_000).expect("prints");
        recorded += &fs::read_to_string(&file).expect("is there");
    }
    journal.finish().await;
    state.finish().await;
    drop(conditions);
    let mut node = String::new();
    while let Some(news) = received.recv().await {
        node += &format!("{news:?}\n");
    }
    let text = |name: &str| fs::read_to_string(path(name)).expect("is there");
    let outputs = [
        ("node conditions and events", node),
        ("journal", text("journal")),
        ("state file", text("state")),
        ("metrics", shared.text()),
        ("terminal", String::from_utf8(terminal).expect("text")),
        ("trace", String::from_utf8(lines).expect("text")),
        ("check", checks),
        ("recording", recorded),
    ];
    (outputs.into(), planter.planted)
}

fn leaks(text: &str) -> bool {
    CANARIES.iter().any(|canary| text.contains(canary))
}

/// Texts are redacted where they are read, and therefore in every output.
#[tokio::test]
async fn no_output_contains_a_secret() {
    let (outputs, kinds) = outputs(read::<Line>).await;
    for (name, text) in &outputs {
        let line = text.lines().find(|line| leaks(line));
        assert!(line.is_none(), "{name}: {}", line.unwrap_or_default());
    }
    // Metrics have closed label sets and no text.
    let shown = outputs.iter().filter(|(_, text)| text.contains("[redacted]")).map(|(name, _)| *name);
    assert_eq!(shown.count(), outputs.len() - 1);
    assert!(kinds.len() >= 30, "{kinds:?}");
}

/// Without redaction every output except the metrics contains the secrets: the test above can fail.
#[tokio::test]
async fn every_output_contains_secrets_without_redaction() {
    let (outputs, _) = outputs(|line| serde_json::from_slice(line)).await;
    let safe: Vec<_> = outputs.iter().filter(|(_, text)| !leaks(text)).map(|(name, _)| *name).collect();
    assert_eq!(safe, ["metrics"]);
}
