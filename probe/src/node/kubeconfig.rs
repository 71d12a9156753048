//! The kubelet's own kubeconfig: which CAs the kubelet trusts, and its credential. Its files are read anew for each use, for
//! certificates are rotated.

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

/// Most certificates of the kubelet's chain.
const CHAIN: usize = 16;
/// What stands before the node's name in the common name of a kubelet's certificate (kubernetes.io, "Using Node
/// Authorization").
const NODE_USER: &str = "system:node:";

/// The context of a kubeconfig that the kubelet uses.
pub(crate) struct Kubeconfig {
    path: PathBuf,
    /// The kubelet has no other yet.
    is_bootstrap: bool,
    cluster: Value,
    /// Holds secrets.
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
    /// Those that one of these CAs issued.
    Issued(Arc<Authorities>),
    /// All: `insecure-skip-tls-verify`.
    Any,
    /// Not known: no CA is named, or its file cannot be read.
    Unknown,
}

/// The kubelet's credential. It has no printable form.
pub(super) struct Credential {
    /// The file that holds it; control characters are escaped.
    pub(super) file: String,
    /// The node whose credential it is, where the certificate names it.
    pub(super) node: Option<String>,
    pub(super) proof: Proof,
}

/// See [`Credential`].
pub(super) enum Proof {
    Certificate(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
    /// The value of the header `Authorization`.
    Token(HeaderValue),
}

impl Kubeconfig {
    /// Reads the kubeconfig that the kubelet uses: the bootstrap one while the kubelet has no certificate. Bootstrap tokens
    /// expire, and their files remain.
    ///
    /// A kubelet that rotates its certificate writes its kubeconfig when it asks for the first one, which that already names
    /// (pkg/kubelet/certificate/bootstrap/bootstrap.go, `LoadClientConfig`).
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

