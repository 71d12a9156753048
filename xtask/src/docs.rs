//! Pages that are made from the code.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{build, top};

/// Writes `docs/reasons.md`, or says whether it is what would be written.
pub(crate) fn run(check: bool) -> Result<bool> {
    let probe = build::release()?;
    let output = Command::new(probe).args(["explain", "--markdown"]).output().context("run probe explain")?;
    ensure!(output.status.success(), "probe explain failed");
    let path = top().join("docs/reasons.md");
    if !check {
        std::fs::write(&path, output.stdout)?;
        return Ok(true);
    }
    let same = std::fs::read(&path).unwrap_or_default() == output.stdout;
    if !same {
        println!("docs/reasons.md is not what the code says: run `cargo xtask docs`");
    }
    Ok(same)
}
