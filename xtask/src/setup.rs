//! What a bare machine lacks, found and installed.
//!
//! The BPF target has no precompiled `core`: its source must fit the compiler. rustup can fetch it for the
//! pinned toolchain; where rustup cannot fetch (mirrored or offline sites), Debian's own matched pair of
//! compiler and source does it, linked under a name of its own. bpf-linker needs an LLVM no older than the
//! compiler's.

use std::env;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

/// The version that was tested; later ones want a later LLVM.
const LINKER: &str = "0.13.0";
/// LLVM of that linker, and Debian's place for it.
const LLVM: u32 = 22;
/// The toolchain that `probe/build.rs` looks for when the pinned one has no source of `core`.
const TOOLCHAIN: &str = "netready-bpf";
/// Keeps the services of packages from starting while they are installed.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Programs that building and testing need, and Debian's packages of them.
const TOOLS: &[(&str, &str)] = &[
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("curl", "curl"),
    ("cc", "gcc"),
    ("c++", "g++"),
    ("/usr/include/stdio.h", "libc6-dev"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("/bin/busybox", "busybox-static"),
    ("modprobe", "kmod"),
    ("cpio", "cpio"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("sysctl", "procps"),
    ("setpriv", "util-linux"),
    ("/usr/sbin/ovs-vswitchd", "openvswitch-switch"),
    ("/usr/sbin/dnsmasq", "dnsmasq-base"),
    ("/usr/sbin/mkfs.ext4", "e2fsprogs"),
    ("/usr/bin/tinyproxy", "tinyproxy-bin"),
];

/// Debian's compiler with the source of its own `core`.
const DEBIAN_RUST: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];

/// One thing that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Tool(&'static str),
    Core,
    Linker,
}

/// Installs what is missing, or says it. False when something is missing and was only said.
pub(crate) fn run(dry_run: bool) -> Result<bool> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(true);
    }
    if dry_run {
        for thing in &missing {
            println!("missing: {}", name(*thing));
        }
        return Ok(false);
    }
    let tools: Vec<_> = missing
        .iter()
        .filter_map(|thing| match thing {
            Missing::Tool(package) => Some(*package),
            _ => None,
        })
        .collect();
    if !tools.is_empty() {
        apt(&tools, "the tools that tests and builds use")?;
    }
    if missing.contains(&Missing::Core) {
        core()?;
    }
    if missing.contains(&Missing::Linker) {
        linker()?;
    }
    Ok(true)
}

fn name(thing: Missing) -> String {
    match thing {
        Missing::Tool(package) => format!("package {package}"),
        Missing::Core => "source of `core` for a Rust toolchain".to_owned(),
        Missing::Linker => format!("bpf-linker {LINKER}"),
    }
}

fn missing() -> Vec<Missing> {
    let mut missing: Vec<_> =
        TOOLS.iter().filter(|(file, _)| !is_there(file)).map(|(_, package)| Missing::Tool(package)).collect();
    if toolchain().is_none() {
        missing.push(Missing::Core);
    }
    if !is_there("bpf-linker") {
        missing.push(Missing::Linker);
    }
    missing
}

/// A path, or a name on `PATH` (and in the places where Debian puts what only root needs).
fn is_there(file: &str) -> bool {
    if file.starts_with('/') {
        return Path::new(file).exists();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let home = env::var_os("CARGO_HOME").map(|home| Path::new(&home).join("bin"));
    let dirs = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).chain(home);
    dirs.into_iter().any(|dir| dir.join(file).is_file())
}

/// The toolchain that can build the kernel half.
pub(crate) fn toolchain() -> Option<String> {
    let pinned = env::var("RUSTUP_TOOLCHAIN").ok();
    [pinned, Some(TOOLCHAIN.to_owned())].into_iter().flatten().find(|name| has_core(name))
}

/// Looks where rustup keeps its toolchains: asking it would take longer than everything else here.
fn has_core(toolchain: &str) -> bool {
    let home = env::var_os("RUSTUP_HOME").map(Into::into);
    let home = home.or_else(|| env::home_dir().map(|home| home.join(".rustup"))).unwrap_or_default();
    let sysroot = home.join("toolchains").join(toolchain);
    sysroot.join("lib/rustlib/src/rust/library/core").exists()
}

