//! A VMM without devices, for the examples of this workspace: it stands for the VMM that adopts the crates. It boots Linux
//! on one vCPU with KVM's interrupt controllers, a serial port on standard output, and a PCI host bridge whose functions
//! the example supplies.
//!
//! It is as small as possible. p2p-vmm is the VMM to read for all that a real one needs.

mod acpi;
mod boot;
mod ports;
mod routes;
mod run;
mod slots;

use std::error::Error;
use std::sync::Arc;

use iommu_group::{Address, AddressRange, Gpa, Sbdf};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

pub use boot::BootSource;
pub use routes::Routes;
pub use slots::Slots;

/// Result of the example's functions.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Guest memory in bytes, from address 0 on.
const RAM_BYTES: usize = 512 << 20;
/// End of the PCI windows below 4 GiB: the I/O APIC.
const LOW_PCI_END: u64 = 0xfec0_0000;
/// Three pages that KVM needs on Intel CPUs for real mode, and one for an identity map.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// The functions below the host bridge.
pub trait PciFunctions {
    /// Reads configuration space of the function at `at`; all ones if there is none.
    fn config_read(&mut self, at: Sbdf, offset: u16, data: &mut [u8]);
    /// Writes configuration space.
    fn config_write(&mut self, at: Sbdf, offset: u16, data: &[u8]);
    /// Reads from a BAR; all ones if no BAR is there.
    fn mmio_read(&mut self, gpa: Gpa, data: &mut [u8]);
    /// Writes to a BAR.
    fn mmio_write(&mut self, gpa: Gpa, data: &[u8]);
}

/// A VM before it runs.
pub struct Vm {
    /// KVM's VM.
    pub fd: Arc<VmFd>,
    /// Guest memory.
    pub memory: GuestMemoryMmap,
    /// Memory slots.
    pub slots: Slots,
    /// Interrupt routes.
    pub routes: Routes,
    kvm: Kvm,
}

impl Vm {
    /// A VM with 512 MiB of memory.
    ///
    /// # Errors
    /// KVM or the allocation of memory fails.
    pub fn new() -> Result<Self> {
        let kvm = Kvm::new()?;
        let fd = Arc::new(kvm.create_vm()?);
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)?;
        fd.set_tss_address(TSS_ADDRESS)?;
        fd.create_irq_chip()?;
        fd.create_pit2(kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        })?;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_BYTES)])?;
        let slots = Slots::new(Arc::clone(&fd));
        slots.add_memory(&memory)?;
        let routes = Routes::new(Arc::clone(&fd))?;
        Ok(Self {
            fd,
            memory,
            slots,
            routes,
            kvm,
        })
    }

    /// Guest-physical addresses of the guest's memory.
    #[must_use]
    pub fn ram(&self) -> Vec<AddressRange<Gpa>> {
        let end = self.memory.last_addr().0.saturating_add(1);
        AddressRange::new(Gpa::new(0), end).into_iter().collect()
    }

    /// The address ranges for BARs: one below 4 GiB, and one above, within what the guest's CPU addresses.
    ///
    /// # Errors
    /// KVM does not report the CPU's address width.
    pub fn pci_windows(&self) -> Result<Vec<AddressRange<Gpa>>> {
        let limit = 1 << boot::address_bits(&self.kvm)?;
        let windows = [(0xc000_0000, LOW_PCI_END), (1 << 32, limit)];
        let range = |(start, end)| AddressRange::between(Gpa::new(start), Gpa::new(end));
        Ok(windows.into_iter().filter_map(range).collect())
    }

    /// Boots and runs the guest until it powers off. The host bridge forwards `windows` to the functions.
    ///
    /// # Errors
    /// The guest cannot be loaded, resets, or stops for a reason that is not handled.
    pub fn run(
        &self,
        source: &BootSource,
        windows: &[AddressRange<Gpa>],
        functions: &mut dyn PciFunctions,
    ) -> Result<()> {
        let vcpu = boot::load(self, source, windows)?;
        run::run(self, vcpu, functions)
    }
}
