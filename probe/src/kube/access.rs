//! Ways to the API server: an address, an account, and the files behind it. Tried in order, the one that worked
//! last first; built again when a file behind them changes.

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

/// A connect within one data centre takes a millisecond; dead addresses must not eat the time of live ones.
const CONNECT: Duration = Duration::from_secs(3);
/// A whole request: the API server's own limit for one that changes something is 34 s, a usual one takes 5 ms.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most of an answer that is read: a Node object has about 20 KB, most of it names of images.
const ANSWER: usize = 1 << 20;
/// Longest problem that is kept.
const WORDS: usize = 200;

/// Where a pod finds its account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What went wrong, for the schedule and for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// What it means for the next try.
    pub(crate) failure: Failure,
    /// The status, where there was an answer.
    pub(crate) status: Option<u16>,
    /// One line.
    pub(crate) why: String,
}

impl Problem {
    fn away(why: &str) -> Self {
        Self { failure: Failure::Away, status: None, why: clean(why.as_bytes(), WORDS) }
    }
}

/// One way.
struct Way {
    /// For people: `in-cluster account at https://10.96.0.1:443`.
    name: String,
    client: Client,
}

/// What identifies the content of a file without reading it; `None` while it is not there.
type Mark = Option<(u64, i64, i64, u64)>;

/// See the module.
pub(crate) struct Access {
    settings: Arc<Settings>,
    ways: Vec<Way>,
    /// The way that worked last.
    good: usize,
    /// The files that the ways were built from, also those that were not there.
    marks: BTreeMap<PathBuf, Mark>,
    /// What could not be used, one line each.
    unusable: Vec<String>,
    /// When programs provide credentials: the second since 1970 from which on they are run again.
    renew: Option<i64>,
}

impl Access {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        Self {
            settings,
            ways: Vec::new(),
            good: 0,
            marks: BTreeMap::new(),
            unusable: Vec::new(),
            renew: None,
        }
    }

    /// The way in use, for people.
    pub(crate) fn name(&self) -> Option<&str> {
        self.ways.get(self.good).map(|way| way.name.as_str())
    }

    /// Sends `request` by each way until one is answered; with the answer's JSON.
    pub(crate) async fn send(&mut self, request: &Request<Vec<u8>>) -> Result<Value, Problem> {
        self.refresh().await;
        let mut problem = None;
        for turn in 0..self.ways.len() {
            let index = (self.good + turn) % self.ways.len();
            let way = &self.ways[index];
            match tokio::time::timeout(PATIENCE, once(&way.client, request.clone())).await {
                Ok(Ok(answer)) => {
                    self.good = index;
                    return Ok(answer);
                }
                Ok(Err(met)) => {
                    // What the server says of an account counts more than another way's silence.
                    let said = met.status.is_some();
                    if met.status == Some(401) {
                        self.renew = self.renew.map(|_| 0);
                    }
                    let met = Problem { why: format!("{}: {}", way.name, met.why), ..met };
                    if problem.is_none() || said {
                        problem = Some(met);
                    }
                }
                Err(_) => {
                    let silent = format!("{}: no answer within {} s", way.name, PATIENCE.as_secs());
                    problem.get_or_insert_with(|| Problem::away(&silent));
                }
            }
        }
        Err(problem.unwrap_or_else(|| self.no_way()))
    }

    fn no_way(&self) -> Problem {
        let why = match self.unusable.first() {
            Some(why) => why.clone(),
            None => {
                "there is no account here: no service account, no kubeconfig of a kubelet; name one with \
                     --kubeconfig"
                    .to_owned()
            }
        };
        Problem::away(&why)
    }

    /// A file behind the ways is another one than it was.
    pub(crate) fn has_changed(&self) -> bool {
        self.marks.iter().any(|(path, known)| mark(path) != *known)
    }

    /// Builds the ways again when that is so.
    async fn refresh(&mut self) {
        let is_over = self.renew.is_some_and(|at| clock::unix_now() >= at);
        if !self.has_changed() && !self.ways.is_empty() && !is_over {
            return;
        }
        let good = self.name().map(str::to_owned);
        let mut found = Found {
            settings: &self.settings,
            ways: Vec::new(),
            files: Vec::new(),
            unusable: Vec::new(),
            renew: None,
        };
        found.all().await;
        self.marks = found.files.into_iter().map(|path| (path.clone(), mark(&path))).collect();
        self.unusable = found.unusable;
        self.renew = found.renew;
        self.ways = found.ways;
        self.good = self.ways.iter().position(|way| Some(&way.name) == good.as_ref()).unwrap_or(0);
    }
}

fn mark(path: &Path) -> Mark {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}

async fn once(client: &Client, request: Request<Vec<u8>>) -> Result<Value, Problem> {
    let sent = client.send(request.map(Body::from)).await;
    let response = sent.map_err(|error| Problem::away(&chain(&error)))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER).collect().await;
    let body = body.map_err(|error| Problem::away(&format!("its answer was cut: {error}")))?.to_bytes();
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status.is_success() {
        return Ok(value);
    }
    let said = value["message"].as_str().unwrap_or_default();
    let why = clean(format!("it answers {} {said}", status.as_u16()).trim().as_bytes(), WORDS);
    let failure = match status {
        StatusCode::NOT_FOUND => Failure::NoNode,
        status if status.is_server_error() => Failure::Away,
        _ => Failure::Refused,
    };
    Err(Problem { failure, status: Some(status.as_u16()), why })
}

