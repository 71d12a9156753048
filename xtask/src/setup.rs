//! Finds and installs the tools that a task needs and this machine lacks.
//!
//! The BPF target has no precompiled `core`, and the source of `core` must match the compiler. rustup fetches it for the pinned
//! toolchain. Where rustup cannot (mirrored or offline sites), Debian's matching packages of compiler and source are
//! installed, and linked as a toolchain with a name of its own. bpf-linker needs an LLVM no older than the compiler's.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail, ensure};

use crate::step::{self, last_line};

/// Version of bpf-linker that is tested; later ones need a later LLVM.
const LINKER: &str = "0.13.0";
/// LLVM version of that linker, in the names of Debian's packages and directories.
const LLVM: u32 = 22;
/// The toolchain that `probe/build.rs` uses if the pinned one has no source of `core`.
const TOOLCHAIN: &str = "netready-bpf";
/// A policy here keeps packages from starting their services when they are installed.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// What the tools of a task are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Building the kernel programs.
    Programs,
    /// The demo.
    Demo,
    /// The live tests, the end-to-end test and the benchmarks.
    Lab,
    /// The virtual machines of the kernel matrix.
    Machines,
    /// Building the fuzz targets.
    Fuzz,
}

impl Need {
    const ALL: [Self; 5] = [Self::Programs, Self::Demo, Self::Lab, Self::Machines, Self::Fuzz];
}

/// A program or file, Debian's package of it, and what needs it.
type Tool = (&'static str, &'static str, &'static [Need]);

const TOOLS: &[Tool] = &[
    ("/usr/lib/cni/bridge", "containernetworking-plugins", &[Need::Demo, Need::Lab]),
    ("ip", "iproute2", &[Need::Demo, Need::Lab]),
    ("nft", "nftables", &[Need::Lab]),
    ("curl", "curl", &[Need::Lab]),
    ("sysctl", "procps", &[Need::Lab]),
    ("setpriv", "util-linux", &[Need::Lab]),
    ("/usr/sbin/ovs-vswitchd", "openvswitch-switch", &[Need::Lab]),
    ("/usr/sbin/dnsmasq", "dnsmasq-base", &[Need::Lab]),
    ("/usr/sbin/mkfs.ext4", "e2fsprogs", &[Need::Lab]),
    ("/usr/bin/tinyproxy", "tinyproxy-bin", &[Need::Lab]),
    ("/bin/busybox", "busybox-static", &[Need::Lab, Need::Machines]),
    ("modprobe", "kmod", &[Need::Lab, Need::Machines]),
    ("qemu-system-x86_64", "qemu-system-x86", &[Need::Machines]),
    ("cpio", "cpio", &[Need::Machines]),
    ("xz", "xz-utils", &[Need::Machines]),
    ("zstd", "zstd", &[Need::Machines]),
    ("cc", "gcc", &[Need::Programs, Need::Fuzz]),
    ("/usr/include/stdio.h", "libc6-dev", &[Need::Programs, Need::Fuzz]),
    ("c++", "g++", &[Need::Fuzz]),
];

/// Debian's compiler, and the source of its `core`.
const DEBIAN_RUST: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];

/// Something that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Package(&'static str),
    Core,
    Linker,
}

/// Installs the tools of every task, or only lists the missing ones; returns false if it listed any.
pub(crate) fn all(dry_run: bool) -> Result<bool> {
    if !dry_run {
        ensure(&Need::ALL)?;
        return Ok(true);
    }
    let missing = missing(&Need::ALL);
    for item in &missing {
        println!("missing: {}", name(*item));
    }
    Ok(missing.is_empty())
}

/// Installs the tools that `needs` name, as far as they are missing.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let missing = missing(needs);
    let packages: Vec<_> = missing
        .iter()
        .filter_map(|item| match item {
            Missing::Package(package) => Some(*package),
            Missing::Core | Missing::Linker => None,
        })
        .collect();
    if !packages.is_empty() {
        apt(&packages, "tools of this task")?;
    }
    if missing.contains(&Missing::Core) {
        install_core()?;
    }
    if missing.contains(&Missing::Linker) {
        install_linker()?;
    }
    Ok(())
}

fn name(item: Missing) -> String {
    match item {
        Missing::Package(package) => format!("package {package}"),
        Missing::Core => "source of `core` for a Rust toolchain".to_owned(),
        Missing::Linker => format!("bpf-linker {LINKER}"),
    }
}

fn missing(needs: &[Need]) -> Vec<Missing> {
    let is_needed = |tool: &&Tool| tool.2.iter().any(|need| needs.contains(need));
    let tools = TOOLS.iter().filter(is_needed).filter(|(file, ..)| !is_installed(file));
    let mut missing: Vec<_> = tools.map(|(_, package, _)| Missing::Package(package)).collect();
    if needs.contains(&Need::Programs) {
        if toolchain().is_none() {
            missing.push(Missing::Core);
        }
        if !is_installed("bpf-linker") {
            missing.push(Missing::Linker);
        }
    }
    missing
}

/// Looks for an absolute path, or for a name on `PATH`, in cargo's directory of binaries, and where Debian has programs of root.
fn is_installed(file: &str) -> bool {
    if file.starts_with('/') {
        return Path::new(file).exists();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let home = env::var_os("CARGO_HOME").map(|home| Path::new(&home).join("bin"));
    let dirs = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).chain(home);
    dirs.into_iter().any(|dir| dir.join(file).is_file())
}

