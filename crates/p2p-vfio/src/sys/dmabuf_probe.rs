//! Probe: tests whether peers can reach a device's BARs on iommufd by mapping one.

use std::fs::File;
use std::io;

use thiserror::Error;

use crate::pci::{Mappable, Region};
use iommu_group::{Address, AddressRange, Iova};

use super::cdev::Cdev;
use super::dma_buf::DmaBuf;
use super::ioas::Iommufd;
use super::vfio_pci::region_info;

const PAGE: usize = 4096;

/// A device's BARs cannot be mapped for peers on iommufd.
#[derive(Debug, Error)]
pub(crate) enum DmabufUnsupported {
    /// The driver does not export them (linux: `CONFIG_VFIO_PCI_DMABUF`, since 6.19).
    #[error("its driver does not export BARs as dma-bufs: {0}")]
    Export(io::Error),
    /// iommufd does not map dma-bufs of BARs.
    #[error("iommufd does not map BARs that are dma-bufs: {0}")]
    Import(io::Error),
}

/// Exports a page of a BAR of `device` and maps it in an address space that no device uses.
///
/// # Errors
/// What the kernel does not support. A device without a mappable BAR has nothing to share, so the probe succeeds.
pub(crate) fn probe_dmabuf(iommufd: &Iommufd, device: &Cdev) -> Result<(), DmabufUnsupported> {
    DmaBuf::probe(device.file()).map_err(DmabufUnsupported::Export)?;
    let Some((bar, offset)) = (0..6).find_map(|bar| Some((bar, first_page(device.file(), bar)?)))
    else {
        return Ok(());
    };
    let page =
        DmaBuf::export(device.file(), bar, offset, PAGE).map_err(DmabufUnsupported::Export)?;
    let range = AddressRange::new(Iova::new(0), PAGE as u64);
    let range =
        range.ok_or_else(|| DmabufUnsupported::Import(io::ErrorKind::InvalidInput.into()))?;
    match iommufd.try_map(range, &page) {
        // The device need not decode memory at this moment; iommufd checks this last.
        Err(error) if error.raw_os_error() != Some(libc::ENODEV) => {
            Err(DmabufUnsupported::Import(error))
        }
        _ => Ok(()),
    }
}

/// Offset of a mappable page of a BAR.
fn first_page(device: &File, bar: u8) -> Option<u64> {
    let (_, info) = region_info(device, Region::Bar(bar)).ok()?;
    let page = PAGE as u64;
    match info.mappable {
        Mappable::Nothing => None,
        Mappable::Whole | Mappable::AllButMsix => (info.size_bytes >= page).then_some(0),
        Mappable::Areas(areas) => areas
            .iter()
            .find(|(offset, len_bytes)| offset.is_multiple_of(page) && *len_bytes >= page)
            .map(|(offset, _)| *offset),
    }
}
