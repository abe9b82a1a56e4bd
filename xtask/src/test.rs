//! `cargo xtask test`: all of them, in this order: what is quick to fail comes first.

use std::time::Instant;

use anyhow::{Context, Result};
use lab::{Assets, Binaries, Progress};
use xshell::{Shell, cmd};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also the tests that take many minutes
    #[arg(long)]
    long: bool,
    /// Given to the test programs: a filter, `--nocapture`, …
    #[arg(last = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let progress = Progress::new();
    let stage = |number: u8, what: &str| progress.step(&format!("[{number}/3] {what}"));
    let started = Instant::now();
    stage(1, "set-up");
    for line in Assets::ensure(&progress)?.describe() {
        progress.step(&format!("      {line}"));
    }
    progress.step(&format!("      {:.0} s", started.elapsed().as_secs_f64()));

    let started = Instant::now();
    stage(2, "building the programs that go into the lab");
    Binaries::build(&progress)?;
    progress.step(&format!("      {:.0} s", started.elapsed().as_secs_f64()));

    stage(3, "tests, unit and lab");
    let shell = Shell::new()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let rest = &args.rest;
    // Nothing is printed after this: the last word is the test runner's summary.
    cmd!(
        shell,
        "{cargo} test --locked --workspace --no-fail-fast -- {rest...}"
    )
    .env("LAB_LONG", if args.long { "1" } else { "" })
    .quiet()
    .run()
    .context("tests failed; what the labs left behind is in target/lab")
}
