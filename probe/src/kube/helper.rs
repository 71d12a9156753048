//! Programs that provide a credential (`exec` in a kubeconfig; client-go's credential plugins). They are started with less
//! than the agent has, and are given little time.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use data_encoding::BASE64;
use kube::config::{AuthInfo, ExecConfig, ExecInteractiveMode};
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use crate::clock;

/// How long a program may run; those of cloud providers take one or two seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most output that is read; a token has a few kilobytes.
const OUTPUT: u64 = 1 << 20;
/// A credential is replaced so long before it expires, seconds.
const EARLY: i64 = 30;

/// `ExecCredential` of `client.authentication.k8s.io`, as far as it matters here.
#[derive(Deserialize)]
struct Answer {
    status: Option<Credential>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Credential {
    expiration_timestamp: Option<String>,
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

/// Replaces the program in `account` by the credential that it provides. `dir` is where the kubeconfig lies.
///
/// Returns the second since 1970 from which on the program is to be run again; `None` if its credential does not expire.
pub(super) async fn replace(
    account: &mut AuthInfo,
    exec: &ExecConfig,
    dir: &Path,
) -> Result<Option<i64>, String> {
    let name = exec.command.as_deref().ok_or("its account comes from a program without a name")?;
    let failed =
        |why: &dyn std::fmt::Display| format!("the program {name:?} that provides its credential {why}");
    if exec.interactive_mode == Some(ExecInteractiveMode::Always) {
        return Err(failed(&"needs a terminal"));
    }
    let mut child =
        command(exec, name, dir).spawn().map_err(|error| failed(&format!("does not start: {error}")))?;
    let output = match tokio::time::timeout(PATIENCE, output(&mut child)).await {
        Ok(Ok(output)) => output,
        Ok(Err(why)) => return Err(failed(&why)),
        Err(_) => {
            kill(&child);
            return Err(failed(&format!("was killed: no result within {} s", PATIENCE.as_secs())));
        }
    };
    // JSON is YAML, and some programs write that.
    let answer: Answer =
        serde_yaml_ng::from_slice(&output).map_err(|_| failed(&"does not print an ExecCredential"))?;
    let credential = answer.status.ok_or_else(|| failed(&"prints no status"))?;
    if credential.token.is_none() && credential.client_certificate_data.is_none() {
        return Err(failed(&"prints no credential"));
    }
    account.token = credential.token.map(Into::into);
    let encoded = |pem: String| BASE64.encode(pem.as_bytes());
    if let Some((certificate, key)) = credential.client_certificate_data.zip(credential.client_key_data) {
        account.client_certificate_data = Some(encoded(certificate));
        account.client_key_data = Some(encoded(key).into());
    }
    let expires = credential.expiration_timestamp.map(|at| at.parse::<jiff::Timestamp>()).transpose();
    let expires = expires.map_err(|_| failed(&"prints an expirationTimestamp that is not RFC 3339"))?;
    Ok(expires.map(|at| at.as_second().saturating_sub(EARLY).max(clock::unix_now())))
}

fn command(exec: &ExecConfig, name: &str, dir: &Path) -> Command {
    // As client-go: a path is relative to the kubeconfig, a bare name is searched for.
    let program = if name.contains('/') { dir.join(name) } else { PathBuf::from(name) };
    let mut spec = json!({"interactive": false});
    if exec.provide_cluster_info {
        spec["cluster"] = json!(exec.cluster);
    }
    let info = json!({"kind": "ExecCredential", "apiVersion": exec.api_version, "spec": spec});
    let mut command = Command::new(program);
    command.args(exec.args.iter().flatten());
    for variable in exec.env.iter().flatten() {
        if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
            command.env(name, value);
        }
    }
    command.env("KUBERNETES_EXEC_INFO", info.to_string());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .process_group(0);
    // SAFETY: `confine` makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(confine) };
    command
}

async fn output(child: &mut Child) -> Result<Vec<u8>, String> {
    let mut output = Vec::new();
    let stdout = child.stdout.take();
    let read = async {
        match stdout {
            Some(stdout) => stdout.take(OUTPUT).read_to_end(&mut output).await.map(drop),
            None => Ok(()),
        }
    };
    let (read, status) = tokio::join!(read, child.wait());
    let status = read.and(status).map_err(|error| format!("cannot be followed: {error}"))?;
    if status.success() { Ok(output) } else { Err(format!("failed: {status}")) }
}

/// Kills a program that runs, and what it has started: its process group.
fn kill(child: &Child) {
    if let Some(group) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // SAFETY: no memory is involved.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

/// Between fork and exec: takes from the program every capability, also those that root gets at exec (capabilities(7),
/// `PR_SET_NO_NEW_PRIVS`), and every descriptor above 2. It ends with the agent.
fn confine() -> io::Result<()> {
    // include/uapi/linux/capability.h
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let nothing = [0_u32; 6];
    let check = |answer: libc::c_long| if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: no memory is involved.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    // SAFETY: no memory is involved.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }.into())?;
    // SAFETY: no memory is involved. It fails where there is no such capability, and without CAP_SETPCAP; what is in the
    // bounding set cannot be had again without new privileges.
    (0..64).for_each(|capability| _ = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) });
    // SAFETY: both are live and have the size of that version's structures, which the kernel reads.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), nothing.as_ptr()) })?;
    close_on_exec();
    Ok(())
}

