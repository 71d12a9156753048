//! Debian's kernels: downloaded as packages, unpacked and kept, never installed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::Arch;
use crate::apt::Apt;
use crate::quiet;
use crate::step::{self, last_line};

/// One kernel of the matrix: its version, and the Debian release that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Series {
    /// Its name on the command line of xtask.
    pub(super) name: &'static str,
    suite: &'static str,
    pub(super) arch: Arch,
    /// Additional parameters on the kernel's command line.
    pub(super) append: &'static str,
}

/// The supported kernels: the oldest, two in wide use, the newest, and one on which lockdown forbids reading kernel memory.
pub(super) const MATRIX: &[Series] = &[
    series("5.10", "bullseye", Arch::Amd64, ""),
    series("6.1", "bookworm", Arch::Amd64, ""),
    series("6.12", "trixie", Arch::Amd64, ""),
    series("7.2", "sid", Arch::Amd64, ""),
    series("6.12-confid.", "trixie", Arch::Amd64, "lockdown=confidentiality"),
];

/// Kernels that run only if they are named.
pub(super) const OTHERS: &[Series] = &[series("6.1-arm64", "bookworm", Arch::Arm64, "")];

const fn series(name: &'static str, suite: &'static str, arch: Arch, append: &'static str) -> Series {
    Series { name, suite, arch, append }
}

impl Series {
    /// Returns a number by which the machines are ordered by their duration. Newer kernels take longer, because they have more
    /// types to search; where memory may not be read fewer programs are tried.
    pub(super) fn weight(&self) -> u32 {
        let mut parts = self.version().split('.').map(|part| part.parse().unwrap_or(0));
        let version = parts.next().unwrap_or(0) * 100 + parts.next().unwrap_or(0);
        if self.append.is_empty() { version } else { version / 2 }
    }

    /// Returns `6.12` of `6.12-confid.`.
    fn version(&self) -> &'static str {
        self.name.split('-').next().unwrap_or(self.name)
    }
}

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    /// Release, as `uname -r` prints it.
    pub(super) release: String,
    /// The bootable image.
    pub(super) image: PathBuf,
    /// Directory that contains `lib/modules/RELEASE`, with the index of dependencies.
    pub(super) root: PathBuf,
}

/// The kernels and packages that were downloaded for one architecture.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    arch: Arch,
    apt: Apt,
}

impl Store {
    /// Opens the store of `arch` in `dir`.
    pub(super) fn open(dir: &Path, arch: Arch) -> Result<Self> {
        let dir = if arch == Arch::Amd64 { dir.to_owned() } else { dir.join(arch.debian()) };
        fs::create_dir_all(dir.join("kernels"))?;
        let apt = Apt::open(&dir, arch.debian())?;
        Ok(Self { dir, arch, apt })
    }

    /// Returns the kernel of `series`, which is downloaded if it is not in the store.
    pub(super) fn kernel(&self, series: Series) -> Result<Kernel> {
        let root = self.dir.join("kernels").join(series.version());
        // This file is written last: an interrupted download is repeated.
        let done = root.join("release");
        if !done.exists() {
            self.fetch(series, &root).with_context(|| format!("fetch Linux {}", series.version()))?;
        }
        let release = fs::read_to_string(done)?;
        let boot = root.join("boot").join(format!("vmlinuz-{release}"));
        let image =
            if boot.exists() { boot } else { root.join("lib/modules").join(&release).join("vmlinuz") };
        ensure!(image.exists(), "no bootable image for {release} in {}", root.display());
        Ok(Kernel { release, image, root })
    }

