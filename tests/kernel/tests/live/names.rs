//! API servers with a name that only the node's resolver can resolve. Requires root.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kernel_tests::{Dial, Node, Server, Trace, patience, poll, spawn};
use serde_json::Value;

/// Address of the resolver on the other host.
const RESOLVER: &str = "10.99.0.1";

/// Debian's dnsmasq on the other host; killed when dropped.
struct Dns(Child);

impl Dns {
    /// Starts a server that is authoritative for `nrlab.test`, with these options of dnsmasq(8), and waits for its socket.
    fn start(node: &Node, options: &[&str]) -> Result<Self> {
        Self::start_at(node, 53, options)
    }

    fn start_at(node: &Node, port: u16, options: &[&str]) -> Result<Self> {
        let mut command = node.peer.command("dnsmasq")?;
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]);
        command.args([
            "--bind-interfaces",
            "--user=root",
            "--pid-file",
            "--local-ttl=1",
            "--listen-address",
            RESOLVER,
        ]);
        command
            .arg("--port")
            .arg(port.to_string())
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let dns = Self(spawn(&mut command)?);
        let listens = || {
            let mut sockets = node.peer.command("cat").ok()?;
            let table = sockets.arg("/proc/net/udp").output().ok()?.stdout;
            // The address as the kernel prints it.
            let wanted = format!("0100630A:{port:04X}");
            String::from_utf8_lossy(&table).contains(&wanted).then_some(())
        };
        poll("dnsmasq's socket", listens)?;
        Ok(dns)
    }

    fn signal(&self, signal: i32) {
        // SAFETY: no memory is involved; the process is our child and was not waited for.
        unsafe { libc::kill(self.0.id().cast_signed(), signal) };
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes the node's directory a host root with a resolver configuration and with a kubeconfig at a short path; returns its
/// path.
pub(super) fn with_root(node: &Node) -> Result<String> {
    let root = node.dir();
    fs::create_dir(root.join("etc"))?;
    replace_resolv_conf(root)?;
    fs::write(root.join("kube.conf"), "clusters: [{name: lab, cluster: {server: 'https://api:6443'}}]\n")?;
    // This root has no dynamic loader, so the plugins are replaced by scripts; they are never executed.
    for plugin in fs::read_dir(node.bin_dir())? {
        fs::write(plugin?.path(), "#!plugin\n")?;
    }
    // Paths of the CNI directories stay valid below this root.
    let place = root.join(root.strip_prefix("/")?);
    fs::create_dir_all(place.parent().context("no parent directory")?)?;
    symlink("/", place)?;
    Ok(root.to_string_lossy().into_owned())
}

/// Replaces resolv.conf, whereupon the agent resolves its names again.
fn replace_resolv_conf(root: &Path) -> Result<()> {
    let new = root.join("etc/resolv.conf.new");
    fs::write(&new, format!("search nrlab.test\nnameserver {RESOLVER}\n"))?;
    Ok(fs::rename(new, root.join("etc/resolv.conf"))?)
}

fn message(line: &Value) -> &str {
    line["verdict"]["message"].as_str().unwrap_or_default()
}

/// The key of the root zone (IANA's root-anchors.xml, key 20326), with which no record of the test resolver validates.
const ROOT_KEY: &str =
    "--trust-anchor=.,20326,8,2,E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D";

/// The resolver returns NXDOMAIN, then SERVFAIL, then does not respond, and then returns an address.
#[test]
fn reports_unresolved_name_with_resolver_response() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    let root = with_root(&node)?;
    let flags = ["--host-root", root.as_str(), "--kubeconfig", "/kube.conf"];
    let local = "--local=/nrlab.test/";
    let none = Dns::start(&node, &[local])?;
    let mut trace = Trace::start(&node, &flags)?;
    let verdict = trace.wait_for_verdict("APINameUnresolved")?;
    let text = message(&verdict.line);
    ensure!(
        text.contains("name api does not resolve")
            && text.contains("10.99.0.1:53 returned")
            && text.contains("NXDOMAIN"),
        "{text}"
    );
    ensure!(verdict.line["verdict"]["status"] == "False", "{}", verdict.line);
    drop(none);
    // A validating resolver returns SERVFAIL for records that it cannot validate (RFC 4035 section 5.5).
    let signed = Dns::start_at(&node, 5353, &[local, "--address=/api.nrlab.test/10.99.0.1"])?;
    let servfail = Dns::start(&node, &["--server=10.99.0.1#5353", "--dnssec", ROOT_KEY])?;
    replace_resolv_conf(Path::new(&root))?;
    trace.wait_for("the failure of the resolver", |line| {
        message(line).contains("10.99.0.1:53 returned SERVFAIL")
            && line["verdict"]["reason"] == "APINameUnresolved"
    })?;
    drop((signed, servfail));
    let silent = Dns::start(&node, &[local])?;
    silent.signal(libc::SIGSTOP);
    replace_resolv_conf(Path::new(&root))?;
    trace.wait_for("the resolver's timeout", |line| message(line).contains("did not respond"))?;
    drop(silent);
    let _resolves = Dns::start(&node, &[local, "--address=/api.nrlab.test/10.99.0.1"])?;
    let verdict = trace.wait_for_verdict("NetworkReady")?;
    ensure!(message(&verdict.line).contains("10.99.0.1:6443"), "{}", verdict.line);
    Ok(())
}

