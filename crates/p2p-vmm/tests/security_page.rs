//! docs/security.md lists the crates whose code is in the process of the VMM.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn page() -> String {
    fs::read_to_string(repository().join("docs/security.md")).unwrap()
}

/// The names in the block below the heading `Dependencies`, without the words that lead their lists.
fn documented() -> BTreeSet<String> {
    let page = page();
    let (_, section) = page.split_once("\n## Dependencies\n").unwrap();
    let (_, block) = section.split_once("```text\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let lists = block
        .split("\n\n")
        .map(|list| list.split_once(':').unwrap());
    let names = lists.flat_map(|(_, names)| names.split_ascii_whitespace());
    names.map(str::to_owned).collect()
}

#[test]
fn the_crates_of_the_vmm_are_those_that_are_documented() {
    let cargo = std::env::var_os("CARGO").unwrap();
    // Of a procedural macro the compiler runs the code, not the VMM.
    let tree = "tree --locked --offline -p p2p-vmm -e normal,no-proc-macro --prefix none --format {p} \
                --target x86_64-unknown-linux-gnu";
    let output = Command::new(cargo)
        .args(tree.split_ascii_whitespace())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let names = lines.lines().filter_map(|line| line.split(' ').next());
    let names: BTreeSet<String> = names.map(str::to_owned).collect();
    assert_eq!(names, documented());
}
