//! The kubelet's own kubeconfig: the CAs that the kubelet trusts, and its credential. The files are read again for each use
//! because certificates are rotated.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::BASE64;
use hyper::header::HeaderValue;
use probe_engine::Certificate;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

use super::discovery::{Kubelet, shown};
use super::trust::Authorities;
use super::{certificate, file, targets};
use crate::settings::{Known, ServerHost, Settings};
use crate::text::is_node_name;
use crate::yaml;

/// Maximum number of certificates in the kubelet's chain.
const MAX_CHAIN_LEN: usize = 16;
/// Prefix of the node name in the common name of a kubelet's certificate (kubernetes.io, "Using Node Authorization").
const NODE_USER_PREFIX: &str = "system:node:";

/// The current context of a kubeconfig.
pub(crate) struct Kubeconfig {
    path: PathBuf,
    /// Whether this is the bootstrap kubeconfig.
    is_bootstrap: bool,
    cluster: Value,
    /// Contains secrets.
    user: Value,
}

impl fmt::Debug for Kubeconfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kubeconfig").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Which server certificates the kubelet accepts.
#[derive(Debug)]
pub(super) enum Trust {
    /// Certificates issued by one of these CAs.
    Issued(Arc<Authorities>),
    /// All certificates: `insecure-skip-tls-verify`.
    Any,
    /// Unknown: no CA is named, or its file cannot be read.
    Unknown,
}

/// The kubelet's credential. It implements neither `Debug` nor `Display`, so that it cannot be printed.
pub(super) struct Credential {
    /// The file that contains it; control characters are escaped.
    pub(super) file: String,
    /// The node in the certificate's common name; `None` if there is none.
    pub(super) node: Option<String>,
    pub(super) auth: ClientAuth,
}

