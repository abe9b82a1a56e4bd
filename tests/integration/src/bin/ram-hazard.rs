//! Maps memory for the lab's endpoints at addresses that a test chooses, and makes an endpoint access it, as no VMM and
//! no conforming function should.
//!
//! ```text
//! ram-hazard BDF IOVA…             the endpoint's own memory, where a switch routes requests to a device or nowhere
//! ram-hazard BDF --as BDF2 IOVA…   memory of BDF2, in requests with the requester ID of BDF2
//! ram-hazard BDF --forged          memory of no device, by its physical address, in requests marked as translated
//! ```
//! Functions must be bound to vfio-pci. Prints one line of JSON for each address.

#![allow(unsafe_code, reason = "VFIO maps memory by its address")]

use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use iommu_group::Sbdf;
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
const REQUESTER: u64 = 0x20;
const START: u64 = 0x28;
const LOCAL_SOURCE: u64 = 1 << 0;
const LOCAL_DESTINATION: u64 = 1 << 1;
const FORGE: u64 = 1 << 3;
const SPOOF: u64 = 1 << 4;

/// Contents of the memory before the device writes to it.
const BEFORE: u64 = 0x0bad_f00d_0bad_f00d;
/// Word that the device writes.
const WORD: u64 = 0x600d_600d_600d_600d;

/// An endpoint opened through VFIO, with a container for its mappings.
struct Endpoint {
    container: Arc<VfioContainer>,
    device: VfioDevice,
}

/// A page of memory that devices access.
struct Page(NonNull<u8>);

/// How an endpoint sends its requests.
#[derive(Clone, Copy)]
enum Mode {
    Plain,
    Forged,
    /// With this requester ID.
    Spoofed(u16),
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [bdf, "--forged"] => {
            let endpoint = Endpoint::open(bdf)?;
            let page = Page::new()?;
            let address = page.physical_address()?;
            tell(&endpoint.use_memory(&page, address, 0, Mode::Forged)?)
        }
        [bdf, "--as", other, addresses @ ..] => {
            let (endpoint, owner) = (Endpoint::open(bdf)?, Endpoint::open(other)?);
            let requester = other.parse::<Sbdf>()?;
            let requester = u16::from(requester.bus()) << 8 | u16::from(requester.devfn());
            use_each(&endpoint, &owner, addresses, Mode::Spoofed(requester))
        }
        [bdf, addresses @ ..] => {
            let endpoint = Endpoint::open(bdf)?;
            use_each(&endpoint, &endpoint, addresses, Mode::Plain)
        }
        [] => bail!("usage: ram-hazard BDF [--as BDF | --forged] IOVA…"),
    }
}

/// Maps memory at each address for `owner`, and makes `user` access it.
fn use_each(user: &Endpoint, owner: &Endpoint, addresses: &[&str], mode: Mode) -> Result<()> {
    for address in addresses {
        let iova = u64::from_str_radix(address.trim_start_matches("0x"), 16)
            .with_context(|| format!("{address:?} is no address"))?;
        let start = iova & !(PAGE as u64 - 1);
        let page = Page::new()?;
        owner.map(&page, start)?;
        let finding = user.use_memory(&page, start, usize::try_from(iova - start)?, mode)?;
        owner.unmap(start)?;
        tell(&finding)?;
    }
    Ok(())
}

fn tell(finding: &Finding) -> Result<()> {
    println!("{}", serde_json::to_string(finding)?);
    Ok(())
}

impl Endpoint {
    fn open(bdf: &str) -> Result<Self> {
        let container = Arc::new(VfioContainer::new(None).map_err(|error| anyhow!("{error}"))?);
        let path = Path::new("/sys/bus/pci/devices").join(bdf);
        let ops = Arc::clone(&container) as Arc<dyn VfioOps>;
        let device = VfioDevice::new(&path, ops, true)
            .map_err(|error| anyhow!("cannot open {bdf}: {error}"))?;
        device.region_write(CONFIG, &MEMORY_AND_MASTER, COMMAND);
        Ok(Self { container, device })
    }

