//! docs/security.md lists the crates whose code is in the process of the VMM, and the tests that hold what it says.

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

/// The names of all test functions below a directory: functions without arguments behind an attribute.
fn tests_below(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name() != Some("target".as_ref()) {
            tests_below(&path, names);
        } else if path.extension() == Some("rs".as_ref()) {
            let text = fs::read_to_string(&path).unwrap();
            // Between the attribute and the function there may be others.
            let tests = text.split("#[test]").skip(1);
            let names_of = tests.filter_map(|text| text.split_once("fn ")?.1.split_once("()"));
            names.extend(names_of.map(|(name, _)| name.to_owned()));
        }
    }
}

#[test]
fn what_is_said_to_be_enforced_has_a_test() {
    let mut tests = BTreeSet::new();
    for dir in ["crates", "tests"] {
        tests_below(&repository().join(dir), &mut tests);
    }
    let page = page();
    let (_, model) = page.split_once("# Threat model\n").unwrap();
    let (model, _) = model.split_once("\n# ").unwrap();
    let mut rows = 0;
    for row in model
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains('.'))
    {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [_, named] = cells.as_slice() else {
            panic!("two cells are wanted: {row}");
        };
        let named: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "{row}");
        for name in named {
            assert!(tests.contains(name), "no test is called {name}");
        }
        rows += 1;
    }
    assert!(rows > 20, "{rows} rows");
}
