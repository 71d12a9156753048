//! Access to the API server: candidates of an address and an account, and the files they are read from. Candidates are tried in
//! order, starting with the one that worked last, and are rebuilt if one of the files changes.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use probe_engine::TargetKind;
use serde_json::Value;

use super::helper;
use super::schedule::Failure;
use crate::clock;
use crate::node::discovery::Discovery;
use crate::node::{file, names, processes, targets};
use crate::settings::{ServerHost, Settings};
use crate::text::clean;

/// Timeout of a connect. One within a data centre takes a millisecond; unreachable addresses must not use up the time of others.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout of a request: the API server's own limit for a mutating request is 34 s, a usual one takes 5 ms.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of a response, bytes: a Node object has about 20 KB, most of it names of images.
const MAX_RESPONSE: usize = 1 << 20;
/// Maximum length of an error message, bytes.
const MAX_MESSAGE: usize = 200;

/// Directory of a pod's service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Kind of failure, which decides about the next attempt.
    pub(crate) failure: Failure,
    /// The HTTP status, if there was a response.
    pub(crate) status: Option<u16>,
    /// Message of one line.
    pub(crate) why: String,
}

impl Problem {
    fn unavailable(why: &str) -> Self {
        Self { failure: Failure::Unavailable, status: None, why: clean(why.as_bytes(), MAX_MESSAGE) }
    }
}

/// A client with an address and an account.
struct Candidate {
    /// Name for display: `in-cluster account at 10.96.0.1:443`.
    name: String,
    client: Client,
}

/// Inode number, modification time (seconds, nanoseconds) and length of a file, which show a change of its content; `None` if
/// it does not exist.
type FileVersion = Option<(u64, i64, i64, u64)>;

/// Client of the API server, see the module.
pub(crate) struct Access {
    settings: Arc<Settings>,
    candidates: Vec<Candidate>,
    /// Index of the candidate that worked last.
    last_good: usize,
    /// The files that the candidates were built from, including those that did not exist.
    files: BTreeMap<PathBuf, FileVersion>,
    /// Errors of candidates that cannot be used, one line each.
    unusable: Vec<String>,
    /// If programs provide credentials: when to run them again, seconds since 1970.
    renew: Option<i64>,
}

impl Access {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        Self {
            settings,
            candidates: Vec::new(),
            last_good: 0,
            files: BTreeMap::new(),
            unusable: Vec::new(),
            renew: None,
        }
    }

    /// Returns the name of the candidate in use, for display.
    pub(crate) fn name(&self) -> Option<&str> {
        self.candidates.get(self.last_good).map(|candidate| candidate.name.as_str())
    }

    /// Sends `request` through each candidate until one succeeds; returns the JSON of the response.
    ///
    /// # Errors
    /// The error of the last candidate whose server responded, otherwise that of the first one.
    pub(crate) async fn send(&mut self, request: &Request<Vec<u8>>) -> Result<Value, Problem> {
        self.refresh().await;
        let mut problem = None;
        for offset in 0..self.candidates.len() {
            let index = (self.last_good + offset) % self.candidates.len();
            let candidate = &self.candidates[index];
            match tokio::time::timeout(REQUEST_TIMEOUT, send_once(&candidate.client, request.clone())).await {
                Ok(Ok(response)) => {
                    self.last_good = index;
                    return Ok(response);
                }
                Ok(Err(new)) => {
                    if new.status == Some(401) {
                        self.renew = self.renew.map(|_| 0);
                    }
                    let new = Problem { why: format!("{}: {}", candidate.name, new.why), ..new };
                    // The server's response to an account is more relevant than another candidate's timeout.
                    if problem.is_none() || new.status.is_some() {
                        problem = Some(new);
                    }
                }
                Err(_) => {
                    let why =
                        format!("{}: no response within {} s", candidate.name, REQUEST_TIMEOUT.as_secs());
                    problem.get_or_insert_with(|| Problem::unavailable(&why));
                }
            }
        }
        Err(problem.unwrap_or_else(|| self.no_candidate()))
    }

    fn no_candidate(&self) -> Problem {
        let why = match self.unusable.first() {
            Some(why) => why.clone(),
            None => {
                "no account found: neither a service account nor a kubelet's kubeconfig; set --kubeconfig"
                    .to_owned()
            }
        };
        Problem::unavailable(&why)
    }

    /// Returns whether a file has changed since the candidates were built from it.
    pub(crate) fn has_changed(&self) -> bool {
        self.files.iter().any(|(path, known)| version(path) != *known)
    }

    /// Rebuilds the candidates if a file has changed or a credential is due to be renewed.
    async fn refresh(&mut self) {
        let is_due = self.renew.is_some_and(|at| clock::unix_now() >= at);
        if !self.has_changed() && !self.candidates.is_empty() && !is_due {
            return;
        }
        let last_good = self.name().map(str::to_owned);
        let mut search = Search {
            settings: &self.settings,
            candidates: Vec::new(),
            files: Vec::new(),
            unusable: Vec::new(),
            renew: None,
        };
        search.discover().await;
        self.files = search.files.into_iter().map(|path| (path.clone(), version(&path))).collect();
        self.unusable = search.unusable;
        self.renew = search.renew;
        self.candidates = search.candidates;
        let is_last_good = |candidate: &Candidate| Some(&candidate.name) == last_good.as_ref();
        self.last_good = self.candidates.iter().position(is_last_good).unwrap_or(0);
    }
}

