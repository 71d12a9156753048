//! Exhausted resources, missing modules, expired credentials and settings of the kernel. Requires root.

use std::ffi::CString;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use kernel_tests::{API, Cgroup, Dial, Node, Server, Trace, run, spawn};
use serde_json::Value;

#[test]
fn names_missing_kernel_module() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    ensure!(node.netns.ip("link add x0 type nosuchkind").is_err());
    if trace.gap("module.request").is_some() {
        // The fallback is the kernel's refusal of the link.
        trace.wait_for("the refused link", |line| {
            line["kind"] == "netlink_error"
                && (line["errno"] == libc::EOPNOTSUPP || line["text"] == "Unknown device type")
        })?;
        return Ok(());
    }
    let verdict = trace.wait_for_verdict("KernelModuleMissing")?;
    ensure!(verdict.line["verdict"]["subject"] == "nosuchkind", "{}", verdict.line);
    Ok(())
}

/// inotify_init1(2) returns EMFILE when `fs.inotify.max_user_instances` is reached, and when the process has no
/// descriptors left.
#[test]
fn reports_kubelet_without_inotify_instance() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let mut kubelet = node.client("kubelet", &Dial { to: "/", flags: &["--inotify"] })?;
    ensure!(kubelet.errno()? == libc::EMFILE);
    if trace.gap("limit.inotify").is_some() {
        return Ok(());
    }
    let verdict = trace.wait_for_verdict("RuntimeLimitExceeded")?;
    ensure!(verdict.line["verdict"]["subject"] == "inotify", "{}", verdict.line);
    Ok(())
}

#[test]
fn reports_expired_plugin_token_with_path() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    // {"alg":"none"} and {"exp":1000}
    let kubeconfig = "contexts: [{name: c, context: {cluster: local, user: calico}}]\n\
                      clusters: [{name: local, cluster: {server: 'https://10.96.0.1'}}]\n\
                      users: [{name: calico, user: {token: eyJhbGciOiJub25lIn0.eyJleHAiOjEwMDB9.x}}]\n\
                      current-context: c\n";
    std::fs::write(node.conf_dir().join("calico-kubeconfig"), kubeconfig)?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let verdict = trace.wait_for_verdict("CredentialExpired")?;
    let subject = verdict.line["verdict"]["subject"].as_str().unwrap_or_default();
    ensure!(subject.ends_with("/calico-kubeconfig"), "{}", verdict.line);
    Ok(())
}

#[test]
fn reports_sysctls_for_pod_networks_at_start() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let set = |value: &str| -> Result<()> {
        let mut sysctl = node.netns.command("sysctl")?;
        ensure!(sysctl.args(["-qw", &format!("net.ipv4.ip_forward={value}")]).status()?.success());
        Ok(())
    };
    for value in ["1", "0"] {
        set(value)?;
        let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
        let is_it = |line: &Value| {
            line["kind"] == "sysctl" && line["name"] == "net.ipv4.ip_forward" && line["value"] == value
        };
        if !trace.seen.iter().any(is_it) {
            trace.wait_for("the setting", is_it)?;
        }
    }
    Ok(())
}

#[test]
fn reports_oom_killed_process() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let cgroup = Cgroup::with_memory_limit(24 << 20)?;
    let dir = cgroup.dir().to_string_lossy().into_owned();
    let etcd = node.client("etcd", &Dial { to: "/", flags: &["--grow", "--cgroup", &dir] })?;
    let (_, line) = trace.wait_for("its exit", |line| {
        line["kind"] == "process" && line["event"] == "exited" && line["process"]["pid"] == etcd.pid()
    })?;
    ensure!(line["exit"]["signal"] == libc::SIGKILL && line["oom"] == true, "{line}");
    Ok(())
}

/// The node's network namespace has one local port, which another process's connection uses.
#[test]
fn exhausted_local_ports_are_not_blamed_on_api_server() -> Result<()> {
    let node = Node::new()?;
    node.install_config()?;
    let _server = Server::start(&node.peer, API, &["--silent"])?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    let ports = |range: &str| {
        let write = format!("echo {range} > /proc/sys/net/ipv4/ip_local_port_range");
        run(node.netns.command("sh")?.args(["-c", &write]))
    };
    ports("40000 40000")?;
    let _holder = node.client("holder", &Dial { to: API, flags: &["--talk", "60000", "--count", "1"] })?;
    trace.wait_for("the holder's connection", |line| {
        line["kind"] == "connect" && line["client"]["name"] == "holder" && line["established"] == true
    })?;
    let mut kubelet = node.client("kubelet", &Dial { to: API, flags: &["--every", "300"] })?;
    ensure!(kubelet.errno()? == libc::EADDRNOTAVAIL, "the kubelet got a port");
    let verdict = trace.wait_for_verdict("RuntimeLimitExceeded")?;
    ensure!(verdict.line["verdict"]["subject"] == "local ports", "{}", verdict.line);
    let message = verdict.line["verdict"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("kubelet"), "{message}");
    ports("32768 60999")?;
    trace.wait_for_verdict("NetworkReady")?;
    Ok(())
}

