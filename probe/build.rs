//! Builds the kernel half for the BPF target and hands the object to the crate.
//!
//! The target has no precompiled `core`, so a toolchain with the source of its own `core` is needed, and
//! `bpf-linker`. `cargo xtask setup` provides both.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// Names the rustup toolchain that builds the kernel half; found when it is not set.
const TOOLCHAIN: &str = "NETREADY_BPF_TOOLCHAIN";
/// Set for checks that never run the programs (clippy, documentation): an empty object is enough.
const SKIP: &str = "NETREADY_SKIP_BPF";

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above this crate").to_owned();
    println!("cargo:rerun-if-env-changed={TOOLCHAIN}");
    println!("cargo:rerun-if-env-changed={SKIP}");
    for watched in ["probe-ebpf", "probe-common", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", root.join(watched).display());
    }
    let object = out.join("probe-ebpf");
    if env::var_os(SKIP).is_some() {
        std::fs::write(object, []).expect("write the empty object");
        return;
    }
    let Some(toolchain) = env::var(TOOLCHAIN).ok().or_else(find_toolchain) else {
        fail("no Rust toolchain here has the source of `core`");
    };
    let target_dir = out.join("bpf");
    // Not through the library that usually does this: it cannot name a toolchain that is not nightly.
    let status = Command::new("rustup")
        .args(["run", &toolchain, "cargo", "build", "--release", "--locked", "--quiet"])
        .args(["--package", "probe-ebpf", "--bin", "probe-ebpf", "-Z", "build-std=core"])
        .args(["--target", "bpfel-unknown-none", "--target-dir"])
        .arg(&target_dir)
        .current_dir(&root)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags())
        // The outer cargo's choices are for the outer toolchain.
        .env_remove("RUSTC")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(_) => fail("the kernel half does not build (see above), or bpf-linker is missing"),
        Err(error) => fail(&format!("rustup does not start: {error}")),
    }
    let built = target_dir.join("bpfel-unknown-none/release/probe-ebpf");
    if let Err(error) = strip(&built, &object) {
        fail(&format!("take the debuggers' sections out of {}: {error}", built.display()));
    }
}

/// Copies the object without DWARF: the linker makes BTF of it, and nobody reads it after that. It is five sixths of the
/// file, which is kept in the memory of every agent.
fn strip(from: &Path, to: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let data = std::fs::read(from)?;
    let mut object = object::build::elf::Builder::read(&*data)?;
    for section in &mut object.sections {
        section.delete = section.name.starts_with(b".debug_") || section.name.starts_with(b".rel.debug_");
    }
    object.delete_orphans();
    // The linker has one table for the names of symbols and of sections, the library has one for each.
    let names = object.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.data = object::build::elf::SectionData::SectionString;
    let mut stripped = Vec::new();
    object.write(&mut stripped)?;
    std::fs::write(to, stripped)?;
    Ok(())
}

/// `bpf_target_arch` chooses the register layout; `--btf` makes the linker emit type information.
fn flags() -> String {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| "x86_64".to_owned());
    [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        // Small copies become loads and stores; the other way is for network cards that run BPF, and calls a loop over
        // bytes for each.
        "-Clink-arg=--disable-expand-memcpy-in-order".into(),
    ]
    .join("\x1f")
}

/// The toolchain in use when it has the source of `core`, else one that `cargo xtask setup` linked.
fn find_toolchain() -> Option<String> {
    let in_use = env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "stable".to_owned());
    [in_use, "netready-bpf".to_owned()].into_iter().find(|name| has_core(name))
}

fn has_core(toolchain: &str) -> bool {
    let output = Command::new("rustup").args(["run", toolchain, "rustc", "--print", "sysroot"]).output();
    output.is_ok_and(|output| {
        let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success() && Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").exists()
    })
}

fn fail(why: &str) -> ! {
    println!("cargo:warning=cannot build the kernel half: {why}; run `cargo xtask setup`");
    exit(1);
}
