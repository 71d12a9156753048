//! Plugins that a runtime runs, and the sandboxes that they set up. Requires root.

use std::ffi::CString;
use std::fs::{OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use kernel_tests::{API, Node, Sandbox, Trace, poll, spawn};
use serde_json::{Value, json};

/// Flags of a trace without the agent's own requests.
const PASSIVE: &[&str] = &["--apiserver", API, "--no-ask"];

fn message(verdict: &Value) -> &str {
    verdict["verdict"]["message"].as_str().unwrap_or_default()
}

/// The runtime finds the file and execve(2) returns EACCES, as it does when a security module denies it.
#[test]
fn reports_plugin_without_execute_permission() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let plugin = node.helper_as("shy")?;
    std::fs::set_permissions(&plugin, Permissions::from_mode(0o644))?;
    let mut trace = Trace::start(&node, PASSIVE)?;
    ensure!(Sandbox::new("web-1")?.run(&node, "ADD", &json!({"type": "shy"})).is_err());
    if trace.gap("cni.exec.refused").is_some() {
        return Ok(());
    }
    let verdict = trace.wait_for_verdict("CNIPluginFailed")?;
    let words = "cannot execute the plugin shy (EACCES): its mode does not allow it";
    ensure!(message(&verdict.line).contains(words), "{}", verdict.line);
    Ok(())
}

/// The result of execve(2) is predicted before a pod needs the plugin.
#[test]
fn reports_why_configured_plugin_cannot_run() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let plugin = node.bin_dir().join("portmap");
    let original = std::fs::read(&plugin)?;
    let foreign = |bytes: &mut Vec<u8>| bytes[18..20].copy_from_slice(&22_u16.to_le_bytes());
    let put = |bytes: &[u8], mode| -> Result<()> {
        let new = node.dir().join("new-plugin");
        std::fs::write(&new, bytes)?;
        std::fs::set_permissions(&new, Permissions::from_mode(mode))?;
        Ok(std::fs::rename(new, &plugin)?)
    };
    let mut trace = Trace::start(&node, &["--apiserver", API])?;
    let mut other = original.clone();
    foreign(&mut other);
    for (bytes, mode, words) in [
        (&original[..], 0o644, "portmap is not executable (mode 0644)"),
        (&original[..original.len() / 2], 0o755, "portmap is truncated"),
        (&other[..], 0o755, "portmap is built for s390x"),
        (b"#!/no/such/interpreter\n", 0o755, "portmap needs /no/such/interpreter, which does not exist"),
        (b"", 0o755, "portmap is empty"),
    ] {
        put(bytes, mode)?;
        let verdict = trace.wait_for_verdict("CNIBinaryMissing")?;
        ensure!(message(&verdict.line).contains(words), "{}", verdict.line);
        put(&original, 0o755)?;
        trace.wait_for_verdict("NetworkReady")?;
    }
    Ok(())
}

/// The agent cannot read the file at the path that the runtime uses (for example in another mount namespace), so the
/// runtime's own attempt reveals the fault.
#[test]
fn reports_missing_plugin_interpreter_on_exec() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let plugin = node.bin_dir().join("lost");
    std::fs::write(&plugin, "#!/no/such/interpreter\n")?;
    std::fs::set_permissions(&plugin, Permissions::from_mode(0o755))?;
    let runtime = node.dir().join("containerd");
    std::fs::copy("/bin/sh", &runtime)?;
    let mut trace = Trace::start(&node, PASSIVE)?;
    let mut run = node.netns.command(&runtime)?;
    // The plugin is not the last command, so the shell stays as the runtime and the plugin is its child.
    run.args(["-c", &format!("{}; exit $?", plugin.display())]).stderr(Stdio::null());
    ensure!(!spawn(&mut run)?.wait()?.success());
    if trace.gap("cni.exec.refused").is_some() {
        return Ok(());
    }
    let verdict = trace.wait_for_verdict("CNIBinaryMissing")?;
    let words =
        "containerd cannot execute the plugin lost (ENOENT): its interpreter or loader does not exist";
    ensure!(message(&verdict.line).contains(words), "{}", verdict.line);
    Ok(())
}

