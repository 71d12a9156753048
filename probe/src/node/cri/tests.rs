use std::convert::Infallible;
use std::time::Instant;

use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::http::{HeaderMap, HeaderValue};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use prost::Message;
use tempfile::TempDir;
use tokio::net::UnixListener;

use super::messages::{Image, LinuxRuntimeConfiguration, RuntimeStatus};
use super::*;

/// A runtime's response to one call: a message, or a gRPC status with its text.
type Reply = Result<Vec<u8>, (u32, &'static str)>;

/// Starts a runtime that answers each call with `reply` of the call's path.
fn runtime(reply: fn(&str) -> Reply) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("runtime.sock");
    let listener = UnixListener::bind(&socket).expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(move |request: Request<Incoming>| async move {
                Ok::<_, Infallible>(respond(reply(request.uri().path())))
            });
            let server = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    (dir, socket)
}

/// Returns a gRPC response: a zero byte for no compression, the length, the message; the status follows in the trailers.
fn respond(reply: Reply) -> Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>> {
    let (code, words) = reply.as_ref().err().copied().unwrap_or_default();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code));
    trailers.insert("grpc-message", HeaderValue::from_static(words));
    let message = reply.ok().map(|message| {
        let length = u32::try_from(message.len()).expect("short");
        Frame::data([&[0], length.to_be_bytes().as_slice(), &message].concat().into())
    });
    let frames = message.into_iter().chain([Frame::trailers(trailers)]).map(Ok);
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed();
    Response::builder().header("content-type", "application/grpc").body(body).expect("a response")
}

fn version() -> Vec<u8> {
    VersionResponse { runtime_name: "cri-o".into(), runtime_version: "1.33.0\x1b".into() }.encode_to_vec()
}

