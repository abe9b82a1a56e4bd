//! Assigned devices on a fake kernel, for fuzz targets.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_group::{AddressRange, Gpa, Iova, Sbdf};

use crate::descriptors::DescriptorLimit;
use crate::fake::{Countdown, FakeHardware, FakePci, FakeVm, iova_ranges};
use crate::pci::Mappable;
use crate::peers::PeerBars;

use super::{AssignedDevice, AttachError, DeviceParams, HostDevice};

/// The kernel and the VMM of one VM: memory slots, interrupts, and a DMA context for each P2P domain.
pub struct FakeHost {
    vm: Arc<FakeVm>,
    domains: Vec<Domain>,
}

/// A P2P domain.
struct Domain {
    context: Arc<FakeVm>,
    peers: Arc<PeerBars>,
}

/// Configuration of a function of the fake host.
#[derive(Debug, Clone)]
pub struct FakeFunction {
    /// Its configuration space.
    pub config: Vec<u8>,
    /// Sizes of its BARs, in bytes, up to 16 MiB; 0 for an absent BAR.
    pub bar_sizes: [u64; 6],
    /// Whether its BARs can be mapped.
    pub mappable: bool,
    /// Number of its MSI and MSI-X vectors.
    pub vectors: [u32; 2],
    /// Whether MSI-X vectors can be added while others are on.
    pub dynamic: bool,
}

/// The host's view of an assigned function.
#[derive(Debug)]
pub struct FakeRegisters(Arc<Mutex<FakeHardware>>);

impl FakeHost {
    /// Creates a VM with this number of P2P domains.
    pub fn new(domains: usize) -> Self {
        let countdown = Countdown::default();
        let vm = || Arc::new(FakeVm::failing_with(countdown.clone()));
        Self {
            vm: vm(),
            domains: (0..domains).map(|_| Domain::new(vm())).collect(),
        }
    }

    /// Attaches a function, in a P2P domain or unshared.
    ///
    /// # Errors
    /// As for [`AssignedDevice::new`].
    pub fn attach(
        &self,
        sbdf: Sbdf,
        function: &FakeFunction,
        domain: Option<usize>,
        mmio: Vec<AddressRange<Gpa>>,
    ) -> Result<(AssignedDevice, FakeRegisters), AttachError> {
        let domain = domain.and_then(|number| self.domains.get(number));
        let context = domain.map_or(&self.vm, |domain| &domain.context);
        let mut pci = FakePci::new(context, function.config.clone(), function.bar_sizes);
        if !function.mappable {
            pci.mappable = Mappable::Nothing;
        }
        [pci.msi_vectors, pci.msix_vectors] = function.vectors;
        pci.dynamic = function.dynamic;
        let registers = FakeRegisters(Arc::clone(&pci.hardware));
        let mut host = HostDevice::new(sbdf, Box::new(pci), &[])?;
        host.domain = domain.map(|domain| domain.peers.clone());
        let params = DeviceParams {
            slots: self.vm.clone(),
            claims: self.vm.clone(),
            msi: self.vm.clone(),
            vector_fds: DescriptorLimit::NONE,
            intx: Some(self.vm.clone()),
            events: self.vm.clone(),
            mmio,
            clique: None,
        };
        Ok((AssignedDevice::new(host, params)?, registers))
    }

    /// Lets `calls` calls succeed and the next one fail, once.
    pub fn fail_after(&self, calls: u32) {
        self.vm.countdown.set(calls);
    }

    /// Makes all calls succeed from now on.
    pub fn stop_failing(&self) {
        self.vm.countdown.stop();
    }

    /// Takes the events of the devices and returns their number.
    pub fn take_events(&self) -> usize {
        self.vm.told().len()
    }

    /// Memory slots of the guest, in order.
    pub fn slots(&self) -> Vec<AddressRange<Gpa>> {
        self.vm.slot_ranges()
    }

    /// Ranges that devices have claimed, in order.
    pub fn claims(&self) -> Vec<AddressRange<Gpa>> {
        self.vm.claim_ranges()
    }

    /// Ranges that the devices of a domain can reach in addition to guest memory, in order.
    pub fn mapped(&self, domain: usize) -> Vec<AddressRange<Iova>> {
        let domain = self.domains.get(domain);
        domain.map_or_else(Vec::new, |domain| domain.context.dma_ranges())
    }

    /// Number of message routes to the guest.
    pub fn routes(&self) -> usize {
        self.vm.messages().len()
    }

    /// Number of devices connected to interrupt lines.
    pub fn lines(&self) -> usize {
        self.vm.lines()
    }
}

impl Domain {
    fn new(context: Arc<FakeVm>) -> Self {
        let peers = PeerBars::new(context.clone());
        peers.set_usable(iova_ranges());
        Self {
            context,
            peers: Arc::new(peers),
        }
    }
}

impl FakeRegisters {
    fn lock(&self) -> MutexGuard<'_, FakeHardware> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the function decodes memory.
    pub fn decodes(&self) -> bool {
        self.lock().config.get(4).is_some_and(|low| low & 2 != 0)
    }

    /// Whether the function can send requests.
    pub fn is_master(&self) -> bool {
        self.lock().config.get(4).is_some_and(|low| low & 4 != 0)
    }

    /// Whether its pin is on.
    pub fn has_line(&self) -> bool {
        self.lock().line
    }

    /// Number of its connected vectors.
    pub fn vectors(&self) -> usize {
        let hardware = self.lock();
        hardware.vectors.as_ref().map_or(0, |(.., on)| on.len())
    }

    /// Addresses at which peers could reach it during the last reset.
    pub fn peers_at_reset(&self) -> Vec<u64> {
        self.lock().peers_at_reset.clone()
    }

    /// Signals an error from the host if `error` is true, otherwise the request to give the device back.
    pub fn signal(&self, error: bool) {
        if let Some(event) = self.lock().notices.get(&u8::from(!error)) {
            // The write fails only if the counter is full: the event is signalled then.
            let _ = event.write(1);
        }
    }

    /// Simulates surprise removal: all calls fail from now on.
    pub fn pull(&self) {
        self.lock().gone = Some(libc::ENODEV);
    }
}
