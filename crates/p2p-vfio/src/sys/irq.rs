//! Interrupts of a VFIO device.

#![allow(
    unsafe_code,
    reason = "VFIO_DEVICE_SET_IRQS takes a structure of variable length"
)]

use std::io;
use std::os::fd::AsRawFd;

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_NORESIZE, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ptr;

use super::info::Info;
use super::{check, vfio_ioctl};

const GET_IRQ_INFO: libc::c_ulong = vfio_ioctl(9);
const SET_IRQS: libc::c_ulong = vfio_ioctl(10);

/// Information about the interrupts of an index (`VFIO_PCI_*_IRQ_INDEX`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IrqInfo {
    /// Number of interrupts; 0 for an index that the kernel does not know.
    pub(super) count: u32,
    /// Whether single interrupts can be set while others are on.
    pub(super) resizable: bool,
}

/// Reads the information about an index.
pub(super) fn info(device: &impl AsRawFd, index: u32) -> io::Result<IrqInfo> {
    // struct vfio_irq_info: argsz, flags, index, count.
    let info = Info::get(device, GET_IRQ_INFO, &[0, 0, index, 0])?;
    let flags = info.field32(4).unwrap_or(0);
    let usable = flags & VFIO_IRQ_INFO_EVENTFD != 0;
    Ok(IrqInfo {
        count: info.field32(12).filter(|_| usable).unwrap_or(0),
        resizable: flags & VFIO_IRQ_INFO_NORESIZE == 0,
    })
}

/// Connects interrupt `first + n` to `events[n]`, or disconnects it if that is `None`; turns the index on.
pub(super) fn signal(
    device: &impl AsRawFd,
    index: u32,
    first: u32,
    events: &[Option<&EventFd>],
) -> io::Result<()> {
    let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    set(device, flags, index, first, events)
}

/// Connects `event` to the unmasking of interrupt 0 of an index.
pub(super) fn unmask_on(device: &impl AsRawFd, index: u32, event: &EventFd) -> io::Result<()> {
    let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_UNMASK;
    set(device, flags, index, 0, &[Some(event)])
}

/// Turns an index off.
pub(super) fn disable(device: &impl AsRawFd, index: u32) -> io::Result<()> {
    let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
    set(device, flags, index, 0, &[])
}

fn set(
    device: &impl AsRawFd,
    flags: u32,
    index: u32,
    first: u32,
    events: &[Option<&EventFd>],
) -> io::Result<()> {
    let count = u32::try_from(events.len()).unwrap_or(u32::MAX);
    // struct vfio_irq_set: argsz, flags, index, start, count, then the descriptors, -1 for none.
    let mut words = vec![0, flags, index, first, count];
    let descriptors = events.iter().map(|e| e.map_or(-1, AsRawFd::as_raw_fd));
    words.extend(descriptors.map(i32::cast_unsigned));
    if let Ok(argsz) = u32::try_from(words.len() * 4)
        && let Some(first) = words.first_mut()
    {
        *first = argsz;
    }
    // SAFETY: the kernel reads `argsz` bytes, which is the length of `words`.
    check(unsafe { ioctl_with_ptr(device, SET_IRQS, words.as_ptr()) }).map(drop)
}
