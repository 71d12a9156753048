//! A kubelet that connects to its API server through a proxy. Requires root.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use kernel_tests::{Dial, Node, Server, Trace, patience, poll, spawn};
use serde_json::Value;

use super::names::with_root;

/// Address of the proxy on the other host.
const PROXY: &str = "10.99.0.1:3128";
/// The API server, which the node can reach through the proxy only.
const SERVER: &str = "10.99.0.3:6443";
const PASSWORD: &str = "proxysecret";

/// Debian's tinyproxy on the other host; killed when dropped.
struct Proxy(Child);

impl Proxy {
    /// Starts a proxy that connects to this port of servers and requires an account, and waits until it listens.
    fn start(node: &Node, port: u16) -> Result<Self> {
        let path = node.dir().join("tinyproxy.conf");
        let text = format!(
            "Port 3128\nListen 10.99.0.1\nTimeout 60\nConnectPort {port}\nBasicAuth user {PASSWORD}\nLogLevel Critical\n"
        );
        fs::write(&path, text)?;
        let mut command = node.peer.command("tinyproxy")?;
        command.arg("-d").arg("-c").arg(path);
        let proxy = Self(spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))?);
        let listens = || {
            let mut sockets = node.peer.command("cat").ok()?;
            let table = sockets.arg("/proc/net/tcp").output().ok()?.stdout;
            // 10.99.0.1:3128 in the state LISTEN, as the kernel prints it.
            String::from_utf8_lossy(&table).contains("0100630A:0C38 00000000:0000 0A").then_some(())
        };
        poll("tinyproxy's socket", listens)?;
        Ok(proxy)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a verdict with this reason and a message with these words, unless it is the newest one already.
fn wait(trace: &mut Trace, reason: &str, words: &str) -> Result<()> {
    let matches = |line: &Value| {
        let verdict = &line["verdict"];
        verdict["reason"] == reason
            && verdict["message"].as_str().is_some_and(|message| message.contains(words))
    };
    if trace.seen.iter().rfind(|line| line["kind"] == "verdict").is_some_and(matches) {
        return Ok(());
    }
    // A server in trouble is checked every 20 s.
    trace.wait(Duration::from_secs(45) * patience(), &format!("{reason}: {words}"), matches).map(|_| ())
}

/// The kubelet connects to the proxy, so the proxy is judged instead of the server, and the agent's requests pass through
/// it.
#[test]
fn judges_kubelet_behind_proxy_by_its_proxy() -> Result<()> {
    let node = Node::new()?;
    node.install_config()?;
    node.peer.ip("addr add 10.99.0.3/24 dev eth0")?;
    node.peer.filter("input", "ip saddr 10.99.0.2 tcp dport 6443 drop")?;
    let root = with_root(&node)?;
    let kubeconfig = format!(
        "clusters: [{{name: c, cluster: {{server: 'https://{SERVER}'}}}}]\nusers: [{{name: u, user: {{}}}}]\n\
         contexts: [{{name: n, context: {{cluster: c, user: u}}}}]\ncurrent-context: n\n"
    );
    fs::write(node.dir().join("kube.conf"), kubeconfig)?;
    let server = Server::start(&node.peer, SERVER, &[])?;
    let proxy = Proxy::start(&node, 6443)?;
    let dial = Dial { to: PROXY, flags: &["--every", "500", "--kubeconfig=/kube.conf"] };
    let url = format!("http://user:{PASSWORD}@{PROXY}");
    let variables = [("HTTPS_PROXY", url.as_str()), ("NO_PROXY", "10.99.0.3:443,.svc,10.244.0.0/16")];
    let mut kubelet = node.client_with("kubelet", &dial, &variables)?;
    ensure!(kubelet.errno()? == 0, "the proxy refused the connection");
    let mut trace = Trace::start(&node, &["--host-root", &root])?;
    let served = |line: &Value| line["kind"] == "answer" && line["status"] == 200;
    let (_, response) = trace.wait_for("the response of the API server", served)?;
    ensure!(response["to"] == PROXY && response["certificate"]["fits"] == true, "{response}");
    wait(&mut trace, "NetworkReady", "10.99.0.1:3128 (the proxy http://10.99.0.1:3128)")?;
    drop(proxy);
    wait(
        &mut trace,
        "APIServerRefused",
        "through the proxy http://10.99.0.1:3128 (10.99.0.1:3128) refuses connections",
    )?;
    let proxy = Proxy::start(&node, 443)?;
    wait(&mut trace, "APIProxyRefused", "the proxy returns 403")?;
    drop(proxy);
    drop(server);
    let _proxy = Proxy::start(&node, 6443)?;
    wait(&mut trace, "APIProxyRefused", "the proxy returns 500")?;
    let _server = Server::start(&node.peer, SERVER, &[])?;
    wait(&mut trace, "NetworkReady", "the proxy http://10.99.0.1:3128")?;
    let secret = trace.seen.iter().find(|line| line.to_string().contains(PASSWORD));
    ensure!(secret.is_none(), "{secret:?}");
    let direct = trace
        .seen
        .iter()
        .find(|line| line["addr"] == SERVER || line["to"] == SERVER && line["host_netns"] == true);
    ensure!(direct.is_none(), "{direct:?}");
    Ok(())
}
