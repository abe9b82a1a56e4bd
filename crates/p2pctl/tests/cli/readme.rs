//! The examples in the README are what p2pctl prints.
//!
//! `P2PCTL_UPDATE=1 cargo test -p p2pctl readme` writes them anew.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::run::{fixture, p2pctl};

/// What an example's command prints, standard output only.
fn output(command: &str) -> String {
    let words =
        command
            .split_whitespace()
            .map(|word| match word.strip_suffix(".json").map(fixture) {
                Some(file) => file.to_str().unwrap().to_owned(),
                None => word.to_owned(),
            });
    p2pctl(words).stdout
}

#[test]
fn examples_are_what_is_printed() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let committed = fs::read_to_string(&file).unwrap();
    let mut wanted = String::new();
    let mut examples = 0;
    let mut in_output = false;
    for line in committed.lines() {
        if line == "```" {
            in_output = false;
        }
        if !in_output {
            writeln!(wanted, "{line}").unwrap();
        }
        if let Some(command) = line.strip_prefix("$ p2pctl ") {
            examples += 1;
            in_output = true;
            wanted.push_str(&output(command));
        }
    }
    assert!(examples > 4, "the README has lost its examples");
    if std::env::var_os("P2PCTL_UPDATE").is_some() {
        fs::write(&file, &wanted).unwrap();
        return;
    }
    assert_eq!(committed, wanted);
}
