//! The two ends of a BAR that is shared as a dma-buf: the exporter owns the BAR, the importer accesses it by DMA.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use iommu_group::assignment::ContextKind;
use iommu_group::{Address, AddressRange, GroupId, Iova, Sbdf};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::context::IommuContext;
use crate::dma::DmaBackend;
use crate::host_iommu::{HostIommu, Interface};
use crate::memory::HostMemory;
use crate::pci::{PciBackend, Region};
use crate::sys::{Cdev, Ioas, Iommufd, VfioPci};

use super::{Failure, edu};

const COMMAND: u64 = 0x04;
const MEMORY_AND_MASTER: [u8; 1] = [0x06];
const MASTER: [u8; 1] = [0x04];
const PAGE: u64 = 4096;
/// I/O addresses for the importer's device: the shared page, and the word to write into it.
const SHARED_AT: u64 = 0x10_0000;
const WORD_AT: u64 = 0x8000_0000;
/// A register of the `edu` device that reads as the inverse of the value written.
const LIVENESS: u64 = 4;

fn text(error: impl std::error::Error) -> Failure {
    error.to_string()
}

/// The owner of the BAR: an `edu` device on iommufd, opened as a member of a P2P domain.
pub struct Exporter {
    device: VfioPci,
    page: HostMemory,
    _context: IommuContext,
}

impl Exporter {
    /// Opens the device, which is bound to vfio-pci, and exports the first page of BAR 0.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn open(sbdf: Sbdf, group: GroupId) -> Result<Self, Failure> {
        let handed = Arc::default();
        let iommu = HostIommu::choose(
            Some(Interface::Iommufd),
            &[(sbdf, ContextKind::P2p)],
            None,
            &handed,
        );
        let iommu = Arc::new(iommu.map_err(text)?);
        let context = IommuContext::new(&iommu, ContextKind::P2p).map_err(text)?;
        let device = context.open(sbdf, group).map_err(text)?;
        let page = device.map(Region::Bar(0), 0, 4096).map_err(text)?;
        Ok(Self {
            device,
            page: HostMemory::of_bar(Arc::new(page)),
            _context: context,
        })
    }

    /// The dma-buf of the page.
    ///
    /// # Errors
    /// The page was not exported.
    pub fn dma_buf(&self) -> Result<BorrowedFd<'_>, Failure> {
        self.page.dma_buf().ok_or("there is no dma-buf".to_owned())
    }

    /// Turns memory decode on or off.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn decode(&self, on: bool) -> Result<(), Failure> {
        let value = if on { &MEMORY_AND_MASTER } else { &MASTER };
        let written = self.device.write(Region::Config, COMMAND, value);
        written.map_err(text)
    }

    /// Resets the device; the kernel restores its registers afterwards.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn reset(&self) -> Result<(), Failure> {
        self.device.reset().map_err(text)
    }

    /// Writes the register that reads as the inverse of the value written.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn write(&self, word: u32) -> Result<(), Failure> {
        let written = self
            .device
            .write(Region::Bar(0), LIVENESS, &word.to_le_bytes());
        written.map_err(text)
    }

    /// The value that was last written to that register.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn written(&self) -> Result<u32, Failure> {
        let mut word = [0; 4];
        let read = self.device.read(Region::Bar(0), LIVENESS, &mut word);
        read.map_err(text)?;
        Ok(!u32::from_le_bytes(word))
    }
}

/// The importer: an `edu` device of another group, on its own iommufd.
pub struct Importer {
    device: VfioPci,
    context: Arc<Ioas>,
    word: GuestMemoryMmap,
}

impl Importer {
    /// Opens the device, which is bound to vfio-pci.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn open(sbdf: Sbdf) -> Result<Self, Failure> {
        let iommufd = Arc::new(Iommufd::open().map_err(text)?);
        let file = Cdev::find(sbdf).map_err(text)?;
        let file = Cdev::open(&file).map_err(text)?;
        let device = Cdev::bind(file, &iommufd, None).map_err(text)?;
        let context = Arc::new(Ioas::new(iommufd).map_err(text)?);
        let device = VfioPci::attach(context.clone(), device, false).map_err(text)?;
        let word = GuestMemoryMmap::from_ranges(&[(GuestAddress(WORD_AT), 4096)]);
        let word = word.map_err(text)?;
        for (gpa, memory) in HostMemory::of_guest(&word) {
            context.map(Iova::of_guest(gpa), memory).map_err(text)?;
        }
        let on = device.write(Region::Config, COMMAND, &MEMORY_AND_MASTER);
        on.map_err(text)?;
        Ok(Self {
            device,
            context,
            word,
        })
    }

    /// Maps the exporter's page for the device.
    ///
    /// # Errors
    /// The kernel's error: `ENODEV` while the exporter does not decode memory.
    pub fn map(&self, page: BorrowedFd<'_>) -> Result<(), Failure> {
        self.context.map_shared(shared()?, page).map_err(text)
    }

    /// Unmaps the page.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn unmap(&self) -> Result<(), Failure> {
        self.context.unmap_shared(shared()?).map_err(text)
    }

    /// Makes the device write a word into the page by DMA, at the register that an exporter reads. The write may fault.
    ///
    /// # Errors
    /// The device does not do DMA.
    pub fn store(&self, word: u32) -> Result<(), Failure> {
        let put = self.word.write_obj(word, GuestAddress(WORD_AT));
        put.map_err(text)?;
        edu::copy(&self.device, WORD_AT, SHARED_AT + LIVENESS).map_err(text)
    }
}

fn shared() -> Result<AddressRange<Iova>, Failure> {
    AddressRange::new(Iova::new(SHARED_AT), PAGE).ok_or("not a range".to_owned())
}
