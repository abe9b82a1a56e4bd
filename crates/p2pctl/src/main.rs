//! `p2pctl`: shows, explains and changes peer-to-peer DMA between the PCIe devices of a host.
//!
//! Exit status: 0 done, 1 failed, 2 refused. Data goes to stdout; notes, progress and errors go to stderr. Only
//! `apply`, `reconcile`, `recover`, `reset` and `serve` change the host. `launch` replaces its process by the VMM that
//! it starts.

mod accepted;
mod answer;
mod cli;
mod cloud_hypervisor;
mod command;
mod daemon;
mod describe;
mod draw;
mod goals;
mod host;
mod isolation_holes;
mod json;
mod names;
mod peers;
mod policy_file;
mod progress;
mod registry;
mod sandbox;
mod show;
mod source;

use std::io::{self, Write};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::Parser;

use answer::{Answer, Body};
use cli::Cli;
use show::Terminal;

const DONE: u8 = 0;
const FAILED: u8 = 1;
const REFUSED: u8 = 2;
/// Indentation of the lines below a `note: `.
const NOTE_INDENT: usize = 6;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers. Other errors are failures; clap's own status for them would mean "refused".
            let status = if error.use_stderr() { FAILED } else { DONE };
            return ExitCode::from(match error.print() {
                Ok(()) => status,
                Err(_) => FAILED,
            });
        }
    };
    let terminal = Terminal::detect(cli.global.color);
    let status =
        match command::run(&cli, &terminal).and_then(|answer| Ok(print(&answer, &terminal)?)) {
            Ok(status) => status,
            Err(error) => {
                print_error(&error, &terminal);
                FAILED
            }
        };
    ExitCode::from(status)
}

/// Writes an answer and returns the exit status. A closed pipe, as with `head`, is not an error.
fn print(answer: &Answer, terminal: &Terminal) -> io::Result<u8> {
    let body = match &answer.body {
        Body::Text(text) => text.render(terminal.colour),
        Body::Raw(text) => text.clone(),
    };
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(body.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
        _ => {}
    }
    let notes = answer.notes.wrapped(terminal.width, NOTE_INDENT);
    let notes = notes.render(terminal.stderr_colour);
    // A failure to write to stderr cannot be reported.
    let _ = io::stderr().write_all(notes.as_bytes());
    Ok(match (answer.failed, answer.refused) {
        (true, _) => FAILED,
        (false, true) => REFUSED,
        (false, false) => DONE,
    })
}

fn print_error(error: &anyhow::Error, terminal: &Terminal) {
    let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
    let word = if terminal.stderr_colour {
        format!("{red}error{red:#}")
    } else {
        "error".to_owned()
    };
    // As above.
    let _ = writeln!(io::stderr(), "{word}: {error:#}");
}
