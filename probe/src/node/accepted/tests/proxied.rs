//! Tests through a real proxy.

use super::*;

/// The API server in the kubelet's kubeconfig; only the proxy can resolve its name.
const API: &str = "api.test:6443";
/// User and password for the proxy, in the forms used in its URL and in a header.
const USER: &str = "user:proxysecret";
const BASIC: &str = "Basic dXNlcjpwcm94eXNlY3JldA==";

/// How a proxy handles a request.
#[derive(Clone, Copy)]
enum ProxyAction {
    Connect(SocketAddr),
    /// Writes this text and keeps the connection open.
    Write(&'static str),
    /// Closes the connection.
    Close,
}

/// A proxy, and the requests it received.
struct TestProxy {
    at: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl TestProxy {
    async fn start(action: ProxyAction) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let at = listener.local_addr().expect("an address");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let received = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, action, Arc::clone(&received)));
            }
        });
        Self { at, requests }
    }

    /// Queries the server through the proxy, on a node whose kubelet has this user information for the proxy.
    async fn ask(
        &self,
        (scheme, user): (&str, Option<&str>),
        authority: &Authority,
        change: impl FnOnce(&mut Settings),
    ) -> Option<Answer> {
        let kubeconfig = format!(
            "clusters: [{{name: c, cluster: {{server: 'https://{API}', certificate-authority-data: {}}}}}]\n\
             users: [{{name: u, user: {{{}}}}}]\n\
             contexts: [{{name: n, context: {{cluster: c, user: u}}}}]\ncurrent-context: n\n",
            base64(&authority.pem),
            inline(&authority.issue(NODE, None)),
        );
        let (mut settings, _root) = host(&[("etc/k", kubeconfig.as_str())]);
        change(&mut settings);
        let user = user.map(|user| format!("{user}@")).unwrap_or_default();
        let url = format!("{scheme}://{user}{}", self.at);
        let kubelet = Kubelet {
            kubeconfig: Some(Known::of(PathBuf::from("/etc/k"), &"a test")),
            proxy: Proxy::of(|name| (name == "HTTPS_PROXY").then_some(url.as_str())),
            ..Kubelet::default()
        };
        let stream = TcpStream::connect(self.at).await.expect("connected");
        let target = target(self.at, Some(&format!("{scheme}://{}", self.at)));
        ask(&settings, &kubelet, stream, &target).await
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no panic").clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    action: ProxyAction,
    received: Arc<Mutex<Vec<String>>>,
) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    received.lock().expect("no panic").push(String::from_utf8_lossy(&request).into_owned());
    match action {
        ProxyAction::Connect(to) => {
            let mut server = TcpStream::connect(to).await?;
            stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
            tokio::io::copy_bidirectional(&mut stream, &mut server).await?;
        }
        ProxyAction::Write(text) => {
            stream.write_all(text.as_bytes()).await?;
            while stream.read_u8().await.is_ok() {}
        }
        ProxyAction::Close => {}
    }
    Ok(())
}

fn failure(answer: Option<Answer>) -> TlsFailure {
    let answer = answer.expect("an answer");
    assert!(answer.status.is_none() && answer.kubelet.is_none(), "{answer:?}");
    answer.tls.expect("a failure")
}

#[tokio::test]
async fn queries_the_api_server_through_the_kubelet_s_proxy() {
    let authority = Authority::new("kubernetes");
    let identity = authority.issue("kube-apiserver", Some("api.test"));
    let running = Server::start(&identity, &authority, 200, "{}").await;
    let proxy = TestProxy::start(ProxyAction::Connect(running.at)).await;
    let answer = proxy.ask(("http", Some(USER)), &authority, |_| {}).await.expect("an answer");
    assert_eq!((answer.to, answer.status), (proxy.at, Some(200)));
    assert!(answer.tls.is_none() && answer.untrusted.is_none(), "{answer:?}");
    assert!(answer.certificate.as_ref().is_some_and(|certificate| certificate.fits), "{answer:?}");
    assert!(answer.kubelet.as_ref().is_some_and(CredentialAnswer::accepts), "{answer:?}");
    let of_node = running.of_node();
    assert!(of_node.contains("host: api.test\r\n") && !of_node.contains(BASIC), "{of_node}");
    let requests = proxy.requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    for request in requests {
        let lines: Vec<_> = request.lines().collect();
        assert_eq!(lines[0], format!("CONNECT {API} HTTP/1.1"));
        assert!(lines.contains(&format!("proxy-authorization: {BASIC}").as_str()), "{request}");
        assert!(lines.contains(&format!("host: {API}").as_str()), "{request}");
    }
}

