//! Secrets in every input of an agent, and in none of its outputs. Requires root.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kernel_tests::{
    API, Agent, Dial, Node, Sandbox, Trace, poll, poll_for, probe_binary, probe_command, tls,
};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

/// Prefix of every secret; the rest names its input.
const CANARY: &str = "canary42";

/// An API server that sends a secret, rejects the first write, and keeps the bodies of all requests.
struct Api {
    bodies: Arc<Mutex<String>>,
}

impl Api {
    fn start(node: &Node) -> Result<Self> {
        let netns = fs::File::open(node.peer.path())?;
        let health = tls::Health { status: 200, expired: false };
        let address: std::net::SocketAddr = API.parse()?;
        let config = tls::config(address.ip(), health)?;
        let bodies = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&bodies);
        let (sender, listens) = channel();
        std::thread::spawn(move || -> Result<()> {
            // SAFETY: the descriptor is open; setns(2) changes this thread only.
            ensure!(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) } == 0);
            let listener = TcpListener::bind(address)?;
            sender.send(())?;
            for connection in listener.incoming() {
                let (connection, config, kept) = (connection?, Arc::clone(&config), Arc::clone(&kept));
                std::thread::spawn(move || serve(connection, config, &kept));
            }
            Ok(())
        });
        listens.recv().context("the API server does not listen")?;
        Ok(Self { bodies })
    }

    fn bodies(&self) -> String {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(connection: TcpStream, config: Arc<ServerConfig>, kept: &Mutex<String>) -> Result<()> {
    let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, connection));
    loop {
        let (mut line, mut length, mut head) = (String::new(), 0, String::new());
        while stream.read_line(&mut line)? > 2 {
            let lower = line.to_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            head += &std::mem::take(&mut line);
        }
        ensure!(!head.is_empty(), "the connection was closed");
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = kept.is_empty();
        *kept += &String::from_utf8_lossy(&body);
        drop(kept);
        let (status, response) = if head.starts_with("GET /readyz") {
            (200, format!("[+]ping ok\n[-]token={CANARY}readyz failed: reason withheld\n"))
        } else if length > 0 && is_first {
            (403, json!({"message": format!("no: Authorization: Bearer {CANARY}status")}).to_string())
        } else {
            (200, "{}".to_owned())
        };
        write!(
            stream.get_mut(),
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{response}",
            response.len()
        )?;
        stream.get_mut().flush()?;
    }
}

/// Writes a kubeconfig with user information in its URL and a credential program that prints its token; returns its path.
fn kubeconfig(node: &Node) -> Result<String> {
    let program = node.dir().join("credential");
    let script = format!(
        "#!/bin/sh\necho 'token={CANARY}stderr' >&2\necho '{{\"status\": {{\"token\": \"{CANARY}exec\"}}}}'\n"
    );
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    // The server's certificate is not verified, but a client needs a CA, and the machines of the matrix have none.
    let authority = rcgen::generate_simple_self_signed(["lab".to_owned()])?;
    fs::write(node.dir().join("ca.crt"), authority.cert.pem())?;
    let path = node.dir().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: 'https://user:{CANARY}url@{API}', insecure-skip-tls-verify: true, certificate-authority: ca.crt}}}}]\n\
         users: [{{name: u, user: {{exec: {{apiVersion: client.authentication.k8s.io/v1, command: ./credential, \
         env: [{{name: TOKEN, value: {CANARY}variable}}]}}}}}}]\n"
    );
    fs::write(&path, text)?;
    Ok(path.to_str().context("not UTF-8")?.to_owned())
}

