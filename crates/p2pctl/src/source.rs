//! Where the facts come from: the live `/sys`, or a directory that looks like it.

use anyhow::{Result, bail};
use iommu_group::Sysfs;

use crate::cli::Global;

/// The sysfs tree that the command line names.
pub(crate) fn sysfs(global: &Global) -> Result<Sysfs> {
    let sysfs = match &global.sysfs {
        Some(root) => Sysfs::new(root),
        None => Sysfs::default(),
    };
    if !sysfs.root().is_dir() {
        bail!("{} is not a directory", sysfs.root().display());
    }
    Ok(sysfs)
}
