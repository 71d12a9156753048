//! The host of the node: a network namespace, and a mount namespace in which writes to `/etc`, `/opt`, `/run` and `/var` go
//! to a temporary directory. One process holds the mount namespace; all others in it are killed with it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kernel_tests::Namespace;

/// Name prefix of the process that holds the mount namespace; the PID of its creator follows.
const HOLDER: &str = "nrlab-e2e-holder-";

/// Script of the holder: mounts overlays for writes, then sleeps. `sh` and `mount` are those of the machine.
const SCRIPT: &str = "set -e
for dir in etc opt var; do
  mkdir -p \"$1/$dir\" \"$1/work-$dir\"
  mount -t overlay overlay -o \"lowerdir=/$dir,upperdir=$1/$dir,workdir=$1/work-$dir\" \"/$dir\"
done
mount -t tmpfs tmpfs /run
mkdir /run/layers
mount -t tmpfs -o size=256m tmpfs /run/layers
echo ready
sleep infinity
exit";

/// Directory in which the runtime stores images and containers. It is a separate file system that can be filled, and not an
/// overlay, because the layers of images are overlays themselves.
pub(crate) const LAYERS: &str = "/run/layers";

/// The namespaces of the node.
pub(crate) struct NodeHost {
    /// Network namespace of the node.
    pub(crate) netns: Namespace,
    holder: Child,
}

impl NodeHost {
    /// Creates the mount namespace, with its files in `dir`.
    pub(crate) fn new(netns: Namespace, dir: &Path) -> Result<Self> {
        sweep();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT]);
        command.arg(format!("{HOLDER}{}", std::process::id())).arg(dir).stdout(Stdio::piped());
        // The shell reports killed children, and this shell's child will be killed.
        command.stderr(Stdio::null());
        let mut holder = kill_with_parent(&mut command).spawn().context("run unshare(1)")?;
        let line =
            BufReader::new(holder.stdout.take().context("the holder's output is not piped")?).lines().next();
        let host = Self { netns, holder };
        ensure!(
            line.is_some_and(|line| line.is_ok_and(|line| line == "ready")),
            "create the node's directories"
        );
        Ok(host)
    }

    /// Returns the path by which a file of the node is accessible from this process.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder.id()))
    }

    /// Returns a command that will run on the node.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let mut command = self.netns.command(program)?;
        let mounts =
            File::open(format!("/proc/{}/ns/mnt", self.holder.id())).context("find the node's mounts")?;
        let enter = move || {
            // SAFETY: the closure owns the descriptor, which is therefore open.
            match unsafe { libc::setns(mounts.as_raw_fd(), libc::CLONE_NEWNS) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: setns(2) is async-signal-safe, and the closure allocates nothing.
        unsafe { command.pre_exec(enter) };
        kill_with_parent(&mut command);
        Ok(command)
    }
}

impl Drop for NodeHost {
    fn drop(&mut self) {
        kill_all(self.holder.id());
        let _ = self.holder.wait();
        // Reaps adopted processes that have exited; every program of the cluster was waited for before.
        // SAFETY: the kernel accepts a null pointer for the status.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
    }
}

/// Makes the kernel kill a child when this process exits for any reason.
pub(crate) fn kill_with_parent(command: &mut Command) -> &mut Command {
    let die = || {
        // SAFETY: prctl(2) with these arguments touches only this process, and is async-signal-safe.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        Ok(())
    };
    // SAFETY: prctl(2) is async-signal-safe, and the closure allocates nothing.
    unsafe { command.pre_exec(die) }
}

/// Kills every process in the holder's mount namespace and all their descendants, for up to ten seconds: the runtime's shims
/// outlive the runtime, and containers outlive shims.
fn kill_all(holder: u32) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let Ok(mounts) = fs::read_link(format!("/proc/{holder}/ns/mnt")) else { return };
    loop {
        let processes = processes();
        let mut ours: BTreeSet<u32> = processes
            .iter()
            .map(|(pid, _)| *pid)
            .filter(|pid| *pid != holder)
            .filter(|pid| fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|other| other == mounts))
            .collect();
        // Repeated until no descendant is added, which takes a few passes.
        while processes.iter().any(|(pid, parent)| ours.contains(parent) && ours.insert(*pid)) {}
        if ours.is_empty() || Instant::now() > deadline {
            break;
        }
        for pid in ours {
            kill(pid);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    kill(holder);
}

/// Makes this process the parent of orphaned descendants: of the runtime's shims, and of the containers that they ran.
pub(crate) fn adopt_orphans() {
    // SAFETY: prctl(2) with these arguments touches only this process.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
}

fn kill(pid: u32) {
    // SAFETY: no memory is involved; the process was started by this test, or descends from one that was.
    unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
}

/// Returns the PIDs of all processes but zombies, with those of their parents.
fn processes() -> Vec<(u32, u32)> {
    let pid = |entry: std::io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse::<u32>().ok();
    let parent = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit(')').next()?.split_whitespace();
        let state = fields.next()?;
        (state != "Z").then(|| fields.next()?.parse().ok()).flatten().map(|parent| (pid, parent))
    };
    fs::read_dir("/proc").into_iter().flatten().filter_map(pid).filter_map(parent).collect()
}

/// Kills processes that a killed test run left behind.
fn sweep() {
    for (pid, _) in processes() {
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let creator = words.split('\0').find_map(|word| word.strip_prefix(HOLDER)?.parse::<u32>().ok());
        if creator.is_some_and(|creator| !Path::new(&format!("/proc/{creator}")).exists()) {
            kill_all(pid);
        }
    }
}
