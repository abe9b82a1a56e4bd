//! Dispatch of guest accesses that guest memory does not handle: ports, configuration space, BARs.

use std::sync::Arc;

use iommu_group::{Address, Gpa};
use vm_memory::GuestAddress;

use crate::layout::GpaRange;
use crate::pci::{PciBus, decode_ecam};
use crate::ports::Ports;

/// Everything that vCPUs access through VM exits.
pub(crate) struct GuestBus {
    pub(crate) ports: Ports,
    pci: Arc<PciBus>,
    ecam: GpaRange,
}

impl GuestBus {
    pub(crate) fn new(ports: Ports, pci: Arc<PciBus>, ecam: GpaRange) -> Self {
        Self { ports, pci, ecam }
    }

    /// Reads memory-mapped I/O; all ones for unclaimed addresses.
    pub(crate) fn mmio_read(&self, gpa: GuestAddress, data: &mut [u8]) {
        match self.ecam.offset_of(Gpa::new(gpa.0)) {
            Some(offset) => match decode_ecam(offset, data.len()) {
                Some((bdf, register)) => self.pci.config_read(bdf, register, data),
                None => data.fill(0xff),
            },
            None => self.pci.mmio_read(gpa, data),
        }
    }

    /// Handles a memory fault of the hypervisor at `gpa`. Returns whether a device owned the address and removed its
    /// mapping.
    pub(crate) fn memory_fault(&self, gpa: GuestAddress) -> bool {
        self.pci.memory_fault(gpa)
    }

    /// Writes memory-mapped I/O; ignored for unclaimed addresses.
    pub(crate) fn mmio_write(&self, gpa: GuestAddress, data: &[u8]) {
        match self.ecam.offset_of(Gpa::new(gpa.0)) {
            Some(offset) => {
                if let Some((bdf, register)) = decode_ecam(offset, data.len()) {
                    self.pci.config_write(bdf, register, data);
                }
            }
            None => self.pci.mmio_write(gpa, data),
        }
    }
}