/// The plugin prints its whole configuration and a key, as some plugins do; the runtime's arguments and the names of files
/// and processes contain secrets as well.
#[test]
fn redacts_secrets_in_all_agent_output() -> Result<()> {
    let node = Node::new()?;
    node.install_config()?;
    let api = Api::start(&node)?;
    let kubeconfig = kubeconfig(&node)?;
    node.write_config(
        &format!("90-token={CANARY}file.conf"),
        format!("{{\"password\": \"{CANARY}conf").as_bytes(),
    )?;
    node.helper_as("leaky")?;
    let log = node.dir().join("log");
    let flags = ["--apiserver", API, "--kubeconfig", &kubeconfig, "--fail-hold", "1s", "-v"];
    let agent = Agent::start_with_log(&node, &flags, &log)?;
    agent.wait_for_verdict("NetworkReady", Duration::from_secs(30))?;
    let recording = node.dir().join("recording");
    let mut command = probe_command(&node, "trace", &["-o", "json", "-v", "--apiserver", API])?;
    command.arg("--record").arg(&recording).stderr(fs::File::create(node.dir().join("trace-log"))?);
    let mut trace = Trace::start_command(command)?;
    // A process whose name is reported as a client of the API server.
    let mut client =
        node.client(&format!("token={CANARY}"), &Dial { to: API, flags: &["--every", "500"] })?;
    ensure!(client.errno()? == 0);
    let key = format!("-----BEGIN PRIVATE KEY-----\n{CANARY}key\n-----END PRIVATE KEY-----");
    let error = format!(
        "get https://user:{CANARY}plugin@10.0.0.1:6443: Authorization: Bearer {CANARY}header: \
         {{\"token\": \"{CANARY}json\"}} {key}: unauthorized"
    );
    let mut sandbox = Sandbox::new("web-1")?;
    sandbox.pod = format!("web-1;K8S_POD_UID=token={CANARY}args");
    let failed = sandbox.run(&node, "ADD", &json!({"type": "leaky", "error": error, "password": CANARY}))?;
    ensure!(!failed.status.success() && String::from_utf8_lossy(&failed.stdout).contains(CANARY));
    let shown = |text: &str| text.contains("leaky") && text.contains("[redacted]");
    if trace.gap("cni.stdout").is_none() {
        trace.wait_for("the exit of the plugin", |line| {
            line["kind"] == "cni_end" && shown(&line.to_string())
        })?;
        // The first write is rejected. On an emulated processor the second may time out; the next follows within a
        // minute.
        let minute = Duration::from_mins(1);
        poll_for(minute, "the condition on the Node object", || shown(&api.bodies()).then_some(()))?;
        poll("its event", || api.bodies().contains("\"Event\"").then_some(()))?;
    }
    let report = poll("the account that writes the conditions", || {
        let report = agent.report()?;
        let by = report["conditionWrites"]["by"].as_str()?;
        by.contains("https://[redacted]@10.99.0.1:6443").then_some(report)
    })?;
    let check = Command::new(probe_binary()?)
        .arg("check")
        .arg("--socket")
        .arg(node.dir().join("probe.sock"))
        .stdin(Stdio::null())
        .output()?;
    let log = fs::read_to_string(&log)?;
    ensure!(log.contains("403 no: Authorization: Bearer [redacted]"), "{log}");
    let file = |name: &str| fs::read_to_string(node.dir().join(name)).with_context(|| format!("read {name}"));
    let outputs = [
        ("the Node object and events", api.bodies()),
        ("the socket", report.to_string()),
        ("the log", log),
        ("the state file", file("state.json")?),
        ("the journal", file("journal.jsonl")?),
        ("metrics", agent.get(&node.netns, "/metrics")?.1),
        ("readyz", agent.get(&node.netns, "/readyz")?.1),
        ("check", String::from_utf8_lossy(&[check.stdout, check.stderr].concat()).into_owned()),
        ("the trace", trace.seen.iter().map(Value::to_string).collect()),
        ("the log of the trace", file("trace-log")?),
        ("the recording", file("recording")?),
    ];
    for (name, text) in &outputs {
        ensure!(!text.contains(CANARY), "{name} contains a secret: {text}");
    }
    Ok(())
}