fn core() -> Result<()> {
    let mut fetch = Command::new("rustup");
    fetch.args(["component", "add", "rust-src"]).stdin(Stdio::null());
    if step("rustup: fetch the source of `core`", &mut fetch)?.status.success() && toolchain().is_some() {
        return Ok(());
    }
    println!("rustup cannot fetch it here; Debian's compiler and source are used instead");
    apt(DEBIAN_RUST, "a compiler with the source of its `core`")?;
    let link =
        step("rustup: link it", Command::new("rustup").args(["toolchain", "link", TOOLCHAIN, "/usr"]))?;
    ensure!(link.status.success() && toolchain().is_some(), "link Debian's toolchain: {}", last_line(&link));
    Ok(())
}

/// Installs those of `wanted`, each a program or a file and its package, that are not there.
pub(crate) fn packages(wanted: &[(&str, &str)], why: &str) -> Result<()> {
    let missing: Vec<_> =
        wanted.iter().filter(|(file, _)| !is_there(file)).map(|(_, package)| *package).collect();
    if missing.is_empty() { Ok(()) } else { apt(&missing, why) }
}

/// What building for arm64 and running it needs besides.
pub(crate) fn arm64() -> Result<()> {
    let tools = [
        ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
        ("/usr/aarch64-linux-gnu/include/stdio.h", "libc6-dev-arm64-cross"),
        ("qemu-system-aarch64", "qemu-system-arm"),
    ];
    packages(&tools, "building for arm64 and running it")?;
    let mut add = Command::new("rustup");
    add.args(["target", "add", "aarch64-unknown-linux-gnu"]).stdin(Stdio::null());
    let output = add.output().context("run rustup")?;
    ensure!(output.status.success(), "fetch Rust's standard library for arm64: {}", last_line(&output));
    Ok(())
}

fn linker() -> Result<()> {
    let prefix = format!("/usr/lib/llvm-{LLVM}");
    // The libraries to link with: the directory itself is there as soon as anything uses LLVM.
    if !Path::new(&prefix).join("lib/libLLVMCore.a").exists() {
        apt(&[&format!("llvm-{LLVM}-dev")], "LLVM for bpf-linker")?;
    }
    let feature = format!("llvm-{LLVM}");
    let mut install = Command::new("cargo");
    install
        .args([
            "install",
            "bpf-linker",
            "--version",
            LINKER,
            "--locked",
            "--no-default-features",
            "--features",
            &feature,
        ])
        // Not inside the repository: its pinned toolchain and settings are not the linker's.
        .current_dir("/")
        .env("LLVM_PREFIX", &prefix)
        .env(format!("LLVM_SYS_{LLVM}1_PREFIX"), &prefix)
        .env_remove("CARGO_TARGET_DIR");
    let output = step("cargo: build bpf-linker (about a minute)", &mut install)?;
    ensure!(output.status.success(), "build bpf-linker: {}", last_line(&output));
    Ok(())
}

/// Installs Debian packages without starting their services.
fn apt(packages: &[&str], why: &str) -> Result<()> {
    let names = packages.join(" ");
    if !Path::new("/etc/debian_version").exists() {
        bail!(
            "{why}: install what Debian calls {names} with this system's package manager, then run this again"
        );
    }
    // SAFETY: no precondition.
    if unsafe { libc::geteuid() } != 0 {
        bail!("{why}: run `sudo apt-get install {names}`, then this again");
    }
    let _policy = Policy::set();
    let install = || {
        let mut command = Command::new("apt-get");
        command.args(["install", "-y", "--no-install-recommends"]).args(packages);
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        step(&format!("apt-get: {names} ({why})"), &mut command)
    };
    if install()?.status.success() {
        return Ok(());
    }
    // A new machine has no lists yet, and an old one has old ones.
    step("apt-get: update", Command::new("apt-get").arg("update").stdin(Stdio::null()))?;
    let output = install()?;
    ensure!(output.status.success(), "install {names}: {}", last_line(&output));
    Ok(())
}

/// The policy that forbids services to start, taken away again when dropped; one that is there stays.
struct Policy {
    ours: bool,
}

impl Policy {
    fn set() -> Self {
        let ours = !Path::new(POLICY).exists() && fs::write(POLICY, "#!/bin/sh\nexit 101\n").is_ok();
        if ours {
            let _ = fs::set_permissions(POLICY, std::os::unix::fs::PermissionsExt::from_mode(0o755));
        }
        Self { ours }
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}

/// Runs a long step: says what it is, then how long it took.
fn step(what: &str, command: &mut Command) -> Result<Output> {
    print!("{what} … ");
    std::io::stdout().flush()?;
    let started = Instant::now();
    let output = command.output().with_context(|| format!("run {}", command.get_program().display()))?;
    let how = if output.status.success() { "done" } else { "failed" };
    println!("{how} in {} s", started.elapsed().as_secs());
    Ok(output)
}

/// The last thing that a failed step said.
fn last_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned()
}
