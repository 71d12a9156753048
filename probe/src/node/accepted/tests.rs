//! Tests against a real server: what is sent to which server, and how its answer is judged.

use std::path::PathBuf;
use std::sync::Mutex;

use data_encoding::BASE64;
use probe_engine::TargetKind;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::node::trust::tests::{Authority, Identity};
use crate::settings::Known;
use crate::settings::tests::host;

mod proxied;

/// The common name of a kubelet's certificate.
const NODE: &str = "system:node:worker-3";
/// The bearer token.
const TOKEN: &str = "abcdef.0123456789abcdef";

/// An API server that accepts clients of one CA, and the requests it received: `+` before the text if the client sent a
/// certificate, else `-`.
struct Server {
    at: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Starts a server that answers requests for a Node object with this status and body.
    async fn start(identity: &Identity, clients: &Authority, status: u16, body: &'static str) -> Self {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(der(&clients.pem)).expect("a CA");
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let verifier = verifier.allow_unauthenticated().build().expect("a verifier");
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).expect("a key");
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_client_cert_verifier(verifier);
        let config = config.with_single_cert(vec![der(&identity.certificate)], key).expect("an identity");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let at = listener.local_addr().expect("an address");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let received = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, received) = (acceptor.clone(), Arc::clone(&received));
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let known = if stream.get_ref().1.peer_certificates().is_some() { "+" } else { "-" };
                    let mut request = Vec::new();
                    while let Ok(byte) = stream.read_u8().await {
                        request.push(byte);
                        if !request.ends_with(b"\r\n\r\n") {
                            continue;
                        }
                        let text = String::from_utf8_lossy(&request).into_owned();
                        let of_node = text.contains("/api/v1/nodes/");
                        let (status, body) = if of_node { (status, body) } else { (200, "[+]etcd ok\n") };
                        received.lock().expect("no panic").push(format!("{known}{text}"));
                        let length = body.len();
                        let response = format!(
                            "HTTP/1.1 {status} x\r\nlocation: /elsewhere\r\ncontent-length: {length}\r\n\r\n{body}"
                        );
                        if stream.write_all(response.as_bytes()).await.is_err() {
                            return;
                        }
                        request.clear();
                    }
                });
            }
        });
        Self { at, requests }
    }

    /// Queries it as the agent of a node with these files does.
    async fn ask(&self, files: &[(&str, &str)], authority: &Authority, user: &str) -> Answer {
        self.ask_with(files, &format!("certificate-authority-data: {}", base64(&authority.pem)), user, |_| {})
            .await
    }

    async fn ask_with(
        &self,
        files: &[(&str, &str)],
        cluster: &str,
        user: &str,
        change: impl FnOnce(&mut Settings),
    ) -> Answer {
        let kubeconfig = format!(
            "clusters: [{{name: c, cluster: {{server: 'https://{}', {cluster}}}}}]\n\
             users: [{{name: other, user: {{token: x}}}}, {{name: u, user: {{{user}}}}}]\n\
             contexts: [{{name: n, context: {{cluster: c, user: u}}}}]\ncurrent-context: n\n",
            self.at
        );
        let files: Vec<_> = files.iter().copied().chain([("etc/k", kubeconfig.as_str())]).collect();
        let (mut settings, _root) = host(&files);
        change(&mut settings);
        let known = |path: &str| Some(Known::of(PathBuf::from(path), &"a test"));
        let kubelet = Kubelet {
            kubeconfig: known("/etc/none"),
            bootstrap_kubeconfig: known("/etc/k"),
            certificates: known("/pki"),
            node_name: Some(Known::of("worker-3".to_owned(), &"a test")),
            ..Kubelet::default()
        };
        let stream = TcpStream::connect(self.at).await.expect("connected");
        let target = target(self.at, None);
        ask(&settings, &kubelet, stream, &target).await.expect("a server that can be queried")
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no panic").clone()
    }

    /// The one request for a Node object.
    fn of_node(&self) -> String {
        let requests = self.requests();
        let mut of_node = requests.iter().filter(|request| request.contains("/api/v1/nodes/"));
        let one = of_node.next().expect("a request").clone();
        assert!(of_node.next().is_none() && requests.len() == 2, "{requests:?}");
        one
    }
}

fn target(addr: SocketAddr, proxy: Option<&str>) -> ApiTarget {
    let (source, proxy) = ("/etc/k".to_owned(), proxy.map(str::to_owned));
    ApiTarget { addr, kind: TargetKind::Direct, source, name: None, proxy }
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")
}

fn base64(text: &str) -> String {
    BASE64.encode(text.as_bytes())
}

