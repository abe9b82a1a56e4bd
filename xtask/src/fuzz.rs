//! `cargo xtask fuzz`: runs the fuzz targets in libFuzzer and prints the results as a table.
//!
//! The stable compiler instruments the code, and the crate `libfuzzer-sys` contains libFuzzer, so only a C++ compiler
//! is needed in addition. One process runs one target at a time; two `cargo xtask fuzz` may run at once.

mod libfuzzer;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::Progress;

use crate::target_dir;
use libfuzzer::Program;
use report::{Run, table};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long each target runs
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Run a target once, on this file: an input that was found
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
    /// Only this target
    target: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("fuzz");
    let all = targets(&package.join("seeds"))?;
    let targets = match &args.target {
        None => all,
        Some(name) => {
            let known = all.join(", ");
            ensure!(
                all.contains(name),
                "there is no target {name}; the targets are {known}"
            );
            vec![name.clone()]
        }
    };
    ensure!(
        args.minutes.is_finite() && args.minutes > 0.0,
        "--minutes must be more than 0"
    );
    let progress = Progress::new();
    progress.step("building the targets with coverage instrumentation");
    let program = Program::build(&package, &target_dir())?;
    if let (Some(input), [target]) = (&args.input, &targets[..]) {
        return program.replay(target, input);
    }
    let mut runs = Vec::new();
    for target in &targets {
        progress.step(&format!("{target}, for {} min", args.minutes));
        runs.push(program.fuzz(target, args.minutes)?);
    }
    print!("{}", table(&runs));
    Ok(match runs.iter().all(Run::is_clean) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Names of the targets: each has a directory of seeds.
fn targets(seeds: &Path) -> Result<Vec<String>> {
    let read = || format!("cannot read {}", seeds.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(seeds).with_context(read)? {
        let name = entry.with_context(read)?.file_name();
        names.push(name.to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
