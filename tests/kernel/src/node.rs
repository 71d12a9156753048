//! A node and the host across the wire.

use std::io::{BufRead as _, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::netns::{Namespace, spawn};

/// Where the other host serves the API.
pub const API: &str = "10.99.0.1:6443";

/// The API server's port at another address: its clients are watched at every address.
pub const ELSEWHERE: &str = "127.0.0.1:6443";

/// Where Debian puts the reference plugins.
pub const PLUGINS: &str = "/usr/lib/cni";

/// A namespace that plays the node (10.99.0.2), and one that plays the host of the API (10.99.0.1).
#[derive(Debug)]
pub struct Node {
    /// The node's.
    pub netns: Namespace,
    /// The other host's.
    pub peer: Namespace,
    dir: TempDir,
}

impl Node {
    /// Both hosts, joined by a veth pair; an empty configuration directory; every reference plugin.
    pub fn new() -> Result<Self> {
        let (netns, peer) = Namespace::pair()?;
        let dir = TempDir::with_prefix("nrlab-").context("make a directory for the node")?;
        let node = Self { netns, peer, dir };
        for part in ["net.d", "bin", "leases"] {
            std::fs::create_dir(node.path(part))?;
        }
        install_plugins(Path::new(PLUGINS), &node.bin_dir())?;
        Ok(node)
    }

    /// One with a valid configuration, and an API server on the other host.
    pub fn healthy() -> Result<(Self, Server)> {
        let node = Self::new()?;
        node.install_config()?;
        let server = node.serve_api()?;
        Ok((node, server))
    }

    fn path(&self, part: &str) -> PathBuf {
        self.dir.path().join(part)
    }

    /// Where the runtime reads configurations.
    pub fn conf_dir(&self) -> PathBuf {
        self.path("net.d")
    }

    /// Where the runtime looks for plugins.
    pub fn bin_dir(&self) -> PathBuf {
        self.path("bin")
    }

    /// A place for anything else.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// One plugin's configuration: bridge with host-local on `subnet`.
    pub fn plugin_config(&self, subnet: &str) -> serde_json::Value {
        json!({
            "cniVersion": "0.4.0", "name": "pods", "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": {"type": "host-local", "dataDir": self.path("leases"), "ranges": [[{"subnet": subnet}]]}
        })
    }

    /// Puts a valid configuration list into place, as an installer does: written beside it, then renamed.
    pub fn install_config(&self) -> Result<()> {
        let list = json!({
            "cniVersion": "0.4.0", "name": "pods", "plugins": [self.plugin_config("10.244.0.0/24"), {"type": "portmap"}]
        });
        self.write_config("10-pods.conflist", list.to_string().as_bytes())
    }

    /// Puts any bytes into place under `name`.
    pub fn write_config(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let beside = self.path("new-config");
        std::fs::write(&beside, bytes)?;
        std::fs::rename(&beside, self.conf_dir().join(name)).with_context(|| format!("put {name} into place"))
    }

    /// Removes every configuration.
    pub fn remove_config(&self) -> Result<()> {
        for entry in std::fs::read_dir(self.conf_dir())? {
            std::fs::remove_file(entry?.path())?;
        }
        Ok(())
    }

    /// Serves the API on the other host until dropped.
    pub fn serve_api(&self) -> Result<Server> {
        Server::start(&self.peer, API, &[])
    }

    /// The helper under another name, among the plugins.
    pub fn helper_as(&self, name: &str) -> Result<PathBuf> {
        let path = self.path("bin").join(name);
        if !path.exists() {
            std::fs::copy(helper()?, &path).with_context(|| format!("make {}", path.display()))?;
        }
        Ok(path)
    }

    /// A client on this node, whose executable has this name.
    pub fn client(&self, name: &str, dial: &Dial<'_>) -> Result<Client> {
        self.client_with(name, dial, &[])
    }

    /// The same with these variables in its environment.
    pub fn client_with(&self, name: &str, dial: &Dial<'_>, variables: &[(&str, &str)]) -> Result<Client> {
        let verb = if dial.to.starts_with('/') { "unix" } else { "dial" };
        let mut command = self.netns.command(self.helper_as(name)?)?;
        command.arg(verb).arg(dial.to).args(dial.flags).stdout(Stdio::piped());
        command.envs(variables.iter().copied());
        let mut child = spawn(&mut command)?;
        let lines = BufReader::new(child.stdout.take().context("the client has an output")?).lines();
        Ok(Client { child, lines })
    }
}

/// Copies the reference plugins that the tests use from the directory `from` into `bin`.
pub fn install_plugins(from: &Path, bin: &Path) -> Result<()> {
    for plugin in ["bridge", "host-local", "loopback", "portmap"] {
        std::fs::copy(from.join(plugin), bin.join(plugin)).with_context(|| {
            format!("copy {}; if it is missing: `cargo xtask setup`", from.join(plugin).display())
        })?;
    }
    Ok(())
}

/// What a client does.
#[derive(Clone, Copy, Debug)]
pub struct Dial<'a> {
    /// Address and port, or the path of a Unix socket.
    pub to: &'a str,
    /// Flags of the helper: `--go`, `--give-up MS`, `--count N`, `--every MS`, `--cgroup DIR`, `--talk MS`.
    pub flags: &'a [&'a str],
}

/// A client that runs; ended when dropped.
#[derive(Debug)]
pub struct Client {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Client {
    /// The errno of its next connect; 0 for success, -1 when it gave up.
    pub fn errno(&mut self) -> Result<i32> {
        let line = self.lines.next().context("the client has ended")??;
        line.trim().parse().with_context(|| format!("the client said {line:?}"))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A server; ended, and with it its socket, when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
}

impl Server {
    /// Starts one in `netns` and waits until it listens.
    pub fn start(netns: &Namespace, on: &str, flags: &[&str]) -> Result<Self> {
        let mut command = netns.command(helper()?)?;
        command.arg("serve").arg(on).args(flags).stdout(Stdio::piped());
        Self::ready(command)
    }

    /// The same under another executable name, for processes that are watched by name.
    pub fn start_as(netns: &Namespace, executable: &Path, on: &str) -> Result<Self> {
        std::fs::copy(helper()?, executable)?;
        let mut command = netns.command(executable)?;
        command.arg("serve").arg(on).stdout(Stdio::piped());
        Self::ready(command)
    }

    fn ready(mut command: Command) -> Result<Self> {
        let mut child = spawn(&mut command)?;
        let output = child.stdout.take().context("the server has an output")?;
        let server = Self { child };
        let line = BufReader::new(output).lines().next().context("the server ended before it listened")??;
        ensure!(line == "listening", "the server said {line:?}");
        Ok(server)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// The helper binary, built beside whatever runs this.
fn helper() -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let beside = me.ancestors().skip(1).take(2).map(|dir| dir.join("lab-helper")).find(|path| path.exists());
    beside.context("lab-helper is not built: run `cargo build -p kernel-tests`")
}
