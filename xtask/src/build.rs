//! The binaries: static, so that they run on any Linux of their architecture from 5.10 on.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::vm::Arch;
use crate::{setup, step, target, top};

/// Largest size of the release binary, in bytes.
pub(crate) const MAX_BYTES: u64 = 12 << 20;

/// Builds `probe` of the release profile, checks that it is static and small, and returns its path.
pub(crate) fn release() -> Result<PathBuf> {
    release_for(Arch::Amd64)
}

/// Builds the release binary for any architecture; see [`release`].
pub(crate) fn release_for(arch: Arch) -> Result<PathBuf> {
    let path = probe(arch, "release")?;
    let bytes = size(&path)?;
    ensure!(bytes <= MAX_BYTES, "{} has {bytes} bytes, more than {MAX_BYTES}", path.display());
    println!("{} ({:.1} MB, static)", path.display(), megabytes(bytes));
    Ok(path)
}

/// Builds `probe` of the profile `demo`, for this machine: as the release binary, but built faster, and larger.
pub(crate) fn demo() -> Result<PathBuf> {
    probe(Arch::Amd64, "demo")
}

fn probe(arch: Arch, profile: &str) -> Result<PathBuf> {
    let mut cargo = cargo();
    // With a named target, the flags are for the binary and not for build scripts.
    cargo.args(["build", "--profile", profile, "--package", "probe", "--target", arch.target()]);
    arch.cargo(&mut cargo);
    step::cargo(&format!("building probe ({profile} profile)"), &mut cargo)?;
    let path = target().join(arch.target()).join(profile).join("probe");
    ensure!(is_static(&path)?, "{} needs a dynamic loader", path.display());
    Ok(path)
}

/// Returns the binary that `NETREADY_PROBE` names, or builds one.
pub(crate) fn under_test(build: fn() -> Result<PathBuf>) -> Result<PathBuf> {
    std::env::var_os("NETREADY_PROBE").map_or_else(build, |path| Ok(path.into()))
}

/// Builds the helper of the live tests, which lies beside this program.
pub(crate) fn lab() -> Result<()> {
    step::cargo("building lab-helper", cargo().args(["build", "--package", "kernel-tests"])).map(drop)
}

/// Builds the live tests and their helper so that they run on a machine without libraries.
pub(crate) fn static_lab(arch: Arch) -> Result<(PathBuf, Vec<PathBuf>)> {
    let mut cargo = cargo();
    cargo.args([
        "test",
        "--package",
        "kernel-tests",
        "--no-run",
        "--target",
        arch.target(),
        "--message-format",
        "json-render-diagnostics",
    ]);
    arch.cargo(&mut cargo);
    // They are copied into the memory of small machines, and run on an emulated processor, where making a key with
    // unoptimized code takes seconds.
    cargo.env("CARGO_PROFILE_DEV_STRIP", "true").env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    let output = step::cargo(&format!("building the live tests for {}", arch.debian()), &mut cargo)?;
    let (mut helper, mut tests) = (None, Vec::new());
    for line in output.stdout.split(|byte| *byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<serde_json::Value>(line) else { continue };
        let Some(executable) = message["executable"].as_str().map(PathBuf::from) else { continue };
        match (message["target"]["name"].as_str(), message["target"]["kind"][0].as_str()) {
            (Some("lab-helper"), Some("bin")) if message["profile"]["test"] == false => {
                helper = Some(executable);
            }
            (_, Some("test")) => tests.push(executable),
            _ => {}
        }
    }
    Ok((helper.context("cargo built no lab-helper")?, tests))
}

/// Returns a cargo command for the top directory. What it builds has the kernel programs: a build without them fails.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(top()).env("NETREADY_REQUIRE_BPF", "1").env_remove("NETREADY_SKIP_BPF");
    if let Some(toolchain) = setup::toolchain() {
        cargo.env("NETREADY_BPF_TOOLCHAIN", toolchain);
    }
    cargo
}

/// Returns a cargo command for the top directory that does not build the kernel programs, for what never loads them.
pub(crate) fn cargo_without_programs() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(top()).env("NETREADY_SKIP_BPF", "1").env_remove("NETREADY_REQUIRE_BPF");
    cargo
}

fn size(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).with_context(|| format!("read the size of {}", path.display()))?.len())
}

/// Returns whether a 64-bit ELF file has no `PT_INTERP` among its program headers.
pub(crate) fn is_static(path: &Path) -> Result<bool> {
    const PT_INTERP: u32 = 3;
    let bytes = std::fs::read(path)?;
    let short = |at: usize| bytes.get(at..at + 2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let offset = bytes.get(32..40).and_then(|b| usize::try_from(u64::from_le_bytes(b.try_into().ok()?)).ok());
    let (Some(offset), Some(size), Some(count)) = (offset, short(54), short(56)) else { return Ok(false) };
    let kind = |index: usize| {
        bytes.get(offset + index * size..)?.get(..4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    };
    Ok((0..count).all(|index| kind(index) != Some(PT_INTERP)))
}

/// Converts bytes to MiB, for output.
#[expect(clippy::cast_precision_loss, reason = "a size with one decimal")]
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
