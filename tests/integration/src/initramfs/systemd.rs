//! Additional contents for a lab host whose first process is systemd.

use anyhow::Result;

use super::archive::Archive;
use crate::assets::Systemd;
use crate::paths::resources;

/// An archive with systemd, its dependencies and its configuration.
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
    // Without a machine ID, systemd treats this as a first boot and enables all units.
    archive.bytes("/etc/machine-id", format!("{:032x}\n", 1).into_bytes());
    Ok(archive)
}
