//! `cargo xtask check`: formatting, lints, documentation and dependencies.

use std::time::Instant;

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

/// The library crates, each with the features that other crates of the workspace or their users turn on, one by one.
const LIBRARIES: [(&str, &[&str]); 5] = [
    ("iommu-group", &["", "policy-file", "schema"]),
    ("guest-topology", &[""]),
    ("p2p-vfio", &["", "vfio-ioctls", "conformance", "fuzzing"]),
    ("vmm-api", &["", "server", "schema"]),
    ("hotplug", &["", "schema", "conformance"]),
];

pub(crate) fn run() -> Result<()> {
    let shell = Shell::new()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let stage = |name: &str, command: xshell::Cmd<'_>| -> Result<()> {
        let started = Instant::now();
        command
            .quiet()
            .run()
            .with_context(|| format!("{name} failed"))?;
        eprintln!(
            "check: {name} clean ({:.0} s)",
            started.elapsed().as_secs_f64()
        );
        Ok(())
    };
    stage("formatting", cmd!(shell, "{cargo} fmt --all --check"))?;
    stage(
        "lints",
        cmd!(
            shell,
            "{cargo} clippy --quiet --locked --workspace --all-targets -- -D warnings"
        ),
    )?;
    stage(
        "documentation",
        cmd!(
            shell,
            "{cargo} doc --quiet --locked --workspace --no-deps --document-private-items"
        )
        .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    let started = Instant::now();
    for (library, features) in LIBRARIES {
        for feature in features {
            cmd!(
                shell,
                "{cargo} doc --quiet --locked --no-deps --package {library} --features={feature}"
            )
            .env("RUSTDOCFLAGS", "-D warnings")
            .quiet()
            .run()
            .with_context(|| format!("documentation of {library} with {feature:?} failed"))?;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("check: documentation by feature clean ({seconds:.0} s)");
    // Advisories are left out: they need a network.
    let version = cmd!(shell, "{cargo} deny --version").quiet();
    if version.ignore_stderr().read().is_err() {
        eprintln!("check: dependencies skipped: cargo-deny is not installed");
        return Ok(());
    }
    stage(
        "dependencies",
        cmd!(
            shell,
            "{cargo} deny --workspace --locked --offline --log-level error check licenses bans sources"
        ),
    )
}
