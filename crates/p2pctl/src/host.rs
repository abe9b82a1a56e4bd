//! The host that commands change.

use std::path::PathBuf;

use anyhow::{Result, bail};
use hotplug::regroup::LinuxHost;
use iommu_group::Sysfs;

use crate::cli::Global;
use crate::source::proc_beside;

/// The host that the command line names. It must be a live host, not a file.
pub(crate) fn live(global: &Global) -> Result<LinuxHost> {
    if let Some(file) = &global.from {
        bail!(
            "{} is a file, and this command needs the host itself: omit --from",
            file.display()
        );
    }
    let root = root(global);
    let proc = proc_beside(&root);
    Ok(LinuxHost::new(Sysfs::new(root), proc))
}

/// Path of its sysfs.
pub(crate) fn root(global: &Global) -> PathBuf {
    let root = global.sysfs.clone();
    root.unwrap_or_else(|| PathBuf::from("/sys"))
}
