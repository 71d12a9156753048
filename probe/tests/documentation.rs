//! Compares the documentation of the contract with the code.

use std::collections::BTreeSet;
use std::path::Path;

use probe_engine::Reason;

#[test]
fn contract_lists_every_reason_with_its_side() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/verdicts.md");
    let text = std::fs::read_to_string(path).expect("docs/verdicts.md");
    let section = text.split("\n## ").find(|section| section.starts_with("2. Reasons")).expect("section 2");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let documented: Vec<_> = rows
        .map(|row| {
            let (reason, rest) = row.split_once("` |").expect("a reason");
            (reason, rest.split('|').next().unwrap_or_default().trim())
        })
        .collect();
    let unique: BTreeSet<_> = documented.iter().copied().collect();
    assert_eq!(unique.len(), documented.len(), "a reason is listed twice");
    let known: BTreeSet<_> =
        Reason::ALL.iter().map(|reason| (reason.as_str(), reason.side().as_str())).collect();
    assert_eq!(unique, known);
}
