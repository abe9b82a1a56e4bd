//! The suite on mappings in a container that the crate `vfio-ioctls` opened.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use iommu_group::{Address, AddressRange, Iova, Sbdf, Sysfs};
use vfio_bindings::bindings::vfio::{VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX};
use vfio_ioctls::{VfioContainer, VfioDevice};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::dma::DmaBackend;
use crate::memory::HostMemory;
use crate::sys::BarMmap;
use crate::vfio_ops::{VfioOpsDma, container_iova_ranges};

use super::edu::{self, Registers};
use super::{Failure, Results, TestBackend, checks, run};

/// Command register: memory decode and bus mastering.
const COMMAND: u64 = 0x04;
/// I/O address of the word that the device writes.
const WORD_AT: u64 = 0x8000_0000;

struct OpsBackend {
    dma: VfioOpsDma,
    container: Arc<VfioContainer>,
    device: VfioDevice,
    word: GuestMemoryMmap,
}

impl Registers for VfioDevice {
    fn read(&self, register: u64, data: &mut [u8]) -> io::Result<()> {
        self.region_read(VFIO_PCI_BAR0_REGION_INDEX, data, register);
        Ok(())
    }

    fn write(&self, register: u64, data: &[u8]) -> io::Result<()> {
        self.region_write(VFIO_PCI_BAR0_REGION_INDEX, data, register);
        Ok(())
    }
}

/// Runs the suite in a container of vfio-ioctls with the `edu` device `sbdf`, which is bound to vfio-pci. Returns the
/// names and results of the checks.
///
/// # Errors
/// The device cannot be opened.
pub fn run_on_vfio_ioctls(sbdf: Sbdf) -> Result<Results, String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let container = Arc::new(VfioContainer::new(None).map_err(|e| text(&e))?);
    let path = Sysfs::default().device_dir(sbdf);
    let device = VfioDevice::new(&path, container.clone(), false).map_err(|e| text(&e))?;
    let word = GuestMemoryMmap::from_ranges(&[(GuestAddress(WORD_AT), 4096)]);
    let word = word.map_err(|e| text(&e))?;
    let dma = VfioOpsDma::new(container.clone());
    for (gpa, memory) in HostMemory::of_guest(&word) {
        dma.map(Iova::of_guest(gpa), memory).map_err(|e| text(&e))?;
    }
    let rig = OpsBackend {
        dma,
        container,
        device,
        word,
    };
    rig.decode(true);
    Ok(run::<dyn TestBackend>(&checks::ALL, &rig))
}

impl TestBackend for OpsBackend {
    fn backend(&self) -> &dyn DmaBackend {
        &self.dma
    }

    fn ranges(&self) -> Vec<AddressRange<Iova>> {
        container_iova_ranges(&self.container).unwrap_or_default()
    }

    fn bar(&self) -> HostMemory {
        let offset = self.device.get_region_offset(VFIO_PCI_BAR0_REGION_INDEX);
        // SAFETY: the device keeps its descriptor open during the call.
        #[allow(unsafe_code, reason = "vfio-ioctls has raw descriptors only")]
        let fd = unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd()) };
        let bar = BarMmap::new(fd, offset, 0, 4096);
        HostMemory::of_bar(Arc::new(bar.expect("a BAR that VFIO lets map")))
    }

    fn decode(&self, on: bool) {
        let command = [0x04 | u8::from(on) << 1];
        self.device
            .region_write(VFIO_PCI_CONFIG_REGION_INDEX, &command, COMMAND);
    }

    fn store(&self, iova: Iova, word: u32) {
        let written: Result<(), Failure> = self
            .word
            .write_obj(word, GuestAddress(WORD_AT))
            .map_err(|error| error.to_string());
        written.expect("the word is in its memory");
        edu::copy(&self.device, WORD_AT, iova.value()).expect("the engine ends its transfers");
    }
}
