//! Checks whether the file of a plugin can be executed: predicts a failure of execve(2) before the plugin is
//! run for a pod.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use object::Endianness;
use object::elf::{EM_386, EM_AARCH64, EM_ARM, EM_X86_64, FileHeader32, FileHeader64, PT_INTERP, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader as _};

use crate::settings::Settings;
use crate::text::clean;

/// How much of a file is read, bytes: the ELF headers of a program are in its first page.
const HEAD: usize = 4096;
/// Longest path of an interpreter that is reported.
const PATH: usize = 128;
/// Registered handlers of other executable formats (Documentation/admin-guide/binfmt-misc.rst).
const BINFMT: &str = "/proc/sys/fs/binfmt_misc";

/// Returns why the regular file at `path` (in the agent's mount namespace) cannot be executed on the host, as
/// a phrase that follows its path. `None` if it can, or if the agent cannot read it.
pub(super) fn unusable(settings: &Settings, path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o111 == 0 {
        return Some(format!("is not executable (mode {mode:04o})"));
    }
    if metadata.len() == 0 {
        return Some("is empty".to_owned());
    }
    let mut head = Vec::new();
    File::open(path).ok()?.take(HEAD as u64).read_to_end(&mut head).ok()?;
    why(settings, &head, metadata.len())
}

fn why(settings: &Settings, head: &[u8], size: u64) -> Option<String> {
    if let Some(line) = head.strip_prefix(b"#!") {
        let end = line.iter().position(|byte| *byte == b'\n').unwrap_or(line.len());
        let interpreter = line[..end].trim_ascii().split(u8::is_ascii_whitespace).next()?;
        return missing(settings, interpreter);
    }
    let elf = match head {
        [0x7f, b'E', b'L', b'F', 1, ..] => elf::<FileHeader32<Endianness>>(settings, head, size),
        [0x7f, b'E', b'L', b'F', ..] => elf::<FileHeader64<Endianness>>(settings, head, size),
        _ => Some("is neither a script nor an ELF program".to_owned()),
    };
    // A registered handler may run any format.
    elf.filter(|_| !has_handlers())
}

/// Checks an ELF file of `size` bytes that begins with `head`.
fn elf<H: FileHeader<Endian = Endianness>>(settings: &Settings, head: &[u8], size: u64) -> Option<String> {
    let broken = || Some("has a broken ELF header".to_owned());
    let Ok(header) = H::parse(head) else { return broken() };
    let Ok(endian) = header.endian() else { return broken() };
    let machine = header.e_machine(endian);
    if !runs_here(machine) {
        let here = std::env::consts::ARCH;
        return Some(format!("is built for {}, but this machine is {here}", name_of(machine)));
    }
    let Ok(segments) = header.program_headers(endian, head) else { return broken() };
    let needed = segments.iter().filter(|segment| segment.p_type(endian) == PT_LOAD).map(|segment| {
        let (offset, length) = (segment.p_offset(endian).into(), segment.p_filesz(endian).into());
        u64::saturating_add(offset, length)
    });
    if let Some(needed) = needed.max().filter(|needed| *needed > size) {
        return Some(format!("is truncated: it has {size} of at least {needed} bytes"));
    }
    let interpreter = segments.iter().find(|segment| segment.p_type(endian) == PT_INTERP)?;
    let (offset, length) = (interpreter.p_offset(endian).into(), interpreter.p_filesz(endian).into());
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    missing(settings, head.get(start..end)?.split(|byte| *byte == 0).next()?)
}

/// Returns the reason if the dynamic loader of a program, or the interpreter of a script, does not exist.
fn missing(settings: &Settings, interpreter: &[u8]) -> Option<String> {
    let path = Path::new(std::str::from_utf8(interpreter).ok()?);
    let exists = !path.is_absolute() || settings.on_host(path).exists();
    (!exists).then(|| format!("needs {}, which does not exist", clean(interpreter, PATH)))
}

