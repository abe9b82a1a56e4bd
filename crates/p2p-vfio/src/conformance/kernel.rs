//! The suite on the kernel's type1 driver and on iommufd, with checks that apply only to a kernel.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_group::assignment::ContextKind;
use iommu_group::{Address, AddressRange, GroupId, Iova, Sbdf};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::context::IommuContext;
use crate::dma::DmaBackend;
use crate::host_iommu::{HostIommu, Interface};
use crate::memory::HostMemory;
use crate::pci::{PciBackend, Region};
use crate::sys::VfioPci;

use super::{Check, Failure, Ram, Results, TestBackend, checks, edu, run};

/// Command register: memory decode and bus mastering.
const COMMAND: u64 = 0x04;
const ON: [u8; 1] = [0x06];
const OFF: [u8; 1] = [0x04];
/// I/O address of the word that a device writes.
const WORD_AT: u64 = 0x8000_0000;

struct KernelBackend {
    context: IommuContext,
    peers: Arc<dyn DmaBackend>,
    sbdf: Sbdf,
    group: GroupId,
    /// `None` while a check has closed it.
    device: Mutex<Option<VfioPci>>,
    word: GuestMemoryMmap,
}

/// Runs the suite on a context of `interface` with the `edu` device `sbdf` of `group`, which is bound to vfio-pci.
/// Returns the names and results of the checks.
///
/// # Errors
/// The device cannot be opened.
pub fn run_on_kernel(interface: Interface, sbdf: Sbdf, group: GroupId) -> Result<Results, String> {
    let mut results = vec![(
        "weakness_4_a_failed_first_device_does_not_poison_the_context",
        failed_first(interface, sbdf, group),
    )];
    let rig = KernelBackend::open(interface, sbdf, group)?;
    results.extend(run::<dyn TestBackend>(&checks::ALL, &rig));
    results.extend(run(&OWN, &rig));
    Ok(results)
}

const OWN: [Check<KernelBackend>; 2] = [
    Check {
        name: "weakness_5_guest_memory_is_mapped_when_the_last_device_has_gone_and_another_comes",
        run: rejoin,
    },
    Check {
        name: "weakness_10_a_bar_is_mapped_on_any_interface",
        run: bar_of_a_device,
    },
];

impl KernelBackend {
    fn open(interface: Interface, sbdf: Sbdf, group: GroupId) -> Result<Self, Failure> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let context = new_context(interface)?;
        let peers = context.dma();
        let word = GuestMemoryMmap::from_ranges(&[(GuestAddress(WORD_AT), 4096)]);
        let word = word.map_err(|e| text(&e))?;
        let this = Self {
            context,
            peers,
            sbdf,
            group,
            device: Mutex::new(None),
            word,
        };
        this.reopen()?;
        this.context
            .map_guest(&HostMemory::of_guest(&this.word))
            .map_err(|e| text(&e))?;
        Ok(this)
    }

    fn device(&self) -> MutexGuard<'_, Option<VfioPci>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reopen(&self) -> Result<(), Failure> {
        let device = self.context.open(self.sbdf, self.group);
        let device = device.map_err(|error| error.to_string())?;
        let on = device.write(Region::Config, COMMAND, &ON);
        on.map_err(|error| error.to_string())?;
        *self.device() = Some(device);
        Ok(())
    }
}

impl TestBackend for KernelBackend {
    fn backend(&self) -> &dyn DmaBackend {
        &*self.peers
    }

    fn ranges(&self) -> Vec<AddressRange<Iova>> {
        self.context.iova_ranges().unwrap_or_default()
    }

    fn bar(&self) -> HostMemory {
        let device = self.device();
        let device = device.as_ref().expect("it is open");
        let bar = device.map(Region::Bar(0), 0, 4096);
        HostMemory::of_bar(Arc::new(bar.expect("a BAR that VFIO lets map")))
    }

    fn decode(&self, on: bool) {
        let device = self.device();
        let device = device.as_ref().expect("it is open");
        let written = device.write(Region::Config, COMMAND, if on { &ON } else { &OFF });
        written.expect("the command register is there");
    }

    fn store(&self, iova: Iova, word: u32) {
        let device = self.device();
        let device = device.as_ref().expect("it is open");
        let written = self.word.write_obj(word, GuestAddress(WORD_AT));
        written.expect("the word is in its memory");
        edu::copy(device, WORD_AT, iova.value()).expect("the engine ends its transfers");
    }
}

/// The context of a P2P domain.
fn new_context(interface: Interface) -> Result<IommuContext, Failure> {
    let iommu = HostIommu::choose(Some(interface), &[], None, &Arc::default())
        .map_err(|e| e.to_string())?;
    IommuContext::new(&Arc::new(iommu), ContextKind::P2p).map_err(|e| e.to_string())
}

/// Checks that a second device can be opened in a context with guest memory after the first could not be opened.
fn failed_first(interface: Interface, sbdf: Sbdf, group: GroupId) -> Result<(), Failure> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let context = new_context(interface)?;
    let absent = Sbdf::new(0, 0xff, 0x1f, 7).map_err(|e| text(&e))?;
    if context.open(absent, group).is_ok() {
        return Err(format!("{absent} was opened"));
    }
    let device = context.open(sbdf, group).map_err(|e| text(&e))?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 8192)]);
    let memory = memory.map_err(|e| text(&e))?;
    context
        .map_guest(&HostMemory::of_guest(&memory))
        .map_err(|e| text(&e))?;
    let written = memory.write_obj(0x77_u32, GuestAddress(0));
    written.map_err(|e| text(&e))?;
    let on = device.write(Region::Config, COMMAND, &ON);
    on.map_err(|e| text(&e))?;
    edu::copy(&device, 0, 4096).map_err(|e| text(&e))?;
    let found: u32 = memory.read_obj(GuestAddress(4096)).map_err(|e| text(&e))?;
    if found != 0x77 {
        return Err(format!("DMA into guest memory brought {found:#x}"));
    }
    Ok(())
}

fn rejoin(rig: &KernelBackend, ram: &Ram) -> Result<(), Failure> {
    let at = Iova::new(0x20_0000);
    let mapped = rig.peers.map(at, ram.pages(2)?);
    let range = mapped.map_err(|error| error.to_string())?;
    *rig.device() = None;
    rig.reopen()?;
    rig.store(at, 0x55);
    let unmapped = rig.peers.unmap(range);
    unmapped.map_err(|error| error.to_string())?;
    match ram.word(2, 0)? {
        0x55 => Ok(()),
        word => Err(format!("DMA after the device came back brought {word:#x}")),
    }
}

fn bar_of_a_device(rig: &KernelBackend, _ram: &Ram) -> Result<(), Failure> {
    let mapped = rig.peers.map(Iova::new(0x20_0000), rig.bar());
    let range = mapped.map_err(|error| error.to_string())?;
    rig.peers.unmap(range).map_err(|error| error.to_string())
}
