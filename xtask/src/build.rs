//! The release binary: static, so that it runs on any Linux of its architecture from 5.10 on.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::vm::Arch;
use crate::{setup, shown, target, top};

/// The budget of the binary.
pub(crate) const MAX_BYTES: u64 = 12 << 20;

/// Builds `probe`, checks that it is static and small, and answers with its path.
pub(crate) fn release() -> Result<PathBuf> {
    release_for(Arch::Amd64)
}

/// The same for any architecture. The target is named, so that its flags are for the binary and not for build
/// scripts.
pub(crate) fn release_for(arch: Arch) -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo.args(["build", "--quiet", "--release", "--package", "probe", "--target", arch.target()]);
    arch.cargo(&mut cargo);
    shown(&mut cargo)?;
    let path = target().join(arch.target()).join("release/probe");
    let bytes = std::fs::metadata(&path).with_context(|| format!("look at {}", path.display()))?.len();
    ensure!(is_static(&path)?, "{} needs a dynamic loader", path.display());
    ensure!(bytes <= MAX_BYTES, "{} has {bytes} bytes, more than {MAX_BYTES}", path.display());
    println!("{} ({:.1} MB, static)", path.display(), megabytes(bytes));
    Ok(path)
}

/// Builds the helper of the laboratory beside this program.
pub(crate) fn lab() -> Result<()> {
    shown(cargo().args(["build", "--quiet", "--package", "kernel-tests"]))
}

/// Builds the live tests and their helper so that they run on a machine with nothing else.
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
        "json",
    ]);
    arch.cargo(&mut cargo);
    // Copied into the memory of small machines, whose processor is emulated: making a key takes seconds there if it is not
    // optimized.
    cargo
        .env("CARGO_PROFILE_DEV_STRIP", "true")
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
        .stderr(Stdio::inherit());
    let output = cargo.current_dir(top()).output().context("build the live tests")?;
    ensure!(output.status.success(), "the live tests do not build");
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

/// Returns a cargo command. What it builds has the kernel programs: a build without them fails.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.env("NETREADY_REQUIRE_BPF", "1").env_remove("NETREADY_SKIP_BPF");
    if let Some(toolchain) = setup::toolchain() {
        cargo.env("NETREADY_BPF_TOOLCHAIN", toolchain);
    }
    cargo
}

/// No `PT_INTERP` among the program headers of a 64-bit ELF file.
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

/// For people.
#[expect(clippy::cast_precision_loss, reason = "a size with one decimal")]
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