/// How a client authenticates.
pub(super) enum ClientAuth {
    Certificate(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
    /// The value of the header `Authorization`.
    Token(HeaderValue),
}

impl Kubeconfig {
    /// Reads the kubeconfig that the kubelet uses: the bootstrap kubeconfig as long as the kubelet has no certificate. After
    /// that the bootstrap file remains, but its token expires.
    ///
    /// A kubelet that rotates its certificate writes its kubeconfig when it requests the first certificate. The kubeconfig then
    /// names a file that does not exist yet (pkg/kubelet/certificate/bootstrap/bootstrap.go, `LoadClientConfig`).
    pub(crate) fn of(settings: &Settings, kubelet: &Kubelet) -> Option<Self> {
        let Known { value: path, .. } = kubelet.kubeconfig.as_ref()?;
        let own = match file::read(&settings.on_host(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            read => Some(Self::parse(path, &read.ok()?, false)?),
        };
        let lacks =
            |own: &Self| own.file("client-certificate").is_some_and(|path| is_missing(settings, &path));
        if own.as_ref().is_some_and(|own| !lacks(own)) {
            return own;
        }
        let bootstrap = || {
            let Known { value: path, .. } = kubelet.bootstrap_kubeconfig.as_ref()?;
            let has_none = is_missing(settings, &kubelet.client_certificate()?);
            Self::parse(path, &file::read(&settings.on_host(path)).ok().filter(|_| has_none)?, true)
        };
        bootstrap().or(own)
    }

    /// Returns the progress of the kubelet's TLS bootstrapping, with the file that shows it. `None` if it is not configured or
    /// the progress is unknown.
    pub(crate) fn bootstrap_state(settings: &Settings, kubelet: &Kubelet) -> Option<Known<String>> {
        let configured = kubelet.bootstrap_kubeconfig.as_ref()?;
        let known = |value: &str, path: &Path| Some(Known::of(value.to_owned(), &path.display()));
        match Self::of(settings, kubelet) {
            Some(used) if used.is_bootstrap => known("in progress", &used.path),
            Some(used) => match used.certificate(settings, kubelet) {
                Some((path, read)) if read.expires_in_s > 0 => known("has a certificate", &path),
                Some((path, _)) => known("its certificate has expired", &path),
                None if used.file("client-certificate").is_some() => {
                    known("its certificate cannot be read", &used.path)
                }
                None => None,
            },
            None if !is_missing(settings, &kubelet.client_certificate()?) => {
                known("has a certificate", &kubelet.client_certificate()?)
            }
            None if is_missing(settings, &configured.value) => {
                known("has neither a certificate nor a bootstrap kubeconfig", &configured.value)
            }
            None => None,
        }
    }

    /// Reads the current context of the kubeconfig at `path`; `None` if the file cannot be read or names no context.
    pub(super) fn read(settings: &Settings, path: &Path) -> Option<Self> {
        Self::parse(path, &file::read(&settings.on_host(path)).ok()?, false)
    }

    fn parse(path: &Path, text: &[u8], is_bootstrap: bool) -> Option<Self> {
        let value: Value = yaml::parse(text).ok()?;
        let current = value.get("current-context").and_then(Value::as_str).filter(|name| !name.is_empty());
        let context = entry(&value, "contexts", "context", current)?;
        let named = |key: &str| context.get(key)?.as_str();
        let cluster = entry(&value, "clusters", "cluster", Some(named("cluster")?))?.clone();
        let user = entry(&value, "users", "user", Some(named("user")?)).cloned().unwrap_or_default();
        Some(Self { path: path.to_owned(), is_bootstrap, cluster, user })
    }

    fn server(&self) -> Option<&str> {
        self.cluster.get("server")?.as_str().filter(|server| server.starts_with("https://"))
    }

    /// Returns host and port of the server.
    pub(super) fn host_and_port(&self) -> Option<(ServerHost, u16)> {
        self.server().and_then(targets::parse)
    }

    /// Returns whether this is its server, which the kubeconfig names by `name` or by the address itself.
    pub(super) fn is_server(&self, to: SocketAddr, name: Option<&str>) -> bool {
        match self.host_and_port() {
            Some((ServerHost::Address(ip), port)) => (ip, port) == (to.ip(), to.port()) && name.is_none(),
            Some((ServerHost::Name(host), port)) => port == to.port() && name == Some(host.as_str()),
            None => false,
        }
    }

    /// Returns whether the server's URL has no path. With a path the server is a proxy for API servers.
    pub(super) fn is_at_root(&self) -> bool {
        let rest = self.server().and_then(|server| server.strip_prefix("https://"));
        rest.is_some_and(|rest| rest.split_once('/').is_none_or(|(_, path)| path.is_empty()))
    }

    /// Returns the name that the server's certificate must have (`tls-server-name`); `None` for the server's own name.
    pub(super) fn server_name(&self) -> Option<&str> {
        self.cluster.get("tls-server-name")?.as_str().filter(|name| !name.is_empty())
    }

    /// Returns which server certificates the kubelet accepts.
    pub(super) fn trust(&self, settings: &Settings, provider: &Arc<CryptoProvider>) -> Trust {
        if self.cluster.get("insecure-skip-tls-verify").and_then(Value::as_bool) == Some(true) {
            return Trust::Any;
        }
        let read = self.data_or_file(settings, &self.cluster, "certificate-authority");
        let authorities =
            read.and_then(|(path, pem)| Authorities::new(shown(&path), &pem, Arc::clone(provider)));
        authorities.map_or(Trust::Unknown, |known| Trust::Issued(Arc::new(known)))
    }

    /// Reads the kubelet's credential. `None` if a credential plugin provides it, or if it cannot be read.
    pub(super) fn credential(&self, settings: &Settings, kubelet: &Kubelet) -> Option<Credential> {
        if self.uses_credential_plugin() {
            return None;
        }
        if let Some(named) = self.named_certificate(settings) {
            let (_, key) = self.data_or_file(settings, &self.user, "client-key")?;
            let own = credential_from_pem(&named.0, &named.1, &key)?;
            let rotated = self.rotated_certificate(settings, kubelet, &named.0);
            let rotated = rotated.and_then(|(path, pem)| credential_from_pem(&path, &pem, &pem));
            // A kubelet that rotates its certificate uses the newest one, regardless of its kubeconfig.
            let newest = rotated.into_iter().chain([own]).max_by_key(|(expires, _)| *expires);
            return newest.map(|(_, credential)| credential);
        }
        let text = |key: &str| self.user.get(key)?.as_str().filter(|text| !text.is_empty());
        let of_file = text("tokenFile").and_then(|named| {
            let path = self.resolve_path(named);
            let token = file::read_text(&settings.on_host(&path))?;
            Some((path, token))
        });
        let (path, token) = of_file.or_else(|| Some((self.path.clone(), text("token")?.to_owned())))?;
        let mut header = HeaderValue::try_from(format!("Bearer {}", token.trim())).ok()?;
        header.set_sensitive(true);
        Some(Credential { file: shown(&path), node: None, auth: ClientAuth::Token(header) })
    }

    /// Returns the client certificate that the kubelet uses, and its file: the newer of the one in the kubeconfig and the
    /// rotated one. `None` if the kubeconfig names no certificate, or if a credential plugin provides the credential.
    pub(super) fn certificate(
        &self,
        settings: &Settings,
        kubelet: &Kubelet,
    ) -> Option<(PathBuf, Certificate)> {
        if self.uses_credential_plugin() {
            return None;
        }
        let named = self.named_certificate(settings)?;
        let rotated = self.rotated_certificate(settings, kubelet, &named.0);
        let read = |(path, pem): (PathBuf, Vec<u8>)| Some((path, certificate::first(&pem)?));
        rotated.into_iter().chain([named]).filter_map(read).max_by_key(|(_, read)| read.expires_in_s)
    }

    /// Returns the token that the kubeconfig itself contains.
    pub(super) fn token(&self) -> Option<&str> {
        self.user.get("token")?.as_str().filter(|token| !token.is_empty())
    }

    /// Returns the certificate that the kubeconfig contains or names, PEM, and its file.
    fn named_certificate(&self, settings: &Settings) -> Option<(PathBuf, Vec<u8>)> {
        self.data_or_file(settings, &self.user, "client-certificate")
    }

    /// Returns the certificate that the kubelet rotates, PEM, and its file; `None` if that is the `named` file.
    fn rotated_certificate(
        &self,
        settings: &Settings,
        kubelet: &Kubelet,
        named: &Path,
    ) -> Option<(PathBuf, Vec<u8>)> {
        let path = kubelet.client_certificate().filter(|path| !self.is_bootstrap && path != named)?;
        let pem = file::read(&settings.on_host(&path)).ok()?;
        Some((path, pem))
    }

    /// Returns whether an external program or a legacy auth provider provides the credential.
    fn uses_credential_plugin(&self) -> bool {
        ["exec", "auth-provider"].iter().any(|key| self.user.get(key).is_some_and(|value| !value.is_null()))
    }

    /// Returns the path of the kubelet's credential, or why it is not used, with the kubeconfig as the source. The credential
    /// is not read.
    pub(crate) fn credential_source(settings: &Settings, kubelet: &Kubelet) -> Option<Known<String>> {
        let kubeconfig = Self::of(settings, kubelet)?;
        let has = |key: &str| kubeconfig.user.get(key).is_some_and(|value| !value.is_null());

        let value = if !settings.kubelet_credentials {
            "not used (--no-kubelet-credentials)".to_owned()
        } else if settings.only_named {
            "not used (--apiserver)".to_owned()
        } else if kubeconfig.uses_credential_plugin() {
            "not used: provided by a credential plugin".to_owned()
        } else if has("client-certificate-data") {
            shown(&kubeconfig.path)
        } else if let Some(file) =
            kubeconfig.file("client-certificate").or_else(|| kubeconfig.file("tokenFile"))
        {
            shown(&file)
        } else if has("token") {
            shown(&kubeconfig.path)
        } else {
            return None;
        };
        Some(Known::of(value, &kubeconfig.path.display()))
    }

    /// Returns the content of `KEY-data`, else of the file that `KEY` names, with the path of the file that contains it.
    fn data_or_file(&self, settings: &Settings, of: &Value, key: &str) -> Option<(PathBuf, Vec<u8>)> {
        let text = |key: &str| of.get(key)?.as_str().filter(|text| !text.is_empty());
        if let Some(data) = text(&format!("{key}-data")) {
            let data: String = data.split_whitespace().collect();
            return Some((self.path.clone(), BASE64.decode(data.as_bytes()).ok()?));
        }
        let path = self.resolve_path(text(key)?);
        let content = file::read(&settings.on_host(&path)).ok()?;
        Some((path, content))
    }

    /// Returns the path that the user's entry has under this key.
    fn file(&self, key: &str) -> Option<PathBuf> {
        Some(self.resolve_path(self.user.get(key)?.as_str().filter(|path| !path.is_empty())?))
    }

    /// Resolves a path relative to the directory of the kubeconfig.
    fn resolve_path(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("/")).join(path)
    }
}

/// Returns whether a file does not exist; false if that cannot be determined.
fn is_missing(settings: &Settings, path: &Path) -> bool {
    let found = fs::symlink_metadata(settings.on_host(path));
    found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Returns the entry called `name` in one of the lists of a kubeconfig; without a name, the only entry.
fn entry<'a>(kubeconfig: &'a Value, list: &str, kind: &str, name: Option<&str>) -> Option<&'a Value> {
    let entries = kubeconfig.get(list)?.as_array()?;
    let found = match name {
        Some(name) => entries.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(name))?,
        None => entries.first().filter(|_| entries.len() == 1)?,
    };
    found.get(kind)
}

