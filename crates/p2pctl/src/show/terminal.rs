//! Properties of the output streams.

use std::io::IsTerminal;

use clap::ValueEnum;

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Colour {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Also into pipes and files
    Always,
    /// Never
    Never,
}

/// Properties of stdout and stderr.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terminal {
    /// Whether to use colour on stdout.
    pub(crate) colour: bool,
    /// Whether to use colour on stderr.
    pub(crate) stderr_colour: bool,
    /// Width in columns.
    pub(crate) width: usize,
}

/// Default width if it is unknown.
const USUAL: usize = 80;
/// Maximum width: longer lines are hard to read.
const MOST: usize = 120;
/// Minimum width: lines are not broken to less.
const LEAST: usize = 60;

impl Terminal {
    /// Detects the properties of stdout and stderr.
    pub(crate) fn detect(colour: Colour) -> Self {
        // https://no-color.org: set and not empty.
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        let wanted = |is_terminal: bool| match colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => is_terminal && !unwanted,
        };
        let columns = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
        let width = columns
            .or_else(|| terminal_size::terminal_size().map(|(width, _)| usize::from(width.0)))
            .unwrap_or(USUAL);
        Self {
            colour: wanted(std::io::stdout().is_terminal()),
            stderr_colour: wanted(std::io::stderr().is_terminal()),
            width: width.clamp(LEAST, MOST),
        }
    }
}