/// An address that the kubelet has resolved and the agent has not is watched as soon as the kubelet's connection lasts, while
/// addresses that other processes connect to are not.
#[test]
fn watches_address_resolved_only_by_kubelet() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    node.peer.ip("addr add 10.99.0.3/24 dev eth0")?;
    node.peer.ip("addr add 10.99.0.4/24 dev eth0")?;
    let _other = Server::start(&node.peer, "10.99.0.3:6443", &["--echo-once"])?;
    let _foreign = Server::start(&node.peer, "10.99.0.4:6443", &["--echo"])?;
    let root = with_root(&node)?;
    let _dns = Dns::start(&node, &["--local=/nrlab.test/", "--address=/api.nrlab.test/10.99.0.1"])?;
    let talks = ["--pause", "1000"];
    let _client = node.client("curl", &Dial { to: "10.99.0.4:6443", flags: &talks })?;
    let _untrusted =
        node.client("kubelet", &Dial { to: "10.99.0.4:6443", flags: &["--nobody", "--pause", "1000"] })?;
    let kubelet = node.client("kubelet", &Dial { to: "10.99.0.3:6443", flags: &["--pause", "600000"] })?;
    let mut trace = Trace::start(&node, &["--host-root", &root, "--kubeconfig", "/kube.conf"])?;
    trace.wait_for_verdict("NetworkReady")?;
    let target = |line: &Value| line["kind"] == "api_target" && line["addr"] == "10.99.0.3:6443";
    let (_, line) = trace.wait(Duration::from_mins(1) * patience(), "the kubelet's address", target)?;
    ensure!(line["name"] == "api" && line["source"] == "/kube.conf", "{line}");
    drop(kubelet);
    let wrong = trace.seen.iter().find(|line| {
        line["verdict"]["status"] == "False"
            || line["kind"] == "api_target" && line["addr"] == "10.99.0.4:6443"
    });
    ensure!(wrong.is_none(), "{wrong:?}");
    Ok(())
}

/// The old address is kept while connections to it exist; the new one is watched immediately.
#[test]
fn follows_changed_address_and_tolerates_later_resolver_outage() -> Result<()> {
    let (node, _server) = Node::healthy()?;
    node.peer.ip("addr add 10.99.0.3/24 dev eth0")?;
    let _other = Server::start(&node.peer, "10.99.0.3:6443", &[])?;
    let root = with_root(&node)?;
    let first = Dns::start(&node, &["--local=/nrlab.test/", "--address=/api.nrlab.test/10.99.0.1"])?;
    let mut trace = Trace::start(&node, &["--host-root", &root, "--kubeconfig", "/kube.conf"])?;
    trace.wait_for_verdict("NetworkReady")?;
    drop(first);
    let second = Dns::start(&node, &["--local=/nrlab.test/", "--address=/api.nrlab.test/10.99.0.3"])?;
    replace_resolv_conf(Path::new(&root))?;
    let target = |line: &Value| line["kind"] == "api_target" && line["addr"] == "10.99.0.3:6443";
    trace.wait_for("the new address", target)?;
    drop(second);
    replace_resolv_conf(Path::new(&root))?;
    trace.wait_for("the failed lookup", |line| line["kind"] == "name_lookup")?;
    let wrong = trace.seen.iter().find(|line| line["verdict"]["status"] == "False");
    ensure!(wrong.is_none(), "{wrong:?}");
    Ok(())
}
