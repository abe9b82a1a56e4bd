//! Assigned devices and the virtual ports above them, as functions of the guest's segment.

use std::ops::RangeInclusive;

use p2p_vfio::{Address, AssignedDevice, Gpa, VirtualPort};
use vm_memory::GuestAddress;

use super::bus::PciFunction;

impl PciFunction for AssignedDevice {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        AssignedDevice::config_read(self, offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        AssignedDevice::config_write(self, offset, data);
    }

    fn mmio_read(&mut self, gpa: GuestAddress, data: &mut [u8]) -> bool {
        AssignedDevice::mmio_read(self, Gpa::new(gpa.0), data)
    }

    fn mmio_write(&mut self, gpa: GuestAddress, data: &[u8]) -> bool {
        AssignedDevice::mmio_write(self, Gpa::new(gpa.0), data)
    }
}

impl PciFunction for VirtualPort {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        VirtualPort::config_read(self, offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        VirtualPort::config_write(self, offset, data);
    }

    fn mmio_read(&mut self, _gpa: GuestAddress, _data: &mut [u8]) -> bool {
        false
    }

    fn mmio_write(&mut self, _gpa: GuestAddress, _data: &[u8]) -> bool {
        false
    }

    fn buses_below(&self) -> Option<RangeInclusive<u8>> {
        let buses = self.buses();
        Some(buses.secondary..=buses.subordinate)
    }
}
