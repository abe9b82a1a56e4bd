//! A PCI function as its driver's owner sees it: regions, interrupts, reset.

use std::io;

use vmm_sys_util::eventfd::EventFd;

use crate::sys::BarMapping;

/// A region of a PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Region {
    /// Base address register 0–5.
    Bar(u8),
    /// Configuration space.
    Config,
}

/// Which parts of a region may be mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mappable {
    /// None: every access goes through reads and writes.
    Nothing,
    /// These (offset, length) areas, in bytes.
    Areas(Vec<(u64, u64)>),
    /// All of it.
    Whole,
    /// All of it, unless the MSI-X table lies in it: then nothing
    /// (`VFIO_REGION_INFO_CAP_MSIX_MAPPABLE` is missing).
    AllButMsix,
}

/// Size and mappability of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RegionInfo {
    /// 0 for a region that does not exist.
    pub(crate) size_bytes: u64,
    pub(crate) mappable: Mappable,
}

/// The two kinds of message-signalled interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VectorKind {
    Msi,
    Msix,
}

/// The lowest seam of an assigned device: VFIO in a VMM, a table of bytes in tests.
pub(crate) trait PciBackend: Send {
    fn region(&self, region: Region) -> RegionInfo;
    fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> io::Result<()>;
    fn write(&self, region: Region, offset: u64, data: &[u8]) -> io::Result<()>;
    fn map(&self, region: Region, offset: u64, len_bytes: usize) -> io::Result<BarMapping>;
    /// How many vectors of a kind the function has.
    fn vectors(&self, kind: VectorKind) -> u32;
    /// Turns a kind on: vector n signals `events[n]`.
    fn enable_vectors(&self, kind: VectorKind, events: &[&EventFd]) -> io::Result<()>;
    fn disable_vectors(&self, kind: VectorKind) -> io::Result<()>;
    /// Resets this function and nothing else (`VFIO_DEVICE_RESET`).
    fn reset(&self) -> io::Result<()>;
}