/// A glibc-linked plugin looks up a user through nscd, which is not installed.
#[test]
fn does_not_blame_socket_of_other_daemon() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    node.helper_as("looks-up")?;
    let mut trace = Trace::start(&node, PASSIVE)?;
    let config = json!({"type": "looks-up", "socket": "/var/run/nscd/socket"});
    ensure!(!Sandbox::new("web-1")?.run(&node, "ADD", &config)?.status.success());
    let verdict = trace.wait_for_verdict("CNIPluginFailed")?;
    ensure!(!message(&verdict.line).contains("nscd"), "{}", verdict.line);
    Ok(())
}

/// A bind mount of a file on itself with `noexec`; unmounted when dropped.
struct NoExec(CString);

impl NoExec {
    fn mount(file: &Path) -> Result<Self> {
        let path = CString::new(file.as_os_str().as_bytes())?;
        let none = std::ptr::null();
        for (source, flags) in
            [(path.as_ptr(), libc::MS_BIND), (none, libc::MS_BIND | libc::MS_REMOUNT | libc::MS_NOEXEC)]
        {
            // SAFETY: the path is live and NUL-terminated; the kernel accepts null for arguments that these flags ignore.
            let result = unsafe { libc::mount(source, path.as_ptr(), none, flags, std::ptr::null()) };
            ensure!(result == 0, "mount {} noexec: {}", file.display(), io::Error::last_os_error());
        }
        Ok(Self(path))
    }
}

impl Drop for NoExec {
    fn drop(&mut self) {
        // SAFETY: the path is live and NUL-terminated.
        unsafe { libc::umount2(self.0.as_ptr(), libc::MNT_DETACH) };
    }
}

#[test]
fn reports_plugin_on_noexec_mount() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let plugin = node.helper_as("shut")?;
    let _mounted = NoExec::mount(&plugin)?;
    let mut trace = Trace::start(&node, PASSIVE)?;
    ensure!(Sandbox::new("web-1")?.run(&node, "ADD", &json!({"type": "shut"})).is_err());
    if trace.gap("cni.exec.refused").is_some() {
        return Ok(());
    }
    let verdict = trace.wait_for_verdict("CNIPluginFailed")?;
    ensure!(message(&verdict.line).contains("its file system is mounted noexec"), "{}", verdict.line);
    Ok(())
}

#[test]
fn replacing_running_plugin_means_binary_busy() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let plugin = node.helper_as("slow")?;
    let mut trace = Trace::start(&node, PASSIVE)?;
    let sandbox = Sandbox::new("web-1")?;
    std::thread::scope(|scope| {
        let run = scope.spawn(|| sandbox.run(&node, "ADD", &json!({"type": "slow", "sleep": 3000})));
        trace.wait_for("its start", |line| line["kind"] == "cni_start")?;
        let busy = OpenOptions::new().write(true).open(&plugin).err().and_then(|error| error.raw_os_error());
        ensure!(busy == Some(libc::ETXTBSY), "{busy:?}");
        if trace.gap("cni.binary.busy").is_none() {
            let verdict = trace.wait_for_verdict("CNIBinaryBusy")?;
            ensure!(verdict.line["verdict"]["subject"] == "slow", "{}", verdict.line);
        }
        ensure!(run.join().ok().context("the plugin's thread panicked")??.status.success());
        Ok(())
    })
}

#[test]
fn reports_stalled_plugin_while_it_runs() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    node.helper_as("slow")?;
    let mut trace = Trace::start(&node, &["--apiserver", API, "--plugin-limit", "1s"])?;
    let sandbox = Sandbox::new("web-1")?;
    std::thread::scope(|scope| {
        let run = scope.spawn(|| sandbox.run(&node, "ADD", &json!({"type": "slow", "sleep": 8000})));
        let verdict = trace.wait_for_verdict("CNIPluginStalled")?;
        ensure!(verdict.line["verdict"]["subject"] == "slow", "{}", verdict.line);
        ensure!(!trace.seen.iter().any(|line| line["kind"] == "cni_end"), "it has exited");
        trace.wait_for_verdict("NetworkReady")?;
        ensure!(run.join().ok().context("the plugin's thread panicked")??.status.success());
        Ok(())
    })
}

