//! Pages that are generated from the code.

mod inventory;

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{build, top};

/// Writes `docs/reasons.md` and `docs/unsafe.md`, or returns whether they are what would be written.
pub(crate) fn run(check: bool) -> Result<bool> {
    let probe = build::release()?;
    let reasons =
        Command::new(probe).args(["explain", "--markdown"]).output().context("run probe explain")?;
    ensure!(reasons.status.success(), "probe explain failed");
    let mut are_same = true;
    for (page, text) in
        [("docs/reasons.md", reasons.stdout), ("docs/unsafe.md", inventory::page()?.into_bytes())]
    {
        let path = top().join(page);
        if !check {
            std::fs::write(&path, text).with_context(|| format!("write {page}"))?;
        } else if std::fs::read(&path).unwrap_or_default() != text {
            println!("{page} is not what the code says: run `cargo xtask docs`");
            are_same = false;
        }
    }
    Ok(are_same)
}
