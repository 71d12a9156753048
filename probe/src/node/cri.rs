//! Queries the container runtime over CRI, as the kubelet does. All calls are read-only.

mod messages;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Uri;
use hyper::client::conn::http2;
use hyper::http::uri::PathAndQuery;
use hyper_util::rt::{TokioExecutor, TokioIo};
use probe_engine::{CriAnswer, CriStatus, SandboxImage};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use self::messages::{
    CgroupDriver, ImageSpec, ImageStatusRequest, ImageStatusResponse, RuntimeCondition, RuntimeConfigRequest,
    RuntimeConfigResponse, StatusRequest, StatusResponse, VersionRequest, VersionResponse,
};
use super::discovery::{NETNS_DIR, absolute};
use super::file;
use crate::settings::{CniSettings, Known};
use crate::text::clean;

pub(crate) use watch::{Endpoint, Endpoints, watch};

/// Deadline of each call. The kubelet's is two minutes; a runtime responds to these within milliseconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of a response, bytes: the verbose status of containerd has 10 to 20 KB.
const MAX_RESPONSE_LEN: usize = 1 << 20;
/// API versions, newest first. Runtimes before containerd 1.6 and CRI-O 1.23 serve only the second.
const API_VERSIONS: [&str; 2] = ["runtime.v1", "runtime.v1alpha2"];
/// Maximum length of a message and of the runtime's name, bytes.
const MAX_MESSAGE_LEN: usize = 300;
const MAX_NAME_LEN: usize = 64;
/// Maximum number of plugin directories.
const MAX_DIRS: usize = 8;

/// The result of one round of calls.
#[derive(Clone, Debug)]
pub(crate) struct RuntimeReport {
    pub(crate) answer: CriAnswer,
    /// The runtime's own settings, which only containerd reports.
    pub(crate) cni: CniSettings,
    /// `systemd` or `cgroupfs`; `None` if the runtime does not report it.
    pub(crate) cgroup_driver: Option<Known<String>>,
}

/// Calls the runtime that listens on `socket`, a path in this process's mount namespace. `sandbox_image` is the one in the
/// runtime's configuration.
///
/// # Errors
/// If this process lacks the permission, descriptors or memory to connect, which is not a fault of the runtime.
pub(crate) async fn query(socket: &Path, sandbox_image: Option<&str>) -> io::Result<RuntimeReport> {
    let unknown = |answer| Ok(RuntimeReport { answer, cni: CniSettings::default(), cgroup_driver: None });
    let stream = match timeout(CALL_TIMEOUT, UnixStream::connect(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => match error.raw_os_error() {
            Some(errno) if !file::is_own(&error) => {
                return unknown(CriAnswer::Unreachable { errno: errno.unsigned_abs() });
            }
            // A path longer than `sockaddr_un` allows has no errno.
            _ => return Err(error),
        },
        Err(_) => return unknown(CriAnswer::Silent),
    };
    let connected = timeout(CALL_TIMEOUT, http2::handshake(TokioExecutor::new(), TokioIo::new(stream))).await;
    let (sender, connection) = match connected {
        Ok(Ok(both)) => both,
        Ok(Err(error)) => return unknown(fails(&error)),
        Err(_) => return unknown(CriAnswer::Silent),
    };
    // Ends when the last sender is dropped.
    tokio::spawn(connection);
    for version in API_VERSIONS {
        let mut client = Client { sender: sender.clone(), version };
        match client.read(sandbox_image).await {
            Ok(report) => return Ok(report),
            Err(status) if status.code() == Code::Unimplemented => {}
            Err(status) if status.code() == Code::DeadlineExceeded => return unknown(CriAnswer::Silent),
            Err(status) => return unknown(fails(&words(&status))),
        }
    }
    unknown(CriAnswer::Unimplemented { disabled_by: None })
}

fn fails(why: &dyn Display) -> CriAnswer {
    CriAnswer::Fails { why: clean(why.to_string().as_bytes(), MAX_MESSAGE_LEN) }
}

/// Returns the message of the runtime if there is one, else that of the connection.
fn words(status: &Status) -> String {
    match (status.message(), std::error::Error::source(status)) {
        ("", Some(source)) => source.to_string(),
        ("", None) => status.code().description().to_owned(),
        (message, _) => message.to_owned(),
    }
}

/// A connection and the API version in use.
struct Client {
    sender: http2::SendRequest<Body>,
    version: &'static str,
}

impl Client {
    async fn read(&mut self, sandbox_image: Option<&str>) -> Result<RuntimeReport, Status> {
        let version: VersionResponse = self.call("RuntimeService", "Version", VersionRequest {}).await?;
        let status: StatusResponse =
            self.call("RuntimeService", "Status", StatusRequest { verbose: true }).await?;
        let config = info(&status, "config").unwrap_or_default();
        let reported = config.get("sandboxImage").and_then(Value::as_str).filter(|image| !image.is_empty());
        let image = sandbox_image.or(reported).map(|image| clean(image.as_bytes(), MAX_MESSAGE_LEN));
        let sandbox_image = match image {
            Some(name) => {
                let image = Some(ImageSpec { image: name.clone() });
                let response = self.call("ImageService", "ImageStatus", ImageStatusRequest { image }).await;
                response.ok().map(|response: ImageStatusResponse| SandboxImage {
                    name,
                    is_here: response.image.is_some(),
                })
            }
            None => None,
        };
        let answer =
            CriAnswer::Serves(CriStatus { sandbox_image, ..serves(self.version, &version, &status) });
        let cni = cni(&config, &format!("CRI status of {}", version.runtime_name));
        let driver = self.cgroup_driver().await;
        let source = format!("CRI RuntimeConfig of {}", version.runtime_name);
        let cgroup_driver = driver.map(|driver| Known::of(driver.to_owned(), &source));
        Ok(RuntimeReport { answer, cni, cgroup_driver })
    }

    /// Returns the cgroup driver that the runtime reports to the kubelet. containerd before 2.0 and CRI-O before 1.28 do not
    /// implement that call.
    async fn cgroup_driver(&mut self) -> Option<&'static str> {
        let call = self.call("RuntimeService", "RuntimeConfig", RuntimeConfigRequest {}).await;
        let config: RuntimeConfigResponse = call.ok()?;
        match CgroupDriver::try_from(config.linux?.cgroup_driver).ok()? {
            CgroupDriver::Systemd => Some("systemd"),
            CgroupDriver::Cgroupfs => Some("cgroupfs"),
        }
    }

    async fn call<Q, A>(&mut self, service: &str, method: &str, request: Q) -> Result<A, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let path = format!("/{}.{service}/{method}", self.version);
        let path = PathAndQuery::try_from(path).map_err(|error| Status::internal(error.to_string()))?;
        let sender = self.sender.clone();
        let send = tower::service_fn(move |request| sender.clone().send_request(request));
        let mut grpc = Grpc::with_origin(send, Uri::from_static("http://localhost"))
            .max_decoding_message_size(MAX_RESPONSE_LEN);
        let answer = grpc.unary(Request::new(request), path, ProstCodec::<Q, A>::default());
        match timeout(CALL_TIMEOUT, answer).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("")),
        }
    }
}

