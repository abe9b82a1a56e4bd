//! Where an access of the guest goes that memory does not answer: ports, configuration space, BARs.

use std::sync::Arc;

use vm_memory::GuestAddress;

use crate::layout::GpaRange;
use crate::pci::{PciBus, decode_ecam};
use crate::ports::Ports;

/// Everything that vCPUs reach by exits.
pub(crate) struct GuestBus {
    pub(crate) ports: Ports,
    pci: Arc<PciBus>,
    ecam: GpaRange,
}

impl GuestBus {
    pub(crate) fn new(ports: Ports, pci: Arc<PciBus>, ecam: GpaRange) -> Self {
        Self { ports, pci, ecam }
    }

    /// Reads memory-mapped I/O; all ones where there is nothing.
    pub(crate) fn mmio_read(&self, gpa: GuestAddress, data: &mut [u8]) {
        match self.ecam.offset_of(gpa) {
            Some(offset) => match decode_ecam(offset, data.len()) {
                Some((bdf, register)) => self.pci.config_read(bdf, register, data),
                None => data.fill(0xff),
            },
            None => self.pci.mmio_read(gpa, data),
        }
    }

    /// Passes on that the hypervisor could not reach memory at `gpa`; whether a device lets go of it.
    pub(crate) fn memory_fault(&self, gpa: GuestAddress) -> bool {
        self.pci.memory_fault(gpa)
    }

    /// Writes memory-mapped I/O; ignored where there is nothing.
    pub(crate) fn mmio_write(&self, gpa: GuestAddress, data: &[u8]) {
        match self.ecam.offset_of(gpa) {
            Some(offset) => {
                if let Some((bdf, register)) = decode_ecam(offset, data.len()) {
                    self.pci.config_write(bdf, register, data);
                }
            }
            None => self.pci.mmio_write(gpa, data),
        }
    }
}
