use std::fs;
use std::path::Path;

use data_encoding::BASE64;
use proptest::prelude::*;

use super::{HIDDEN, redact, redact_text};

const JWT: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJl-_x";
const KEY: &str = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIGk\n-----END EC PRIVATE KEY-----";

/// Asserts that `text` is redacted to `expected`, in which `*` stands for [`HIDDEN`].
fn check(text: &str, expected: &str) {
    let expected = expected.replace('*', HIDDEN);
    assert_eq!(redact_text(text), expected, "{text}");
    assert_eq!(redact_text(&expected), expected, "second run: {text}");
}

#[test]
fn redacts_user_information_of_urls() {
    check("GET https://user:pa%20ss@10.0.0.1:6443/api", "GET https://*@10.0.0.1:6443/api");
    check("parse \"http://user:p@ss@proxy:3128\": x", "parse \"http://*@proxy:3128\": x");
    check("socks5://token@proxy", "socks5://*@proxy");
    check("proxy http://user:pa/ss@proxy:3128 is gone", "proxy http://*@proxy:3128 is gone");
    check("cut: http://user:hunter", "cut: http://*");
    check("dial user:hunter2@proxy:3128 failed", "dial *@proxy:3128 failed");
    check("a:b@c,d:e@[fd00::1]", "*@c,*@[fd00::1]");
}

#[test]
fn redacts_headers_with_any_scheme() {
    check("Authorization: Bearer abc was refused", "Authorization: Bearer * was refused");
    check("authorization=Basic dXNlcjpwYXNz", "authorization=Basic *");
    check(
        "Proxy-Authorization: Digest username=\"u\", x\nHost: a",
        "Proxy-Authorization: *\"u\", x\nHost: a",
    );
    check("Authorization: AWS4 Credential=x, Signature=y\nHost: a", "Authorization: *\nHost: a");
    check("map[Authorization:[Bearer abc] Host:[x]]", "map[Authorization:[Bearer *] Host:[x]]");
    check("{\"Authorization\": [\"Custom abc\"]}", "{\"Authorization\": [\"*\"]}");
    check("-H 'Authorization: Bearer abc' -k", "-H 'Authorization: Bearer *' -k");
    check("bearer abc123.x is over, Bearer opaqueword", "bearer * is over, Bearer *");
    check("Bearer%20abcdefgh", "Bearer%20*");
    check("got Basic dXNlcjpwYXNz.", "got Basic dXNlcjpwYXNz.".replace("dXNlcjpwYXNz.", "*").as_str());
}

