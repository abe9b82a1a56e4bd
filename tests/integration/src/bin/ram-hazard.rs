//! Maps memory for one of the lab's endpoints at addresses of a test's choice, and has it use them: `ram-hazard BDF IOVA…`.
//!
//! It places memory as no VMM should: where a switch of the host routes requests to a device, or nowhere. The device is
//! bound to vfio-pci. One line of JSON for each address.

#![allow(unsafe_code, reason = "VFIO maps memory by its address")]

use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use lab::report::Finding;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioOps};

const PAGE: usize = 4096;

/// Offset of the command register, and its bits (PCI Local Bus 3.0 §6.2.2).
const COMMAND: u64 = 0x04;
const MEMORY_AND_MASTER: [u8; 2] = [0x06, 0];

/// VFIO regions (linux include/uapi/linux/vfio.h).
const BAR0: u32 = 0;
const BAR2: u32 = 2;
const CONFIG: u32 = 7;

/// Registers of the endpoint: `resources/qemu/hw/pci/lab_endpoint.c`.
const SOURCE: u64 = 0x08;
const DESTINATION: u64 = 0x10;
const LENGTH: u64 = 0x18;
const START: u64 = 0x28;
const LOCAL_SOURCE: u64 = 1 << 0;
const LOCAL_DESTINATION: u64 = 1 << 1;

/// What the memory holds before the device writes to it.
const BEFORE: u64 = 0x0bad_f00d_0bad_f00d;
/// What the device writes.
const WORD: u64 = 0x600d_600d_600d_600d;

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let bdf = words.next().context("usage: ram-hazard BDF IOVA…")?;
    let container = Arc::new(VfioContainer::new(None).map_err(|error| anyhow!("{error}"))?);
    let path = Path::new("/sys/bus/pci/devices").join(&bdf);
    let ops = Arc::clone(&container) as Arc<dyn VfioOps>;
    let device =
        VfioDevice::new(&path, ops, true).map_err(|error| anyhow!("cannot open {bdf}: {error}"))?;
    device.region_write(CONFIG, &MEMORY_AND_MASTER, COMMAND);
    for word in words {
        let iova = u64::from_str_radix(word.trim_start_matches("0x"), 16)
            .with_context(|| format!("{word:?} is no address"))?;
        let finding = use_memory_at(&container, &device, iova)?;
        println!("{}", serde_json::to_string(&finding)?);
    }
    Ok(())
}

fn use_memory_at(container: &VfioContainer, device: &VfioDevice, iova: u64) -> Result<Finding> {
    let page = iova & !(PAGE as u64 - 1);
    // SAFETY: the kernel chooses the place, so nothing that exists is replaced.
    let memory = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            PAGE,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED | MapFlags::POPULATE,
        )
    }?;
    let Some(memory) = NonNull::new(memory.cast::<u8>()) else {
        bail!("no memory");
    };
    // SAFETY: the page exists and is never unmapped; only the device and the volatile accesses below use it.
    unsafe { container.vfio_dma_map(page, PAGE, memory.as_ptr()) }
        .map_err(|error| anyhow!("cannot map memory at {page:#x}: {error}"))?;
    let place = usize::try_from(iova - page)?;
    if place % 8 != 0 {
        bail!("{iova:#x} is no multiple of 8");
    }
    let word = memory.as_ptr().wrapping_add(place).cast::<u64>();
    // SAFETY: `word` is aligned and inside the page.
    unsafe { word.write_volatile(BEFORE) };
    device.region_write(BAR2, &WORD.to_le_bytes(), 0);
    copy(device, 0, iova, LOCAL_SOURCE);
    // SAFETY: as above.
    let found = unsafe { word.read_volatile() };
    device.region_write(BAR2, &[0; 8], 8);
    copy(device, iova, 8, LOCAL_DESTINATION);
    let mut read = [0; 8];
    device.region_read(BAR2, &mut read, 8);
    container
        .vfio_dma_unmap(page, PAGE)
        .map_err(|error| anyhow!("cannot unmap {page:#x}: {error}"))?;
    Ok(Finding::Mapped {
        iova: format!("{iova:#x}"),
        written: found == WORD,
        read: u64::from_le_bytes(read) == found,
    })
}

fn copy(device: &VfioDevice, source: u64, destination: u64, local: u64) {
    for (register, value) in [
        (SOURCE, source),
        (DESTINATION, destination),
        (LENGTH, 8),
        (START, local),
    ] {
        device.region_write(BAR0, &value.to_le_bytes(), register);
    }
}
