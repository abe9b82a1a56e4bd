//! `cargo xtask lab`: a lab host for interactive use.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::protocol::Exit;
use lab::{Lab, Output, Profile};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A profile under resources/lab, without `.toml`, or a path to one
    profile: String,
    /// Copy a file into the host first
    #[arg(long, value_name = "SOURCE:TARGET")]
    put: Vec<String>,
    /// Copy a file out of the host at the end
    #[arg(long, value_name = "SOURCE:TARGET")]
    get: Vec<String>,
    /// Bind functions to vfio-pci first
    #[arg(long, value_name = "BDF", value_delimiter = ',')]
    bind: Vec<String>,
    /// The lab's directory below target/lab
    #[arg(long, default_value = "shell")]
    name: String,
    /// Timeout of one command in seconds
    #[arg(long, default_value_t = 120)]
    deadline: u64,
    /// The command; a single word is run by the shell. Without a command, lines are read from standard input
    #[arg(last = true)]
    command: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let profile = if args.profile.contains(['/', '.']) {
        Profile::read(&PathBuf::from(&args.profile))?
    } else {
        Profile::named(&args.profile)?
    };
    let copy = |text: &str| {
        let (source, target) = text
            .split_once(':')
            .with_context(|| format!("{text:?} is not SOURCE:TARGET"))?;
        Ok::<_, anyhow::Error>((source.to_owned(), target.to_owned()))
    };
    let puts: Vec<_> = args
        .put
        .iter()
        .map(|text| copy(text))
        .collect::<Result<_>>()?;
    let gets: Vec<_> = args
        .get
        .iter()
        .map(|text| copy(text))
        .collect::<Result<_>>()?;
    let lab = Lab::boot(&profile, &args.name)?;
    eprintln!(
        "lab: Linux {} up after {:.1} s; logs in {}",
        lab.kernel(),
        lab.boot_time().as_secs_f64(),
        lab.dir().display()
    );
    for (source, target) in puts {
        lab.put(&PathBuf::from(source), &target)?;
    }
    for bdf in &args.bind {
        lab.bind_vfio(bdf)?;
    }
    let deadline = Duration::from_secs(args.deadline);
    let execute = |argv: Vec<String>| -> Result<ExitCode> {
        let output = lab.command(argv).deadline(deadline).run()?;
        print!("{}", output.stdout);
        eprint!("{}", output.stderr);
        Ok(exit_code(&output))
    };
    let code = match args.command.as_slice() {
        [] => {
            let mut last = ExitCode::SUCCESS;
            for line in std::io::stdin().lock().lines() {
                last = execute(vec!["sh".into(), "-c".into(), line?])?;
            }
            last
        }
        [line] => execute(vec!["sh".into(), "-c".into(), line.clone()])?,
        words => execute(words.to_vec())?,
    };
    for (source, target) in gets {
        std::fs::write(&target, lab.get(&source)?)
            .with_context(|| format!("cannot write {target}"))?;
    }
    lab.save_artifacts()?;
    Ok(code)
}

/// The command's exit code; 128 plus the number of a signal, 124 after a timeout, as in a shell.
fn exit_code(output: &Output) -> ExitCode {
    match output.exit {
        Exit::Code(code) => u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from),
        Exit::Signal(signal) => {
            eprintln!("lab: {}", output.exit);
            u8::try_from(128 + signal).map_or(ExitCode::FAILURE, ExitCode::from)
        }
        Exit::TimedOut => {
            eprintln!("lab: {}", output.exit);
            ExitCode::from(124)
        }
    }
}