    /// Returns how far a kubelet that gets its certificate by TLS bootstrapping is, with the file that shows it.
    pub(crate) fn bootstrap(settings: &Settings, kubelet: &Kubelet) -> Option<Known<String>> {
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

    /// Reads the current context of the kubeconfig at `path`; `None` when it cannot be read or names none.
    pub(super) fn read(settings: &Settings, path: &Path) -> Option<Self> {
        Self::parse(path, &file::read(&settings.on_host(path)).ok()?, false)
    }

    fn parse(path: &Path, text: &[u8], is_bootstrap: bool) -> Option<Self> {
        let value: Value = serde_yaml_ng::from_slice(text).ok()?;
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

    /// Returns its server: host and port.
    pub(super) fn host_and_port(&self) -> Option<(ServerHost, u16)> {
        self.server().and_then(targets::parse)
    }

    /// Returns whether its server is this one, known to the kubelet by `name` or by the address itself.
    pub(super) fn names(&self, to: SocketAddr, name: Option<&str>) -> bool {
        match self.host_and_port() {
            Some((ServerHost::Address(ip), port)) => (ip, port) == (to.ip(), to.port()) && name.is_none(),
            Some((ServerHost::Name(host), port)) => port == to.port() && name == Some(host.as_str()),
            None => false,
        }
    }

    /// Returns whether the server is an API server at the root of its URL, and not behind the path of a proxy.
    pub(super) fn is_at_root(&self) -> bool {
        let rest = self.server().and_then(|server| server.strip_prefix("https://"));
        rest.is_some_and(|rest| rest.split_once('/').is_none_or(|(_, path)| path.is_empty()))
    }

    /// The name that the server's certificate must be for, where it is not that of the server.
    pub(super) fn server_name(&self) -> Option<&str> {
        self.cluster.get("tls-server-name")?.as_str().filter(|name| !name.is_empty())
    }

    /// Reads which server certificates the kubelet accepts.
    pub(super) fn trust(&self, settings: &Settings, provider: &Arc<CryptoProvider>) -> Trust {
        if self.cluster.get("insecure-skip-tls-verify").and_then(Value::as_bool) == Some(true) {
            return Trust::Any;
        }
        let read = self.part(settings, &self.cluster, "certificate-authority");
        let authorities =
            read.and_then(|(path, pem)| Authorities::new(shown(&path), &pem, Arc::clone(provider)));
        authorities.map_or(Trust::Unknown, |known| Trust::Issued(Arc::new(known)))
    }

    /// Reads the kubelet's credential. `None` when a program provides it, and when it cannot be read.
    pub(super) fn credential(&self, settings: &Settings, kubelet: &Kubelet) -> Option<Credential> {
        if self.is_by_program() {
            return None;
        }
        if let Some(named) = self.named_certificate(settings) {
            let (_, key) = self.part(settings, &self.user, "client-key")?;
            let own = certificate_of(&named.0, &named.1, &key)?;
            let rotated = self.rotated_certificate(settings, kubelet, &named.0);
            let rotated = rotated.and_then(|(path, pem)| certificate_of(&path, &pem, &pem));
            // A kubelet that rotates its certificate goes on with the newest, whatever it was started with.
            let newest = rotated.into_iter().chain([own]).max_by_key(|(expires, _)| *expires);
            return newest.map(|(_, credential)| credential);
        }
        let text = |key: &str| self.user.get(key)?.as_str().filter(|text| !text.is_empty());
        let of_file = text("tokenFile").and_then(|named| {
            let path = self.beside(named);
            let token = file::read_text(&settings.on_host(&path))?;
            Some((path, token))
        });
        let (path, token) = of_file.or_else(|| Some((self.path.clone(), text("token")?.to_owned())))?;
        let mut header = HeaderValue::try_from(format!("Bearer {}", token.trim())).ok()?;
        header.set_sensitive(true);
        Some(Credential { file: shown(&path), node: None, proof: Proof::Token(header) })
    }

    /// Returns the client certificate that the kubelet uses, and its file: the newer of the one that the kubeconfig names and
    /// the rotated one. `None` when the kubeconfig names none, and when a program provides the credential.
    pub(super) fn certificate(
        &self,
        settings: &Settings,
        kubelet: &Kubelet,
    ) -> Option<(PathBuf, Certificate)> {
        if self.is_by_program() {
            return None;
        }
        let named = self.named_certificate(settings)?;
        let rotated = self.rotated_certificate(settings, kubelet, &named.0);
        let read = |(path, pem): (PathBuf, Vec<u8>)| Some((path, certificate::first(&pem)?));
        rotated.into_iter().chain([named]).filter_map(read).max_by_key(|(_, read)| read.expires_in_s)
    }

    /// Returns the token that the kubeconfig itself holds.
    pub(super) fn token(&self) -> Option<&str> {
        self.user.get("token")?.as_str().filter(|token| !token.is_empty())
    }

    /// The certificate that the kubeconfig holds or names, PEM, and its file.
    fn named_certificate(&self, settings: &Settings) -> Option<(PathBuf, Vec<u8>)> {
        self.part(settings, &self.user, "client-certificate")
    }

    /// The one that the kubelet rotates, where `named` is another one.
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

    fn is_by_program(&self) -> bool {
        ["exec", "auth-provider"].iter().any(|key| self.user.get(key).is_some_and(|value| !value.is_null()))
    }

    /// Returns the file of the credential that the kubeconfig names, without reading it, or why it is not used; with the
    /// kubeconfig as its source.
    pub(crate) fn described(settings: &Settings, kubelet: &Kubelet) -> Option<Known<String>> {
        let kubeconfig = Self::of(settings, kubelet)?;
        let has = |key: &str| kubeconfig.user.get(key).is_some_and(|value| !value.is_null());
        let file = |key: &str| kubeconfig.file(key);
        let inline = || kubeconfig.path.clone();
        let value = if !settings.kubelet_credentials {
            "not used (--no-kubelet-credentials)".to_owned()
        } else if settings.only_named {
            "not used (--apiserver)".to_owned()
        } else if kubeconfig.is_by_program() {
            "not used: a program provides it".to_owned()
        } else if has("client-certificate-data") {
            shown(&inline())
        } else if let Some(file) = file("client-certificate").or_else(|| file("tokenFile")) {
            shown(&file)
        } else if has("token") {
            shown(&inline())
        } else {
            return None;
        };
        Some(Known::of(value, &kubeconfig.path.display()))
    }

    /// The content of `KEY-data`, else of the file that `KEY` names, and where it is from.
    fn part(&self, settings: &Settings, of: &Value, key: &str) -> Option<(PathBuf, Vec<u8>)> {
        let text = |key: &str| of.get(key)?.as_str().filter(|text| !text.is_empty());
        if let Some(data) = text(&format!("{key}-data")) {
            let data: String = data.split_whitespace().collect();
            return Some((self.path.clone(), BASE64.decode(data.as_bytes()).ok()?));
        }
        let path = self.beside(text(key)?);
        let content = file::read(&settings.on_host(&path)).ok()?;
        Some((path, content))
    }

    /// The file that the credential names by this key.
    fn file(&self, key: &str) -> Option<PathBuf> {
        Some(self.beside(self.user.get(key)?.as_str().filter(|path| !path.is_empty())?))
    }

    /// Relative paths start at the kubeconfig.
    fn beside(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("/")).join(path)
    }
}

/// Returns whether nothing is there; false where that cannot be seen.
fn is_missing(settings: &Settings, path: &Path) -> bool {
    let found = fs::symlink_metadata(settings.on_host(path));
    found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// The entry called `name` in one of the lists of a kubeconfig; without a name the only one.
fn entry<'a>(kubeconfig: &'a Value, list: &str, kind: &str, name: Option<&str>) -> Option<&'a Value> {
    let entries = kubeconfig.get(list)?.as_array()?;
    let found = match name {
        Some(name) => entries.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(name))?,
        None => entries.first().filter(|_| entries.len() == 1)?,
    };
    found.get(kind)
}

