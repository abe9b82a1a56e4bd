//! Everything one does with this repository besides `cargo build`: `cargo xtask --help`.

mod shell;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use lab::{Assets, Binaries, Progress};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set-up, demo, test and check")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or fetch what the lab needs: QEMU, a kernel, a few tools. Everything else does this by itself
    Setup,
    /// Build the static programs that go into the lab
    Build,
    /// Boot a lab host and run a command in it, or read commands from standard input
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
        Task::Setup => {
            let assets = Assets::ensure(&Progress::new())?;
            for line in assets.describe() {
                println!("{line}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Task::Build => {
            for (name, path) in Binaries::build(&Progress::new())?.iter() {
                println!("{name} {}", path.display());
            }
            Ok(ExitCode::SUCCESS)
        }
        Task::Lab(args) => shell::run(&args),
    }
}
