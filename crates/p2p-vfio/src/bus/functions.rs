//! Assigned devices and the virtual ports above them, as functions of the guest's segment.

use std::ops::RangeInclusive;

use guest_topology::VirtualPort;
use iommu_group::spec::{bridge, header};
use iommu_group::{AddressRange, Gpa};

use super::PciFunction;
use crate::device::AssignedDevice;

impl PciFunction for AssignedDevice {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        AssignedDevice::config_read(self, offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        AssignedDevice::config_write(self, offset, data);
    }

    fn mmio_read(&mut self, gpa: Gpa, data: &mut [u8]) -> bool {
        AssignedDevice::mmio_read(self, gpa, data)
    }

    fn mmio_write(&mut self, gpa: Gpa, data: &[u8]) -> bool {
        AssignedDevice::mmio_write(self, gpa, data)
    }

    fn set_forwarded(&mut self, ranges: &[AddressRange<Gpa>]) {
        AssignedDevice::set_reach(self, ranges);
    }

    fn retry_mappings(&mut self) {
        AssignedDevice::retry_mappings(self);
    }

    fn reset(&mut self) {
        self.reset_by_guest();
    }

    fn memory_fault(&mut self, gpa: Gpa) -> bool {
        AssignedDevice::memory_fault(self, gpa)
    }
}

/// Registers of a bridge after reset: command, bus numbers, windows (closed: base above limit), bridge control.
const AFTER_RESET: [(u16, &[u8]); 6] = [
    (header::COMMAND, &[0, 0]),
    (bridge::PRIMARY_BUS, &[0, 0, 0]),
    (bridge::MEMORY_BASE, &[0xf0, 0xff, 0, 0]),
    (bridge::PREFETCH_BASE, &[0xf1, 0xff, 1, 0]),
    (bridge::PREFETCH_BASE_UPPER, &[0; 8]),
    (bridge::CONTROL, &[0, 0]),
];

impl PciFunction for VirtualPort {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        VirtualPort::config_read(self, offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        VirtualPort::config_write(self, offset, data);
    }

    fn buses_below(&self) -> Option<RangeInclusive<u8>> {
        let buses = self.buses();
        Some(buses.secondary..=buses.subordinate)
    }

    fn windows(&self) -> Option<Vec<AddressRange<Gpa>>> {
        Some(VirtualPort::windows(self).collect())
    }

    fn last_windows(&self) -> Vec<AddressRange<Gpa>> {
        VirtualPort::last_windows(self).collect()
    }

    fn holds_reset(&self) -> bool {
        let mut control = [0];
        VirtualPort::config_read(self, bridge::CONTROL, &mut control);
        control[0] & bridge::CONTROL_SECONDARY_BUS_RESET != 0
    }

    fn reset(&mut self) {
        for (offset, data) in AFTER_RESET {
            VirtualPort::config_write(self, offset, data);
        }
    }
}
