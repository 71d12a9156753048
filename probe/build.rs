//! Builds the kernel programs for the BPF target, and passes their object to the crate.
//!
//! rustup has no precompiled `core` for that target: a toolchain with the source of its own `core` is needed, and
//! `bpf-linker`. `cargo xtask setup` installs both. Where one of them is missing, the object is an empty stub, so that
//! `cargo build` and `cargo test` need nothing but Rust; the binary then reports that its kernel programs are missing.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// Names the rustup toolchain that builds the kernel programs; auto-detected when it is not set.
const TOOLCHAIN: &str = "NETREADY_BPF_TOOLCHAIN";
/// Set for builds that never load the programs (clippy, documentation, fuzzing): makes a stub.
const SKIP: &str = "NETREADY_SKIP_BPF";
/// Set by xtask for everything that is tested or shipped: an object that cannot be built is an error. Overrides [`SKIP`].
const REQUIRE: &str = "NETREADY_REQUIRE_BPF";

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace is the parent directory of this crate")
        .to_owned();
    for variable in [TOOLCHAIN, SKIP, REQUIRE] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    for watched in ["probe-ebpf", "probe-common", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo:rustc-check-cfg=cfg(without_kernel_programs)");
    let object = out.join("probe-ebpf");
    let is_required = env::var_os(REQUIRE).is_some();
    if env::var_os(SKIP).is_some() && !is_required {
        return stub(&object);
    }
    match requirements() {
        Ok(toolchain) => build(&root, &out, &object, &toolchain),
        Err(missing) if is_required => fail(&missing),
        Err(missing) => {
            println!(
                "cargo:warning={missing}: building WITHOUT the kernel programs; commands that load them will exit with 77. \
                 Run `cargo xtask setup` to install what is missing"
            );
            rerun_after_setup();
            stub(&object);
        }
    }
}

/// Writes an empty object, and sets the cfg by which tests that need the programs are ignored.
fn stub(object: &Path) {
    println!("cargo:rustc-cfg=without_kernel_programs");
    fs::write(object, []).expect("write the empty object");
}

/// Returns the toolchain that can build the programs, or what is missing.
fn requirements() -> Result<String, String> {
    let toolchain = env::var(TOOLCHAIN).ok().or_else(find_toolchain);
    let toolchain = toolchain.ok_or("no Rust toolchain with the source of `core` found")?;
    if !directories().iter().any(|dir| dir.join("bpf-linker").is_file()) {
        return Err("bpf-linker not found".to_owned());
    }
    Ok(toolchain)
}

/// Runs this script again once `cargo xtask setup` has installed something: bpf-linker into cargo's directory of binaries, or
/// the source of `core`, which rustup enters into the toolchain's list of components. Only paths that exist are named:
/// cargo would run the script, and compile the crate, every time for one that does not.
fn rerun_after_setup() {
    let sysroot = sysroot(&toolchain_in_use());
    let components = sysroot.map(|sysroot| sysroot.join("lib/rustlib/components"));
    for path in cargo_bin().into_iter().chain(components).filter(|path| path.exists()) {
        println!("cargo:rerun-if-changed={}", path.display());
    }
}

fn build(root: &Path, out: &Path, object: &Path, toolchain: &str) {
    let target_dir = out.join("bpf");
    // aya-build, which is usually used for this, cannot name a toolchain that is not nightly.
    let status = Command::new("rustup")
        .args(["run", toolchain, "cargo", "build", "--release", "--locked", "--quiet"])
        .args(["--package", "probe-ebpf", "--bin", "probe-ebpf", "-Z", "build-std=core"])
        .args(["--target", "bpfel-unknown-none", "--target-dir"])
        .arg(&target_dir)
        .current_dir(root)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags())
        // These were set by the outer cargo for its own toolchain.
        .env_remove("RUSTC")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(_) => fail("compilation failed, see above"),
        Err(error) => fail(&format!("cannot start rustup: {error}")),
    }
    let built = target_dir.join("bpfel-unknown-none/release/probe-ebpf");
    if let Err(error) = strip(&built, object) {
        fail(&format!("cannot strip {}: {error}", built.display()));
    }
}

/// Copies the object without DWARF: the linker has converted it to BTF, and nothing reads it after that. It is five sixths of
/// the file, which stays in the memory of every agent.
fn strip(from: &Path, to: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let data = fs::read(from)?;
    let mut object = object::build::elf::Builder::read(&*data)?;
    for section in &mut object.sections {
        section.delete = section.name.starts_with(b".debug_") || section.name.starts_with(b".rel.debug_");
    }
    object.delete_orphans();
    // The linker writes one string table for symbols and sections, the library needs one for each.
    let names = object.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.data = object::build::elf::SectionData::SectionString;
    let mut stripped = Vec::new();
    object.write(&mut stripped)?;
    fs::write(to, stripped)?;
    Ok(())
}

/// Returns the compiler's flags: `bpf_target_arch` selects the register layout, `--btf` makes the linker emit type
/// information.
fn flags() -> String {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| "x86_64".to_owned());
    [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        // Small copies become loads and stores. The linker's default is meant for network cards that run BPF, and calls a
        // loop over bytes for each copy.
        "-Clink-arg=--disable-expand-memcpy-in-order".into(),
    ]
    .join("\x1f")
}

/// Returns the toolchain in use if it has the source of `core`, else the one that `cargo xtask setup` linked.
fn find_toolchain() -> Option<String> {
    [toolchain_in_use(), "netready-bpf".to_owned()].into_iter().find(|name| has_core(name))
}

fn toolchain_in_use() -> String {
    env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "stable".to_owned())
}

fn has_core(toolchain: &str) -> bool {
    sysroot(toolchain).is_some_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library/core").exists())
}

fn sysroot(toolchain: &str) -> Option<PathBuf> {
    let output = Command::new("rustup").args(["run", toolchain, "rustc", "--print", "sysroot"]).output();
    let output = output.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().into())
}

/// Returns where rustc finds linkers: rustup puts cargo's own directory on the `PATH` of what it runs.
fn directories() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(cargo_bin()).collect()
}

fn cargo_bin() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(env::home_dir()?.join(".cargo"))).map(|home| home.join("bin"))
}

fn fail(why: &str) -> ! {
    println!(
        "cargo:warning=cannot build the kernel programs: {why}; `cargo xtask setup` installs what they need"
    );
    exit(1);
}
