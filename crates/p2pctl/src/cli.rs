//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use iommu_group::Sbdf;

use crate::show::Colour;

/// Look at, explain and plan peer-to-peer DMA between the PCIe devices of a host
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "Exit status: 0 done, 1 failed, 2 refused."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Look at this directory instead of /sys
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "from")]
    pub(crate) sysfs: Option<PathBuf>,
    /// Look at a machine that `p2pctl dump` wrote to this file (`-`: standard input)
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) from: Option<PathBuf>,
    /// Print JSON instead of a text for people
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Use colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: Colour,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the tree of PCI functions: groups, links, ACS, drivers
    Topology {
        /// Show only what is at and below these (as lspci prints them: 03:00.0)
        #[arg(value_name = "FUNCTION")]
        below: Vec<Sbdf>,
        /// Show every virtual function in a line of its own
        #[arg(long)]
        all: bool,
    },
    /// Show the IOMMU groups and who is in them
    Groups {
        /// Show only the groups of these functions
        #[arg(value_name = "FUNCTION")]
        of: Vec<Sbdf>,
        /// Also say why each function is in its group
        #[arg(long)]
        why: bool,
    },
    /// Print the machine as one file that every command reads back with --from
    Dump,
    /// Draw the machine as SVG
    Draw {
        /// What to write above it
        #[arg(long)]
        title: Option<String>,
        /// Draw also what no peer can reach: functions without memory, empty ports
        #[arg(long)]
        all: bool,
        /// Write to this file instead of standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page
    Man,
}