#[test]
fn redacts_values_of_secret_names() {
    check("K8S_POD_NAME=a;API_TOKEN=abc;X=y", "K8S_POD_NAME=a;API_TOKEN=*;X=y");
    check("/x?access_token=abc&y=1", "/x?access_token=*&y=1");
    check(r#"{"password":"a\"b","user":"x"}"#, r#"{"password":"*","user":"x"}"#);
    check(r#"{\"password\": \"ab c\", \"user\": 1}"#, r#"{\"password\": \"*\", \"user\": 1}"#);
    check(r#""client-key-data": "LS0t"#, r#""client-key-data": "*"#);
    check("users:\n- user:\n    token: hunter\n    x: y", "users:\n- user:\n    token: *\n    x: y");
    check("x-api-key: abc, clientSecret = 'a b'", "x-api-key: *, clientSecret = '*'");
    check("aws_secret_access_key=a/b+c== x", "aws_secret_access_key=* x");
    check(
        "run --token abc123 --token-file /x --bootstrap-token=z",
        "run --token * --token-file /x --bootstrap-token=*",
    );
    check("{\"auth\":\"dXNlcjpwYXNz\",\"auth\":\"none\"}", "{\"auth\":\"*\",\"auth\":\"none\"}");
    check("\"token\":7,\"secret\":{\"password\":\"x\"}", "\"token\":*,\"secret\":{\"password\":\"*\"}");
}

#[test]
fn redacts_tokens_and_keys_anywhere() {
    check(&format!("token {JWT}."), "token *");
    check(&format!("cut {}", &JWT[..30]), "cut *");
    check("join abcdef.0123456789abcdef, please", "join *, please");
    check(&format!("a {KEY} b"), "a * b");
    check(&format!("a {KEY}").replace('\n', "\\n"), "a *");
    check("a -----BEGIN PRIVATE KEY-----\nMHcC", "a *");
    check("key: MHcC\nAQE=\n-----END PRIVATE KEY----- b", "key: * b");
    check(&format!("data {} x", BASE64.encode(KEY.as_bytes())), "data * x");
    check(
        "user.token: invalid type: integer `123`, expected",
        "user.token: invalid type: integer `*`, expected",
    );
    check("invalid type: string \"a b\", expected x", "invalid type: string \"*\", expected x");
}

#[test]
fn ordinary_text_is_unchanged() {
    for text in [
        "",
        "open /var/run/secrets/kubernetes.io/serviceaccount/token: no such file or directory",
        "cannot read token: permission denied",
        "failed to refresh token: x509: certificate signed by unknown authority",
        "invalid bearer token: expired at noon",
        "Unauthorized: Bearer token rejected",
        "WWW-Authenticate: Bearer realm=\"https://auth.example.com/token\"",
        "Basic authentication failed",
        "basic auth is off",
        "registry.k8s.io/pause:3.9@sha256:7031c1b283388d2c2e09b57badb803c05ebed362dc88d84b480cc47f72a21097",
        "registry/secret:v1.2",
        "Get \"https://10.0.0.1:6443/readyz?timeout=32s\": dial tcp 10.0.0.1:6443: connect: connection refused",
        "tried http://10.0.0.1:3128, https://[fd00::1]:6443 and (the proxy http://10.99.0.1:3128).",
        "through the proxy http://10.0.0.1:3128…",
        "unix:///run/containerd/containerd.sock",
        "@/run/abstract: 3: veth0@if2: <UP>",
        "secrets \"calico-etcd\" is forbidden: User \"system:node:a\" cannot get resource \"secrets\"",
        "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=6f1c",
        "authorization: RBAC: access denied",
        "kubelet authorization: webhook is away",
        "tokenFile: /var/run/token, --token-file /x",
        "user@1000.service, etcd@default.service: exited",
        "net.ipv4.conf.all.rp_filter = 1",
        "6443:10250",
    ] {
        assert_eq!(redact_text(text), text);
    }
}

/// Recordings and settings of real nodes contain no secrets.
#[test]
fn texts_of_real_nodes_are_unchanged() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests");
    let mut files = 0;
    let folders = |dir: &Path| fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let subjects = folders(&tests.join("replay")).flat_map(|subject| folders(&subject.path()));
    let recordings = subjects.map(|folder| folder.path().join("input.jsonl"));
    let nodes = folders(&tests.join("nodes")).map(|folder| folder.path().join("expected.txt"));
    for path in recordings.chain(nodes) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        files += 1;
        for line in text.lines() {
            assert_eq!(redact_text(line), line, "{}", path.display());
        }
    }
    assert!(files > 100, "{files} files");
}

/// Returns the CPU time of this thread, nanoseconds: it does not depend on the load of the machine.
fn used_ns() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is live; the clock exists on every supported kernel.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Redacts long texts that start a search at every position.
#[test]
fn time_is_linear() {
    let time = |text: &str| {
        let start = used_ns();
        redact(text.as_bytes());
        used_ns() - start
    };
    for part in [
        ":",
        "a:",
        "@",
        "a:@",
        "://",
        "a://",
        "a://b:c/",
        "a://b:c",
        "a:b@!",
        "token:",
        "token: a ",
        "token:{",
        "\"",
        "token=\\\"",
        "authorization:",
        "Authorization:",
        "Authorization: ",
        "Bearer ",
        "Bearer%20.",
        "Bearer%20realm=.",
        "bearer%20a.",
        "Basic a",
        "eyJ",
        "eyJ.",
        "-----BEGIN ",
        "-----END ",
        "-----END A",
        "-",
        "--token ",
        "--token=-",
        "string \"",
        "invalid type: string `",
        "abcdef.",
        "LS0tLS1CRUdJTi",
        "LS0t.",
        "[redacted]",
        "a:[redacted]@",
        "a://b:c/[redacted]@",
        "a://b:c[redacted]@/",
    ] {
        let (short, long) = (part.repeat(4_000 / part.len()), part.repeat(64_000 / part.len()));
        // With quadratic time the factor would be 256.
        let best = |text: &str| (0..3).map(|_| time(text)).min().expect("three");
        let (short, long) = (best(&short), best(&long));
        assert!(long < short * 64 + 5_000_000, "{part:?}: {short} ns, {long} ns");
    }
}

/// Random texts from parts that the rules recognize.
fn parts() -> impl Strategy<Value = String> {
    let words = [
        "token",
        "password",
        "Authorization",
        "Bearer",
        "Basic",
        "eyJhbGciOiJSUzI1NiJ9",
        "-----BEGIN ",
        "-----END ",
        "PRIVATE KEY-----",
        "://",
        "https",
        "user",
        "@",
        ":",
        "=",
        " ",
        "\"",
        "'",
        "\\",
        "/",
        "\n",
        "[",
        "]",
        "{",
        "}",
        ",",
        "[redacted]",
        "--",
        "abcdef.0123456789abcdef",
        "dXNlcjpwYXNz",
        "LS0tLS1CRUdJTi",
        "string ",
        "invalid type: ",
        "`",
        "sha256:",
    ];
    let word =
        prop_oneof![4 => prop::sample::select(words.to_vec()).prop_map(String::from), 1 => "\\PC{0,6}"];
    prop::collection::vec(word, 0..24).prop_map(|words| words.concat())
}

/// A secret that is recognizable only by its context and its digits.
fn canary() -> impl Strategy<Value = String> {
    "canary[0-9]{2}[0-9a-zA-Z]{4}"
}

/// Returns texts in which programs print a secret.
fn leaks(secret: &str) -> Vec<String> {
    let encoded = BASE64.encode(format!("u:{secret}").as_bytes());
    vec![
        format!("https://user:{secret}@host:6443/x"),
        format!("https://{secret}@host"),
        format!("user:{secret}@host"),
        format!("Authorization: Bearer {secret}"),
        format!("Authorization: Other {secret}, x={secret}"),
        format!("proxy-authorization: Basic {encoded}"),
        format!("Bearer {secret}"),
        format!("Basic {encoded}"),
        format!("eyJhbGciOiJSUzI1NiJ9.{secret}.{secret}"),
        format!("-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----"),
        format!("password={secret}"),
        format!("\"token\": \"{secret}\""),
        format!("{{\\\"client_secret\\\":\\\"{secret}\\\"}}"),
        format!("client-key-data: {secret}"),
        format!("X_API_KEY={secret};"),
        format!("--token {secret}"),
        format!("invalid type: string \"{secret}\", expected"),
    ]
}

proptest! {
    #[test]
    fn is_idempotent(text in parts()) {
        let once = redact_text(&text).into_owned();
        prop_assert_eq!(&redact_text(&once), &once);
        prop_assert!(once.len() <= text.len() * 4 + HIDDEN.len());
    }

    #[test]
    fn accepts_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let once = redact(&bytes).into_owned();
        prop_assert_eq!(&*redact(&once), &once[..]);
    }

    #[test]
    fn removes_every_planted_secret(
        secret in canary(), before in "[a-z ,.]{0,20}[ ,(]", after in "([ ,)\n][a-z ,.:]{0,20})?",
    ) {
        for leak in leaks(&secret) {
            let text = format!("{before}{leak}{after}");
            let shown = redact_text(&text);
            prop_assert!(!shown.contains(&secret) && shown.contains(HIDDEN), "{} -> {}", text, shown);
        }
    }

    #[test]
    fn sentences_are_unchanged(text in "([a-zA-Z]{1,12}[ ,.]{1,2}|[0-9.]{1,6} |/[a-z/]{1,20} ){0,12}") {
        prop_assume!(!text.to_lowercase().contains("bearer") && !text.to_lowercase().contains("basic"));
        prop_assert_eq!(&redact_text(&text), &text);
    }
}
