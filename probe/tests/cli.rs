//! The command line: help, usage errors, malformed files. Does not need root.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

fn probe(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_probe"))
        .args(args)
        .env("NO_COLOR", "1")
        .output()
        .expect("the binary starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("a text")
}

/// Asserts exit code 2 and one line on standard error that contains `words`.
fn is_usage_error(output: &Output, words: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains(words), "{words:?} is missing in {stderr:?}");
    assert!(!stderr.contains("panicked") && output.stdout.is_empty(), "{stderr}");
    assert!(stderr.chars().all(|c| !c.is_control() || c == '\n'), "{stderr:?}");
}

#[test]
fn every_command_has_help() {
    let help = stdout(&probe(&["--help"]));
    for command in ["run", "check", "trace", "replay", "explain", "doctor"] {
        assert!(help.contains(command), "{command} is missing in {help}");
        let own = probe(&[command, "--help"]);
        assert_eq!(own.status.code(), Some(0));
        assert!(stdout(&own).contains("Usage: probe"), "{command}");
    }
    assert!(help.contains("77 missing privilege"), "the exit codes are missing in {help}");
}

#[test]
fn usage_error_exits_with_2_and_names_the_problem() {
    assert_eq!(probe(&[]).status.code(), Some(2));
    is_usage_error(&probe(&["chekc"]), "unrecognized subcommand");
    is_usage_error(&probe(&["check", "--no-such-flag"]), "unexpected argument");
    is_usage_error(&probe(&["check", "--for", "10"]), "expected one of the units ms, s, m, h");
    is_usage_error(&probe(&["check", "--for", "0s"]), "between 1ms and 24h");
    is_usage_error(&probe(&["check", "--ring-bytes", "5000"]), "power of two");
    is_usage_error(&probe(&["trace", "--pod", "web-1"]), "NAMESPACE/NAME");
    is_usage_error(&probe(&["trace", "--only", "everything"]), "possible values");
    is_usage_error(&probe(&["check", "--role", "king"]), "possible values");
    is_usage_error(&probe(&["run", "--metrics-address", "nowhere"]), "--metrics-address");
}

#[test]
fn malformed_addresses_and_missing_paths_are_named() {
    for bad in ["no such host", "10.0.0.1:99999", "[::1", "", "0.0.0.0:6443", "10.0.0.1:0", "vip=10.0.0.1"] {
        is_usage_error(&probe(&["check", "--apiserver", bad]), "--apiserver");
    }
    is_usage_error(&probe(&["check", "--apiserver", "\u{1b}[31mx"]), "--apiserver");
    is_usage_error(&probe(&["check", "--host-root", "/no/such/dir"]), "not a directory");
    is_usage_error(&probe(&["check", "--kubeconfig", "/no/such/file"]), "not a file");
}

#[test]
fn explain_lists_every_reason_and_suggests_similar_names() {
    assert!(stdout(&probe(&["explain"])).lines().filter(|line| line.starts_with("API")).count() == 19);
    let one = stdout(&probe(&["explain", "apitimeout"]));
    assert!(one.starts_with("APITimeout  (api)") && one.contains("  next "), "{one}");
    is_usage_error(&probe(&["explain", "Exhausted"]), "did you mean IPAMExhausted, ConntrackExhausted");
    is_usage_error(&probe(&["explain", "\u{1b}[31m"]), "unknown reason");
    let json = probe(&["explain", "-o", "json", "CNIConfigMissing"]);
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(value["side"], "cni");
}