fn inline(identity: &Identity) -> String {
    let (certificate, key) = (base64(&identity.certificate), base64(&identity.key));
    format!("client-certificate-data: {certificate}, client-key-data: {key}")
}

fn token() -> String {
    format!("token: {TOKEN}")
}

fn server(authority: &Authority) -> Identity {
    authority.issue("kube-apiserver", Some("127.0.0.1"))
}

#[tokio::test]
async fn uses_the_kubelet_s_certificate_only_to_read_the_node() {
    let authority = Authority::new("kubernetes");
    let client = authority.issue(NODE, None);
    for (user, files) in [
        (inline(&client), vec![]),
        (
            "client-certificate: pem, client-key: pem".to_owned(),
            vec![("etc/pem", format!("{}{}", client.certificate, client.key))],
        ),
    ] {
        let running = Server::start(&server(&authority), &authority, 200, "{}").await;
        let files: Vec<_> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
        let answer = running.ask(&files, &authority, &user).await;
        let kubelet = answer.kubelet.expect("an answer");
        assert!(kubelet.accepts() && kubelet.own_node && answer.untrusted.is_none(), "{kubelet:?}");
        let request = running.of_node();
        assert!(request.starts_with("+GET /api/v1/nodes/worker-3 HTTP/1.1\r\n"), "{request}");
        let anonymous = &running.requests()[0];
        assert!(anonymous.starts_with("-GET /readyz?verbose "), "{anonymous}");
    }
}

#[tokio::test]
async fn distinguishes_rejected_from_accepted_credentials() {
    let authority = Authority::new("kubernetes");
    let certificate = inline(&authority.issue(NODE, None));
    let of_bootstrap = inline(&authority.issue("system:bootstrap", None));
    let forbidden = r#"{"kind":"Status","message":"nodes \"worker-3\" is\u001b forbidden"}"#;
    for (user, status, body, refuses, message) in [
        (&certificate, 401, "{}", Some(true), ""),
        (&certificate, 403, forbidden, Some(true), "nodes \"worker-3\" is\\u{1b} forbidden"),
        (&certificate, 404, "{}", Some(false), ""),
        (&of_bootstrap, 403, forbidden, Some(false), ""),
        (&of_bootstrap, 401, "{}", Some(true), ""),
        (&token(), 401, "{}", Some(true), ""),
        (&token(), 403, forbidden, Some(false), ""),
        (&certificate, 302, "", None, ""),
    ] {
        let running = Server::start(&server(&authority), &authority, status, body).await;
        let answer = running.ask(&[], &authority, user).await;
        let refused = answer.kubelet.as_ref().map(CredentialAnswer::refuses);
        assert_eq!(refused, refuses, "{status} {:?}", answer.kubelet);
        let found = answer.kubelet.as_ref().map_or("", |kubelet| &kubelet.message);
        assert_eq!(found, message, "{status}");
        assert!(!format!("{answer:?}").contains("0123456789"), "{answer:?}");
        running.of_node();
    }
    let busy = Server::start(&server(&authority), &authority, 429, "").await;
    let answer = busy.ask(&[], &authority, &certificate).await;
    assert!(answer.kubelet.is_some_and(|kubelet| kubelet.fails() && !kubelet.refuses()));
}

#[tokio::test]
async fn tls_alert_about_the_certificate_is_a_rejection() {
    let [authority, other] = ["kubernetes", "other"].map(Authority::new);
    let running = Server::start(&server(&authority), &authority, 200, "{}").await;
    let answer = running.ask(&[], &authority, &inline(&other.issue(NODE, None))).await;
    let kubelet = answer.kubelet.expect("an answer");
    assert!(kubelet.refuses() && kubelet.alert.is_some() && kubelet.status.is_none(), "{kubelet:?}");
}

#[tokio::test]
async fn sends_nothing_secret_to_an_unverified_server() {
    let [authority, other] = ["kubernetes", "other"].map(Authority::new);
    let ca = format!("certificate-authority-data: {}", base64(&authority.pem));
    let elsewhere = authority.issue("kube-apiserver", Some("10.0.0.1"));
    for (what, identity, cluster, is_untrusted) in [
        ("another CA", server(&other), ca.clone(), true),
        ("another name", elsewhere, ca.clone(), false),
        (
            "another name in the kubeconfig",
            server(&authority),
            format!("{ca}, tls-server-name: x.test"),
            false,
        ),
        ("not verified", server(&authority), "insecure-skip-tls-verify: true".to_owned(), false),
        ("not verified, though another", server(&other), "insecure-skip-tls-verify: true".to_owned(), false),
        ("no CA", server(&authority), "x: y".to_owned(), false),
        ("no file of the CA", server(&authority), "certificate-authority: none".to_owned(), false),
    ] {
        for user in [token(), inline(&authority.issue(NODE, None))] {
            let running = Server::start(&identity, &authority, 200, "{}").await;
            let answer = running.ask_with(&[], &cluster, &user, |_| {}).await;
            assert_eq!(answer.status, Some(200), "{what}: /readyz is still requested");
            assert_eq!(answer.untrusted.is_some(), is_untrusted, "{what}");
            assert!(answer.kubelet.is_none(), "{what}");
            let requests = running.requests();
            assert!(requests.len() == 1 && requests[0].starts_with("-GET /readyz"), "{what}: {requests:?}");
            assert!(!requests[0].to_lowercase().contains("authorization"), "{what}");
        }
    }
}

