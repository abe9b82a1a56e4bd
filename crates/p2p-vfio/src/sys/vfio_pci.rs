//! A PCI function opened through VFIO.

#![allow(unsafe_code, reason = "VFIO_DEVICE_RESET")]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use iommu_group::{GroupId, Sbdf};
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_INTX_IRQ_INDEX,
    VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
    VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    VFIO_REGION_INFO_FLAG_MMAP,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl;

use crate::pci::{Line, Mappable, PciBackend, Region, RegionInfo, VectorKind, Vectors, VfioEvent};

use super::cdev::{AttachedCdev, Cdev};
use super::dma_buf::DmaBuf;
use super::group::Group;
use super::info::Info;
use super::{BarMmap, Ioas, Type1, check, irq, vfio_ioctl};

const GET_REGION_INFO: libc::c_ulong = vfio_ioctl(8);
const RESET: libc::c_ulong = vfio_ioctl(11);

/// BARs 0–5 and configuration space.
const REGIONS: [Region; 7] = [
    Region::Bar(0),
    Region::Bar(1),
    Region::Bar(2),
    Region::Bar(3),
    Region::Bar(4),
    Region::Bar(5),
    Region::Config,
];

/// An open device.
pub(crate) struct VfioPci {
    opened: Opened,
    regions: Vec<(Region, u64, RegionInfo)>,
    vectors: [(VectorKind, Vectors); 2],
    has_line: bool,
    /// Whether pieces of BARs are exported as dma-bufs for peers.
    shares: bool,
}

/// How the device was opened, with the objects that it keeps alive.
enum Opened {
    InGroup {
        // Closed before the group and the context.
        file: File,
        _group: Arc<Group>,
        _context: Arc<Type1>,
    },
    Alone(AttachedCdev),
}

impl VfioPci {
    /// Opens `sbdf` and adds its group to `context`. The kernel resets the function.
    ///
    /// # Errors
    /// The errno of opening or joining the group (`EBUSY`: in use elsewhere, `EPERM`: another device of the group has a
    /// host driver) or of opening the device.
    pub(crate) fn open(context: Arc<Type1>, group: GroupId, sbdf: Sbdf) -> io::Result<Self> {
        let group = context.join(group)?;
        let opened = Opened::InGroup {
            file: group.open_device(sbdf)?,
            _group: group,
            _context: context,
        };
        Self::new(opened, false)
    }

    /// Attaches a bound device to a context of its iommufd. With `shares`, its BARs can be mapped there.
    ///
    /// # Errors
    /// The errno of attaching it (`EINVAL`: another device of its group is in another context).
    pub(crate) fn attach(context: Arc<Ioas>, device: Cdev, shares: bool) -> io::Result<Self> {
        let attached = AttachedCdev::new(device, context)?;
        Self::new(Opened::Alone(attached), shares)
    }

    fn new(opened: Opened, shares: bool) -> io::Result<Self> {
        let regions = REGIONS
            .into_iter()
            .map(|region| {
                let (offset, info) = region_info(opened.file(), region)?;
                Ok((region, offset, info))
            })
            .collect::<io::Result<_>>()?;
        let vectors = [VectorKind::Msi, VectorKind::Msix].map(|kind| {
            let vectors = vectors(opened.file(), kind);
            (kind, vectors)
        });
        let line = irq::info(opened.file(), VFIO_PCI_INTX_IRQ_INDEX);
        Ok(Self {
            has_line: line.is_ok_and(|info| info.count > 0),
            vectors,
            opened,
            regions,
            shares,
        })
    }

    fn file(&self) -> &File {
        self.opened.file()
    }

    fn find(&self, region: Region) -> io::Result<&(Region, u64, RegionInfo)> {
        let found = self.regions.iter().find(|(r, ..)| *r == region);
        found.ok_or(io::Error::from_raw_os_error(libc::EINVAL))
    }

