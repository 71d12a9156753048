//! Debian's packages by package lists of our own, which leave those of the host unchanged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::step::{self, last_line};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Package lists and downloaded packages in a directory, for one architecture.
#[derive(Debug)]
pub(crate) struct Apt {
    dir: PathBuf,
    architecture: String,
}

impl Apt {
    /// Opens the lists in `dir`; `architecture` is Debian's name for it, such as `amd64`.
    pub(crate) fn open(dir: &Path, architecture: &str) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part))?;
        }
        Ok(Self { dir: dir.to_owned(), architecture: architecture.to_owned() })
    }

    /// Downloads the lists of `suites` from the mirror that the host uses; `kind` is `deb` or `deb-src`.
    pub(crate) fn update<'a>(&self, kind: &str, suites: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let mirror = mirror()?;
        let line = |suite| format!("{kind} [signed-by={KEYRING}] {mirror} {suite} main\n");
        let lines: String = suites.into_iter().map(line).collect();
        fs::write(self.dir.join("sources.list"), lines)?;
        fs::write(self.dir.join("status"), "")?;
        let what = format!("downloading the package lists of {mirror}");
        let output = step::run(&what, self.command("apt-get").arg("update"))?;
        ensure!(output.status.success(), "{what}: {}", last_line(&output));
        Ok(())
    }

    /// Returns the directory of downloaded packages.
    pub(crate) fn archives(&self) -> PathBuf {
        self.dir.join("cache/archives")
    }

    /// Returns a command that runs one of apt's programs with these lists.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        for (option, value) in [
            ("APT::Architecture", self.architecture.clone().into()),
            ("APT::Architectures", self.architecture.clone().into()),
            ("Dir::Etc::sourcelist", self.dir.join("sources.list")),
            ("Dir::Etc::sourceparts", "-".into()),
            ("Dir::State::Lists", self.dir.join("lists")),
            ("Dir::State::status", self.dir.join("status")),
            ("Dir::Cache", self.dir.join("cache")),
            ("Acquire::Languages", "none".into()),
            ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".into()),
            ("Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled", "false".into()),
            // apt's own user cannot write to the directories of root.
            ("APT::Sandbox::User", "root".into()),
        ] {
            apt.arg("-o").arg(format!("{option}={}", value.display()));
        }
        apt
    }
}

/// Returns the Debian mirror that the host uses.
fn mirror() -> Result<String> {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"]);
    let output = targets.output().context("run apt-get indextargets")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mirror = text.lines().find_map(|line| line.strip_prefix("Debian Debian "));
    mirror.map(str::to_owned).context("apt has no Debian mirror in its lists; run `apt-get update`")
}
