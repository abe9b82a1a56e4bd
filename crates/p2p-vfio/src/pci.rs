//! A PCI function as its driver's owner sees it: regions, interrupts, reset.

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

/// What there is of a kind of vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vectors {
    /// How many the function has.
    pub(crate) count: u32,
    /// Whether single vectors may come and go while the kind is on; if not, all of them are given
    /// when it is turned on (`VFIO_IRQ_INFO_NORESIZE`).
    pub(crate) dynamic: bool,
}

/// What the host tells the owner of a device besides the device's own interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VfioEvent {
    /// An uncorrectable error was reported for it (`VFIO_PCI_ERR_IRQ_INDEX`).
    Error,
    /// The host wants it back (`VFIO_PCI_REQ_IRQ_INDEX`).
    Request,
}

/// The two signals of a level-triggered interrupt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<'a> {
    /// Signalled when the pin is asserted; the pin is masked then.
    pub(crate) raised: &'a EventFd,
    /// To be signalled when the interrupt was handled; unmasks the pin.
    pub(crate) handled: &'a EventFd,
}

/// The lowest seam of an assigned device: VFIO in a VMM, a table of bytes in tests.
pub(crate) trait PciBackend: Send {
    fn region(&self, region: Region) -> RegionInfo;
    fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> io::Result<()>;
    fn write(&self, region: Region, offset: u64, data: &[u8]) -> io::Result<()>;
    fn map(&self, region: Region, offset: u64, len_bytes: usize) -> io::Result<BarMmap>;
    /// What vectors of a kind the function has.
    fn vectors(&self, kind: VectorKind) -> Vectors;
    /// Lets vector `first + n` signal `events[n]`, or nobody. Turns the kind on if it is off; it has
    /// `first + events.len()` vectors then.
    fn set_vectors(
        &self,
        kind: VectorKind,
        first: u32,
        events: &[Option<&EventFd>],
    ) -> io::Result<()>;
    fn disable_vectors(&self, kind: VectorKind) -> io::Result<()>;
    /// Whether the function has an interrupt pin that can be used.
    fn has_line(&self) -> bool;
    /// Turns the pin on or off.
    fn set_line(&self, line: Option<Line<'_>>) -> io::Result<()>;
    /// Whether this is ever told.
    fn has_notice(&self, notice: VfioEvent) -> bool;
    /// Lets a notice signal `event`.
    fn set_notice(&self, notice: VfioEvent, event: &EventFd) -> io::Result<()>;
    /// Resets this function and nothing else (`VFIO_DEVICE_RESET`).
    fn reset(&self) -> io::Result<()>;
}
