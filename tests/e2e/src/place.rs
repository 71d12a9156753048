//! Where the node lives: a network namespace, and a mount namespace in which everything that a node writes under
//! `/etc`, `/opt`, `/run` and `/var` goes to a directory of ours. It all ends with one process.

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

/// Part of the name of the process that holds the mount namespace; the rest is who made it.
const HOLDER: &str = "nrlab-e2e-holder-";

/// What the holder does: writes go to copies, then it waits. `sh` and `mount` are Debian's own.
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

/// Where the runtime keeps images and containers: a disk of its own, which can be filled, and no overlay, for the
/// layers of images are.
pub(crate) const LAYERS: &str = "/run/layers";

/// See the module.
pub(crate) struct Place {
    /// The node's network.
    pub(crate) netns: Namespace,
    holder: Child,
}

impl Place {
    /// Makes the mount namespace, with its files in `dir`.
    pub(crate) fn new(netns: Namespace, dir: &Path) -> Result<Self> {
        sweep();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT]);
        command.arg(format!("{HOLDER}{}", std::process::id())).arg(dir).stdout(Stdio::piped());
        // A shell tells of children that were killed, as it will be.
        command.stderr(Stdio::null());
        let mut holder = with_us(&mut command).spawn().context("run unshare(1)")?;
        let said = BufReader::new(holder.stdout.take().context("the holder has an output")?).lines().next();
        let place = Self { netns, holder };
        ensure!(
            said.is_some_and(|line| line.is_ok_and(|line| line == "ready")),
            "make the node's directories"
        );
        Ok(place)
    }

    /// A path of the node as seen from here.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder.id()))
    }

    /// A program that will run on the node.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let mut command = self.netns.command(program)?;
        let mounts =
            File::open(format!("/proc/{}/ns/mnt", self.holder.id())).context("find the node's mounts")?;
        let enter = move || {
            // SAFETY: the descriptor is open as long as this closure lives.
            match unsafe { libc::setns(mounts.as_raw_fd(), libc::CLONE_NEWNS) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: setns(2) is async-signal-safe, and nothing is allocated on the way.
        unsafe { command.pre_exec(enter) };
        with_us(&mut command);
        Ok(command)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        end_all(self.holder.id());
        let _ = self.holder.wait();
        // What was adopted and has ended; every program of the cluster was waited for before.
        // SAFETY: no status is asked for.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
    }
}

/// Ends with this process, whatever ends it.
pub(crate) fn with_us(command: &mut Command) -> &mut Command {
    let die = || {
        // SAFETY: prctl(2) with these arguments touches only this process, and is async-signal-safe.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        Ok(())
    };
    // SAFETY: as above; nothing is allocated.
    unsafe { command.pre_exec(die) }
}

/// Ends every process in the holder's mount namespace, and all that came from them: the runtime's shims outlive
/// the runtime, and containers outlive shims.
fn end_all(holder: u32) {
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
        // Until no child is added: a handful of generations.
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

/// From here on, processes whose parents end become this one's children: the runtime's shims, and what they ran.
pub(crate) fn adopt_orphans() {
    // SAFETY: prctl(2) with these arguments touches only this process.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
}

fn kill(pid: u32) {
    // SAFETY: no precondition; the process is one that this harness started, or a child of one.
    unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
}

/// Every process that is no zombie, with its parent.
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

/// Ends what a harness that was killed left behind.
fn sweep() {
    for (pid, _) in processes() {
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let maker = words.split('\0').find_map(|word| word.strip_prefix(HOLDER)?.parse::<u32>().ok());
        if maker.is_some_and(|maker| !Path::new(&format!("/proc/{maker}")).exists()) {
            end_all(pid);
        }
    }
}