    fn map(&self, page: &Page, iova: u64) -> Result<()> {
        // SAFETY: the page exists and is never unmapped; only devices and the volatile accesses of `Page` use it.
        unsafe { self.container.vfio_dma_map(iova, PAGE, page.0.as_ptr()) }
            .map_err(|error| anyhow!("cannot map memory at {iova:#x}: {error}"))
    }

    fn unmap(&self, iova: u64) -> Result<()> {
        let unmapped = self.container.vfio_dma_unmap(iova, PAGE);
        unmapped.map_err(|error| anyhow!("cannot unmap {iova:#x}: {error}"))
    }

    /// Writes to a place in a page and reads it back, through the device. Requests see the page at the address `start`.
    fn use_memory(&self, page: &Page, start: u64, place: usize, mode: Mode) -> Result<Finding> {
        let address = start + u64::try_from(place)?;
        page.write(place, BEFORE)?;
        self.device.region_write(BAR2, &WORD.to_le_bytes(), 0);
        self.copy(0, address, LOCAL_SOURCE, mode);
        let found = page.read(place)?;
        self.device.region_write(BAR2, &[0; 8], 8);
        self.copy(address, 8, LOCAL_DESTINATION, mode);
        let mut read = [0; 8];
        self.device.region_read(BAR2, &mut read, 8);
        Ok(Finding::Mapped {
            iova: format!("{address:#x}"),
            written: found == WORD,
            read: u64::from_le_bytes(read) == found,
        })
    }

    fn copy(&self, source: u64, destination: u64, local: u64, mode: Mode) {
        let (requester, mode) = match mode {
            Mode::Plain => (0, 0),
            Mode::Forged => (0, FORGE),
            Mode::Spoofed(requester) => (requester.into(), SPOOF),
        };
        for (register, value) in [
            (SOURCE, source),
            (DESTINATION, destination),
            (LENGTH, 8),
            (REQUESTER, requester),
            (START, local | mode),
        ] {
            self.device
                .region_write(BAR0, &u64::to_le_bytes(value), register);
        }
    }
}

impl Page {
    fn new() -> Result<Self> {
        // SAFETY: the kernel chooses the address, so no existing mapping is replaced.
        let memory = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE | MapFlags::LOCKED,
            )
        }?;
        NonNull::new(memory.cast::<u8>())
            .map(Self)
            .context("no memory")
    }

    /// Pointer to a word of the page.
    fn word(&self, place: usize) -> Result<*mut u64> {
        if !place.is_multiple_of(8) || place >= PAGE {
            bail!("{place:#x} is no place of a word in a page");
        }
        Ok(self.0.as_ptr().wrapping_add(place).cast())
    }

    fn write(&self, place: usize, value: u64) -> Result<()> {
        let word = self.word(place)?;
        // SAFETY: `word` is aligned and inside the page, which is never unmapped.
        unsafe { word.write_volatile(value) };
        Ok(())
    }

    fn read(&self, place: usize) -> Result<u64> {
        let word = self.word(place)?;
        // SAFETY: as above.
        Ok(unsafe { word.read_volatile() })
    }

    /// Physical address of the page on the host (linux Documentation/admin-guide/mm/pagemap.rst).
    fn physical_address(&self) -> Result<u64> {
        const PRESENT: u64 = 1 << 63;
        const FRAME: u64 = (1 << 55) - 1;
        let page = u64::try_from(self.0.as_ptr().addr() / PAGE)?;
        let mut entry = [0; 8];
        let pagemap = std::fs::File::open("/proc/self/pagemap")?;
        std::os::unix::fs::FileExt::read_exact_at(&pagemap, &mut entry, page * 8)?;
        let entry = u64::from_le_bytes(entry);
        if entry & PRESENT == 0 || entry & FRAME == 0 {
            bail!("the kernel does not tell physical addresses");
        }
        Ok((entry & FRAME) * PAGE as u64)
    }
}