    /// File offset of `len_bytes` bytes at `offset` of a region.
    fn locate(&self, region: Region, offset: u64, len_bytes: usize) -> io::Result<u64> {
        let (_, start, info) = self.find(region)?;
        let end = offset.checked_add(len_bytes as u64);
        let inside = end.is_some_and(|end| end <= info.size_bytes);
        let at = start.checked_add(offset).filter(|_| inside);
        at.ok_or(io::Error::from_raw_os_error(libc::EINVAL))
    }
}

impl Opened {
    fn file(&self) -> &File {
        match self {
            Self::InGroup { file, .. } => file,
            Self::Alone(device) => device.file(),
        }
    }
}

const NO_VECTORS: Vectors = Vectors {
    count: 0,
    dynamic: false,
};

/// Properties of a kind of vectors. They are fixed while the device is open.
fn vectors(device: &File, kind: VectorKind) -> Vectors {
    let info = irq::info(device, vector_index(kind));
    info.map_or(NO_VECTORS, |info| Vectors {
        count: info.count,
        dynamic: info.resizable,
    })
}

/// Offset of a region in the device's file, and its description.
pub(super) fn region_info(device: &File, region: Region) -> io::Result<(u64, RegionInfo)> {
    let index = match region {
        Region::Bar(bar) => u32::from(bar),
        Region::Config => VFIO_PCI_CONFIG_REGION_INDEX,
    };
    // struct vfio_region_info: argsz, flags, index, cap_offset, size, offset.
    let info = Info::get(device, GET_REGION_INFO, &[0, 0, index, 0, 0, 0, 0, 0])?;
    parse_region(&info).ok_or(io::Error::from_raw_os_error(libc::EPROTO))
}

fn parse_region(info: &Info) -> Option<(u64, RegionInfo)> {
    const CAP_OFFSET: usize = 12;
    let may_map = info.field32(4)? & VFIO_REGION_INFO_FLAG_MMAP != 0;
    let sparse = match info.capability(CAP_OFFSET, VFIO_REGION_INFO_CAP_SPARSE_MMAP) {
        // struct vfio_region_info_cap_sparse_mmap: header, nr_areas, padding, areas.
        Some(at) => Some(info.pairs(at + 16, info.field32(at + 8)?)?),
        None => None,
    };
    let msix = info.capability(CAP_OFFSET, VFIO_REGION_INFO_CAP_MSIX_MAPPABLE);
    let mappable = match (may_map, sparse) {
        (false, _) => Mappable::Nothing,
        (true, Some(areas)) => Mappable::Areas(areas),
        (true, None) if msix.is_some() => Mappable::Whole,
        (true, None) => Mappable::AllButMsix,
    };
    let size_bytes = info.field64(16)?;
    Some((
        info.field64(24)?,
        RegionInfo {
            size_bytes,
            mappable,
        },
    ))
}

fn vector_index(kind: VectorKind) -> u32 {
    match kind {
        VectorKind::Msi => VFIO_PCI_MSI_IRQ_INDEX,
        VectorKind::Msix => VFIO_PCI_MSIX_IRQ_INDEX,
    }
}

fn notice_index(notice: VfioEvent) -> u32 {
    match notice {
        VfioEvent::Error => VFIO_PCI_ERR_IRQ_INDEX,
        VfioEvent::Request => VFIO_PCI_REQ_IRQ_INDEX,
    }
}

impl PciBackend for VfioPci {
    fn region(&self, region: Region) -> RegionInfo {
        self.find(region).map_or(
            RegionInfo {
                size_bytes: 0,
                mappable: Mappable::Nothing,
            },
            |(_, _, info)| info.clone(),
        )
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let at = self.locate(region, offset, data.len())?;
        self.file().read_exact_at(data, at)
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = self.locate(region, offset, data.len())?;
        self.file().write_all_at(data, at)
    }

    fn map(&self, region: Region, offset: u64, len_bytes: usize) -> io::Result<BarMmap> {
        let at = self.locate(region, offset, len_bytes)?;
        let mapping = BarMmap::new(self.file().as_fd(), at, offset, len_bytes)?;
        match region {
            Region::Bar(bar) if self.shares => {
                let dma_buf = DmaBuf::export(self.file(), bar, offset, len_bytes)?;
                Ok(mapping.with_dma_buf(dma_buf))
            }
            _ => Ok(mapping),
        }
    }

