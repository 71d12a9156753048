//! The agent with fewer privileges, or with a restricted `/proc`: what it reports without each capability that README.md
//! lists. Requires root.

use std::ffi::CString;
use std::fs::Permissions;
use std::io::Error;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::ptr::null;

use anyhow::{Context as _, Result, ensure};
use kernel_tests::{API, Node, OpenVSwitch, Trace, probe_command};
use serde_json::{Value, json};

// include/uapi/linux/capability.h
pub(super) const DAC_OVERRIDE: libc::c_ulong = 1;
pub(super) const DAC_READ_SEARCH: libc::c_ulong = 2;
pub(super) const NET_BROADCAST: libc::c_ulong = 11;
pub(super) const NET_ADMIN: libc::c_ulong = 12;
pub(super) const SYS_PTRACE: libc::c_ulong = 19;
pub(super) const SYS_ADMIN: libc::c_ulong = 21;
pub(super) const SYS_RESOURCE: libc::c_ulong = 24;
pub(super) const PERFMON: libc::c_ulong = 38;
pub(super) const BPF: libc::c_ulong = 39;

/// A user ID that owns nothing else.
const OTHER: u32 = 64_999;

/// Signal name of the gap for processes.
const PROCESSES: &str = "process.table";

#[test]
fn unreadable_processes_are_a_gap_and_leave_network_unproven() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let empty = node.dir().join("empty");
    std::fs::create_dir(&empty)?;
    for (proc, capability, why) in [
        (Proc::Usual, Some(SYS_PTRACE), Some("CAP_SYS_PTRACE")),
        (Proc::Hidden, Some(SYS_PTRACE), Some("CAP_SYS_PTRACE")),
        (Proc::Absent(&empty), None, Some("not mounted")),
        // With the capability all processes are visible.
        (Proc::Hidden, None, None),
    ] {
        let case = format!("{proc:?} without {capability:?}");
        let mut command = probe_command(&node, "trace", &["-o", "json", "--apiserver", API])?;
        mount_over_proc(&mut command, proc)?;
        without_capabilities(&mut command, capability);
        let mut trace = Trace::start_command(command).context(case.clone())?;
        let gap = trace.gap(PROCESSES);
        let Some(why) = why else {
            ensure!(gap.is_none(), "{case}: {gap:?}");
            trace.wait_for_verdict("NetworkReady").context(case)?;
            continue;
        };
        ensure!(gap.is_some_and(|gap| gap.contains(why)), "{case}: {gap:?}");
        let verdict = trace.wait_for_verdict("ProbeDegraded").context(case.clone())?;
        ensure!(verdict.line["verdict"]["message"].to_string().contains(why), "{case}: {}", verdict.line);
        trace
            .wait_for("a connect to the API server", |line| line["kind"] == "connect")
            .context(case.clone())?;
        check_no_fault(&trace).context(case)?;
        ensure!(!trace.seen.iter().any(|line| line["verdict"]["reason"] == "NetworkReady"), "{why}");
    }
    Ok(())
}

/// `CAP_SYS_ADMIN` includes both capabilities.
#[test]
fn exits_and_names_missing_ebpf_capability() -> Result<()> {
    let node = Node::new()?;
    for (capability, name) in [(BPF, "CAP_BPF"), (PERFMON, "CAP_PERFMON")] {
        for verb in ["trace", "run"] {
            let mut command = probe_command(&node, verb, &[])?;
            if verb == "run" {
                let state = node.dir().join("state.json");
                command.args(["--metrics-address", "127.0.0.1:0", "--state-file"]).arg(state);
            }
            without_capabilities(&mut command, [capability, SYS_ADMIN]);
            let output = command.output()?;
            let complaint = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(77), "{name}, {verb}: {output:?}");
            ensure!(complaint.contains(&format!("{name} is missing")), "{verb}: {complaint}");
        }
    }
    Ok(())
}