/// Returns an entry of the runtime-specific `info` map, if it is JSON.
fn info(status: &StatusResponse, key: &str) -> Option<Value> {
    serde_json::from_str(status.info.get(key)?).ok()
}

/// Returns the state that a runtime reports, without its sandbox image.
fn serves(api: &str, version: &VersionResponse, status: &StatusResponse) -> CriStatus {
    let conditions = status.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let runtime = format!("{} {}", version.runtime_name, version.runtime_version);
    // A JSON string in containerd 2, plain text in earlier versions.
    let load = status.info.get("lastCNILoadStatus");
    let load = load.map(|load| serde_json::from_str(load).unwrap_or_else(|_| load.clone()));
    CriStatus {
        runtime: clean(runtime.as_bytes(), MAX_NAME_LEN),
        api: api.trim_start_matches("runtime.").to_owned(),
        not_ready: false_condition(conditions, "RuntimeReady"),
        network_not_ready: false_condition(conditions, "NetworkReady"),
        config_load: load.map(|load| clean(load.as_bytes(), MAX_MESSAGE_LEN)),
        sandbox_image: None,
    }
}

/// Returns the settings in the configuration that containerd reports.
fn cni(config: &Value, source: &dyn Display) -> CniSettings {
    let cni = config.get("cni");
    let dir = |key: &str| cni?.get(key)?.as_str().and_then(absolute);
    // containerd before version 2.1 reports a single directory.
    let dirs: Vec<_> = match cni.and_then(|cni| cni.get("binDirs")).and_then(Value::as_array) {
        Some(dirs) => dirs.iter().filter_map(|dir| absolute(dir.as_str()?)).take(MAX_DIRS).collect(),
        None => dir("binDir").into_iter().collect(),
    };
    let max_files = cni.and_then(|cni| cni.get("maxConfNum")).and_then(Value::as_i64);
    let max_files = max_files.map(|most| u32::try_from(most.max(0)).unwrap_or(0));
    let netns_dir = match config.get("netnsMountsUnderStateDir").and_then(Value::as_bool) {
        Some(true) => {
            config.get("stateDir").and_then(Value::as_str).and_then(absolute).map(|dir| dir.join("netns"))
        }
        Some(false) => Some(PathBuf::from(NETNS_DIR)),
        None => None,
    };
    CniSettings {
        conf_dir: dir("confDir").map(|dir| Known::of(dir, source)),
        bin_dirs: Some(dirs).filter(|dirs| !dirs.is_empty()).map(|dirs| Known::of(dirs, source)),
        max_files: max_files.map(|most| Known::of(most, source)),
        netns_dir: netns_dir.map(|dir| Known::of(dir, source)),
    }
}

/// Returns why a condition is false, in the form that the kubelet prints.
fn false_condition(conditions: &[RuntimeCondition], r#type: &str) -> Option<String> {
    let condition = conditions.iter().find(|condition| condition.r#type == r#type && !condition.status)?;
    let words = format!("{}: {}", condition.reason, condition.message);
    Some(clean(words.as_bytes(), MAX_MESSAGE_LEN))
}

/// Fuzz target: a response of any content.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    use crate::fuzz::is_clean;
    use prost::Message as _;

    let Ok(status) = StatusResponse::decode(bytes) else { return };
    let version = VersionResponse::decode(bytes).unwrap_or_default();
    let serves = serves(API_VERSIONS[0], &version, &status);
    for text in [Some(serves.runtime), serves.not_ready, serves.network_not_ready, serves.config_load] {
        assert!(text.is_none_or(|text| is_clean(&text) && text.len() <= MAX_MESSAGE_LEN));
    }
    let cni = cni(&info(&status, "config").unwrap_or_default(), &"");
    let dirs = cni.bin_dirs.map(|known| known.value).unwrap_or_default();
    let conf_dir = cni.conf_dir.map(|known| known.value);
    assert!(dirs.len() <= MAX_DIRS && dirs.iter().chain(&conf_dir).all(|dir| dir.is_absolute()));
}
