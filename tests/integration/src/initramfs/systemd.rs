//! What is packed beside the rest where systemd is the lab host's first process.

use anyhow::Result;

use super::archive::Archive;
use crate::assets::Systemd;
use crate::paths::resources;

/// An archive with systemd, what it needs, and how it is set up.
pub(super) fn archive(systemd: &Systemd) -> Result<Archive> {
    let mut archive = Archive::default();
    for (target, source) in &systemd.programs {
        archive.program(target, source);
    }
    for (target, source) in &systemd.units {
        archive.file(target, source);
    }
    for library in &systemd.libraries {
        archive.library(library);
    }
    archive.tree("/etc/systemd", &resources().join("initramfs/systemd"))?;
    // Without one it is a machine's first boot, on which all units are enabled.
    archive.bytes("/etc/machine-id", format!("{:032x}\n", 1).into_bytes());
    Ok(archive)
}