/// Returns a credential made of a client certificate and its key, with the seconds until it expires.
fn credential_from_pem(path: &Path, pem: &[u8], key: &[u8]) -> Option<(i64, Credential)> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).take(MAX_CHAIN_LEN).collect();
    let chain = chain.ok()?;
    let expires = certificate::read(chain.first()?, None)?.expires_in_s;
    let user = certificate::common_name(chain.first()?);
    let node = user
        .as_deref()
        .and_then(|user| user.strip_prefix(NODE_USER_PREFIX))
        .filter(|node| is_node_name(node));
    let node = node.map(str::to_owned);
    let key = PrivateKeyDer::from_pem_slice(key).ok()?;
    Some((expires, Credential { file: shown(path), node, auth: ClientAuth::Certificate(chain, key) }))
}

/// Fuzz target: a kubeconfig of any content.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &[u8]) {
    let Some(kubeconfig) = Kubeconfig::parse(Path::new("/k"), text, false) else { return };
    let _ = kubeconfig.is_server(SocketAddr::from(([10, 0, 0, 1], 6443)), Some("api"));
    assert!(kubeconfig.server().is_some() || !kubeconfig.is_at_root());
    let _ = (kubeconfig.server_name(), kubeconfig.uses_credential_plugin());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::trust::tests::{Authority, Identity};
    use crate::settings::tests::{host, settings};

    const TEXT: &str = "current-context: b\ncontexts: [{name: a, context: {cluster: x, user: x}}, {name: b, context: \
                        {cluster: c, user: u}}]\nclusters: [{name: x, cluster: {server: 'https://10.0.0.9'}}, {name: c, \
                        cluster: {server: 'https://10.0.0.1:6443'}}]\nusers: [{name: u, user: {tokenFile: t}}]\n";

    fn kubelet() -> Kubelet {
        let known = |path: &str| Some(Known::of(PathBuf::from(path), &"a test"));
        Kubelet {
            kubeconfig: known("/etc/k"),
            bootstrap_kubeconfig: known("/etc/b"),
            certificates: known("/pki"),
            ..Kubelet::default()
        }
    }

    #[test]
    fn current_context_selects_the_server() {
        let kubeconfig = Kubeconfig::parse(Path::new("/k"), TEXT.as_bytes(), false).expect("a kubeconfig");
        let is_server = |addr: &str, name| kubeconfig.is_server(addr.parse().expect("an address"), name);
        assert!(is_server("10.0.0.1:6443", None) && kubeconfig.is_at_root());
        assert!(!is_server("10.0.0.1:443", None) && !is_server("10.0.0.9:443", None));
        assert!(!is_server("10.0.0.1:6443", Some("api")));
        for broken in ["", "[]", "current-context: z\n", &TEXT.replace("current-context: b", "")] {
            assert!(Kubeconfig::parse(Path::new("/k"), broken.as_bytes(), false).is_none(), "{broken}");
        }
        let by_path = TEXT.replace("10.0.0.1:6443", "10.0.0.1:6443/k8s/clusters/c-1");
        assert!(!Kubeconfig::parse(Path::new("/k"), by_path.as_bytes(), false).expect("one").is_at_root());
    }

    #[test]
    fn bootstrap_kubeconfig_is_used_only_without_another_credential() {
        let used = |files: &[(&str, &str)]| {
            let (settings, _root) = host(files);
            let kubeconfig = Kubeconfig::of(&settings, &kubelet())?;
            let credential = kubeconfig.credential(&settings, &kubelet())?;
            Some(credential.file)
        };
        let token = ("etc/t", "abcdef.0123456789abcdef\n");
        let other = TEXT.replace("tokenFile: t", "token: x");
        assert_eq!(used(&[("etc/b", TEXT), token]).as_deref(), Some("/etc/t"));
        assert_eq!(used(&[("etc/k", &other), ("etc/b", TEXT), token]).as_deref(), Some("/etc/k"));
        assert_eq!(used(&[("etc/k", "nonsense"), ("etc/b", TEXT), token]), None);
        assert_eq!(used(&[("etc/b", TEXT)]), None);
        assert_eq!(used(&[("etc/b", TEXT), token, ("pki/kubelet-client-current.pem", "x")]), None);
    }

    #[test]
    fn kubelet_whose_kubeconfig_names_a_missing_certificate_is_bootstrapping() {
        let authority = Authority::new("kubernetes");
        let named = TEXT.replace("tokenFile: t", "client-certificate: /pki/kubelet-client-current.pem");
        let rotated = authority.issue_for("system:node:worker-3", None, 1).certificate;
        let expired = authority.issue_for("system:node:worker-3", None, -3900).certificate;
        let (pem, k, b) = ("pki/kubelet-client-current.pem", ("etc/k", named.as_str()), ("etc/b", TEXT));
        for (files, wanted) in [
            (&[k, b][..], Some(("in progress", "/etc/b"))),
            (&[b], Some(("in progress", "/etc/b"))),
            (&[k, b, (pem, &rotated)], Some(("has a certificate", "/pki/kubelet-client-current.pem"))),
            (&[k, (pem, &expired)], Some(("its certificate has expired", "/pki/kubelet-client-current.pem"))),
            (&[b, (pem, &rotated)], Some(("has a certificate", "/pki/kubelet-client-current.pem"))),
            (&[k], Some(("its certificate cannot be read", "/etc/k"))),
            (&[], Some(("has neither a certificate nor a bootstrap kubeconfig", "/etc/b"))),
            (&[("etc/k", TEXT)], None),
        ] {
            let (settings, _root) = host(files);
            let found = Kubeconfig::bootstrap_state(&settings, &kubelet());
            let found = found.as_ref().map(|known| (known.value.as_str(), known.source.as_str()));
            assert_eq!(found, wanted, "{files:?}");
        }
        let never = Kubelet { bootstrap_kubeconfig: None, ..kubelet() };
        assert_eq!(Kubeconfig::bootstrap_state(&host(&[k]).0, &never), None);
    }

    #[test]
    fn uses_the_newer_of_named_and_rotated_certificate() {
        let authority = Authority::new("kubernetes");
        let identity = |years| authority.issue_for("system:node:worker-3", None, years);
        let together = |Identity { certificate, key }: Identity| format!("{certificate}{key}");
        let text = TEXT.replace("tokenFile: t", "client-certificate: own, client-key: own");
        for (own, rotated, wanted) in [(1, 2, "/pki/kubelet-client-current.pem"), (2, 1, "/etc/own")] {
            let (own, rotated) = (together(identity(own)), together(identity(rotated)));
            let files =
                [("etc/k", text.as_str()), ("etc/own", &own), ("pki/kubelet-client-current.pem", &rotated)];
            let (settings, _root) = host(&files);
            let kubeconfig = Kubeconfig::of(&settings, &kubelet()).expect("a kubeconfig");
            let credential = kubeconfig.credential(&settings, &kubelet()).expect("a credential");
            assert_eq!((credential.file.as_str(), credential.node.as_deref()), (wanted, Some("worker-3")));
        }
    }

    #[test]
    fn printed_kubeconfig_hides_secrets() {
        let text = TEXT.replace("tokenFile: t", "token: abcdef.0123456789abcdef");
        let (mut settings, _root) = host(&[("etc/k", &text)]);
        let kubeconfig = Kubeconfig::of(&settings, &kubelet()).expect("a kubeconfig");
        assert!(!format!("{kubeconfig:?}").contains("0123"));
        let shown =
            |settings: &Settings| Kubeconfig::credential_source(settings, &kubelet()).expect("known").value;
        assert_eq!(shown(&settings), "/etc/k");
        settings.kubelet_credentials = false;
        assert_eq!(shown(&settings), "not used (--no-kubelet-credentials)");
        assert!(Kubeconfig::credential_source(&self::settings(&[]), &Kubelet::default()).is_none());
    }
}
