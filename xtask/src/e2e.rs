//! The end-to-end test: a real node, with programs from Debian's packages, or built from Debian's source if there is no package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::apt::Apt;
use crate::step::{self, last_line};
use crate::vm::Arch;
use crate::{build, quiet, setup, target};

/// Programs that are built from the source package `kubernetes`; kubectl has a package.
const PROGRAMS: &[&str] = &["kube-apiserver", "kubelet", "kube-controller-manager"];

/// The programs of the node, and their packages.
const PACKAGES: &[(&str, &str)] = &[
    ("etcd", "etcd-server"),
    ("kubectl", "kubernetes-client"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("/usr/sbin/ovs-vswitchd", "openvswitch-switch"),
];
/// What building Kubernetes needs.
const BUILD: &[(&str, &str)] =
    &[("go", "golang-go"), ("dpkg-source", "dpkg-dev"), (REFLECT2, "golang-github-modern-go-reflect2-dev")];
/// The source package's copy of reflect2 crashes kube-apiserver at the first custom resource.
const REFLECT2: &str = "/usr/share/gocode/src/github.com/modern-go/reflect2";

/// The Debian release whose kubelet, containerd and etcd work together.
const SUITE: &str = "bookworm";

/// The package with the version strings of components; kubelet and API server check each other's.
const VERSION: &str = "k8s.io/kubernetes/vendor/k8s.io/component-base/version";

/// Builds what is missing and plays the scenes whose names contain one of `scenes`, or all. With `nodes` it measures instead what
/// the agents of this many nodes cost. Returns false if a scene failed.
pub(crate) fn run(scenes: &[String], nodes: Option<usize>) -> Result<bool> {
    let node = node()?;
    let packaged: Vec<_> = PACKAGES.iter().copied().filter(|(name, _)| !node.has(name)).collect();
    setup::packages(&packaged, "programs of a node")?;
    let assets = assets()?;
    let probe = build::release()?;
    // Thousands of agents share this machine with their API server.
    let release = nodes.map(|_| "--release");
    let mut build = build::cargo();
    step::cargo(
        "building the end-to-end test",
        build.args(["build", "--package", "e2e-tests"]).args(release),
    )?;
    let mut cargo = build::cargo();
    cargo.args(["run", "--quiet", "--package", "e2e-tests"]).args(release);
    cargo.arg("--").arg(&assets).args(scenes);
    if let Some(nodes) = nodes {
        cargo.arg("--nodes").arg(nodes.to_string());
    }
    // The first match wins, so the node's own programs precede the installed ones.
    let installed = std::env::var_os("PATH").unwrap_or_default();
    let path = node.programs().into_iter().chain([assets]).chain(std::env::split_paths(&installed));
    cargo.env("PATH", std::env::join_paths(path).context("put the node's programs on the PATH")?);
    cargo.envs(node.0.as_ref().map(|dir| (NODE, dir)));
    Ok(cargo.env("NETREADY_PROBE", probe).status().context("run the scenes")?.success())
}

/// Names a directory with the node programs of another release.
const NODE: &str = "NETREADY_E2E_NODE";

/// The directory with node programs of another release than Debian's, if one is named: containerd with its shim, ctr, runc and
/// etcd in `bin`, the reference plugins in `cni/bin`. Programs that it lacks come from Debian's packages.
struct Node(Option<PathBuf>);

impl Node {
    fn programs(&self) -> Option<PathBuf> {
        self.0.as_ref().map(|dir| dir.join("bin"))
    }

    fn has(&self, program: &str) -> bool {
        self.programs().is_some_and(|bin| bin.join(program).is_file())
    }
}

fn node() -> Result<Node> {
    let Some(dir) = std::env::var_os(NODE).map(PathBuf::from) else { return Ok(Node(None)) };
    let dir = fs::canonicalize(&dir).with_context(|| format!("find {NODE}={}", dir.display()))?;
    for part in ["bin", "cni/bin"] {
        ensure!(dir.join(part).is_dir(), "{NODE}={}: directory {part} is missing", dir.display());
    }
    Ok(Node(Some(dir)))
}

/// Returns the directory with kube-apiserver and kubelet, which `KUBEBUILDER_ASSETS` names, or which is built once and kept.
fn assets() -> Result<PathBuf> {
    let complete = |dir: &Path| PROGRAMS.iter().all(|name| dir.join(name).is_file());
    if let Some(dir) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) {
        ensure!(
            complete(&dir),
            "KUBEBUILDER_ASSETS={}: one of {} is missing",
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

/// Debian's source of Kubernetes, and the directory in which it is built.
struct Source {
    dir: PathBuf,
    tree: PathBuf,
}

impl Source {
    /// Downloads and unpacks the source if that was not done before.
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
        let what = "downloading Debian's source of Kubernetes";
        let mut source = apt.command("apt-get");
        let output = step::run(what, source.args(["source", "kubernetes"]).current_dir(&unpack))?;
        ensure!(output.status.success(), "{what}: {}", last_line(&output));
        let tree = fs::read_dir(&unpack)?.flatten().find(|entry| entry.path().is_dir());
        let tree = tree.context("the source package has no directory")?.path();
        // A vendored copy may be a link or a directory.
        let vendored = tree.join("vendor/github.com/modern-go/reflect2");
        fs::remove_dir_all(&vendored).context("remove the vendored reflect2")?;
        quiet(Command::new("cp").args(["-rL", REFLECT2]).arg(&vendored))?;
        fs::rename(tree, &self.tree).context("move the source into place")
    }

    /// Returns a command that runs go in the source, which builds only without modules.
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
            let new = to.join(format!("{name}.new"));
            let mut go = self.go();
            go.args(["build", "-v", "-ldflags", &flags, "-o"]).arg(&new);
            build_go(&format!("building {name} {version}"), go.arg(format!("k8s.io/kubernetes/cmd/{name}")))?;
            fs::rename(new, to.join(name))?;
        }
        Ok(())
    }

    /// Returns `v1.20.2` of the package version `1.20.5+really1.20.2-1.1+deb12u1`.
    fn version(&self) -> Result<String> {
        let changes = fs::read_to_string(self.tree.join("debian/changelog")).context("read the changelog")?;
        let version = changes.split(['(', ')']).nth(1).context("the changelog names no version")?;
        let version = version.rsplit("really").next().unwrap_or(version);
        Ok(format!("v{}", version.split(['-', '+']).next().unwrap_or(version)))
    }

    /// Generates the one generated file that the package lacks.
    fn generate(&self) -> Result<()> {
        let file = self.tree.join("pkg/generated/openapi/zz_generated.openapi.go");
        if file.exists() {
            return Ok(());
        }
        let generator = self.dir.join("openapi-gen");
        let package = "k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen";
        build_go("building openapi-gen", self.go().args(["build", "-v", "-o"]).arg(&generator).arg(package))?;
        let mut grep = Command::new("grep");
        // `-R` follows the links from `vendor` to `staging`.
        grep.args(["-RlE", "--include=*.go", r"^// *\+k8s:openapi-gen=", "vendor/k8s.io", "pkg", "cmd"]);
        let output = grep.current_dir(&self.tree).output().context("run grep")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut packages: Vec<_> = text
            .lines()
            .filter_map(|file| Some(format!("k8s.io/kubernetes/{}", Path::new(file).parent()?.display())))
            .collect();
        packages.sort();
        packages.dedup();
        ensure!(!packages.is_empty(), "no file of the source is marked for openapi-gen");
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
        let what = "generating the OpenAPI definitions of the API server";
        let output = step::run(what, &mut run)?;
        ensure!(output.status.success(), "{what}: {}", last_line(&output));
        ensure!(file.exists(), "openapi-gen did not write {}", file.display());
        Ok(())
    }
}

fn build_go(what: &str, go: &mut Command) -> Result<()> {
    let output = step::run(what, go)?;
    let text = String::from_utf8_lossy(&output.stderr);
    // `-v` prints the name of each package on a line of its own; errors have several words.
    let errors: Vec<_> = text.lines().filter(|line| line.trim().contains(' ')).collect();
    ensure!(output.status.success(), "{what} failed:\n{}", errors.join("\n"));
    Ok(())
}