#[test]
fn works_without_net_admin_and_sys_resource() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let usual = gaps(&trace_without(&node, &[], &[])?);
    let mut trace = trace_without(&node, &[NET_ADMIN], &[])?;
    ensure!(gaps(&trace) == usual, "{:?} and not {usual:?}", gaps(&trace));
    trace.wait_for_verdict("NetworkReady")?;
    let mut trace = trace_without(&node, &[SYS_RESOURCE], &[])?;
    // Older kernels count maps against the limit of locked memory, which is small without the capability.
    if trace.gap("ebpf").is_none() {
        ensure!(gaps(&trace) == usual, "{:?} and not {usual:?}", gaps(&trace));
    } else {
        ensure!(is_before(5, 11)?, "{:?}", trace.gap("ebpf"));
    }
    trace.wait_for_verdict("NetworkReady")?;
    check_no_fault(&trace)
}

#[test]
fn unreadable_configuration_without_dac_read_search_is_a_gap() -> Result<()> {
    const GAP: &str = "CAP_DAC_READ_SEARCH is missing";
    let (node, _server) = Node::healthy()?;
    for dir in [node.conf_dir(), node.bin_dir()] {
        std::fs::set_permissions(&dir, Permissions::from_mode(0o700))?;
        chown(&dir, Some(OTHER), Some(OTHER))?;
        trace_without(&node, &[], &[])?.wait_for_verdict("NetworkReady").context("with the capability")?;
        // CAP_DAC_OVERRIDE includes the right to read.
        let mut trace = trace_without(&node, &[DAC_READ_SEARCH, DAC_OVERRIDE], &[])?;
        let verdict = trace.wait_for_verdict("ProbeDegraded")?;
        let message = verdict.line["verdict"]["message"].as_str().unwrap_or_default();
        ensure!(message.contains(GAP) && message.contains(&*dir.to_string_lossy()), "{message}");
        trace.wait_for("a connect to the API server", |line| line["kind"] == "connect")?;
        check_no_fault(&trace)?;
        chown(&dir, Some(0), Some(0))?;
    }
    Ok(())
}

#[test]
fn unreadable_ovs_database_without_dac_override_is_a_gap() -> Result<()> {
    let node = Node::new()?;
    let _server = node.serve_api()?;
    node.helper_as("kube-ovn")?;
    let config = json!({"cniVersion": "0.4.0", "name": "ovn", "plugins": [{"type": "kube-ovn"}]});
    node.write_config("01-kube-ovn.conflist", config.to_string().as_bytes())?;
    let dir = node.dir().join("ovs");
    let ovs = OpenVSwitch::start(&node, &dir)?;
    ovs.vsctl("add-br br-int -- set bridge br-int datapath_type=netdev")?;
    chown(dir.join("db.sock"), Some(OTHER), Some(OTHER))?;
    std::fs::set_permissions(dir.join("db.sock"), Permissions::from_mode(0o600))?;
    let flag = dir.to_string_lossy().into_owned();
    let args = ["--ovs-run-dir", flag.as_str()];
    trace_without(&node, &[], &args)?.wait_for_verdict("NetworkReady").context("with the capability")?;
    let mut trace = trace_without(&node, &[DAC_OVERRIDE], &args)?;
    wait_for_gap(&mut trace, "ovs.database", "")?;
    wait_until_verdict(&mut trace, "NetworkReady")?;
    check_no_fault(&trace)
}

#[test]
fn link_changes_without_net_broadcast_are_a_gap() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = trace_without(&node, &[NET_BROADCAST], &[])?;
    wait_for_gap(&mut trace, "link", "listen to every namespace")?;
    wait_until_verdict(&mut trace, "NetworkReady")?;
    check_no_fault(&trace)
}

#[test]
fn authors_of_configuration_changes_without_sys_admin_are_a_gap() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = trace_without(&node, &[SYS_ADMIN], &[])?;
    wait_for_gap(&mut trace, "cni.config.access", "CAP_SYS_ADMIN is missing")?;
    wait_until_verdict(&mut trace, "NetworkReady")?;
    check_no_fault(&trace)?;
    // The change itself is reported nevertheless.
    node.remove_config()?;
    let verdict = trace.wait_for_verdict("CNIConfigMissing")?;
    ensure!(!verdict.line.to_string().contains("removed by"), "{}", verdict.line);
    Ok(())
}

/// Starts a trace without these capabilities on a node that an API server serves.
fn trace_without(node: &Node, capabilities: &[libc::c_ulong], args: &[&str]) -> Result<Trace> {
    let mut command = probe_command(node, "trace", &["-o", "json", "--apiserver", API])?;
    command.args(args);
    without_capabilities(&mut command, capabilities.iter().copied());
    Trace::start_command(command)
}

