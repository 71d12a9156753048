//! Through a real proxy.

use super::*;

/// The API server as the kubelet's kubeconfig names it; only the proxy knows where it is.
const API: &str = "api.test:6443";
/// User and password of the proxy, as they stand in its URL and in a header.
const USER: &str = "user:proxysecret";
const BASIC: &str = "Basic dXNlcjpwcm94eXNlY3JldA==";

/// What a proxy does with a request.
#[derive(Clone, Copy)]
enum Does {
    Connect(SocketAddr),
    /// Writes this and goes on listening.
    Say(&'static str),
    /// Closes the connection.
    Close,
}

/// A proxy, and the requests that it was sent.
struct Forward {
    at: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Forward {
    async fn start(does: Does) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let at = listener.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, does, Arc::clone(&heard)));
            }
        });
        Self { at, asked }
    }

    /// Asks through it as the agent of a node does whose kubelet has this user information for the proxy.
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

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }
}

async fn serve(mut stream: TcpStream, does: Does, heard: Arc<Mutex<Vec<String>>>) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    heard.lock().expect("no panic").push(String::from_utf8_lossy(&request).into_owned());
    match does {
        Does::Connect(to) => {
            let mut server = TcpStream::connect(to).await?;
            stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
            tokio::io::copy_bidirectional(&mut stream, &mut server).await?;
        }
        Does::Say(words) => {
            stream.write_all(words.as_bytes()).await?;
            while stream.read_u8().await.is_ok() {}
        }
        Does::Close => {}
    }
    Ok(())
}

fn failure(answer: Option<Answer>) -> TlsFailure {
    let answer = answer.expect("an answer");
    assert!(answer.status.is_none() && answer.kubelet.is_none(), "{answer:?}");
    answer.tls.expect("a failure")
}

#[tokio::test]
async fn the_api_server_is_asked_through_the_kubelet_s_proxy() {
    let authority = Authority::new("kubernetes");
    let identity = authority.issue("kube-apiserver", Some("api.test"));
    let running = Server::start(&identity, &authority, 200, "{}").await;
    let proxy = Forward::start(Does::Connect(running.at)).await;
    let answer = proxy.ask(("http", Some(USER)), &authority, |_| {}).await.expect("an answer");
    assert_eq!((answer.to, answer.status), (proxy.at, Some(200)));
    assert!(answer.tls.is_none() && answer.untrusted.is_none(), "{answer:?}");
    assert!(answer.certificate.as_ref().is_some_and(|certificate| certificate.fits), "{answer:?}");
    assert!(answer.kubelet.as_ref().is_some_and(CredentialAnswer::accepts), "{answer:?}");
    let of_node = running.of_node();
    assert!(of_node.contains("host: api.test\r\n") && !of_node.contains(BASIC), "{of_node}");
    let asked = proxy.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    for request in asked {
        let lines: Vec<_> = request.lines().collect();
        assert_eq!(lines[0], format!("CONNECT {API} HTTP/1.1"));
        assert!(lines.contains(&format!("proxy-authorization: {BASIC}").as_str()), "{request}");
        assert!(lines.contains(&format!("host: {API}").as_str()), "{request}");
    }
}

#[tokio::test]
async fn the_certificate_behind_a_proxy_is_that_of_the_server() {
    let [authority, other] = ["kubernetes", "other"].map(Authority::new);
    for (identity, is_untrusted, fits) in [
        (other.issue("kube-apiserver", Some("api.test")), true, true),
        (authority.issue("kube-apiserver", Some("127.0.0.1")), false, false),
    ] {
        let running = Server::start(&identity, &authority, 200, "{}").await;
        let proxy = Forward::start(Does::Connect(running.at)).await;
        let answer = proxy.ask(("http", None), &authority, |_| {}).await.expect("an answer");
        assert_eq!(answer.untrusted.is_some(), is_untrusted, "{answer:?}");
        assert_eq!(answer.certificate.map(|certificate| certificate.fits), Some(fits));
        assert!(answer.kubelet.is_none() && running.asked().len() == 1);
        assert!(!proxy.asked()[0].contains("proxy-authorization"));
    }
}

#[tokio::test]
async fn what_a_proxy_answers_is_told_without_its_user_information() {
    let authority = Authority::new("kubernetes");
    let status = |status: &str| TlsFailure::Proxy { status: status.to_owned() };
    let other = |why: &str| TlsFailure::Other { why: why.to_owned() };
    let quick: fn(&mut Settings) = |settings| settings.ask_timeout = Duration::from_millis(300);
    let patient: fn(&mut Settings) = |_| {};
    for (does, change, wanted) in [
        (Does::Say("HTTP/1.1 403 Forbidden\r\n\r\n"), patient, status("403 Forbidden")),
        (
            Does::Say("HTTP/1.0 502 no\x07way\r\n\r\n"),
            patient,
            other("it answers something that is not HTTP"),
        ),
        (
            Does::Say("HTTP/1.1 407 user user:proxysecret, try http://a:b@c\r\ncontent-length: 2\r\n\r\nno"),
            patient,
            status("407 user [redacted], try http://[redacted]@c"),
        ),
        (Does::Say("HTTP/1.1 204 Empty\r\n\r\n"), patient, status("204 Empty")),
        (Does::Say("SSH-2.0-OpenSSH_9.2\r\n"), patient, other("it answers something that is not HTTP")),
        (
            Does::Say("HTTP/1.1 200 OK\r\n\r\nhello"),
            patient,
            other("it sends bytes before the TLS handshake"),
        ),
        (Does::Say("HTTP/1.1 200 OK\r\n\r\n"), quick, TlsFailure::Silent),
        (Does::Say("HTTP/1.1 200"), quick, TlsFailure::Silent),
        (Does::Close, patient, TlsFailure::Closed),
    ] {
        let proxy = Forward::start(does).await;
        assert_eq!(failure(proxy.ask(("http", Some(USER)), &authority, change).await), wanted);
    }
}

#[tokio::test]
async fn a_proxy_is_sent_nothing_that_it_may_not_have() {
    let authority = Authority::new("kubernetes");
    let off: fn(&mut Settings) = |settings| settings.kubelet_credentials = false;
    let named: fn(&mut Settings) = |settings| settings.only_named = true;
    for (what, scheme, user, change) in [
        ("TLS to the proxy", "https", None, (|_| {}) as fn(&mut Settings)),
        ("SOCKS", "socks5", None, |_| {}),
        ("--no-kubelet-credentials", "http", Some(USER), off),
        ("--apiserver", "http", None, named),
    ] {
        let proxy = Forward::start(Does::Close).await;
        assert!(proxy.ask((scheme, user), &authority, change).await.is_none(), "{what}");
        assert!(proxy.asked().is_empty(), "{what}: {:?}", proxy.asked());
    }
    let identity = authority.issue("kube-apiserver", Some("api.test"));
    let running = Server::start(&identity, &authority, 200, "{}").await;
    let proxy = Forward::start(Does::Connect(running.at)).await;
    let answer = proxy.ask(("http", None), &authority, off).await.expect("an answer");
    assert!(answer.status == Some(200) && answer.kubelet.is_none() && proxy.asked().len() == 1, "{answer:?}");
}
