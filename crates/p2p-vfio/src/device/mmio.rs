//! Guest accesses to BARs outside of memory slots.

use std::io;

use crate::pci::Region;
use iommu_group::Gpa;

use super::{AssignedDevice, DeviceEvent};

impl AssignedDevice {
    /// The BAR that contains an access of `len` bytes, and the offset in it.
    fn locate(&self, gpa: Gpa, len: usize) -> Option<(u8, u64)> {
        self.bars.infos().iter().find_map(|info| {
            let range = self.mappings.live(info.index)?;
            let offset = range.offset_of(gpa)?;
            let fits = offset.checked_add(len as u64)? <= range.len_bytes();
            fits.then_some((info.index, offset))
        })
    }

    /// Serves a trapped read. Returns whether the address belongs to this device.
    pub fn mmio_read(&mut self, gpa: Gpa, data: &mut [u8]) -> bool {
        let Some((bar, offset)) = self.locate(gpa, data.len()) else {
            return false;
        };
        if let Some(msix) = &self.msix
            && let Some(at) = msix.table.locate(bar, offset)
        {
            msix.read_table(at, data);
        } else if let Err(error) = self.device.read(Region::Bar(bar), offset, data) {
            data.fill(0xff);
            self.bar_failed(bar, offset, &error);
        }
        true
    }

    /// Serves a trapped write. Returns whether the address belongs to this device.
    pub fn mmio_write(&mut self, gpa: Gpa, data: &[u8]) -> bool {
        let Some((bar, offset)) = self.locate(gpa, data.len()) else {
            return false;
        };
        let in_table = self
            .msix
            .as_mut()
            .and_then(|msix| Some((msix.table.locate(bar, offset)?, msix)));
        if let Some((at, msix)) = in_table {
            msix.write_table(at, data);
            self.apply_interrupts();
        } else if let Err(error) = self.device.write(Region::Bar(bar), offset, data) {
            self.bar_failed(bar, offset, &error);
        }
        true
    }

    fn bar_failed(&mut self, bar: u8, offset: u64, error: &io::Error) {
        log::debug!("{}: BAR {bar} at {offset:#x}: {error}", self.sbdf);
        self.look_for_absence(error);
    }

    /// Handles `KVM_EXIT_MEMORY_FAULT`: the hypervisor could not access memory in a slot of this device, because the
    /// kernel has revoked the BAR. The device is gone, or the host has put it to sleep. Returns whether the address
    /// belongs to this device; its BARs are unmapped then, so that the guest's next access reads all ones instead of
    /// faulting again.
    pub fn memory_fault(&mut self, gpa: Gpa) -> bool {
        if self.locate(gpa, 1).is_none() {
            return false;
        }
        self.stop(DeviceEvent::Vanished);
        true
    }
}