fn condition(r#type: &str, status: bool, reason: &str, message: &str) -> RuntimeCondition {
    RuntimeCondition { r#type: r#type.into(), status, reason: reason.into(), message: message.into() }
}

/// Responses in the form of CRI-O's: the configuration is a single object.
fn crio(path: &str) -> Reply {
    match path {
        "/runtime.v1.RuntimeService/Version" => Ok(version()),
        "/runtime.v1.RuntimeService/Status" => {
            let network = "No CNI configuration file in /etc/cni/net.d/. Has your network provider started?";
            let conditions = vec![
                condition("RuntimeReady", true, "", ""),
                condition("NetworkReady", false, "NetworkPluginNotReady", network),
            ];
            let info = [("config".to_owned(), r#"{"sandboxImage":"registry.k8s.io/pause:3.10"}"#.to_owned())];
            Ok(StatusResponse { status: Some(RuntimeStatus { conditions }), info: info.into() }
                .encode_to_vec())
        }
        "/runtime.v1.RuntimeService/RuntimeConfig" => {
            let linux = Some(LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Systemd.into() });
            Ok(RuntimeConfigResponse { linux }.encode_to_vec())
        }
        "/runtime.v1.ImageService/ImageStatus" => {
            Ok(ImageStatusResponse { image: Some(Image {}) }.encode_to_vec())
        }
        _ => Err((12, "unknown method")),
    }
}

/// Responses of containerd before 1.6.
fn old(path: &str) -> Reply {
    match path {
        "/runtime.v1alpha2.RuntimeService/Version" => Ok(version()),
        "/runtime.v1alpha2.RuntimeService/Status" => {
            let config = r#"{"cni":{"binDir":"/opt/cni/bin/","confDir":"/etc/cni/net.d","maxConfNum":1},
                "netnsMountsUnderStateDir":true,"stateDir":"/run/containerd/io.containerd.grpc.v1.cri"}"#;
            let info = [("config", config), ("lastCNILoadStatus", "OK")];
            let info = info.map(|(key, value)| (key.to_owned(), value.to_owned()));
            let conditions =
                vec![condition("RuntimeReady", true, "", ""), condition("NetworkReady", true, "", "")];
            Ok(StatusResponse { status: Some(RuntimeStatus { conditions }), info: info.into() }
                .encode_to_vec())
        }
        _ => Err((12, "unknown service")),
    }
}

#[tokio::test]
async fn reads_and_escapes_the_responses_of_crio() {
    let (_dir, socket) = runtime(crio);
    let report = query(&socket, None).await.expect("may be queried");
    let driver = report.cgroup_driver.expect("reported");
    assert_eq!((driver.value.as_str(), driver.source.as_str()), ("systemd", "CRI RuntimeConfig of cri-o"));
    let CriAnswer::Serves(status) = report.answer else { panic!("{:?}", report.answer) };
    assert_eq!((status.runtime.as_str(), status.api.as_str()), ("cri-o 1.33.0\\u{1b}", "v1"));
    assert_eq!(status.not_ready, None);
    let network = status.network_not_ready.expect("not ready");
    assert!(network.starts_with("NetworkPluginNotReady: No CNI configuration file"), "{network}");
    let image = SandboxImage { name: "registry.k8s.io/pause:3.10".into(), is_here: true };
    assert_eq!((status.sandbox_image, status.config_load), (Some(image), None));
}

#[tokio::test]
async fn falls_back_to_v1alpha2_and_reads_its_directories() {
    let (_dir, socket) = runtime(old);
    let report = query(&socket, Some("pause:1")).await.expect("may be queried");
    assert!(report.answer.is_well(), "{:?}", report.answer);
    assert_eq!(report.cgroup_driver, None);
    let CriAnswer::Serves(status) = report.answer else { unreachable!("it is well") };
    assert_eq!((status.api.as_str(), status.config_load.as_deref()), ("v1alpha2", Some("OK")));
    // Unknown: its image service fails.
    assert_eq!(status.sandbox_image, None);
    assert_eq!(report.cni.conf_dir.map(|known| known.value), Some(PathBuf::from("/etc/cni/net.d")));
    assert_eq!(report.cni.bin_dirs.map(|known| known.value), Some(vec![PathBuf::from("/opt/cni/bin")]));
    let netns_dir = report.cni.netns_dir.expect("known");
    assert_eq!(netns_dir.value, Path::new("/run/containerd/io.containerd.grpc.v1.cri/netns"));
    assert_eq!(netns_dir.source, "CRI status of cri-o");
}

#[tokio::test]
async fn distinguishes_the_kinds_of_failure() {
    let answer = async |socket: &Path| query(socket, None).await.expect("may be queried").answer;
    let (_dir, socket) = runtime(|_| Err((12, "unknown service runtime.v1.RuntimeService")));
    assert_eq!(answer(&socket).await, CriAnswer::Unimplemented { disabled_by: None });
    let (_dir, socket) = runtime(|_| Err((2, "server is not initialized yet")));
    assert_eq!(answer(&socket).await, CriAnswer::Fails { why: "server is not initialized yet".into() });
    let (dir, socket) = runtime(|_| Ok(vec![0xff; 9]));
    assert!(matches!(answer(&socket).await, CriAnswer::Fails { .. }));
    assert_eq!(answer(&dir.path().join("none")).await, CriAnswer::Unreachable { errno: 2 });
    let closed = dir.path().join("closed");
    drop(UnixListener::bind(&closed).expect("bound"));
    assert_eq!(answer(&closed).await, CriAnswer::Unreachable { errno: 111 });
    assert!(query(&dir.path().join("x".repeat(200)), None).await.is_err());
}

#[tokio::test]
async fn runtime_that_accepts_connections_and_sends_nothing_is_silent() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("silent");
    let _listener = UnixListener::bind(&socket).expect("bound");
    let started = Instant::now();
    assert_eq!(query(&socket, None).await.expect("may be queried").answer, CriAnswer::Silent);
    assert!(started.elapsed() < CALL_TIMEOUT * 3);
}

#[tokio::test]
async fn response_that_is_not_grpc_is_a_failure() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("other");
    let listener = UnixListener::bind(&socket).expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ =
                tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let answer = query(&socket, None).await.expect("may be queried").answer;
    assert!(matches!(answer, CriAnswer::Fails { .. }), "{answer:?}");
}