    fn fetch(&self, series: Series, root: &Path) -> Result<()> {
        let _ = fs::remove_dir_all(root);
        fs::create_dir_all(root)?;
        let names = match self.packages(series) {
            Ok(names) if !names.is_empty() => names,
            _ => {
                self.update()?;
                self.packages(series)?
            }
        };
        // Releases cannot be compared as text: 6.12.107 is newer than 6.12.94.
        let newest =
            names.iter().map(|name| release_of(name)).max_by_key(|release| (numbers(release), release.len()));
        let Some(release) = newest else {
            bail!("the mirror has no cloud kernel {} in {}", series.version(), series.suite)
        };
        let wanted: Vec<&str> =
            names.iter().map(String::as_str).filter(|name| release_of(name) == release).collect();
        let debs = root.join("debs");
        fs::create_dir_all(&debs)?;
        let what = format!("downloading Linux {release} from Debian {}", series.suite);
        let mut download = self.apt.command("apt-get");
        let output = step::run(&what, download.arg("download").args(&wanted).current_dir(&debs))?;
        ensure!(output.status.success(), "{what}: {}", last_line(&output));
        for deb in fs::read_dir(&debs)? {
            quiet(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(root))?;
        }
        fs::remove_dir_all(&debs)?;
        // Newer packages have the modules under /usr/lib, where `modprobe -d` does not search.
        if !root.join("lib").exists() {
            std::os::unix::fs::symlink("usr/lib", root.join("lib"))?;
        }
        quiet(Command::new("depmod").arg("-b").arg(root).arg(release))?;
        fs::write(root.join("release"), release)?;
        Ok(())
    }

    /// Returns the names of the image, binary and module packages of this series.
    fn packages(&self, series: Series) -> Result<Vec<String>> {
        let output =
            self.apt.command("apt-cache").args(["pkgnames", "linux-"]).output().context("run apt-cache")?;
        let names = String::from_utf8_lossy(&output.stdout).into_owned();
        let prefix = format!("{}.", series.version());
        let cloud = format!("-cloud-{}", self.arch.debian());
        let fits = |name: &&str| {
            let kind =
                ["linux-image-", "linux-binary-", "linux-modules-"].iter().any(|kind| name.starts_with(kind));
            kind && release_of(name).starts_with(&prefix) && name.ends_with(&cloud)
        };
        Ok(names.lines().filter(fits).map(str::to_owned).collect())
    }

    /// Returns a directory with these packages and their dependencies, unpacked but never run on this host: the system of
    /// another architecture.
    pub(super) fn system(&self, suite: &str, packages: &[&str]) -> Result<PathBuf> {
        let root = self.dir.join("system");
        let done = root.join("complete");
        if !done.exists() {
            let _ = fs::remove_dir_all(&root);
            fs::create_dir_all(&root)?;
            self.update()?;
            let mut install = self.apt.command("apt-get");
            install.args(["install", "-y", "--no-install-recommends", "--download-only", "-t", suite]);
            let what = format!("downloading a {} system from Debian {suite}", self.arch.debian());
            let output = step::run(&what, install.args(packages))?;
            ensure!(output.status.success(), "{what}: {}", last_line(&output));
            for deb in fs::read_dir(self.apt.archives())?.flatten() {
                if deb.path().extension().is_some_and(|extension| extension == "deb") {
                    quiet(Command::new("dpkg-deb").arg("-x").arg(deb.path()).arg(&root))?;
                }
            }
            fs::write(done, suite)?;
        }
        Ok(root)
    }

    fn update(&self) -> Result<()> {
        let all = MATRIX.iter().chain(OTHERS).filter(|series| series.arch == self.arch);
        let suites: BTreeSet<_> = all.map(|series| series.suite).collect();
        self.apt.update("deb", suites)
    }
}

/// Returns `6.1.0-50-cloud-amd64` of `linux-image-6.1.0-50-cloud-amd64`.
fn release_of(package: &str) -> &str {
    package.splitn(3, '-').nth(2).unwrap_or_default()
}

/// Returns the numbers in a release, by which releases are compared.
fn numbers(release: &str) -> Vec<u32> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_their_numbers() {
        assert_eq!(release_of("linux-image-6.1.0-50-cloud-amd64"), "6.1.0-50-cloud-amd64");
        assert!(numbers("6.12.107+deb13-cloud-amd64") > numbers("6.12.94+deb13-cloud-amd64"));
        assert!(numbers("5.10.0-32-cloud-amd64") > numbers("5.10.0-9-cloud-amd64"));
    }
}
