//! Pages that are generated from the code.

mod inventory;

use anyhow::{Context as _, Result};

use crate::{build, step, top};

/// Writes `docs/reasons.md` and `docs/unsafe.md`; with `check` writes nothing and returns whether both are up to date.
pub(crate) fn run(check: bool) -> Result<bool> {
    let mut explain = build::cargo_without_programs();
    explain.args(["run", "--package", "probe", "--", "explain", "--markdown"]);
    let reasons = step::cargo("building probe (dev profile)", &mut explain)?;
    let mut are_up_to_date = true;
    for (page, text) in
        [("docs/reasons.md", reasons.stdout), ("docs/unsafe.md", inventory::page()?.into_bytes())]
    {
        let path = top().join(page);
        if !check {
            std::fs::write(&path, text).with_context(|| format!("write {page}"))?;
        } else if std::fs::read(&path).unwrap_or_default() != text {
            println!("{page} is out of date: run `cargo xtask docs`");
            are_up_to_date = false;
        }
    }
    Ok(are_up_to_date)
}
