//! Tasks of this repository other than `cargo build`: `cargo xtask --help`.

mod bench;
mod check;
mod demo;
mod fuzz;
mod setup;
mod shell;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use lab::{Binaries, Progress};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Set-up, demo, test, check, bench and fuzz"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Demonstration: a host, two devices, and a VM in which they do DMA to each other
    Demo,
    /// Set-up, build and all tests, unit and lab
    Test(test::Args),
    /// Formatting, lints and documentation, with warnings as errors; licenses and sources of dependencies, with cargo-deny
    Check,
    /// Performance: ratios within one run, as a table
    Bench(bench::Args),
    /// Run the fuzz targets in libFuzzer, each for some minutes: executions, coverage and findings, as a table
    Fuzz(fuzz::Args),
    /// Find or fetch the assets of the lab: QEMU, a kernel, a few tools. The other tasks do this too
    Setup(setup::Args),
    /// Build the static programs for the lab
    Build,
    /// Boot a lab host and run a command in it, or commands from standard input
    Lab(shell::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Demo => demo::run()?,
        Task::Test(args) => test::run(&args)?,
        Task::Check => check::run()?,
        Task::Bench(args) => bench::run(&args)?,
        Task::Fuzz(args) => return fuzz::run(&args),
        Task::Setup(args) => setup::run(&args)?,
        Task::Build => {
            for (name, path) in Binaries::build(&Progress::new())?.iter() {
                println!("{name} {}", path.display());
            }
        }
        Task::Lab(args) => return shell::run(&args),
    }
    Ok(ExitCode::SUCCESS)
}

/// Cargo's directory for what it builds.
fn target_dir() -> PathBuf {
    let lab = lab::lab_dir();
    lab.parent().map_or_else(|| lab.clone(), Path::to_owned)
}