/// The agent opens everything so that exec closes it; what whoever started the agent left open is not.
fn close_on_exec() {
    /// One above the highest descriptor that is marked where close_range(2) cannot mark all of them.
    const MOST: i32 = 1024;
    // SAFETY: no memory is involved.
    let closed =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    // The flag is there from Linux 5.11 on.
    if closed != 0 {
        // SAFETY: no memory is involved; it fails for a descriptor that is not open.
        (3..MOST).for_each(|fd| _ = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) });
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Instant;

    use super::*;

    /// A kubeconfig's `exec` that runs this script from beside the kubeconfig.
    fn exec(dir: &Path, script: &str) -> ExecConfig {
        let path = dir.join("helper");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("sets its mode");
        let exec = r#"{"apiVersion": "client.authentication.k8s.io/v1", "command": "./helper", "args": ["a b"],
            "env": [{"name": "REGION", "value": "x"}], "interactiveMode": "Never"}"#;
        serde_json::from_str(exec).expect("a program")
    }

    async fn run(script: &str) -> (AuthInfo, Result<Option<i64>, String>) {
        let dir = tempfile::tempdir().expect("a directory");
        let exec = exec(dir.path(), script);
        let mut account = AuthInfo::default();
        // Another test's fork may hold the script open for writing for a moment.
        loop {
            match replace(&mut account, &exec, dir.path()).await {
                Err(why) if why.contains("busy") => {}
                result => return (account, result),
            }
        }
    }

    #[tokio::test]
    async fn a_program_is_given_its_arguments_and_provides_a_token_that_expires() {
        let script = r#"[ "$1 $REGION" = "a b x" ] && echo "$KUBERNETES_EXEC_INFO" | grep -q '"interactive":false' &&
            echo '{"status": {"token": "t", "expirationTimestamp": "2100-01-01T00:00:30Z"}}'"#;
        let (account, result) = run(script).await;
        assert_eq!(result, Ok(Some(4_102_444_800)));
        assert!(account.token.is_some() && account.exec.is_none());
        let (account, result) =
            run("printf 'status:\\n  clientCertificateData: c\\n  clientKeyData: k\\n'").await;
        assert_eq!((result, account.client_certificate_data.as_deref()), (Ok(None), Some("Yw==")));
    }

    #[tokio::test]
    async fn a_program_has_no_capability_and_no_descriptor_of_the_agent_s() {
        // SAFETY: no memory is involved. Nobody closes this one, as of whoever started the agent.
        let inherited = unsafe { libc::dup(2) };
        let script = "status=$(grep -E '^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs)' /proc/self/status | cut -f2 | tr '\\n' ' ')
            files=$(ls /proc/self/fd | tr '\\n' ' ')
            echo \"{\\\"status\\\": {\\\"token\\\": \\\"t\\\", \\\"expirationTimestamp\\\": \\\"$status\\\"}}\" >&1
            echo \"$status|$files\" > \"$(dirname $0)/seen\"";
        let dir = tempfile::tempdir().expect("a directory");
        let exec = exec(dir.path(), script);
        let mut account = AuthInfo::default();
        while replace(&mut account, &exec, dir.path()).await.is_err_and(|why| why.contains("busy")) {}
        // SAFETY: no memory is involved.
        unsafe { libc::close(inherited) };
        let seen = fs::read_to_string(dir.path().join("seen")).expect("it ran");
        let (status, files) = seen.split_once('|').expect("both");
        let none = "0000000000000000";
        assert_eq!(status.trim(), format!("{none} {none} {none} {none} 1"));
        // The third is the directory that it reads; a shell may have its script as the tenth.
        let files: Vec<_> = files.split_whitespace().collect();
        assert!(files.iter().all(|fd| ["0", "1", "2", "3", "10", "255"].contains(fd)), "{files:?}");
    }

    #[tokio::test]
    async fn what_a_program_does_wrong_is_named() {
        for (script, words) in [
            ("exit 3", "failed: exit status: 3"),
            ("echo no", "does not print an ExecCredential"),
            ("echo '{}'", "prints no status"),
            ("echo '{\"status\": {}}'", "prints no credential"),
            ("exec yes", "failed: signal: 13"),
        ] {
            let (_, result) = run(script).await;
            let why = result.expect_err(script);
            assert!(why.contains(words), "{script}: {why}");
        }
        let missing = r#"{"command": "/no/such/program"}"#;
        let exec = serde_json::from_str(missing).expect("a program");
        let why = replace(&mut AuthInfo::default(), &exec, Path::new("/")).await.expect_err("is not there");
        assert!(why.contains("does not start"), "{why}");
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_killed_with_its_children() {
        let begun = Instant::now();
        let dir = tempfile::tempdir().expect("a directory");
        let exec = exec(dir.path(), "sleep 1000 & echo $! > \"$(dirname $0)/child\"; wait");
        let mut account = AuthInfo::default();
        let why = loop {
            match replace(&mut account, &exec, dir.path()).await {
                Err(why) if why.contains("busy") => {}
                result => break result.expect_err("never ends"),
            }
        };
        assert!(why.contains("was killed: no result within 10 s"), "{why}");
        assert!(begun.elapsed() < PATIENCE * 2);
        let child = fs::read_to_string(dir.path().join("child")).expect("it ran");
        let comm = format!("/proc/{}/comm", child.trim());
        while fs::read_to_string(&comm).is_ok_and(|name| name.trim() == "sleep") {
            assert!(begun.elapsed() < PATIENCE * 2, "its child is alive");
            std::thread::yield_now();
        }
    }
}
