//! A node, and the host on the other end of its link.

use std::io::{BufRead as _, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::netns::{Namespace, spawn};

/// Address of the API server on the other host.
pub const API: &str = "10.99.0.1:6443";

/// Another address with the API server's port: connects to that port are observed at every address.
pub const OTHER_API: &str = "127.0.0.1:6443";

/// Directory in which Debian installs the reference plugins.
pub const PLUGINS: &str = "/usr/lib/cni";

/// A network namespace that acts as the node (10.99.0.2), and one that acts as the API server's host (10.99.0.1).
#[derive(Debug)]
pub struct Node {
    /// The namespace of the node.
    pub netns: Namespace,
    /// The namespace of the other host.
    pub peer: Namespace,
    dir: TempDir,
}

impl Node {
    /// Creates both hosts, joined by a veth pair, with an empty configuration directory and every reference plugin.
    pub fn new() -> Result<Self> {
        let (netns, peer) = Namespace::pair()?;
        let dir = TempDir::with_prefix("nrlab-").context("create a directory for the node")?;
        let node = Self { netns, peer, dir };
        for part in ["net.d", "bin", "leases"] {
            std::fs::create_dir(node.path(part))?;
        }
        install_plugins(Path::new(PLUGINS), &node.bin_dir())?;
        Ok(node)
    }

    /// Creates a node with a valid configuration, and an API server on the other host.
    pub fn healthy() -> Result<(Self, Server)> {
        let node = Self::new()?;
        node.install_config()?;
        let server = node.serve_api()?;
        Ok((node, server))
    }

    fn path(&self, part: &str) -> PathBuf {
        self.dir.path().join(part)
    }

    /// Returns the directory from which the runtime reads configurations.
    pub fn conf_dir(&self) -> PathBuf {
        self.path("net.d")
    }

    /// Returns the directory in which the runtime looks for plugins.
    pub fn bin_dir(&self) -> PathBuf {
        self.path("bin")
    }

    /// Returns the node's own directory, for any other files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the configuration of one plugin: bridge with host-local on `subnet`.
    pub fn plugin_config(&self, subnet: &str) -> serde_json::Value {
        json!({
            "cniVersion": "0.4.0", "name": "pods", "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": {"type": "host-local", "dataDir": self.path("leases"), "ranges": [[{"subnet": subnet}]]}
        })
    }

    /// Installs a valid configuration list as an installer does: a new file is renamed into the directory.
    pub fn install_config(&self) -> Result<()> {
        let list = json!({
            "cniVersion": "0.4.0", "name": "pods", "plugins": [self.plugin_config("10.244.0.0/24"), {"type": "portmap"}]
        });
        self.write_config("10-pods.conflist", list.to_string().as_bytes())
    }

    /// Installs a file with these bytes under `name`.
    pub fn write_config(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let new = self.path("new-config");
        std::fs::write(&new, bytes)?;
        std::fs::rename(&new, self.conf_dir().join(name)).with_context(|| format!("install {name}"))
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

    /// Copies the helper binary to the plugin directory under another name, and returns its path.
    pub fn helper_as(&self, name: &str) -> Result<PathBuf> {
        let path = self.path("bin").join(name);
        if !path.exists() {
            std::fs::copy(helper()?, &path).with_context(|| format!("create {}", path.display()))?;
        }
        Ok(path)
    }

    /// Starts a client on this node whose executable has this name.
    pub fn client(&self, name: &str, dial: &Dial<'_>) -> Result<Client> {
        self.client_with(name, dial, &[])
    }

    /// As [`Self::client`], with these variables in its environment.
    pub fn client_with(&self, name: &str, dial: &Dial<'_>, variables: &[(&str, &str)]) -> Result<Client> {
        let verb = if dial.to.starts_with('/') { "unix" } else { "dial" };
        let mut command = self.netns.command(self.helper_as(name)?)?;
        command.arg(verb).arg(dial.to).args(dial.flags).stdout(Stdio::piped());
        command.envs(variables.iter().copied());
        let mut child = spawn(&mut command)?;
        let lines = BufReader::new(child.stdout.take().context("the client's output is not piped")?).lines();
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

/// The target of a client, and what it does.
#[derive(Clone, Copy, Debug)]
pub struct Dial<'a> {
    /// Address and port, or the path of a Unix socket.
    pub to: &'a str,
    /// Flags of the helper: `--go`, `--give-up MS`, `--count N`, `--every MS`, `--cgroup DIR`, `--talk MS`.
    pub flags: &'a [&'a str],
}

/// A running client; killed when dropped.
#[derive(Debug)]
pub struct Client {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Client {
    /// Returns the errno of its next connect; 0 for success, -1 when it timed out.
    pub fn errno(&mut self) -> Result<i32> {
        let line = self.lines.next().context("the client has exited")??;
        line.trim().parse().with_context(|| format!("the client printed {line:?}"))
    }

    /// Returns its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        kill(&mut self.child);
    }
}

/// A running server; killed when dropped, which closes its socket.
#[derive(Debug)]
pub struct Server {
    child: Child,
}

impl Server {
    /// Starts a server in `netns` and waits until it listens.
    pub fn start(netns: &Namespace, on: &str, flags: &[&str]) -> Result<Self> {
        let mut command = netns.command(helper()?)?;
        command.arg("serve").arg(on).args(flags).stdout(Stdio::piped());
        Self::spawn_and_wait(command)
    }

    /// As [`Self::start`], with an executable of this path, for processes that are monitored by name.
    pub fn start_as(netns: &Namespace, executable: &Path, on: &str) -> Result<Self> {
        std::fs::copy(helper()?, executable)?;
        let mut command = netns.command(executable)?;
        command.arg("serve").arg(on).stdout(Stdio::piped());
        Self::spawn_and_wait(command)
    }

    fn spawn_and_wait(mut command: Command) -> Result<Self> {
        let mut child = spawn(&mut command)?;
        let output = child.stdout.take().context("the server's output is not piped")?;
        let server = Self { child };
        let line =
            BufReader::new(output).lines().next().context("the server exited before it listened")??;
        ensure!(line == "listening", "the server printed {line:?}");
        Ok(server)
    }

    /// Returns its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        kill(&mut self.child);
    }
}

fn kill(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Returns the path of the helper binary, which is built into the same directory as this program.
fn helper() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let path =
        program.ancestors().skip(1).take(2).map(|dir| dir.join("lab-helper")).find(|path| path.exists());
    path.context("lab-helper is not built: run `cargo build -p kernel-tests`")
}
