//! Debian's packages through lists of our own: the machine's stay as they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::quiet;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Lists and archives in a directory, for one architecture.
#[derive(Debug)]
pub(crate) struct Apt {
    dir: PathBuf,
    architecture: String,
}

impl Apt {
    /// Opens them; Debian's name for the architecture, `amd64`.
    pub(crate) fn open(dir: &Path, architecture: &str) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part))?;
        }
        Ok(Self { dir: dir.to_owned(), architecture: architecture.to_owned() })
    }

    /// Reads the lists of these suites from the mirror that this machine uses; `kind` is `deb` or `deb-src`.
    pub(crate) fn update<'a>(&self, kind: &str, suites: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let mirror = mirror()?;
        println!("reading the package lists of {mirror}");
        let line = |suite| format!("{kind} [signed-by={KEYRING}] {mirror} {suite} main\n");
        let lines: String = suites.into_iter().map(line).collect();
        fs::write(self.dir.join("sources.list"), lines)?;
        fs::write(self.dir.join("status"), "")?;
        quiet(self.command("apt-get").arg("update"))
    }

    /// Where what was downloaded lies.
    pub(crate) fn archives(&self) -> PathBuf {
        self.dir.join("cache/archives")
    }

    /// One of apt's programs with these lists.
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
            // The directories are root's.
            ("APT::Sandbox::User", "root".into()),
        ] {
            apt.arg("-o").arg(format!("{option}={}", value.display()));
        }
        apt
    }
}

/// The Debian mirror that this machine uses.
fn mirror() -> Result<String> {
    let mut ask = Command::new("apt-get");
    ask.args(["indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"]);
    let output = ask.output().context("run apt-get indextargets")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mirror = text.lines().find_map(|line| line.strip_prefix("Debian Debian "));
    mirror.map(str::to_owned).context("this machine's apt knows no Debian mirror; run `apt-get update`")
}
