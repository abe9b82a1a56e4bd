//! `cargo xtask setup`: what the lab is made of, before anything needs it.

use anyhow::Result;
use lab::{Assets, OwnKernel, Progress};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build the kernel with iommufd too, ten minutes and more, and say how to boot it: the output is for eval
    #[arg(long)]
    iommufd: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let progress = Progress::new();
    if args.iommufd {
        for (name, path) in OwnKernel::ensure(&progress)?.variables() {
            println!("export {name}={}", path.display());
        }
        return Ok(());
    }
    for line in Assets::ensure(&progress)?.describe() {
        println!("{line}");
    }
    Ok(())
}
