//! Interface to a PCI function as VFIO offers it: regions, interrupts, reset.

use std::io;

use vmm_sys_util::eventfd::EventFd;

use crate::sys::BarMmap;

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
    /// None: each access is a read or write through VFIO.
    Nothing,
    /// These areas, as (offset, length) in bytes.
    Areas(Vec<(u64, u64)>),
    /// All of it.
    Whole,
    /// All of it if the region does not hold the MSI-X table; otherwise nothing (`VFIO_REGION_INFO_CAP_MSIX_MAPPABLE`
    /// is missing).
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

/// Properties of one kind of vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vectors {
    /// Number of vectors of the function.
    pub(crate) count: u32,
    /// Whether single vectors can be added and removed while the kind is on. If not, all vectors are set when the kind
    /// is turned on (`VFIO_IRQ_INFO_NORESIZE`).
    pub(crate) dynamic: bool,
}

/// Host event about a device, besides the device's own interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VfioEvent {
    /// An uncorrectable error of the device was reported (`VFIO_PCI_ERR_IRQ_INDEX`).
    Error,
    /// The host requests the device back (`VFIO_PCI_REQ_IRQ_INDEX`).
    Request,
}

/// The two eventfds of a level-triggered interrupt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<'a> {
    /// Signalled when the pin is asserted; the pin is masked then.
    pub(crate) raised: &'a EventFd,
    /// Must be signalled when the interrupt was handled; unmasks the pin.
    pub(crate) handled: &'a EventFd,
}

/// The lowest seam of an assigned device: VFIO in a VMM, a byte table in tests.
pub(crate) trait PciBackend: Send {
    fn region(&self, region: Region) -> RegionInfo;
    fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> io::Result<()>;
    fn write(&self, region: Region, offset: u64, data: &[u8]) -> io::Result<()>;
    fn map(&self, region: Region, offset: u64, len_bytes: usize) -> io::Result<BarMmap>;
    /// The vectors of this kind.
    fn vectors(&self, kind: VectorKind) -> Vectors;
    /// Connects vector `first + n` to `events[n]`, or disconnects it. Turns the kind on if it is off, with `first +
    /// events.len()` vectors.
    fn set_vectors(
        &self,
        kind: VectorKind,
        first: u32,
        events: &[Option<&EventFd>],
    ) -> io::Result<()>;
    fn disable_vectors(&self, kind: VectorKind) -> io::Result<()>;
    /// Whether the function has a usable interrupt pin.
    fn has_line(&self) -> bool;
    /// Turns the pin on or off.
    fn set_line(&self, line: Option<Line<'_>>) -> io::Result<()>;
    /// Whether the kernel can report this event for the device.
    fn has_notice(&self, notice: VfioEvent) -> bool;
    /// Connects an event to the eventfd `event`.
    fn set_notice(&self, notice: VfioEvent, event: &EventFd) -> io::Result<()>;
    /// Resets this function alone (`VFIO_DEVICE_RESET`).
    fn reset(&self) -> io::Result<()>;
}