fn version(path: &Path) -> FileVersion {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}

async fn send_once(client: &Client, request: Request<Vec<u8>>) -> Result<Value, Problem> {
    let sent = client.send(request.map(Body::from)).await;
    let response = sent.map_err(|error| Problem::unavailable(&chain(&error)))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_RESPONSE).collect().await;
    let body =
        body.map_err(|error| Problem::unavailable(&format!("incomplete response: {error}")))?.to_bytes();
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status.is_success() {
        return Ok(value);
    }
    let message = value["message"].as_str().unwrap_or_default();
    let why = clean(format!("HTTP {} {message}", status.as_u16()).trim().as_bytes(), MAX_MESSAGE);
    let failure = match status {
        StatusCode::NOT_FOUND => Failure::NoNode,
        status if status.is_server_error() => Failure::Unavailable,
        _ => Failure::Refused,
    };
    Err(Problem { failure, status: Some(status.as_u16()), why })
}

/// Returns an error with its sources, because the outermost is only "client error (Connect)".
fn chain(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let text = source.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        next = source.source();
    }
    message
}

/// Search for candidates on this host. Fields as in [`Access`].
struct Search<'a> {
    settings: &'a Settings,
    candidates: Vec<Candidate>,
    files: Vec<PathBuf>,
    unusable: Vec<String>,
    renew: Option<i64>,
}

