//! Checks that the kernel's VFIO container does what p2p-vfio expects of an IOMMU context.
//!
//! ```text
//! dma-contract BDF     an edu device that is bound to vfio-pci
//! ```
//!
//! One line per check; exit code 0 if all went well.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use iommu_group::Sysfs;
use p2p_vfio::contract::run_on_type1;

fn main() -> Result<ExitCode> {
    let bdf = std::env::args().nth(1).context("usage: dma-contract BDF")?;
    let sysfs = Sysfs::default();
    let path = Path::new("/sys/bus/pci/devices").join(bdf);
    let sbdf = sysfs.resolve(&path)?;
    let group = sysfs.group_of(sbdf)?;
    let results = run_on_type1(sbdf, group).map_err(|error| anyhow!(error))?;
    let mut code = ExitCode::SUCCESS;
    for (name, result) in results {
        match result {
            Ok(()) => println!("ok {name}"),
            Err(why) => {
                println!("FAILED {name}: {why}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
