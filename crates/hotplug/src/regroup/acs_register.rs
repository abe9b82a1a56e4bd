//! The ACS registers of one port, read and written without reading the rest of the host.

use std::fs::File;
use std::os::unix::fs::FileExt;

use iommu_group::{AcsBits, AcsSetting, EgressVector, Function, Sbdf, Sysfs};

use super::snapshot::EGRESS_VECTOR;

/// Capability ID of ACS (PCIe r6.0 §7.7.11.1).
const ACS_CAPABILITY: u16 = 0x000d;

/// The ACS control register and the egress control vector of a port, with the port's IDs to recognize it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcsRegister {
    port: Sbdf,
    /// Vendor and device ID, as at the start of configuration space.
    ids: u32,
    /// Offset of the capability in configuration space, in bytes.
    capability: u16,
    /// Offset of the control register in configuration space, in bytes.
    control: u16,
    /// A vector of the size of the port's vector, if it has one.
    vector: Option<EgressVector>,
}

impl AcsRegister {
    /// The registers of a function; `None` if it has none or they cannot be read.
    #[must_use]
    pub fn of(function: &Function) -> Option<Self> {
        let acs = function.acs().registers()?;
        Some(Self {
            port: function.sbdf(),
            ids: function.space().u32(0)?,
            capability: acs.offset,
            control: acs.control_offset(),
            vector: acs.egress.map(|vector| vector.cleared()),
        })
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> Sbdf {
        self.port
    }

    pub(super) fn control_at(&self) -> u16 {
        self.control
    }

    pub(super) fn vector_at(&self) -> u16 {
        self.capability.saturating_add(EGRESS_VECTOR)
    }

    /// Reads the registers. Returns `None` if the port is gone, cannot be read, or was replaced by another device.
    #[must_use]
    pub fn read(&self, sysfs: &Sysfs) -> Option<AcsSetting> {
        let file = File::open(sysfs.device_dir(self.port).join("config")).ok()?;
        let (mut ids, mut capability, mut control) = ([0; 4], [0; 2], [0; 2]);
        file.read_exact_at(&mut ids, 0).ok()?;
        file.read_exact_at(&mut capability, self.capability.into())
            .ok()?;
        file.read_exact_at(&mut control, self.control.into()).ok()?;
        let is_it =
            u32::from_le_bytes(ids) == self.ids && u16::from_le_bytes(capability) == ACS_CAPABILITY;
        let control = AcsBits::from_bits_retain(u16::from_le_bytes(control));
        let vector = self.vector.filter(|_| control.contains(AcsBits::EC));
        let vector = match vector {
            Some(like) => Some(self.read_vector(&file, &like)?),
            None => None,
        };
        is_it.then(|| AcsSetting::new(control, vector))
    }

    fn read_vector(&self, file: &File, like: &EgressVector) -> Option<EgressVector> {
        let mut at = u64::from(self.vector_at());
        let mut words = Vec::new();
        for _ in like.words() {
            let mut word = [0; 4];
            file.read_exact_at(&mut word, at).ok()?;
            words.push(u32::from_le_bytes(word));
            at = at.saturating_add(4);
        }
        like.with_words(&words)
    }
}