impl Search<'_> {
    fn discovery(&self) -> Discovery {
        Discovery::of(self.settings, &processes::scan(self.settings))
    }

    /// Discovers the candidates, in the order in which they are tried.
    async fn discover(&mut self) {
        // If the agent has an account of its own, that of the kubelet is not used, even if its own is refused.
        if self.settings.kubeconfig.is_none() && self.service_account() {
            return;
        }
        for path in targets::kubeconfigs(self.settings, &self.discovery()) {
            self.kubeconfig(&path).await;
        }
    }

    /// Adds the pod's service account at the Service address, then at the addresses that the kubelet uses. Returns false if
    /// there is no such account.
    fn service_account(&mut self) -> bool {
        let [token, authority] = ["token", "ca.crt"].map(|name| Path::new(SERVICE_ACCOUNT).join(name));
        self.files.extend([token.clone(), authority.clone()]);
        if !token.is_file() {
            return false;
        }
        let mut found = targets::find(self.settings, &self.discovery()).targets;
        // A proxy comes from the kubelet's environment, which pods do not have.
        found.retain(|target| target.proxy.is_none());
        let service = found.iter().filter(|target| target.kind == TargetKind::Service);
        let direct = found.iter().filter(|target| target.kind != TargetKind::Service);
        for target in service.chain(direct) {
            let url = format!("https://{}", target.addr);
            let Ok(url) = url.parse() else { continue };
            let mut config = Config::new(url);
            config.root_cert_file = Some(authority.clone());
            config.auth_info.token_file = Some(token.display().to_string());
            config.tls_server_name.clone_from(&target.name);
            self.add(format!("in-cluster account at {}", target.addr), config);
        }
        true
    }

    async fn kubeconfig(&mut self, path: &Path) {
        let on_host = self.settings.on_host(path);
        self.files.push(on_host.clone());
        let Some(text) = file::read_text(&on_host) else { return };
        let shown = path.display();
        match self.read(path, &text).await {
            Ok((configs, server)) => {
                for config in configs {
                    self.add(format!("{shown} at {server}"), config);
                }
            }
            Err(why) => self.unusable.push(clean(format!("{shown}: {why}").as_bytes(), MAX_MESSAGE)),
        }
    }

    /// Returns the client configurations of a kubeconfig, one for each address of its server, and the server for display. Files
    /// named in the kubeconfig are those of the host.
    async fn read(&mut self, path: &Path, text: &str) -> Result<(Vec<Config>, String), String> {
        // The other lines of an error quote the file.
        let first_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
        let mut kubeconfig = Kubeconfig::from_yaml(text).map_err(|error| first_line(error.to_string()))?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        let mut resolve = |file: &mut Option<String>| {
            if let Some(file) = file {
                let on_host = self.settings.on_host(&dir.join(&*file));
                self.files.push(on_host.clone());
                *file = on_host.display().to_string();
            }
        };
        for user in kubeconfig.auth_infos.iter_mut().filter_map(|user| user.auth_info.as_mut()) {
            resolve(&mut user.client_certificate);
            resolve(&mut user.client_key);
            resolve(&mut user.token_file);
        }
        for cluster in kubeconfig.clusters.iter_mut().filter_map(|cluster| cluster.cluster.as_mut()) {
            resolve(&mut cluster.certificate_authority);
        }
        if kubeconfig.current_context.is_none() {
            kubeconfig.current_context = kubeconfig.contexts.first().map(|context| context.name.clone());
        }
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        let mut config = config.map_err(|error| chain(&error))?;
        self.run_credential_program(&mut config, dir).await?;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let shown = clean(server.as_bytes(), MAX_MESSAGE);
        // Names are resolved as on the host, because this process may use another resolver.
        let Some((ServerHost::Name(name), port)) = targets::parse(&server) else {
            return Ok((vec![config], shown));
        };
        let resolution = names::resolve_name(self.settings, &name).await;
        let (addresses, _) = resolution.result.map_err(|failure| {
            format!("cannot resolve {name:?}: {} {}", resolution.resolver, failure.words())
        })?;
        config.tls_server_name.get_or_insert(name);
        let mut configs = Vec::new();
        for ip in addresses {
            let address = SocketAddr::new(ip, port);
            let mut config = config.clone();
            config.cluster_url =
                format!("https://{address}").parse().map_err(|_| "its server is not a URL")?;
            configs.push(config);
        }
        Ok((configs, shown))
    }

    /// Runs the program that provides the account's credential, if there is one.
    async fn run_credential_program(&mut self, config: &mut Config, dir: &Path) -> Result<(), String> {
        if config.auth_info.auth_provider.is_some() {
            return Err("its user has an auth-provider, which is not supported (removed in Kubernetes 1.26)"
                .to_owned());
        }
        let Some(exec) = config.auth_info.exec.take() else { return Ok(()) };
        if self.settings.host_root != Path::new("/") {
            let why = "its user has an exec program, which is not run from inside a container";
            return Err(why.to_owned());
        }
        let expires = helper::replace(&mut config.auth_info, &exec, dir).await?;
        // A credential that does not expire is renewed as well if it is refused.
        let expires = expires.unwrap_or(i64::MAX);
        self.renew = Some(self.renew.map_or(expires, |known| known.min(expires)));
        Ok(())
    }

    fn add(&mut self, name: String, mut config: Config) {
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // The schedule retries, and limits the load of the whole fleet.
        config.default_retry = false;
        match Client::try_from(config) {
            Ok(client) => self.candidates.push(Candidate { name, client }),
            Err(error) => {
                self.unusable.push(clean(format!("{name}: {}", chain(&error)).as_bytes(), MAX_MESSAGE));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    /// Returns the error of a request with a kubeconfig of this server, with further fields of its cluster and its user.
    async fn why(server: &str, cluster: &str, user: &str) -> String {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: '{server}'{cluster}}}}}]\nusers: [{{name: u, user: {user}}}]\n"
        );
        fs::write(&path, text).expect("writes");
        let args = ["probe", "run", "--kubeconfig", path.to_str().expect("a text")];
        let Command::Run(args) = Cli::try_parse_from(args).expect("a command line").command else {
            panic!("run is a command")
        };
        let mut access = Access::new(Arc::new(args.node.settings().expect("settings")));
        let request = Request::get("/readyz").body(Vec::new()).expect("a request");
        access.send(&request).await.expect_err("there is no server").why
    }

    #[tokio::test]
    async fn errors_of_kubeconfigs_show_no_secrets() {
        // Nothing listens there.
        let server = "https://127.0.0.1:1";
        for (server, cluster, user, shown) in [
            ("https://user:canary42@127.0.0.1:1", "", "{}", " at https://[redacted]@127.0.0.1:1"),
            ("https://user:canary42@x y", "", "{}", "invalid"),
            (server, ", proxy-url: 'socks5://user:canary42@127.0.0.1:1'", "{}", "[redacted]@127.0.0.1:1"),
            (server, ", proxy-url: 'user:canary42@ x'", "{}", ""),
            (server, "", "{token: [canary42]}", ""),
            (server, "", "{client-key-data: [canary42]}", ""),
            (server, "", "canary42", "failed to parse kubeconfig YAML: error: line 6"),
            (server, "", "{client-certificate-data: canary42, client-key-data: canary42}", ""),
            (server, "", "{exec: canary42}", "failed to parse kubeconfig YAML"),
        ] {
            let why = why(server, cluster, user).await;
            assert!(!why.contains("canary42") && why.contains(shown), "{server} {cluster} {user}: {why}");
            assert!(!why.contains("contexts:"), "quotes the file: {why}");
        }
    }
}