    fn vectors(&self, kind: VectorKind) -> Vectors {
        let found = self.vectors.iter().find(|(other, _)| *other == kind);
        found.map_or(NO_VECTORS, |(_, vectors)| *vectors)
    }

    fn set_vectors(
        &self,
        kind: VectorKind,
        first: u32,
        events: &[Option<&EventFd>],
    ) -> io::Result<()> {
        irq::signal(self.file(), vector_index(kind), first, events)
    }

    fn disable_vectors(&self, kind: VectorKind) -> io::Result<()> {
        irq::disable(self.file(), vector_index(kind))
    }

    fn has_line(&self) -> bool {
        self.has_line
    }

    fn set_line(&self, line: Option<Line<'_>>) -> io::Result<()> {
        let Some(Line { raised, handled }) = line else {
            return irq::disable(self.file(), VFIO_PCI_INTX_IRQ_INDEX);
        };
        irq::signal(self.file(), VFIO_PCI_INTX_IRQ_INDEX, 0, &[Some(raised)])?;
        // The kernel masks the pin whenever it is raised; only the guest knows when the interrupt was handled.
        let unmask = irq::unmask_on(self.file(), VFIO_PCI_INTX_IRQ_INDEX, handled);
        if unmask.is_err() {
            irq::disable(self.file(), VFIO_PCI_INTX_IRQ_INDEX)?;
        }
        unmask
    }

    fn has_notice(&self, notice: VfioEvent) -> bool {
        irq::info(self.file(), notice_index(notice)).is_ok_and(|info| info.count > 0)
    }

    fn set_notice(&self, notice: VfioEvent, event: &EventFd) -> io::Result<()> {
        irq::signal(self.file(), notice_index(notice), 0, &[Some(event)])
    }

    fn reset(&self) -> io::Result<()> {
        reset(self.file())
    }
}

/// Resets the function of an open device file.
pub(super) fn reset(device: &File) -> io::Result<()> {
    // SAFETY: the ioctl has no argument.
    check(unsafe { ioctl(device, RESET) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[u32]) -> Option<(u64, RegionInfo)> {
        parse_region(&Info::of_bytes(
            words.iter().flat_map(|w| w.to_ne_bytes()).collect(),
        ))
    }

    #[test]
    fn a_region_has_size_offset_and_mappability() {
        let (offset, info) = parse(&[32, 0x7, 0, 0, 0x4000, 0, 0, 0x100]).unwrap();
        assert_eq!((offset, info.size_bytes), (0x100_0000_0000, 0x4000));
        assert_eq!(info.mappable, Mappable::AllButMsix);
        let (_, info) = parse(&[32, 0x3, 0, 0, 0x4000, 0, 0, 0]).unwrap();
        assert_eq!(info.mappable, Mappable::Nothing);
    }

    #[test]
    fn capabilities_say_what_may_be_mapped() {
        let (_, info) = parse(&[40, 0xf, 0, 32, 0x4000, 0, 0, 0, 0x1_0003, 0]).unwrap();
        assert_eq!(info.mappable, Mappable::Whole);
        let sparse = [
            64, 0xf, 0, 32, 0x4000, 0, 0, 0, 0x1_0001, 0, 1, 0, 0x1000, 0, 0x2000, 0,
        ];
        let (_, info) = parse(&sparse).unwrap();
        assert_eq!(info.mappable, Mappable::Areas(vec![(0x1000, 0x2000)]));
    }

    #[test]
    fn a_structure_that_is_too_short_is_none() {
        assert_eq!(parse(&[32, 0x7, 0, 0]), None);
        assert_eq!(
            parse(&[56, 0xf, 0, 32, 0, 0, 0, 0, 0x1_0001, 0, 9, 0]),
            None
        );
    }
}
