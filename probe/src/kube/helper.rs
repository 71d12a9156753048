//! Programs that provide a credential (`exec` in a kubeconfig; client-go's credential plugins). They run with fewer privileges
//! than the agent, and with a timeout.

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
use crate::yaml;

/// How long a program may run; those of cloud providers take one or two seconds.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum output that is read, bytes; a token has a few kilobytes.
const MAX_OUTPUT: u64 = 1 << 20;
/// How long before its expiration a credential is replaced, seconds.
const RENEW_BEFORE: i64 = 30;

/// `ExecCredential` of `client.authentication.k8s.io`, reduced to the fields in use.
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

/// Replaces the program in `account` by the credential that it provides. `dir` is the directory of the kubeconfig.
///
/// Returns when to run the program again, seconds since 1970; `None` if its credential does not expire.
pub(super) async fn replace(
    account: &mut AuthInfo,
    exec: &ExecConfig,
    dir: &Path,
) -> Result<Option<i64>, String> {
    let name = exec.command.as_deref().ok_or("its exec program has no command")?;
    let failed = |why: &dyn std::fmt::Display| format!("its exec program {name:?} {why}");
    if exec.interactive_mode == Some(ExecInteractiveMode::Always) {
        return Err(failed(&"needs a terminal"));
    }
    let mut child =
        command(exec, name, dir).spawn().map_err(|error| failed(&format!("cannot be started: {error}")))?;
    let output = match tokio::time::timeout(TIMEOUT, output(&mut child)).await {
        Ok(Ok(output)) => output,
        Ok(Err(why)) => return Err(failed(&why)),
        Err(_) => {
            kill(&child);
            return Err(failed(&format!("was killed: no result within {} s", TIMEOUT.as_secs())));
        }
    };
    // Some programs print YAML, and JSON is a subset of it.
    let answer: Answer = yaml::parse(&output).map_err(|_| failed(&"printed no ExecCredential"))?;
    let credential = answer.status.ok_or_else(|| failed(&"printed no status"))?;
    if credential.token.is_none() && credential.client_certificate_data.is_none() {
        return Err(failed(&"printed no credential"));
    }
    account.token = credential.token.map(Into::into);
    let encoded = |pem: String| BASE64.encode(pem.as_bytes());
    if let Some((certificate, key)) = credential.client_certificate_data.zip(credential.client_key_data) {
        account.client_certificate_data = Some(encoded(certificate));
        account.client_key_data = Some(encoded(key).into());
    }
    let expires = credential.expiration_timestamp.map(|at| at.parse::<jiff::Timestamp>()).transpose();
    let expires = expires.map_err(|_| failed(&"printed an expirationTimestamp that is not RFC 3339"))?;
    Ok(expires.map(|at| at.as_second().saturating_sub(RENEW_BEFORE).max(clock::unix_now())))
}

fn command(exec: &ExecConfig, name: &str, dir: &Path) -> Command {
    // As in client-go, a path is relative to the kubeconfig and a bare name is searched in PATH.
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
            Some(stdout) => stdout.take(MAX_OUTPUT).read_to_end(&mut output).await.map(drop),
            None => Ok(()),
        }
    };
    let (read, status) = tokio::join!(read, child.wait());
    let status = read.and(status).map_err(|error| format!("cannot be read: {error}"))?;
    if status.success() { Ok(output) } else { Err(format!("failed: {status}")) }
}

/// Kills a running program and the processes that it has started: its process group.
fn kill(child: &Child) {
    if let Some(group) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // SAFETY: no memory is involved.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

/// Runs between fork and exec: drops all capabilities, including those that root gains at exec (capabilities(7),
/// `PR_SET_NO_NEW_PRIVS`), and all descriptors above 2. The program is killed when the agent exits.
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
    // Failures are ignored: the capability does not exist, or CAP_SETPCAP is missing. In the latter case the bounding set has
    // no effect because of `PR_SET_NO_NEW_PRIVS`.
    // SAFETY: no memory is involved.
    (0..64).for_each(|capability| _ = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) });
    // SAFETY: both are live and have the size of that version's structures, which the kernel reads.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), nothing.as_ptr()) })?;
    close_on_exec();
    Ok(())
}

/// Marks all descriptors above 2 as close-on-exec. Those of the agent are already; those inherited from its parent need not be.
fn close_on_exec() {
    /// Exclusive limit of the descriptors that are marked if close_range(2) cannot mark all.
    const LIMIT: i32 = 1024;
    // SAFETY: no memory is involved.
    let closed =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    // CLOSE_RANGE_CLOEXEC exists since Linux 5.11.
    if closed != 0 {
        // SAFETY: no memory is involved; the call fails for a descriptor that is not open.
        (3..LIMIT).for_each(|fd| _ = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) });
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Instant;

    use super::*;

    /// Returns a kubeconfig's `exec` that runs `script` from the directory of the kubeconfig.
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
        // The fork of another test may briefly hold the script open for writing (ETXTBSY).
        loop {
            match replace(&mut account, &exec, dir.path()).await {
                Err(why) if why.contains("busy") => {}
                result => return (account, result),
            }
        }
    }

    #[tokio::test]
    async fn program_gets_its_arguments_and_provides_expiring_token() {
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
    async fn program_has_no_capabilities_and_no_inherited_descriptors() {
        // Not close-on-exec, like a descriptor that the agent inherited.
        // SAFETY: no memory is involved.
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
        // Descriptor 3 is the directory that `ls` reads; shells open their script as 10 or 255.
        let files: Vec<_> = files.split_whitespace().collect();
        assert!(files.iter().all(|fd| ["0", "1", "2", "3", "10", "255"].contains(fd)), "{files:?}");
    }

    #[tokio::test]
    async fn errors_name_what_the_program_did_wrong() {
        for (script, words) in [
            ("exit 3", "failed: exit status: 3"),
            ("echo no", "printed no ExecCredential"),
            ("echo '{}'", "printed no status"),
            ("echo '{\"status\": {}}'", "printed no credential"),
            ("exec yes", "failed: signal: 13"),
        ] {
            let (_, result) = run(script).await;
            let why = result.expect_err(script);
            assert!(why.contains(words), "{script}: {why}");
        }
        let missing = r#"{"command": "/no/such/program"}"#;
        let exec = serde_json::from_str(missing).expect("a program");
        let why = replace(&mut AuthInfo::default(), &exec, Path::new("/")).await.expect_err("is not there");
        assert!(why.contains("cannot be started"), "{why}");
    }

    #[tokio::test]
    async fn hanging_program_is_killed_with_its_children() {
        let start = Instant::now();
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
        assert!(start.elapsed() < TIMEOUT * 2);
        let child = fs::read_to_string(dir.path().join("child")).expect("it ran");
        let comm = format!("/proc/{}/comm", child.trim());
        while fs::read_to_string(&comm).is_ok_and(|name| name.trim() == "sleep") {
            assert!(start.elapsed() < TIMEOUT * 2, "its child is alive");
            std::thread::yield_now();
        }
    }
}
