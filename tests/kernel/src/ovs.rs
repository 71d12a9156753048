//! The Open vSwitch daemons on a node, with their own directory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::netns::{Namespace, run};
use crate::node::Node;
use crate::probe::patience;

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// The database and the switch of one node; killed when dropped.
#[derive(Debug)]
pub struct OpenVSwitch<'a> {
    netns: &'a Namespace,
    dir: PathBuf,
    database: Child,
    switch: Option<Child>,
    /// `ovs-vsctl` processes that still wait for the switch.
    waiting: Vec<Child>,
}

impl<'a> OpenVSwitch<'a> {
    /// Starts ovsdb-server with an empty database in `dir`, which must not exist, then ovs-vswitchd.
    pub fn start(node: &'a Node, dir: &Path) -> Result<Self> {
        std::fs::create_dir(dir)?;
        let database = dir.join("conf.db");
        run(Command::new("ovsdb-tool").arg("create").arg(&database).arg(SCHEMA))
            .context("create a database; if a program is missing: `cargo xtask setup`")?;
        let mut server = node.netns.command("ovsdb-server")?;
        server.arg(&database).arg(format!("--remote=punix:{}", dir.join("db.sock").display()));
        let database = daemon(&mut server, dir)?;
        let mut ovs =
            Self { netns: &node.netns, dir: dir.to_owned(), database, switch: None, waiting: Vec::new() };
        ovs.wait("the database's socket", || accepts_connections(dir))?;
        ovs.vsctl("--no-wait init")?;
        ovs.start_vswitchd()?;
        Ok(ovs)
    }

    /// Starts ovs-vswitchd.
    pub fn start_vswitchd(&mut self) -> Result<()> {
        let mut switch = self.netns.command("ovs-vswitchd")?;
        switch.arg(format!("unix:{}", self.dir.join("db.sock").display()));
        self.switch = Some(daemon(&mut switch, &self.dir)?);
        Ok(())
    }

    /// Kills ovs-vswitchd, as a crash does.
    pub fn kill_vswitchd(&mut self) -> Result<()> {
        let mut switch = self.switch.take().context("ovs-vswitchd is not running")?;
        switch.kill()?;
        switch.wait()?;
        Ok(())
    }

    /// Sends ovs-vswitchd a signal.
    pub fn signal_vswitchd(&self, signal: i32) -> Result<()> {
        let pid = self.switch.as_ref().context("ovs-vswitchd is not running")?.id();
        // SAFETY: no memory is involved; the process is our child and was not waited for.
        ensure!(unsafe { libc::kill(i32::try_from(pid)?, signal) } == 0);
        Ok(())
    }

    /// Runs `ovs-vsctl WORDS`, which waits until the switch has applied the change; it times out after 10 s times
    /// [`patience`].
    pub fn vsctl(&self, words: &str) -> Result<()> {
        run(&mut self.client(words)?).map(|_| ())
    }

    /// As [`Self::vsctl`], without waiting for its exit.
    pub fn spawn_vsctl(&mut self, words: &str) -> Result<()> {
        let mut vsctl = self.client(words)?;
        vsctl.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.waiting.push(vsctl.spawn().context("start ovs-vsctl")?);
        Ok(())
    }

    fn client(&self, words: &str) -> Result<Command> {
        let mut vsctl = self.netns.command("ovs-vsctl")?;
        vsctl.arg(format!("--db=unix:{}", self.dir.join("db.sock").display()));
        vsctl.arg(format!("--timeout={}", 10 * patience())).args(words.split_whitespace());
        Ok(vsctl)
    }

    fn wait(&mut self, what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10) * patience();
        while !done() {
            ensure!(self.database.try_wait()?.is_none(), "ovsdb-server exited before {what} appeared");
            ensure!(Instant::now() < deadline, "timed out waiting for {what}");
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for OpenVSwitch<'_> {
    fn drop(&mut self) {
        for child in self.waiting.iter_mut().chain(&mut self.switch).chain([&mut self.database]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn accepts_connections(dir: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(dir.join("db.sock")).is_ok()
}

fn daemon(command: &mut Command, dir: &Path) -> Result<Child> {
    command.args(["--no-chdir", "-vconsole:off", "-vsyslog:off"]);
    command.envs(["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"].map(|name| (name, dir)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().with_context(|| format!("start {}", command.get_program().display()))
}
