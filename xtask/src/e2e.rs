//! The real node: its programs from Debian's packages, and from Debian's source where there is no package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::apt::Apt;
use crate::vm::Arch;
use crate::{build, quiet, setup, shown, target, top};

/// What is built from the source package `kubernetes`; kubectl is packaged.
const PROGRAMS: &[&str] = &["kube-apiserver", "kubelet", "kube-controller-manager"];

/// What the node is made of, and what building needs.
const PACKAGES: &[(&str, &str)] = &[
    ("etcd", "etcd-server"),
    ("kubectl", "kubernetes-client"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("/usr/sbin/ovs-vswitchd", "openvswitch-switch"),
];
const BUILD: &[(&str, &str)] =
    &[("go", "golang-go"), ("dpkg-source", "dpkg-dev"), (REFLECT2, "golang-github-modern-go-reflect2-dev")];
/// The one that the source package has crashes kube-apiserver at the first custom resource.
const REFLECT2: &str = "/usr/share/gocode/src/github.com/modern-go/reflect2";

/// The release whose kubelet, containerd and etcd fit each other.
const SUITE: &str = "bookworm";

/// The version strings of components; kubelet and API server look at each other's.
const VERSION: &str = "k8s.io/kubernetes/vendor/k8s.io/component-base/version";

/// Builds what is missing and plays the scenes whose names contain one of `scenes`, or all; or measures what the
/// agents of so many `nodes` cost.
pub(crate) fn run(scenes: &[String], nodes: Option<usize>) -> Result<bool> {
    let node = node()?;
    let packaged: Vec<_> = PACKAGES.iter().copied().filter(|(name, _)| !node.brings(name)).collect();
    setup::packages(&packaged, "the parts of a node")?;
    let assets = assets()?;
    let probe = build::release()?;
    let mut cargo = build::cargo();
    cargo.args(["run", "--quiet", "--package", "e2e-tests"]);
    // Thousands of agents share this machine with their API server.
    cargo.args(nodes.map(|_| "--release"));
    cargo.arg("--").arg(&assets).args(scenes);
    if let Some(nodes) = nodes {
        cargo.arg("--nodes").arg(nodes.to_string());
    }
    // The first match wins: what was named comes before what is installed.
    let installed = std::env::var_os("PATH").unwrap_or_default();
    let path = node.programs().into_iter().chain([assets]).chain(std::env::split_paths(&installed));
    cargo.env("PATH", std::env::join_paths(path).context("put the node's programs on the PATH")?);
    cargo.envs(node.0.as_ref().map(|dir| (NODE, dir)));
    Ok(cargo.env("NETREADY_PROBE", probe).current_dir(top()).status().context("run the scenes")?.success())
}

/// Names the directory of another release's node programs.
const NODE: &str = "NETREADY_E2E_NODE";

/// The node's programs of another release than Debian's: containerd with its shim, ctr, runc and etcd in `bin`, the
/// reference plugins in `cni/bin`. What it lacks comes from Debian's packages.
struct Node(Option<PathBuf>);

impl Node {
    fn programs(&self) -> Option<PathBuf> {
        self.0.as_ref().map(|dir| dir.join("bin"))
    }

    fn brings(&self, program: &str) -> bool {
        self.programs().is_some_and(|bin| bin.join(program).is_file())
    }
}

fn node() -> Result<Node> {
    let Some(dir) = std::env::var_os(NODE).map(PathBuf::from) else { return Ok(Node(None)) };
    let dir = fs::canonicalize(&dir).with_context(|| format!("find {NODE}={}", dir.display()))?;
    for part in ["bin", "cni/bin"] {
        ensure!(dir.join(part).is_dir(), "{NODE}={}: it has no directory {part}", dir.display());
    }
    Ok(Node(Some(dir)))
}

/// The directory with kube-apiserver and kubelet: named by `KUBEBUILDER_ASSETS`, or built once and kept.
fn assets() -> Result<PathBuf> {
    let complete = |dir: &Path| PROGRAMS.iter().all(|name| dir.join(name).is_file());
    if let Some(dir) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) {
        ensure!(
            complete(&dir),
            "KUBEBUILDER_ASSETS={}: it lacks one of {}",
            dir.display(),
            PROGRAMS.join(", ")
        );
        return Ok(dir);
    }
    let dir = target().join("e2e/assets");
    if !complete(&dir) {
        setup::packages(BUILD, "building kube-apiserver and kubelet")?;
        Source::open(&target().join("e2e"))?.build(&dir)?;
    }
    Ok(dir)
}

/// Debian's source of Kubernetes, and a place to build it.
struct Source {
    dir: PathBuf,
    tree: PathBuf,
}