#[test]
fn malformed_recording_is_refused_with_the_line_number() {
    is_usage_error(&probe(&["replay", "/no/such/recording"]), "/no/such/recording");
    is_usage_error(&probe(&["replay", "/"]), "is a directory");
    let header = r#"{"netreadyRecording":1,"started":0}"#;
    for (text, words) in [
        (String::new(), "line 1"),
        ("nonsense\n".to_owned(), "line 1: not the header of a recording"),
        (r#"{"netreadyRecording":9,"started":0}"#.to_owned(), "format 9 is not supported"),
        (format!("{header}\n{{\"at\":1,\"kind\":\"no_such\"}}\n"), "line 2: unknown variant"),
        (format!("{header}\n\u{0}\u{0}\n"), "line 2"),
        (
            format!("{header}\n{{\"at\":1,\"kind\":\"\\u001b[31m\"}}\n"),
            "line 2: unknown variant `\\u{1b}[31m`",
        ),
        (format!("{header}\n{}\n", "[".repeat(1 << 20)), "line 2"),
        (format!("{header}\n{}", "x".repeat(3 << 20)), "longer than"),
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_probe"))
            .args(["replay", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        // The program may stop reading before the end.
        let _ = child.stdin.take().expect("an input").write_all(text.as_bytes());
        is_usage_error(&child.wait_with_output().expect("it ends"), words);
    }
}

#[test]
fn recording_is_replayed_at_recorded_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("recording.jsonl");
    let lines = [
        r#"{"netreadyRecording":1,"node":"worker-3","started":1000000000,"wallOffsetNs":1767322000000000000}"#,
        r#"{"at":1000000000,"kind":"host","role":"worker"}"#,
        r#"{"at":1000000000,"kind":"api_target","addr":"10.0.0.1:6443"}"#,
        r#"{"at":1000000000,"kind":"cni_config","dir":"/etc/cni/net.d","files":[]}"#,
        r#"{"at":1000000000,"kind":"snapshot_done"}"#,
        r#"{"at":2000000000,"kind":"connect","client":{"pid":812,"name":"kubelet"},"role":"kubelet","host_netns":true,"to":"10.0.0.1:6443","took_ns":200000,"sk_err":111,"rst":true}"#,
    ];
    std::fs::write(&path, lines.join("\n")).expect("written");
    let path = path.to_str().expect("a text");
    let text = stdout(&probe(&["replay", path]));
    assert!(text.contains("02:46:42.000") && text.contains("kubelet[812] → 10.0.0.1:6443"), "{text}");
    assert!(text.contains("worker-3: not ready: APIServerRefused"), "{text}");
    assert!(text.contains("then         CNIConfigMissing"), "{text}");
    let json = stdout(&probe(&["replay", "-o", "json", path]));
    let last = json.lines().rfind(|line| line.contains("\"kind\":\"verdict\"")).expect("a verdict");
    let value: serde_json::Value = serde_json::from_str(last).expect("JSON");
    assert_eq!(value["consequences"][0]["reason"], "CNIConfigMissing");
}

#[test]
fn control_characters_of_a_recording_are_escaped() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("recording.jsonl");
    let hostile = format!(r"\u001b]0;title\u0007\u009b2J\n{}", "x".repeat(5000));
    let lines = [
        format!(r#"{{"netreadyRecording":1,"node":"{hostile}","bootId":"{hostile}","started":0}}"#),
        format!(r#"{{"at":0,"kind":"cni_config","dir":"{hostile}","files":[]}}"#),
        r#"{"at":0,"kind":"snapshot_done"}"#.to_owned(),
        format!(
            r#"{{"at":1,"kind":"cni_config","dir":"{hostile}","files":[{{"name":"{hostile}","size":1,"content":"network","network":"{hostile}","plugins":["bridge"]}}]}}"#
        ),
        r#"{"at":20000000000,"kind":"snapshot_done"}"#.to_owned(),
    ];
    std::fs::write(&path, lines.join("\n")).expect("written");
    let path = path.to_str().expect("a text");
    let text = stdout(&probe(&["replay", path]));
    assert!(text.contains(r"\u{1b}]0;title\u{7}\u{9b}2J\n"), "{text:?}");
    let json = stdout(&probe(&["replay", "-o", "json", path]));
    for shown in [&text, &json] {
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
    }
    let messages = json.lines().filter_map(|line| {
        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        Some(value["message"].as_str()?.len())
    });
    assert!(messages.max().expect("a message") <= 512, "{json}");
}

#[test]
fn closed_output_pipe_is_not_a_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_probe"))
        .arg("explain")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