/// A client certificate with its key, and when it expires, in seconds from now.
fn certificate_of(path: &Path, pem: &[u8], key: &[u8]) -> Option<(i64, Credential)> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).take(CHAIN).collect();
    let chain = chain.ok()?;
    let expires = certificate::read(chain.first()?, None)?.expires_in_s;
    let user = certificate::common_name(chain.first()?);
    let node =
        user.as_deref().and_then(|user| user.strip_prefix(NODE_USER)).filter(|node| is_node_name(node));
    let node = node.map(str::to_owned);
    let key = PrivateKeyDer::from_pem_slice(key).ok()?;
    Some((expires, Credential { file: shown(path), node, proof: Proof::Certificate(chain, key) }))
}

/// A kubeconfig of any content.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &[u8]) {
    let Some(kubeconfig) = Kubeconfig::parse(Path::new("/k"), text, false) else { return };
    let _ = kubeconfig.names(SocketAddr::from(([10, 0, 0, 1], 6443)), Some("api"));
    assert!(kubeconfig.server().is_some() || !kubeconfig.is_at_root());
    let _ = (kubeconfig.server_name(), kubeconfig.is_by_program());
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
    fn the_current_context_names_the_server() {
        let kubeconfig = Kubeconfig::parse(Path::new("/k"), TEXT.as_bytes(), false).expect("a kubeconfig");
        let names = |addr: &str, name| kubeconfig.names(addr.parse().expect("an address"), name);
        assert!(names("10.0.0.1:6443", None) && kubeconfig.is_at_root());
        assert!(!names("10.0.0.1:443", None) && !names("10.0.0.9:443", None));
        assert!(!names("10.0.0.1:6443", Some("api")));
        for broken in ["", "[]", "current-context: z\n", &TEXT.replace("current-context: b", "")] {
            assert!(Kubeconfig::parse(Path::new("/k"), broken.as_bytes(), false).is_none(), "{broken}");
        }
        let by_path = TEXT.replace("10.0.0.1:6443", "10.0.0.1:6443/k8s/clusters/c-1");
        assert!(!Kubeconfig::parse(Path::new("/k"), by_path.as_bytes(), false).expect("one").is_at_root());
    }

    #[test]
    fn the_bootstrap_kubeconfig_counts_only_while_there_is_no_other() {
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
    fn a_kubelet_whose_kubeconfig_names_no_certificate_yet_bootstraps() {
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
            let found = Kubeconfig::bootstrap(&settings, &kubelet());
            let found = found.as_ref().map(|known| (known.value.as_str(), known.source.as_str()));
            assert_eq!(found, wanted, "{files:?}");
        }
        let never = Kubelet { bootstrap_kubeconfig: None, ..kubelet() };
        assert_eq!(Kubeconfig::bootstrap(&host(&[k]).0, &never), None);
    }

    #[test]
    fn the_newest_of_both_certificates_is_the_kubelet_s() {
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
    fn what_is_shown_holds_no_secret() {
        let text = TEXT.replace("tokenFile: t", "token: abcdef.0123456789abcdef");
        let (mut settings, _root) = host(&[("etc/k", &text)]);
        let kubeconfig = Kubeconfig::of(&settings, &kubelet()).expect("a kubeconfig");
        assert!(!format!("{kubeconfig:?}").contains("0123"));
        let shown = |settings: &Settings| Kubeconfig::described(settings, &kubelet()).expect("known").value;
        assert_eq!(shown(&settings), "/etc/k");
        settings.kubelet_credentials = false;
        assert_eq!(shown(&settings), "not used (--no-kubelet-credentials)");
        assert!(Kubeconfig::described(&self::settings(&[]), &Kubelet::default()).is_none());
    }
}
