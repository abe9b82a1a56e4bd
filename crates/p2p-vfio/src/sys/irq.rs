//! Interrupts of a VFIO device.

#![allow(
    unsafe_code,
    reason = "VFIO_DEVICE_SET_IRQS takes a structure of variable length"
)]

use std::io;
use std::os::fd::AsRawFd;

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ptr;

use super::info::Info;
use super::{check, vfio_ioctl};

const GET_IRQ_INFO: libc::c_ulong = vfio_ioctl(9);
const SET_IRQS: libc::c_ulong = vfio_ioctl(10);

/// How many interrupts there are of an index (`VFIO_PCI_*_IRQ_INDEX`).
pub(super) fn count(device: &impl AsRawFd, index: u32) -> io::Result<u32> {
    // struct vfio_irq_info: argsz, flags, index, count.
    let info = Info::get(device, GET_IRQ_INFO, &[0, 0, index, 0])?;
    Ok(info.field32(12).unwrap_or(0))
}

/// Turns an index on: interrupt n signals `events[n]`.
pub(super) fn enable(device: &impl AsRawFd, index: u32, events: &[&EventFd]) -> io::Result<()> {
    let descriptors = events.iter().map(|event| event.as_raw_fd());
    let count = u32::try_from(events.len()).unwrap_or(u32::MAX);
    let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    set(device, flags, index, count, descriptors)
}

/// Turns an index off.
pub(super) fn disable(device: &impl AsRawFd, index: u32) -> io::Result<()> {
    let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
    set(device, flags, index, 0, std::iter::empty())
}

fn set(
    device: &impl AsRawFd,
    flags: u32,
    index: u32,
    count: u32,
    descriptors: impl Iterator<Item = i32>,
) -> io::Result<()> {
    // struct vfio_irq_set: argsz, flags, index, start, count, then the descriptors.
    let mut words = vec![0, flags, index, 0, count];
    words.extend(descriptors.map(i32::cast_unsigned));
    if let Ok(argsz) = u32::try_from(words.len() * 4)
        && let Some(first) = words.first_mut()
    {
        *first = argsz;
    }
    // SAFETY: the kernel reads `argsz` bytes, which is the length of `words`.
    check(unsafe { ioctl_with_ptr(device, SET_IRQS, words.as_ptr()) }).map(drop)
}
