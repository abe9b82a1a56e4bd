//! Dispatch of guest accesses that guest memory does not handle: ports, configuration space, BARs.

use std::sync::Arc;

use iommu_group::{Address, Gpa};
use p2p_vfio::DeviceSet;
use vm_memory::GuestAddress;

use crate::layout::GpaRange;
use crate::pci::decode_ecam;
use crate::ports::Ports;

/// Everything that vCPUs access through VM exits.
pub(crate) struct GuestBus {
    pub(crate) ports: Ports,
    devices: Arc<DeviceSet>,
    ecam: GpaRange,
}

impl GuestBus {
    pub(crate) fn new(ports: Ports, devices: Arc<DeviceSet>, ecam: GpaRange) -> Self {
        Self {
            ports,
            devices,
            ecam,
        }
    }

    /// Reads memory-mapped I/O; all ones for unclaimed addresses.
    pub(crate) fn mmio_read(&self, gpa: GuestAddress, data: &mut [u8]) {
        match self.ecam.offset_of(Gpa::new(gpa.0)) {
            Some(offset) => match decode_ecam(offset, data.len()) {
                Some((sbdf, register)) => self.devices.config_read(sbdf, register, data),
                None => data.fill(0xff),
            },
            None => drop(self.devices.mmio_read(Gpa::new(gpa.0), data)),
        }
    }

    /// Handles a memory fault of the hypervisor at `gpa`. Returns whether a device owned the address and removed its
    /// mapping.
    pub(crate) fn memory_fault(&self, gpa: GuestAddress) -> bool {
        self.devices.memory_fault(Gpa::new(gpa.0))
    }

    /// Writes memory-mapped I/O; ignored for unclaimed addresses.
    pub(crate) fn mmio_write(&self, gpa: GuestAddress, data: &[u8]) {
        match self.ecam.offset_of(Gpa::new(gpa.0)) {
            Some(offset) => {
                if let Some((sbdf, register)) = decode_ecam(offset, data.len()) {
                    self.devices.config_write(sbdf, register, data);
                }
            }
            None => drop(self.devices.mmio_write(Gpa::new(gpa.0), data)),
        }
    }
}