/// Waits for a verdict with this reason, unless it is the newest one already.
fn wait_until_verdict(trace: &mut Trace, reason: &str) -> Result<()> {
    let is_verdict = |line: &&Value| line["kind"] == "verdict";
    let newest = trace.seen.iter().rev().find(is_verdict).map(|line| &line["verdict"]["reason"]);
    if newest.is_some_and(|newest| newest == reason) {
        return Ok(());
    }
    trace.wait_for_verdict(reason).map(drop)
}

/// Waits until a gap of this signal is reported, and checks its reason.
fn wait_for_gap(trace: &mut Trace, signal: &str, why: &str) -> Result<()> {
    let is_gap = |line: &Value| line["kind"] == "gap" && line["signal"] == signal;
    if !trace.seen.iter().any(is_gap) {
        trace.wait_for(signal, is_gap)?;
    }
    let gap = trace.gap(signal).unwrap_or_default();
    ensure!(gap.contains(why), "{gap}");
    Ok(())
}

/// Returns the signals of the gaps that were reported so far.
fn gaps(trace: &Trace) -> Vec<Value> {
    let gaps = trace.seen.iter().filter(|line| line["kind"] == "gap");
    gaps.map(|line| line["signal"].clone()).collect()
}

/// Fails if a fault was reported.
fn check_no_fault(trace: &Trace) -> Result<()> {
    let is_fault = |line: &&Value| {
        let statuses = [&line["verdict"]["status"], &line["status"]];
        statuses.iter().any(|status| *status == "False")
    };
    let fault = trace.seen.iter().find(is_fault);
    ensure!(fault.is_none(), "{fault:?}");
    Ok(())
}

/// Returns whether the running kernel is older than a release.
fn is_before(major: u32, minor: u32) -> Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let (first, second) = numbers.next().zip(numbers.next()).context(release.clone())?;
    Ok((first, second) < (major, minor))
}

/// Removes capabilities from a command that runs as root.
fn without_capabilities(command: &mut Command, capabilities: impl IntoIterator<Item = libc::c_ulong>) {
    let capabilities: Vec<_> = capabilities.into_iter().collect();
    let drop = move || {
        capabilities.iter().try_for_each(|capability| {
            // SAFETY: no memory is involved.
            checked(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, *capability, 0, 0, 0) })
        })
    };
    // SAFETY: prctl(2) is async-signal-safe, and the closure allocates nothing.
    unsafe { command.pre_exec(drop) };
}

/// What a command sees in `/proc`.
#[derive(Clone, Copy, Debug)]
enum Proc<'a> {
    /// The host's `/proc`.
    Usual,
    /// Processes of other users only with `CAP_SYS_PTRACE` (`hidepid=2`).
    Hidden,
    /// The content of this empty directory.
    Absent(&'a Path),
}

/// Gives a command its own mount namespace with another `/proc`.
fn mount_over_proc(command: &mut Command, proc: Proc<'_>) -> Result<()> {
    let (source, kind, flags, data) = match proc {
        Proc::Usual => return Ok(()),
        Proc::Hidden => (c"proc".to_owned(), c"proc", 0, c"hidepid=2"),
        Proc::Absent(empty) => (CString::new(empty.as_os_str().as_bytes())?, c"none", libc::MS_BIND, c""),
    };
    let mount = move || {
        // SAFETY: no memory is involved.
        checked(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        // SAFETY: the path is a NUL-terminated string.
        checked(unsafe {
            libc::mount(null(), c"/".as_ptr(), null(), libc::MS_REC | libc::MS_PRIVATE, null())
        })?;
        // SAFETY: all arguments are NUL-terminated strings that live as long as this closure.
        checked(unsafe {
            libc::mount(source.as_ptr(), c"/proc".as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast())
        })
    };
    // SAFETY: unshare(2) and mount(2) are async-signal-safe, and the closure allocates nothing.
    unsafe { command.pre_exec(mount) };
    Ok(())
}

fn checked(result: libc::c_int) -> Result<(), Error> {
    if result == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}