/// A small file system; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn new(at: &Path) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        let path = CString::new(at.as_os_str().as_bytes())?;
        let (kind, options) = (c"tmpfs", c"size=128k");
        // SAFETY: every string is live and NUL-terminated.
        let result =
            unsafe { libc::mount(kind.as_ptr(), path.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast()) };
        ensure!(result == 0, "mount a small disk: {}", std::io::Error::last_os_error());
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Ok(path) = CString::new(self.0.as_os_str().as_bytes()) {
            // SAFETY: the path is live and NUL-terminated.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

#[test]
fn reports_full_disk_with_path() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let root = node.dir().join("host");
    let disk = Disk::new(&root.join("var/lib/etcd"))?;
    let flag = root.to_string_lossy().into_owned();
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask", "--host-root", &flag])?;
    let mut file = std::fs::File::create(disk.0.join("member"))?;
    let error = file.write_all(&vec![1; 256 << 10]).err().context("the disk is not full")?;
    ensure!(error.raw_os_error() == Some(libc::ENOSPC), "{error}");
    trace.wait_for("the full disk", |line| {
        line["kind"] == "limit"
            && line["what"] == "disk"
            && line["subject"] == "/var/lib/etcd"
            && line["used"].as_u64() >= line["max"].as_u64()
    })?;
    Ok(())
}

/// The directory may be anywhere: it is derived from the files that etcd has open.
#[test]
fn reports_full_disk_of_open_etcd_files() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let disk = Disk::new(&node.dir().join("data"))?;
    std::fs::create_dir_all(disk.0.join("member/snap"))?;
    let mut data = std::fs::File::create(disk.0.join("member/snap/db"))?;
    let mut command = node.netns.command(node.helper_as("etcd")?)?;
    command.args(["serve", "127.0.0.1:2379"]).stdin(data.try_clone()?).stdout(Stdio::null());
    let mut etcd = spawn(&mut command)?;
    let reported = (|| {
        let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
        ensure!(data.write_all(&vec![1; 256 << 10]).is_err(), "the disk is not full");
        let path = disk.0.to_string_lossy().into_owned();
        let full =
            |line: &Value| line["kind"] == "limit" && line["what"] == "disk" && line["subject"] == path;
        trace.wait_for("the full disk", full)
    })();
    etcd.kill()?;
    etcd.wait()?;
    reported?;
    Ok(())
}

/// There is one table size for the whole kernel. It is not too small, because the number of entries varies and a table with
/// less than a hundredth free counts as full.
#[test]
#[ignore = "changes a setting of the whole kernel: only on a dedicated machine"]
fn reports_full_conntrack_table() -> Result<()> {
    const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
    let (node, _server) = Node::healthy()?;
    node.netns.filter("output", "ct state established accept")?;
    let before = std::fs::read_to_string(MAX)?;
    std::fs::write(MAX, "1000")?;
    let reported = (|| {
        let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
        let mut send = node.netns.command(node.helper_as("sender")?)?;
        send.args([
            "send",
            "10.99.0.2:0",
            "10.99.0.1:2000",
            "--count",
            "1000000",
            "--every",
            "1",
            "--spread",
        ]);
        // A full table evicts entries, and unanswered ones expire after 30 s, so it is filled continuously.
        let mut sender = spawn(&mut send)?;
        let reported = trace.wait_for_verdict("ConntrackExhausted");
        sender.kill()?;
        sender.wait()?;
        reported
    })();
    std::fs::write(MAX, before)?;
    reported.map(drop)
}

#[test]
#[ignore = "sets the clock: only on a dedicated machine"]
fn reports_clock_step() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--no-ask"])?;
    set_clock_by(3)?;
    let reported = trace.wait_for("the step", |line| line["kind"] == "clock_step");
    set_clock_by(-3)?;
    let (_, line) = reported?;
    ensure!(line["by_ms"].as_i64().is_some_and(|by| (2500..=3500).contains(&by)), "{line}");
    Ok(())
}

fn set_clock_by(seconds: i64) -> Result<()> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is live.
    let result = unsafe {
        libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut time);
        time.tv_sec += seconds;
        libc::clock_settime(libc::CLOCK_REALTIME, &raw const time)
    };
    ensure!(result == 0, "set the clock: {}", std::io::Error::last_os_error());
    Ok(())
}
