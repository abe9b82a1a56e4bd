//! The VMM's own PCI bus. The ports of `guest-topology` are functions on it like all others. The guest keeps the bus
//! numbers that it finds; a VMM that allows other numbers routes by [`VirtualPort::buses`].

use std::collections::BTreeMap;

use example_vmm::PciFunctions;
use guest_topology::VirtualPort;
use iommu_group::{AddressRange, Gpa, Sbdf};

use crate::Device;

/// All functions below the host bridge.
pub(crate) struct Bus {
    /// Addresses that the host bridge forwards.
    pub(crate) windows: Vec<AddressRange<Gpa>>,
    pub(crate) ports: BTreeMap<Sbdf, VirtualPort>,
    pub(crate) devices: BTreeMap<Sbdf, Device>,
}

impl PciFunctions for Bus {
    fn config_read(&mut self, at: Sbdf, offset: u16, data: &mut [u8]) {
        match (self.devices.get(&at), self.ports.get(&at)) {
            (Some(device), _) => device.vfio.config_read(offset, data),
            (None, Some(port)) => port.config_read(offset, data),
            (None, None) => data.fill(0xff),
        }
    }

    fn config_write(&mut self, at: Sbdf, offset: u16, data: &[u8]) {
        if let Some(device) = self.devices.get_mut(&at) {
            device.config_write(offset, data);
            for device in self.devices.values_mut() {
                device.retry_mappings();
            }
        } else if let Some(port) = self.ports.get_mut(&at) {
            port.config_write(offset, data);
        }
    }

    fn mmio_read(&mut self, gpa: Gpa, data: &mut [u8]) {
        let mut devices = self.devices.values();
        let found = devices.find_map(|device| Some((device, locate(device, gpa)?)));
        if let Some((device, (bar, offset))) = found {
            device.vfio.bar_read(bar, offset, data);
        }
    }

    fn mmio_write(&mut self, gpa: Gpa, data: &[u8]) {
        let mut devices = self.devices.values_mut();
        let found = devices.find_map(|device| Some((locate(device, gpa)?, device)));
        if let Some(((bar, offset), device)) = found {
            device.vfio.bar_write(bar, offset, data);
        }
    }
}

/// BAR and offset of an address that no memory slot has.
fn locate(device: &Device, gpa: Gpa) -> Option<(u8, u64)> {
    let header = device.vfio.header();
    let decoded = device.maps.decoded(&header, &device.windows);
    let mut offsets = decoded
        .iter()
        .map(|(bar, range)| (*bar, range.offset_of(gpa)));
    offsets.find_map(|(bar, offset)| Some((bar, offset?)))
}