/// `probe check` runs on a node where a plugin has been waiting for a long time.
#[test]
fn reports_plugin_started_before_probe_and_its_exit() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let plugin = node.helper_as("older")?;
    let sandbox = Sandbox::new("web-1")?;
    std::thread::scope(|scope| {
        let run = scope.spawn(|| sandbox.run(&node, "ADD", &json!({"type": "older", "sleep": 60_000})));
        let pid = poll("the plugin's process", || processes_of(&plugin).next())?;
        let mut trace = Trace::start(&node, &["--apiserver", API, "--plugin-limit", "1s"])?;
        let start =
            trace.seen.iter().find(|line| line["kind"] == "cni_start").context("no start was reported")?;
        ensure!(start["pid"] == pid && start["plugin"] == "older" && start["command"] == "ADD", "{start}");
        ensure!(start["running_ns"].as_u64().is_some_and(|ns| ns > 0), "{start}");
        let verdict = trace.wait_for_verdict("CNIPluginStalled")?;
        ensure!(verdict.line["verdict"]["subject"] == "older", "{}", verdict.line);
        // SAFETY: no memory is involved; this test started the process.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        let (_, end) = trace.wait_for("its exit", |line| line["kind"] == "cni_end")?;
        ensure!(end["pid"] == pid, "{end}");
        ensure!(!run.join().ok().context("the plugin's thread panicked")??.status.success());
        Ok(())
    })
}

/// Returns the PIDs of processes that execute this file.
fn processes_of(file: &Path) -> impl Iterator<Item = i32> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(move |pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == file))
}

/// Multus does this with its `readinessindicatorfile`.
#[test]
fn names_file_that_plugin_waits_for() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    node.helper_as("multus")?;
    let marker = node.dir().join("subnet.env");
    let config = json!({"cniVersion": "0.4.0", "name": "meta", "type": "multus", "sleep": 12_000,
                        "readinessindicatorfile": marker});
    node.write_config("00-multus.conf", config.to_string().as_bytes())?;
    let mut trace = Trace::start(&node, &["--apiserver", API])?;
    let sandbox = Sandbox::new("web-1")?;
    std::thread::scope(|scope| {
        let run = scope.spawn(|| sandbox.run(&node, "ADD", &config));
        let verdict = trace.wait_for_verdict("CNIDefaultNetworkNotReady")?;
        ensure!(verdict.line["verdict"]["subject"] == marker.to_string_lossy().as_ref(), "{}", verdict.line);
        std::fs::write(&marker, "FLANNEL_NETWORK=10.244.0.0/16")?;
        trace.wait_for_verdict("NetworkReady")?;
        ensure!(run.join().ok().context("the plugin's thread panicked")??.status.success());
        Ok(())
    })
}

#[test]
fn reports_plain_file_in_place_of_netns() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, PASSIVE)?;
    let leftover = node.dir().join("cni-left-over");
    std::fs::write(&leftover, "")?;
    let mut run = node.netns.command(node.bin_dir().join("bridge"))?;
    let config = node.plugin_config("10.244.0.0/24");
    let output = plugin(&mut run, &node, &leftover.to_string_lossy(), &config)?;
    ensure!(!output.status.success());
    if environment_was_missed(&mut trace)? {
        return Ok(());
    }
    let verdict = trace.wait_for_verdict("NetnsInvalid")?;
    ensure!(message(&verdict.line).contains("is not a network namespace"), "{}", verdict.line);
    Ok(())
}

/// An agent in a container without shared mounts sees a plain file where the host has a namespace.
#[test]
fn reports_netns_hidden_from_cni_agent() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, PASSIVE)?;
    let sandbox = Sandbox::new("web-1")?;
    let path = CString::new(sandbox.netns.path().as_os_str().as_bytes())?;
    let mut agent = node.netns.command("sh")?;
    let hide = move || {
        let root = c"/";
        let private = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: the calls are async-signal-safe; every string is live and NUL-terminated.
        let hidden = unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(std::ptr::null(), root.as_ptr(), std::ptr::null(), private, std::ptr::null())
                    == 0
                && libc::umount2(path.as_ptr(), libc::MNT_DETACH) == 0
        };
        if hidden { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: as above.
    unsafe { agent.pre_exec(hide) };
    // The plugin is not the last command, so the shell stays as the agent and the plugin is its child.
    let bridge = node.bin_dir().join("bridge").to_string_lossy().into_owned();
    agent.args(["-c", &format!("CNI_COMMAND=ADD {bridge}; exit $?")]).env_remove("CNI_COMMAND");
    let config = node.plugin_config("10.244.0.0/24");
    let output = plugin(&mut agent, &node, &sandbox.netns.path().to_string_lossy(), &config)?;
    ensure!(!output.status.success());
    if environment_was_missed(&mut trace)? {
        return Ok(());
    }
    let verdict = trace.wait_for_verdict("NetnsInvalid")?;
    ensure!(message(&verdict.line).contains("HostToContainer"), "{}", verdict.line);
    Ok(())
}

