//! The privileges and resources of an agent, and a second agent on the same host. Requires root.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kernel_tests::{API, Agent, Cgroup, Node, Trace, poll, probe_command};

use super::privileges::{
    BPF, DAC_OVERRIDE, DAC_READ_SEARCH, NET_ADMIN, NET_BROADCAST, PERFMON, SYS_ADMIN, SYS_PTRACE,
    SYS_RESOURCE,
};

/// The set of the capabilities that README.md lists.
const USED: u64 = 1 << DAC_OVERRIDE
    | 1 << DAC_READ_SEARCH
    | 1 << NET_BROADCAST
    | 1 << NET_ADMIN
    | 1 << SYS_PTRACE
    | 1 << SYS_ADMIN
    | 1 << SYS_RESOURCE
    | 1 << PERFMON
    | 1 << BPF;

#[test]
fn running_agent_drops_unused_privileges() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let agent = Agent::start(&node, &["--apiserver", API])?;
    agent.wait_for_verdict("NetworkReady", Duration::from_secs(20))?;
    for thread in fs::read_dir(format!("/proc/{}/task", agent.pid()))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
            line.with_context(|| format!("{name} is missing in {status}"))
        };
        for set in ["CapEff", "CapPrm"] {
            let capabilities = u64::from_str_radix(field(set)?, 16)?;
            ensure!(capabilities != 0 && capabilities & !USED == 0, "{set} {capabilities:x}");
        }
        ensure!(u64::from_str_radix(field("CapInh")?, 16)? == 0, "{status}");
        ensure!(field("NoNewPrivs")? == "1", "{status}");
        // SECCOMP_MODE_FILTER
        ensure!(field("Seccomp")? == "2", "{status}");
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", agent.pid()))?;
    let core: Vec<_> =
        limits.lines().find(|line| line.starts_with("Max core file size")).into_iter().collect();
    ensure!(
        core.iter().all(|line| line.split_whitespace().nth(4) == Some("0")) && core.len() == 1,
        "{limits}"
    );
    Ok(())
}

/// The peak of memory use is at the start, when the offsets of kernel fields are determined.
#[test]
fn starts_within_memory_limit_of_32_mib() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let cgroup = Cgroup::with_memory_limit(32 << 20)?;
    let trace = probe_command(&node, "trace", &["-o", "json", "--apiserver", API])?;
    let mut command = node.netns.command("sh")?;
    command.args(["-c", "echo 0 > \"$0/cgroup.procs\" && exec \"$@\""]).arg(cgroup.dir());
    command.arg(trace.get_program()).args(trace.get_args()).env_remove("KUBERNETES_SERVICE_HOST");
    Trace::start_command(command)?.wait_for_verdict("NetworkReady")?;
    Ok(())
}

#[test]
fn second_agent_exits_and_names_lock_file() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let state = node.dir().join("state.json");
    let first = Agent::start(&node, &["--apiserver", API])?;
    first.wait_for_verdict("NetworkReady", Duration::from_secs(20))?;
    let mut second = probe_command(&node, "run", &["--metrics-address", "127.0.0.1:0"])?;
    second.arg("--state-file").arg(&state).stderr(Stdio::piped());
    let output = second.output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(4), "{output:?}");
    ensure!(complaint.contains("another agent runs on this host"), "{complaint}");
    ensure!(complaint.contains(&state.with_extension("lock").display().to_string()), "{complaint}");
    drop(first);
    let next = Agent::start(&node, &["--apiserver", API])?;
    next.wait_for_verdict("NetworkReady", Duration::from_secs(20)).map(drop)
}

/// Sets the soft limit of a process's descriptors; the hard limit stays at 4096.
fn limit_descriptors(pid: u32, to: u64) -> Result<()> {
    let limit = libc::rlimit { rlim_cur: to, rlim_max: 4096 };
    let pid = libc::pid_t::try_from(pid)?;
    // SAFETY: `limit` is live, and the old limit is not requested.
    let result = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()) };
    ensure!(result == 0, "{}", std::io::Error::last_os_error());
    Ok(())
}

#[test]
fn agent_without_descriptors_reports_no_fault_and_recovers() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let agent = Agent::start(&node, &["--apiserver", API])?;
    agent.wait_for_verdict("NetworkReady", Duration::from_secs(20))?;
    let journal = || fs::read_to_string(node.dir().join("journal.jsonl")).unwrap_or_default();
    limit_descriptors(agent.pid(), 3)?;
    // A changed directory is read again, which fails: neither its files nor their validity are known.
    node.write_config("99-other.conf", b"{}")?;
    poll("the verdict", || journal().contains("ProbeDegraded").then_some(()))?;
    // The API server is checked every ten seconds.
    std::thread::sleep(Duration::from_secs(12));
    fs::remove_file(node.conf_dir().join("99-other.conf"))?;
    limit_descriptors(agent.pid(), 1024)?;
    agent.wait_for_verdict("NetworkReady", Duration::from_secs(40))?;
    ensure!(!journal().contains("\"False\""), "{}", journal());
    Ok(())
}

#[test]
fn agent_raises_low_descriptor_limit() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut command = probe_command(&node, "trace", &["-o", "json", "--apiserver", API])?;
    let limit = || limit_descriptors(0, 64).map_err(std::io::Error::other);
    // SAFETY: between fork and exec it makes one system call, and allocates only if that fails.
    unsafe { command.pre_exec(limit) };
    let mut trace = Trace::start_command(command)?;
    trace.wait_for_verdict("NetworkReady")?;
    let hooks = trace.seen.iter().filter(|line| line["kind"] == "gap");
    let short: Vec<_> = hooks.filter(|line| line.to_string().contains("os error 24")).collect();
    ensure!(short.is_empty(), "{short:?}");
    Ok(())
}
