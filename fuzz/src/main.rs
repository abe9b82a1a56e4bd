//! Program that libFuzzer drives: `FUZZ_TARGET` names the target. `cargo xtask fuzz` starts it.

#![no_main]

use std::sync::OnceLock;

use fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<&Target> = OnceLock::new();

/// Returns the target that the environment names. Ends the process if it does not exist.
fn target() -> &'static Target {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    Target::named(&name).unwrap_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!(
            "error: FUZZ_TARGET is {name:?}, and the targets are {}",
            names.join(", ")
        );
        std::process::exit(2);
    })
}

fuzz_target!(|input: &[u8]| {
    (TARGET.get_or_init(target).run)(input);
});