/// Returns the toolchain that can build the kernel programs.
pub(crate) fn toolchain() -> Option<String> {
    // cargo's rustup proxy sets it; without the proxy, the toolchain that compiled this program is the pinned one.
    let pinned =
        env::var("RUSTUP_TOOLCHAIN").ok().or_else(|| option_env!("RUSTUP_TOOLCHAIN").map(str::to_owned));
    [pinned, Some(TOOLCHAIN.to_owned())].into_iter().flatten().find(|name| has_core(name))
}

/// Looks into rustup's directory of toolchains; running rustup would take longer than all other checks together.
fn has_core(toolchain: &str) -> bool {
    let home = env::var_os("RUSTUP_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::home_dir().map(|home| home.join(".rustup"))).unwrap_or_default();
    let sysroot = home.join("toolchains").join(toolchain);
    sysroot.join("lib/rustlib/src/rust/library/core").exists()
}

fn install_core() -> Result<()> {
    let mut fetch = Command::new("rustup");
    fetch.args(["component", "add", "rust-src"]).stdin(Stdio::null());
    let fetched = step::run("rustup: fetching the source of `core`", &mut fetch)?;
    if fetched.status.success() && toolchain().is_some() {
        return Ok(());
    }
    println!("rustup cannot fetch the source of `core`; using Debian's compiler and its source");
    apt(DEBIAN_RUST, "a compiler with the source of its `core`")?;
    let link = step::run(
        "rustup: linking Debian's toolchain",
        Command::new("rustup").args(["toolchain", "link", TOOLCHAIN, "/usr"]),
    )?;
    ensure!(link.status.success() && toolchain().is_some(), "link Debian's toolchain: {}", last_line(&link));
    Ok(())
}

/// Installs the packages of those programs or files in `wanted` that are missing.
pub(crate) fn packages(wanted: &[(&str, &str)], why: &str) -> Result<()> {
    let missing: Vec<_> =
        wanted.iter().filter(|(file, _)| !is_installed(file)).map(|(_, package)| *package).collect();
    if missing.is_empty() { Ok(()) } else { apt(&missing, why) }
}

/// Installs what building for arm64 and emulating it needs in addition.
pub(crate) fn arm64() -> Result<()> {
    let tools = [
        ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
        ("/usr/aarch64-linux-gnu/include/stdio.h", "libc6-dev-arm64-cross"),
        ("qemu-system-aarch64", "qemu-system-arm"),
    ];
    packages(&tools, "building for arm64 and emulating it")?;
    let mut add = Command::new("rustup");
    add.args(["target", "add", "aarch64-unknown-linux-gnu"]).stdin(Stdio::null());
    let output = step::run("rustup: fetching the standard library for arm64", &mut add)?;
    ensure!(output.status.success(), "fetch Rust's standard library for arm64: {}", last_line(&output));
    Ok(())
}

fn install_linker() -> Result<()> {
    packages(&[("c++", "g++")], "building bpf-linker")?;
    let prefix = format!("/usr/lib/llvm-{LLVM}");
    // The directory itself exists as soon as any package of this LLVM is installed; the linker needs the static libraries.
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
        // Outside of the repository, whose pinned toolchain and settings are not meant for the linker.
        .current_dir("/")
        .env("LLVM_PREFIX", &prefix)
        .env(format!("LLVM_SYS_{LLVM}1_PREFIX"), &prefix)
        .env_remove("CARGO_TARGET_DIR");
    let output = step::run("cargo: building bpf-linker", &mut install)?;
    ensure!(output.status.success(), "build bpf-linker: {}", last_line(&output));
    Ok(())
}

/// Installs Debian packages without starting their services.
fn apt(packages: &[&str], why: &str) -> Result<()> {
    let names = packages.join(" ");
    if !Path::new("/etc/debian_version").exists() {
        bail!("{why}: install the equivalents of the Debian packages {names}, then run this again");
    }
    // SAFETY: no precondition.
    if unsafe { libc::geteuid() } != 0 {
        bail!("{why}: run `sudo apt-get install {names}`, then this again");
    }
    let _policy = Policy::set();
    let what = format!("apt-get: installing {} ({why})", count(packages));
    let install = || {
        let mut command = Command::new("apt-get");
        command.args(["install", "-y", "--no-install-recommends"]).args(packages);
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        step::run(&what, &mut command)
    };
    if install()?.status.success() {
        return Ok(());
    }
    // A new machine has no package lists, and the lists of an old one may be outdated.
    let update = "apt-get: updating the package lists";
    step::run(update, Command::new("apt-get").arg("update").stdin(Stdio::null()))?;
    let output = install()?;
    ensure!(output.status.success(), "install {names}: {}", last_line(&output));
    Ok(())
}

fn count(packages: &[&str]) -> String {
    match packages {
        [package] => (*package).to_owned(),
        packages => format!("{} packages", packages.len()),
    }
}

/// A policy that keeps services from starting; removed when dropped. A policy that exists already is left alone.
struct Policy {
    is_ours: bool,
}

impl Policy {
    fn set() -> Self {
        let is_ours = !Path::new(POLICY).exists() && fs::write(POLICY, "#!/bin/sh\nexit 101\n").is_ok();
        if is_ours {
            let _ = fs::set_permissions(POLICY, std::os::unix::fs::PermissionsExt::from_mode(0o755));
        }
        Self { is_ours }
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.is_ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_is_needed_by_some_task() {
        for (file, package, needs) in TOOLS {
            assert!(!needs.is_empty(), "{file} of {package}");
        }
    }
}
