//! The database of Open vSwitch, by its own protocol: JSON-RPC on a Unix socket, RFC 7047.

use std::io;
use std::path::Path;
use std::time::Duration;

use probe_engine::{OvsDatabase, OvsInterface};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::node::file;
use crate::text::clean;

/// How long it may take to answer: it is one process on this host.
const PATIENCE: Duration = Duration::from_secs(2);
/// Largest answer that is taken: 500 interfaces of 200 bytes each, forty times.
const ANSWER: usize = 4 << 20;
/// Most bridges, and most interfaces with an error, that are kept.
const BRIDGES: usize = 32;
const FAILED: usize = 32;
/// Longest name, and longest error, that is kept.
const NAME: usize = 64;
const ERROR: usize = 200;

/// What it says, if there is a socket; what is wrong with it is part of the answer.
///
/// # Errors
/// If this process cannot read it for a reason of its own, which shows nothing of the database.
pub(super) async fn read(socket: &Path) -> io::Result<Option<OvsDatabase>> {
    let asked = match std::fs::symlink_metadata(socket) {
        Ok(_) => tokio::time::timeout(PATIENCE, ask(socket)).await,
        Err(error) if file::is_own(&error) => return Err(error),
        Err(_) => return Ok(None),
    };
    Ok(Some(match asked {
        Ok(Ok(answer)) => tables(&answer),
        Ok(Err(error)) if file::is_own(&error) => return Err(error),
        Ok(Err(error)) => failed(&error.to_string()),
        Err(_) => failed("it does not answer within 2 s"),
    }))
}

fn failed(why: &str) -> OvsDatabase {
    OvsDatabase { error: Some(clean(why.as_bytes(), ERROR)), ..OvsDatabase::default() }
}

async fn ask(socket: &Path) -> io::Result<Value> {
    let mut stream = UnixStream::connect(socket).await?;
    let select = |table: &str, columns: &[&str]| json!({"op": "select", "table": table, "where": [], "columns": columns});
    let request = json!({
        "id": "netready",
        "method": "transact",
        "params": [
            "Open_vSwitch",
            select("Open_vSwitch", &["cur_cfg", "next_cfg"]),
            select("Bridge", &["name"]),
            select("Interface", &["name", "type", "error"]),
        ],
    });
    stream.write_all(request.to_string().as_bytes()).await?;
    let mut heard = Vec::new();
    let mut part = vec![0; 64 << 10];
    loop {
        let size = stream.read(&mut part).await?;
        if size == 0 {
            return Err(io::Error::other("it closes the connection before it answers"));
        }
        heard.extend_from_slice(&part[..size]);
        if heard.len() > ANSWER {
            return Err(io::Error::other("its answer has more than 4 MiB"));
        }
        if let Some(answer) = answer(&heard)? {
            return Ok(answer);
        }
    }
}

/// The answer among the messages that came so far: the server may ask something itself.
pub(in crate::node) fn answer(heard: &[u8]) -> io::Result<Option<Value>> {
    for message in serde_json::Deserializer::from_slice(heard).into_iter::<Value>() {
        match message {
            Ok(message) if message["id"] == "netready" => return Ok(Some(message)),
            Ok(_) => {}
            Err(error) if error.is_eof() => return Ok(None),
            Err(error) => return Err(io::Error::other(format!("its answer is no JSON: {error}"))),
        }
    }
    Ok(None)
}

pub(in crate::node) fn tables(answer: &Value) -> OvsDatabase {
    if !answer["error"].is_null() {
        return failed(&format!("it answers with an error: {}", answer["error"]));
    }
    let rows = |index: usize| answer["result"][index]["rows"].as_array().into_iter().flatten();
    let text = |value: &Value, max| clean(value.as_str().unwrap_or_default().as_bytes(), max);
    let behind = rows(0).any(|row| row["cur_cfg"].as_i64() < row["next_cfg"].as_i64());
    let bridges = rows(1).map(|row| text(&row["name"], NAME)).take(BRIDGES).collect();
    // An optional column without a value is an empty set, which is no text.
    let broken = rows(2).filter(|row| row["error"].as_str().is_some_and(|error| !error.is_empty()));
    let failed = broken
        .map(|row| OvsInterface {
            name: text(&row["name"], NAME),
            port_kind: text(&row["type"], NAME),
            error: text(&row["error"], ERROR),
        })
        .take(FAILED)
        .collect();
    OvsDatabase { error: None, behind, bridges, failed }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn an_answer_is_found_behind_the_server_s_own_questions() {
        let question = br#"{"id":"echo","method":"echo","params":[]}"#;
        let reply = json!({"id": "netready", "error": null, "result": [
            {"rows": [{"cur_cfg": 3, "next_cfg": 4}]},
            {"rows": [{"name": "br-int"}]},
            {"rows": [
                {"name": "veth1", "type": "", "error": ["set", []]},
                {"name": "ovn0", "type": "geneve", "error": "could not \u{1b}[31madd"},
            ]},
        ]});
        let both = [question.as_slice(), reply.to_string().as_bytes()].concat();
        let read = answer(&both).expect("JSON").map(|answer| tables(&answer)).expect("an answer");
        assert!(read.behind && read.error.is_none() && read.bridges == ["br-int"]);
        assert_eq!(read.failed.len(), 1);
        assert_eq!(read.failed[0].error, "could not \\u{1b}[31madd");
        for cut in 0..both.len() {
            assert!(answer(&both[..cut]).expect("no error").is_none());
        }
        assert!(answer(b"{]").is_err());
    }

    /// As an unprivileged user: a thread has the rights of its file system user, and no capability over files with it.
    fn read_as_nobody(socket: &Path) -> io::Result<Option<OvsDatabase>> {
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                // SAFETY: takes a number, and changes this thread alone.
                unsafe { libc::setfsuid(65534) };
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(read(socket))
            });
            reader.join().expect("it ends")
        })
    }

    #[test]
    fn a_database_that_may_not_be_read_is_told_from_one_that_does_not_run() {
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("its mode");
        };
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("db.sock");
        mode(dir.path(), 0o755);
        assert_eq!(read_as_nobody(&socket).expect("it may look"), None);
        let server = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        mode(&socket, 0o600);
        let denied = read_as_nobody(&socket).expect_err("the socket is another's");
        assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
        mode(&socket, 0o666);
        mode(dir.path(), 0o700);
        let denied = read_as_nobody(&socket).expect_err("the directory is another's");
        assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
        mode(dir.path(), 0o755);
        drop(server);
        let ended = read_as_nobody(&socket).expect("it may connect").expect("there is a socket");
        assert!(ended.error.is_some_and(|error| error.contains("refused")));
    }

    #[test]
    fn whatever_it_answers_is_no_panic() {
        for answer in [json!(null), json!({"result": 7}), json!({"result": [{"rows": [{}]}, 1, {"rows": 2}]})]
        {
            let _ = tables(&answer);
        }
        assert!(tables(&json!({"error": "no such database"})).error.is_some());
    }
}