#[tokio::test]
async fn verifies_the_server_certificate_behind_a_proxy() {
    let [authority, other] = ["kubernetes", "other"].map(Authority::new);
    for (identity, is_untrusted, fits) in [
        (other.issue("kube-apiserver", Some("api.test")), true, true),
        (authority.issue("kube-apiserver", Some("127.0.0.1")), false, false),
    ] {
        let running = Server::start(&identity, &authority, 200, "{}").await;
        let proxy = TestProxy::start(ProxyAction::Connect(running.at)).await;
        let answer = proxy.ask(("http", None), &authority, |_| {}).await.expect("an answer");
        assert_eq!(answer.untrusted.is_some(), is_untrusted, "{answer:?}");
        assert_eq!(answer.certificate.map(|certificate| certificate.fits), Some(fits));
        assert!(answer.kubelet.is_none() && running.requests().len() == 1);
        assert!(!proxy.requests()[0].contains("proxy-authorization"));
    }
}

#[tokio::test]
async fn reports_proxy_responses_without_user_information() {
    let authority = Authority::new("kubernetes");
    let status = |status: &str| TlsFailure::Proxy { status: status.to_owned() };
    let other = |why: &str| TlsFailure::Other { why: why.to_owned() };
    let quick: fn(&mut Settings) = |settings| settings.ask_timeout = Duration::from_millis(300);
    let patient: fn(&mut Settings) = |_| {};
    for (action, change, wanted) in [
        (ProxyAction::Write("HTTP/1.1 403 Forbidden\r\n\r\n"), patient, status("403 Forbidden")),
        (ProxyAction::Write("HTTP/1.0 502 no\x07way\r\n\r\n"), patient, other("the response is not HTTP")),
        (
            ProxyAction::Write(
                "HTTP/1.1 407 user user:proxysecret, try http://a:b@c\r\ncontent-length: 2\r\n\r\nno",
            ),
            patient,
            status("407 user [redacted], try http://[redacted]@c"),
        ),
        (ProxyAction::Write("HTTP/1.1 204 Empty\r\n\r\n"), patient, status("204 Empty")),
        (ProxyAction::Write("SSH-2.0-OpenSSH_9.2\r\n"), patient, other("the response is not HTTP")),
        (
            ProxyAction::Write("HTTP/1.1 200 OK\r\n\r\nhello"),
            patient,
            other("received data before the ClientHello"),
        ),
        (ProxyAction::Write("HTTP/1.1 200 OK\r\n\r\n"), quick, TlsFailure::Silent),
        (ProxyAction::Write("HTTP/1.1 200"), quick, TlsFailure::Silent),
        (ProxyAction::Close, patient, TlsFailure::Closed),
    ] {
        let proxy = TestProxy::start(action).await;
        assert_eq!(failure(proxy.ask(("http", Some(USER)), &authority, change).await), wanted);
    }
}

#[tokio::test]
async fn sends_nothing_to_a_proxy_that_must_not_be_used() {
    let authority = Authority::new("kubernetes");
    let off: fn(&mut Settings) = |settings| settings.kubelet_credentials = false;
    let named: fn(&mut Settings) = |settings| settings.only_named = true;
    for (what, scheme, user, change) in [
        ("TLS to the proxy", "https", None, (|_| {}) as fn(&mut Settings)),
        ("SOCKS", "socks5", None, |_| {}),
        ("--no-kubelet-credentials", "http", Some(USER), off),
        ("--apiserver", "http", None, named),
    ] {
        let proxy = TestProxy::start(ProxyAction::Close).await;
        assert!(proxy.ask((scheme, user), &authority, change).await.is_none(), "{what}");
        assert!(proxy.requests().is_empty(), "{what}: {:?}", proxy.requests());
    }
    let identity = authority.issue("kube-apiserver", Some("api.test"));
    let running = Server::start(&identity, &authority, 200, "{}").await;
    let proxy = TestProxy::start(ProxyAction::Connect(running.at)).await;
    let answer = proxy.ask(("http", None), &authority, off).await.expect("an answer");
    assert!(
        answer.status == Some(200) && answer.kubelet.is_none() && proxy.requests().len() == 1,
        "{answer:?}"
    );
}
