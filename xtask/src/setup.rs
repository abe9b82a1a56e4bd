//! `cargo xtask setup`: fetches and builds the assets of the lab.

use anyhow::Result;
use lab::{Assets, OwnKernel, Progress};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build the kernel with iommufd too, which takes at least ten minutes, and print the variables that select it, for eval
    #[arg(long)]
    iommufd: bool,
    /// Build the QEMU whose switches route requests too, which takes some minutes
    #[arg(long)]
    routing: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let progress = Progress::new();
    if args.iommufd {
        for (name, path) in OwnKernel::ensure(&progress)?.variables() {
            println!("export {name}={}", path.display());
        }
        return Ok(());
    }
    let assets = match args.routing {
        true => Assets::ensure_routing(&progress)?,
        false => Assets::ensure(&progress)?,
    };
    for line in assets.describe() {
        println!("{line}");
    }
    Ok(())
}
