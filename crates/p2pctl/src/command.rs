//! What the commands do, a file for each.

mod groups;

use anyhow::Result;
use clap::CommandFactory;

use crate::answer::Answer;
use crate::cli::{Cli, Command};
use crate::show::Terminal;
use crate::source;

/// Does what the command line says.
pub(crate) fn run(cli: &Cli, terminal: &Terminal) -> Result<Answer> {
    match &cli.command {
        Command::Groups => groups::run(&source::sysfs(&cli.global)?, cli.global.json, terminal),
        Command::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "p2pctl", &mut out);
            Ok(Answer::raw(String::from_utf8(out)?))
        }
        Command::Man => {
            let mut out = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut out)?;
            Ok(Answer::raw(String::from_utf8(out)?))
        }
    }
}