#[tokio::test]
async fn untrusted_certificate_is_reported_with_ca_file_and_issuer() {
    let [authority, other] = ["kubernetes", "other"].map(Authority::new);
    let running = Server::start(&server(&other), &authority, 200, "{}").await;
    let untrusted = running.ask(&[], &authority, "").await.untrusted.expect("of another CA");
    assert_eq!((untrusted.file.as_str(), untrusted.issuer.as_str()), ("/etc/k", "CN=other"));
    assert!(!untrusted.kubelet_served);
    let answer = running.ask_with(&[("ca", &authority.pem)], "certificate-authority: /ca", "", |_| {}).await;
    assert_eq!(answer.untrusted.expect("of another CA").file, "/ca");
}

#[tokio::test]
async fn does_not_use_credentials_that_are_disallowed_or_unusable() {
    let authority = Authority::new("kubernetes");
    let ca = format!("certificate-authority-data: {}", base64(&authority.pem));
    let client = authority.issue(NODE, None);
    let off: fn(&mut Settings) = |settings| settings.kubelet_credentials = false;
    let named: fn(&mut Settings) = |settings| settings.only_named = true;
    let key_of_another = Identity { key: authority.issue(NODE, None).key, ..authority.issue(NODE, None) };
    for (what, user, change) in [
        ("--no-kubelet-credentials", inline(&client), off),
        ("--apiserver", inline(&client), named),
        ("a credential plugin", "exec: {command: aws}, token: x".to_owned(), |_| {}),
        ("no credential", String::new(), |_| {}),
        ("half a rotation", inline(&key_of_another), |_| {}),
        ("a token that is not a valid header", "token: \"a\\nb\"".to_owned(), |_| {}),
    ] {
        let running = Server::start(&server(&authority), &authority, 200, "{}").await;
        let answer = running.ask_with(&[], &ca, &user, change).await;
        assert!(answer.kubelet.is_none() && answer.status == Some(200), "{what}: {answer:?}");
        assert_eq!(running.requests().len(), 1, "{what}");
    }
}

#[tokio::test]
async fn peer_of_the_kubelet_is_the_api_server_unless_another_ca_issued_its_certificate() {
    let [authority, other] = ["kubernetes", "other"].map(Authority::new);
    let kubeconfig = |at: SocketAddr, cluster: &str| {
        format!(
            "clusters: [{{name: c, cluster: {{server: 'https://{at}', {cluster}}}}}]\nusers: []\n\
             contexts: [{{name: n, context: {{cluster: c, user: u}}}}]\ncurrent-context: n\n"
        )
    };
    let ca = format!("certificate-authority-data: {}", base64(&authority.pem));
    let is_server = async |at: SocketAddr, cluster: &str, ask: bool| {
        let (mut settings, _root) = host(&[("etc/k", &kubeconfig(at, cluster))]);
        settings.ask = ask;
        let kubeconfig = Some(Known::of(PathBuf::from("/etc/k"), &"a test"));
        let kubelet = Kubelet { kubeconfig, ..Kubelet::default() };
        is_server_of_kubelet(&settings, &kubelet, &target(at, None)).await
    };
    let own = Server::start(&server(&authority), &authority, 200, "{}").await.at;
    let another = Server::start(&server(&other), &authority, 200, "{}").await;
    assert_eq!(is_server(own, &ca, true).await, Some(true));
    assert_eq!(is_server(another.at, &ca, true).await, Some(false));
    // The CAs are unknown, or active checks are disabled.
    assert_eq!(is_server(another.at, "x: y", true).await, Some(true));
    assert_eq!(is_server(another.at, &ca, false).await, Some(true));
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("an address");
    assert_eq!(is_server(closed, &ca, true).await, None);
    assert!(another.requests().is_empty(), "nothing is requested");
}