impl Source {
    /// Fetches and unpacks it where that was not done yet.
    fn open(dir: &Path) -> Result<Self> {
        let gopath = dir.join("gopath/src/k8s.io");
        fs::create_dir_all(&gopath)?;
        let source = Self { dir: dir.to_owned(), tree: gopath.join("kubernetes") };
        if !source.tree.exists() {
            source.fetch()?;
        }
        Ok(source)
    }

    fn fetch(&self) -> Result<()> {
        let unpack = self.dir.join("unpack");
        let _ = fs::remove_dir_all(&unpack);
        fs::create_dir_all(&unpack)?;
        let apt = Apt::open(&self.dir, Arch::Amd64.debian())?;
        apt.update("deb-src", [SUITE])?;
        println!("fetching Debian's source of Kubernetes");
        quiet(apt.command("apt-get").args(["source", "kubernetes"]).current_dir(&unpack))?;
        let tree = fs::read_dir(&unpack)?.flatten().find(|entry| entry.path().is_dir());
        let tree = tree.context("the source package has no directory")?.path();
        // Copied: a vendored copy may be a link, or a directory.
        let vendored = tree.join("vendor/github.com/modern-go/reflect2");
        fs::remove_dir_all(&vendored).context("take the vendored reflect2 away")?;
        quiet(Command::new("cp").args(["-rL", REFLECT2]).arg(&vendored))?;
        fs::rename(tree, &self.tree).context("put the source into place")
    }

    /// This old tree builds only the old way, outside of modules.
    fn go(&self) -> Command {
        let mut go = Command::new("go");
        go.current_dir(&self.tree).env("GO111MODULE", "off").env("CGO_ENABLED", "0").env("GOFLAGS", "");
        go.env("GOPATH", self.dir.join("gopath")).env("GOCACHE", self.dir.join("go-cache"));
        go
    }

    fn build(&self, to: &Path) -> Result<()> {
        self.generate()?;
        let version = self.version()?;
        let mut numbers = version.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next().unwrap_or("1"), numbers.next().unwrap_or("0"));
        let flags = format!(
            "-s -w -X {VERSION}.gitVersion={version} -X {VERSION}.gitMajor={major} -X {VERSION}.gitMinor={minor}"
        );
        fs::create_dir_all(to)?;
        for name in PROGRAMS {
            println!("building {name} {version}");
            let new = to.join(format!("{name}.new"));
            shown(
                self.go()
                    .args(["build", "-ldflags", &flags, "-o"])
                    .arg(&new)
                    .arg(format!("k8s.io/kubernetes/cmd/{name}")),
            )?;
            fs::rename(new, to.join(name))?;
        }
        Ok(())
    }

    /// `v1.20.2` of `1.20.5+really1.20.2-1.1+deb12u1`
    fn version(&self) -> Result<String> {
        let changes = fs::read_to_string(self.tree.join("debian/changelog")).context("read the changelog")?;
        let version = changes.split(['(', ')']).nth(1).context("the changelog names no version")?;
        let version = version.rsplit("really").next().unwrap_or(version);
        Ok(format!("v{}", version.split(['-', '+']).next().unwrap_or(version)))
    }

    /// The one generated file that the package lacks.
    fn generate(&self) -> Result<()> {
        let file = self.tree.join("pkg/generated/openapi/zz_generated.openapi.go");
        if file.exists() {
            return Ok(());
        }
        println!("generating the API server's own description");
        let generator = self.dir.join("openapi-gen");
        let package = "k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen";
        shown(self.go().arg("build").arg("-o").arg(&generator).arg(package))?;
        let mut grep = Command::new("grep");
        // Follows the links from `vendor` to `staging`.
        grep.args(["-RlE", "--include=*.go", r"^// *\+k8s:openapi-gen=", "vendor/k8s.io", "pkg", "cmd"]);
        let output = grep.current_dir(&self.tree).output().context("run grep")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut packages: Vec<_> = text
            .lines()
            .filter_map(|file| Some(format!("k8s.io/kubernetes/{}", Path::new(file).parent()?.display())))
            .collect();
        packages.sort();
        packages.dedup();
        ensure!(!packages.is_empty(), "nothing in the source is marked for openapi-gen");
        let mut run = Command::new(generator);
        run.current_dir(&self.tree).env("GO111MODULE", "off").env("GOPATH", self.dir.join("gopath"));
        run.args([
            "--go-header-file",
            "hack/boilerplate/boilerplate.generatego.txt",
            "-O",
            "zz_generated.openapi",
        ]);
        run.args(["-p", "k8s.io/kubernetes/pkg/generated/openapi", "-i", &packages.join(",")]);
        run.arg("-r").arg(self.dir.join("openapi-report"));
        quiet(&mut run)?;
        ensure!(file.exists(), "openapi-gen did not write {}", file.display());
        Ok(())
    }
}