/// Returns whether the machine executes programs of this ELF machine. Most kernels also execute the 32-bit
/// programs of their architecture.
fn runs_here(machine: u16) -> bool {
    match std::env::consts::ARCH {
        "x86_64" => matches!(machine, EM_X86_64 | EM_386),
        "aarch64" => matches!(machine, EM_AARCH64 | EM_ARM),
        _ => true,
    }
}

fn name_of(machine: u16) -> String {
    match machine {
        EM_X86_64 => "x86_64".to_owned(),
        EM_AARCH64 => "aarch64".to_owned(),
        EM_386 => "i386".to_owned(),
        EM_ARM => "arm".to_owned(),
        object::elf::EM_S390 => "s390x".to_owned(),
        object::elf::EM_PPC64 => "ppc64".to_owned(),
        object::elf::EM_RISCV => "riscv".to_owned(),
        other => format!("ELF machine {other}"),
    }
}

/// Returns whether a binfmt_misc handler is registered.
fn has_handlers() -> bool {
    let entries = fs::read_dir(BINFMT).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).any(|name| name != "register" && name != "status")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use crate::settings::tests::settings;

    use super::*;

    #[test]
    fn reports_why_a_file_cannot_be_executed() {
        let settings = settings(&[]);
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, bytes: &[u8], mode: u32| -> PathBuf {
            let path = dir.path().join(name);
            fs::write(&path, bytes).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            path
        };
        let own = fs::read(std::env::current_exe().expect("this program")).expect("readable");
        let mut other = own.clone();
        let machine = if cfg!(target_arch = "x86_64") { EM_AARCH64 } else { EM_X86_64 };
        other[18..20].copy_from_slice(&machine.to_ne_bytes());
        let loader = b"/lib";
        let at = own.windows(loader.len()).position(|part| part == loader);
        for (path, wanted) in [
            (file("good", &own, 0o755), None),
            (file("script", b"#!/bin/sh\nexit 0\n", 0o755), None),
            (file("env", b"#! /usr/bin/env python3\n", 0o755), None),
            (file("mode", &own, 0o644), Some("is not executable (mode 0644)")),
            (file("empty", b"", 0o755), Some("is empty")),
            (file("text", b"<html>404", 0o755), Some("is neither a script nor an ELF program")),
            (
                file("lost", b"#!/no/such/shell -e\n", 0o755),
                Some("needs /no/such/shell, which does not exist"),
            ),
            (file("cut", &own[..64 << 10], 0o755), Some("is truncated")),
            (file("stub", &own[..20], 0o755), Some("has a broken ELF header")),
            (file("foreign", &other, 0o755), Some("is built for ")),
        ] {
            let why = unusable(&settings, &path);
            let fits = match (&why, wanted) {
                (Some(why), Some(wanted)) => why.starts_with(wanted),
                (None, None) => true,
                _ => false,
            };
            assert!(fits || has_handlers(), "{}: {why:?}, not {wanted:?}", path.display());
        }
        // A program whose loader does not exist, if the test executable is dynamically linked.
        if let Some(at) = at.filter(|at| *at < HEAD) {
            let mut lost = own;
            lost[at..at + 4].copy_from_slice(b"/lob");
            let why = unusable(&settings, &file("loader", &lost, 0o755)).expect("not executable");
            assert!(why.starts_with("needs /lob") && why.ends_with("which does not exist"), "{why}");
        }
        assert_eq!(unusable(&settings, &dir.path().join("nothing")), None);
    }

    #[test]
    fn corrupt_headers_do_not_panic() {
        let settings = settings(&[]);
        let mut own = fs::read(std::env::current_exe().expect("this program")).expect("readable");
        own.truncate(HEAD);
        for at in 0..128 {
            let mut broken = own.clone();
            broken[at] = 0xff;
            let _ = why(&settings, &broken, 1 << 40);
            let _ = why(&settings, &broken[..at], at as u64);
        }
    }
}
