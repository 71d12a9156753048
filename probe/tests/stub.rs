//! A build without the kernel programs: see `build.rs`.
#![cfg(without_kernel_programs)]

use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};

fn probe(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_probe"))
        .args(args)
        .env("NO_COLOR", "1")
        .output()
        .expect("the binary starts")
}

#[test]
fn commands_that_load_the_programs_exit_with_77() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().to_str().expect("a text");
    for args in [["check", "--no-agent"], ["trace", "--no-ask"]] {
        let output = probe(&args);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(77), "{args:?}: {message}");
        assert!(message.contains("built without its kernel programs: run `cargo xtask build`"), "{message}");
    }
    let doctor = probe(&["doctor", "-o", "json", "--no-ask", "--host-root", root]);
    assert_eq!(doctor.status.code(), Some(77), "{}", String::from_utf8_lossy(&doctor.stderr));
    let findings: serde_json::Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    assert!(findings["unsupported"].as_str().is_some_and(|why| why.contains("without its kernel programs")));
}

#[test]
fn check_reports_the_answer_of_a_running_agent() {
    let document = serde_json::json!({
        "schemaVersion": 1, "node": "worker-3", "bootId": "b", "role": "worker",
        "verdict": {"reason": "NetworkReady", "side": "none", "status": "True", "subject": "",
                    "since": "2026-01-02T03:04:05.678Z", "message": "m", "remedy": ""},
        "because": [], "consequences": [], "also": [], "conditions": [], "evidence": [], "gaps": []
    });
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("probe.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let agent = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.write_all(document.to_string().as_bytes()).expect("an answer");
    });
    let output = probe(&["check", "--socket", socket.to_str().expect("a text")]);
    agent.join().expect("the agent answered");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("worker-3: ready: NetworkReady"));
}