/// Waits for the exit of a plugin and returns whether its environment was missed: where it is read from /proc, a plugin that
/// fails at once has exited before that.
fn environment_was_missed(trace: &mut Trace) -> Result<bool> {
    let (_, end) = trace.wait_for("its exit", |line| line["kind"] == "cni_end")?;
    Ok(trace.gap("cni.exec.environment").is_some() && end["netns"] == "")
}

/// Runs a plugin, or a shell that starts it, with the environment of an ADD for a namespace at `path`.
fn plugin(run: &mut Command, node: &Node, path: &str, config: &Value) -> Result<std::process::Output> {
    use std::io::Write as _;

    let is_shell = run.get_program() == "sh";
    run.env("CNI_CONTAINERID", "c0ffee")
        .env("CNI_NETNS", path)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", node.bin_dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if !is_shell {
        run.env("CNI_COMMAND", "ADD");
    }
    let mut child = spawn(run)?;
    // Writing fails if a plugin closes its input before it reads, as one that fails early does.
    let _ =
        child.stdin.take().context("standard input is not piped")?.write_all(config.to_string().as_bytes());
    Ok(child.wait_with_output()?)
}

/// The namespace, its name, the plugins with their delegates, the links and the DEL are one object.
#[test]
fn groups_all_steps_of_sandbox_into_one_object() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, PASSIVE)?;
    let sandbox = Sandbox::new("web-1")?;
    let config = node.plugin_config("10.244.0.0/24");
    ensure!(sandbox.run(&node, "ADD", &config)?.status.success());
    let (_, added) = trace.wait_for("the sandbox", |line| line["kind"] == "sandbox")?;
    let steps = |line: &Value| -> Vec<(String, String)> {
        let steps = line["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        steps.iter().map(|step| (text(&step["step"]), text(&step["what"]))).collect()
    };
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(sandbox.netns.path())?);
    ensure!(added["added"] == true && added["ok"] == true, "{added}");
    if trace.gap("cni.exec.environment").is_none_or(|why| !why.contains("/proc")) {
        ensure!(added["netns"] == inode && added["pod"]["name"] == "web-1", "{added}");
        let seen = steps(&added);
        for wanted in [
            ("named", sandbox.netns.path().to_string_lossy().into_owned()),
            ("add", "bridge ▸ host-local".to_owned()),
            ("link", "eth0 veth".to_owned()),
        ] {
            ensure!(seen.contains(&(wanted.0.to_owned(), wanted.1.clone())), "no {wanted:?} in {added}");
        }
        if trace.gap("netns.create").is_none() {
            ensure!(seen[0].0 == "created", "{added}");
        }
    }
    ensure!(sandbox.run(&node, "DEL", &config)?.status.success());
    trace.wait_for("its DEL", |line| {
        line["kind"] == "sandbox"
            && steps(line).iter().any(|(step, what)| step == "del" && what.starts_with("bridge"))
    })?;
    Ok(())
}

/// After a reboot a runtime cleans up sandboxes that no longer exist.
#[test]
fn reports_del_without_add() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let mut trace = Trace::start(&node, PASSIVE)?;
    let sandbox = Sandbox::new("gone-1")?;
    ensure!(sandbox.run(&node, "DEL", &node.plugin_config("10.244.0.0/24"))?.status.success());
    let (_, line) = trace.wait_for("the sandbox", |line| line["kind"] == "sandbox")?;
    ensure!(line["added"] == false, "{line}");
    Ok(())
}