/// An error with what stands behind it: the outermost says "client error (Connect)".
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words = format!("{words}: {cause_words}");
        }
        next = cause.source();
    }
    words
}

/// What is found on this host.
struct Found<'a> {
    settings: &'a Settings,
    ways: Vec<Way>,
    files: Vec<PathBuf>,
    unusable: Vec<String>,
    renew: Option<i64>,
}

impl Found<'_> {
    fn discovery(&self) -> Discovery {
        Discovery::of(self.settings, &processes::scan(self.settings))
    }

    /// In the order in which they are tried.
    async fn all(&mut self) {
        // An account of our own that is refused is not replaced by somebody else's.
        if self.settings.kubeconfig.is_none() && self.account() {
            return;
        }
        for path in targets::kubeconfigs(self.settings, &self.discovery()) {
            self.kubeconfig(&path).await;
        }
    }

    /// The pod's own account, if it has one: at the Service address, and, when nobody answers there, at the
    /// addresses that the kubelet uses.
    fn account(&mut self) -> bool {
        let [token, authority] = ["token", "ca.crt"].map(|name| Path::new(ACCOUNT).join(name));
        self.files.extend([token.clone(), authority.clone()]);
        if !token.is_file() {
            return false;
        }
        let mut found = targets::find(self.settings, &self.discovery()).targets;
        // Pods do not have the kubelet's environment.
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
            Err(why) => self.unusable.push(clean(format!("{shown}: {why}").as_bytes(), WORDS)),
        }
    }

    /// The configuration that a kubeconfig describes, one for each address of its server, with its files looked for on the
    /// host; and the server.
    async fn read(&mut self, path: &Path, text: &str) -> Result<(Vec<Config>, String), String> {
        // Only its first line: the others quote the file.
        let first_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
        let mut kubeconfig = Kubeconfig::from_yaml(text).map_err(|error| first_line(error.to_string()))?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        let mut place = |file: &mut Option<String>| {
            if let Some(file) = file {
                let on_host = self.settings.on_host(&dir.join(&*file));
                self.files.push(on_host.clone());
                *file = on_host.display().to_string();
            }
        };
        for user in kubeconfig.auth_infos.iter_mut().filter_map(|user| user.auth_info.as_mut()) {
            place(&mut user.client_certificate);
            place(&mut user.client_key);
            place(&mut user.token_file);
        }
        for cluster in kubeconfig.clusters.iter_mut().filter_map(|cluster| cluster.cluster.as_mut()) {
            place(&mut cluster.certificate_authority);
        }
        if kubeconfig.current_context.is_none() {
            kubeconfig.current_context = kubeconfig.contexts.first().map(|context| context.name.clone());
        }
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        let mut config = config.map_err(|error| chain(&error))?;
        self.provide(&mut config, dir).await?;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        // Names are looked up as the host does: the resolver of this process may be another's.
        let shown = clean(server.as_bytes(), WORDS);
        let Some((ServerHost::Name(name), port)) = targets::parse(&server) else {
            return Ok((vec![config], shown));
        };
        let looked_up = names::look_up(self.settings, &name).await;
        let (addresses, _) = looked_up.result.map_err(|failure| {
            format!("cannot resolve {name:?}: {} {}", looked_up.resolver, failure.words())
        })?;
        config.tls_server_name.get_or_insert(name);
        let mut configs = Vec::new();
        for ip in addresses {
            let address = SocketAddr::new(ip, port);
            let mut config = config.clone();
            config.cluster_url = format!("https://{address}").parse().map_err(|_| "its server is no URL")?;
            configs.push(config);
        }
        Ok((configs, shown))
    }

    /// Has the program run that provides the account's credential, if there is one.
    async fn provide(&mut self, config: &mut Config, dir: &Path) -> Result<(), String> {
        if config.auth_info.auth_provider.is_some() {
            return Err("its account has an auth-provider, which Kubernetes 1.26 removed".to_owned());
        }
        let Some(exec) = config.auth_info.exec.take() else { return Ok(()) };
        if self.settings.host_root != Path::new("/") {
            let why = "its account comes from a program, which is not run from inside a container";
            return Err(why.to_owned());
        }
        let expires = helper::replace(&mut config.auth_info, &exec, dir).await?;
        // One that does not expire may be refused all the same.
        let expires = expires.unwrap_or(i64::MAX);
        self.renew = Some(self.renew.map_or(expires, |known| known.min(expires)));
        Ok(())
    }

    fn add(&mut self, name: String, mut config: Config) {
        config.connect_timeout = Some(CONNECT);
        // The schedule tries again, with an eye on the whole fleet.
        config.default_retry = false;
        match Client::try_from(config) {
            Ok(client) => self.ways.push(Way { name, client }),
            Err(error) => self.unusable.push(clean(format!("{name}: {}", chain(&error)).as_bytes(), WORDS)),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    /// Returns why nothing can be written with a kubeconfig of this server, with these further lines of its cluster and
    /// its user.
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
    async fn no_problem_with_a_kubeconfig_shows_its_secrets() {
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
