//! Network namespaces.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// Directory in which `ip netns` keeps its names.
const DIR: &str = "/run/netns";

/// A named network namespace; removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates a namespace whose loopback link is up. Requires root.
    pub fn new() -> Result<Self> {
        Self::with("")
    }

    /// As [`Self::new`], and runs `ip` inside for each line of `commands`.
    pub fn with(commands: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static SWEEP: Once = Once::new();
        // SAFETY: no precondition.
        ensure!(unsafe { libc::geteuid() } == 0, "cannot create a network namespace: requires root");
        SWEEP.call_once(sweep);
        let name = format!("nrlab-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        namespace.ip(&format!("link set lo up\n{commands}"))?;
        Ok(namespace)
    }

    /// Creates a node, 10.99.0.2 and fd99::2, and the host on the other end of its link, 10.99.0.1 and fd99::1, which
    /// is its default gateway.
    pub fn pair() -> Result<(Self, Self)> {
        let peer = Self::new()?;
        // Without duplicate address detection the addresses are usable at once.
        let node = Self::with(&format!(
            "link add eth0 type veth peer name eth0 netns {}
             addr add 10.99.0.2/24 dev eth0
             addr add fd99::2/64 dev eth0 nodad
             link set eth0 up
             route add default via 10.99.0.1",
            peer.name()
        ))?;
        peer.ip("addr add 10.99.0.1/24 dev eth0\naddr add fd99::1/64 dev eth0 nodad\nlink set eth0 up")?;
        Ok((node, peer))
    }

    /// Returns its name in `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the file to which it is bound, as in `CNI_NETNS`.
    pub fn path(&self) -> PathBuf {
        Path::new(DIR).join(&self.name)
    }

    /// Runs `ip` inside for each line of `commands`, until one fails. All lines share one process, because on an
    /// emulated processor most of the time is spent on starting one.
    pub fn ip(&self, commands: &str) -> Result<()> {
        let mut ip = Command::new("ip");
        ip.args(["-n", &self.name, "-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = ip.spawn().context("run ip; if it is missing: `cargo xtask setup`")?;
        child.stdin.take().context("standard input of ip is not piped")?.write_all(commands.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("ip {commands:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Runs `nft` inside with these commands.
    pub fn nft(&self, commands: &str) -> Result<()> {
        let mut command = self.command("nft")?;
        run(command.arg(commands)).map(|_| ())
    }

    /// Adds a packet filter with one rule, in the table `ip lab`; `hook` is `input` or `output`.
    pub fn filter(&self, hook: &str, rule: &str) -> Result<()> {
        self.nft(&format!(
            "add table ip lab; add chain ip lab {hook} {{ type filter hook {hook} priority 0; }}; \
             add rule ip lab {hook} {rule}"
        ))
    }

    /// Returns a command that will run inside. It differs from this process in its network namespace only.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let file = File::open(self.path()).with_context(|| format!("open the namespace {}", self.name))?;
        let mut command = Command::new(program);
        let enter = move || {
            // SAFETY: the closure owns the descriptor, which is therefore open.
            match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: setns(2) is async-signal-safe, and the closure allocates nothing.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = run(Command::new("ip").args(["netns", "del", &self.name]));
    }
}

/// Removes namespaces of processes that were killed.
fn sweep() {
    for entry in std::fs::read_dir(DIR).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let creator = name
            .to_str()
            .and_then(|name| name.strip_prefix("nrlab-")?.split('-').next()?.parse::<u32>().ok());
        if let Some(pid) = creator
            && !Path::new(&format!("/proc/{pid}")).exists()
        {
            let _ = run(Command::new("ip").args(["netns", "del"]).arg(&name));
        }
    }
}

/// Runs a command to completion and returns its standard output; an error contains its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Starts a program that was copied a moment ago, and retries on ETXTBSY: a child that another thread has forked and
/// that has not called exec yet still has the copy open for writing.
pub fn spawn(command: &mut Command) -> Result<Child> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match command.spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            spawned => return spawned.with_context(|| format!("start {}", command.get_program().display())),
        }
    }
}
