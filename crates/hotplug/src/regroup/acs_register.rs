//! The ACS control register of one port: read and written without a look at the rest of the host.

use std::fs::File;
use std::os::unix::fs::FileExt;

use iommu_group::{AcsBits, Function, Sbdf, Sysfs};

/// What the header of an ACS capability begins with (PCIe r6.0 §7.7.11.1).
const ACS_CAPABILITY: u16 = 0x000d;

/// Bytes from the header of an ACS capability to its control register (PCIe r6.0 §7.7.11.3).
const CONTROL: u16 = 6;

/// The ACS control register of a port, and what the port must be to have it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcsRegister {
    port: Sbdf,
    /// Vendor and device, as at the start of configuration space.
    ids: u32,
    /// Bytes from the start of configuration space.
    offset: u16,
}

impl AcsRegister {
    /// The register of a function; `None` if it has none that can be read.
    #[must_use]
    pub fn of(function: &Function) -> Option<Self> {
        Some(Self {
            port: function.sbdf(),
            ids: function.space().u32(0)?,
            offset: function.acs().registers()?.control_offset(),
        })
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> Sbdf {
        self.port
    }

    pub(super) fn offset(&self) -> u16 {
        self.offset
    }

    /// What it holds; `None` if the port is gone, cannot be read, or is another one now.
    #[must_use]
    pub fn read(&self, sysfs: &Sysfs) -> Option<AcsBits> {
        let file = File::open(sysfs.device_dir(self.port).join("config")).ok()?;
        let (mut ids, mut capability, mut control) = ([0; 4], [0; 2], [0; 2]);
        file.read_exact_at(&mut ids, 0).ok()?;
        let header = self.offset.checked_sub(CONTROL)?;
        file.read_exact_at(&mut capability, header.into()).ok()?;
        file.read_exact_at(&mut control, self.offset.into()).ok()?;
        let is_it =
            u32::from_le_bytes(ids) == self.ids && u16::from_le_bytes(capability) == ACS_CAPABILITY;
        is_it.then(|| AcsBits::from_bits(u16::from_le_bytes(control)))
    }
}
