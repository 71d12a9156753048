//! Client of the Open vSwitch database (OVSDB): JSON-RPC on a Unix socket, RFC 7047.

use std::io;
use std::path::Path;
use std::time::Duration;

use probe_engine::{OvsDatabase, OvsInterface};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::node::file;
use crate::text::clean;

/// Timeout of the query: the server is a process on this host.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of the response, bytes: forty times that of 500 interfaces of 200 bytes each.
const MAX_RESPONSE_LEN: usize = 4 << 20;
/// Maximum number of bridges, and of interfaces with an error.
const MAX_BRIDGES: usize = 32;
const MAX_FAILED: usize = 32;
/// Maximum length of a name, and of an error, bytes.
const MAX_NAME_LEN: usize = 64;
const MAX_ERROR_LEN: usize = 200;

/// Queries the database; `None` if there is no socket. A failure of the database is part of the result.
///
/// # Errors
/// If this process lacks the permission or the resources to read it, which shows nothing about the database.
pub(super) async fn read(socket: &Path) -> io::Result<Option<OvsDatabase>> {
    let result = match std::fs::symlink_metadata(socket) {
        Ok(_) => tokio::time::timeout(TIMEOUT, query(socket)).await,
        Err(error) if file::is_own(&error) => return Err(error),
        Err(_) => return Ok(None),
    };
    Ok(Some(match result {
        Ok(Ok(answer)) => parse_tables(&answer),
        Ok(Err(error)) if file::is_own(&error) => return Err(error),
        Ok(Err(error)) => failed(&error.to_string()),
        Err(_) => failed("no response within 2 s"),
    }))
}

fn failed(why: &str) -> OvsDatabase {
    OvsDatabase { error: Some(clean(why.as_bytes(), MAX_ERROR_LEN)), ..OvsDatabase::default() }
}

async fn query(socket: &Path) -> io::Result<Value> {
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
    let mut received = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        let size = stream.read(&mut chunk).await?;
        if size == 0 {
            return Err(io::Error::other("the connection was closed before a response"));
        }
        received.extend_from_slice(&chunk[..size]);
        if received.len() > MAX_RESPONSE_LEN {
            return Err(io::Error::other("the response exceeds 4 MiB"));
        }
        if let Some(answer) = find_response(&received)? {
            return Ok(answer);
        }
    }
}

/// Returns the response among the messages received so far; `None` if it is not complete. The server may send requests of its
/// own before it.
pub(in crate::node) fn find_response(received: &[u8]) -> io::Result<Option<Value>> {
    for message in serde_json::Deserializer::from_slice(received).into_iter::<Value>() {
        match message {
            Ok(message) if message["id"] == "netready" => return Ok(Some(message)),
            Ok(_) => {}
            Err(error) if error.is_eof() => return Ok(None),
            Err(error) => return Err(io::Error::other(format!("the response is not JSON: {error}"))),
        }
    }
    Ok(None)
}

/// Returns the content of the selected tables.
pub(in crate::node) fn parse_tables(response: &Value) -> OvsDatabase {
    if !response["error"].is_null() {
        return failed(&format!("the server returned an error: {}", response["error"]));
    }
    let rows = |index: usize| response["result"][index]["rows"].as_array().into_iter().flatten();
    let text = |value: &Value, max| clean(value.as_str().unwrap_or_default().as_bytes(), max);
    let behind = rows(0).any(|row| row["cur_cfg"].as_i64() < row["next_cfg"].as_i64());
    let bridges = rows(1).map(|row| text(&row["name"], MAX_NAME_LEN)).take(MAX_BRIDGES).collect();
    // An optional column without a value is an empty set, not a string.
    let broken = rows(2).filter(|row| row["error"].as_str().is_some_and(|error| !error.is_empty()));
    let failed = broken
        .map(|row| OvsInterface {
            name: text(&row["name"], MAX_NAME_LEN),
            port_kind: text(&row["type"], MAX_NAME_LEN),
            error: text(&row["error"], MAX_ERROR_LEN),
        })
        .take(MAX_FAILED)
        .collect();
    OvsDatabase { error: None, behind, bridges, failed }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn response_is_found_after_requests_of_the_server() {
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
        let read =
            find_response(&both).expect("JSON").map(|answer| parse_tables(&answer)).expect("an answer");
        assert!(read.behind && read.error.is_none() && read.bridges == ["br-int"]);
        assert_eq!(read.failed.len(), 1);
        assert_eq!(read.failed[0].error, "could not \\u{1b}[31madd");
        for cut in 0..both.len() {
            assert!(find_response(&both[..cut]).expect("no error").is_none());
        }
        assert!(find_response(b"{]").is_err());
    }

    /// Reads as an unprivileged user: setfsuid(2) changes the user for file access of one thread, and drops its capabilities
    /// over files.
    fn read_as_nobody(socket: &Path) -> io::Result<Option<OvsDatabase>> {
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                // SAFETY: takes a number, and changes this thread alone.
                unsafe { libc::setfsuid(65534) };
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(read(socket))
            });
            reader.join().expect("no panic")
        })
    }

    #[test]
    fn distinguishes_denied_access_from_a_stopped_server() {
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("its mode");
        };
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("db.sock");
        mode(dir.path(), 0o755);
        assert_eq!(read_as_nobody(&socket).expect("may search the directory"), None);
        let server = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        // No access for its owner either, so that the test needs no root.
        mode(&socket, 0o000);
        let denied = read_as_nobody(&socket).expect_err("the socket belongs to another user");
        assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
        mode(&socket, 0o666);
        mode(dir.path(), 0o000);
        let denied = read_as_nobody(&socket).expect_err("the directory belongs to another user");
        assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
        mode(dir.path(), 0o755);
        drop(server);
        let stopped = read_as_nobody(&socket).expect("may connect").expect("there is a socket");
        assert!(stopped.error.is_some_and(|error| error.contains("refused")));
    }

    #[test]
    fn unexpected_responses_cause_no_panic() {
        for answer in [json!(null), json!({"result": 7}), json!({"result": [{"rows": [{}]}, 1, {"rows": 2}]})]
        {
            let _ = parse_tables(&answer);
        }
        assert!(parse_tables(&json!({"error": "no such database"})).error.is_some());
    }
}
