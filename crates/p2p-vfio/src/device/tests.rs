//! An assigned device against a fake kernel.

mod bar_mappings;
mod config;
mod descriptors;
mod endpoint;
mod hidden;
mod initiators;
mod interrupts;
mod resets;
mod transactions;
mod vanished;
mod weaknesses;

use std::sync::{Arc, Mutex, MutexGuard};

use crate::descriptors::DescriptorLimit;
use crate::fake::{FakeHardware, FakePci, FakeVm, iova_ranges};
use crate::peers::PeerBars;
use iommu_group::{Address, AddressRange, Bar, Gpa, Placement};

use super::{AssignedDevice, AttachError, DeviceParams, HostDevice};

/// Where the rig's host bridge lets through, and where its BARs are.
const MMIO: u64 = 0xc000_0000;
const BAR0: u64 = MMIO;
const BAR1: u64 = MMIO + (1 << 20);

struct TestDevice {
    vm: Arc<FakeVm>,
    hardware: Arc<Mutex<FakeHardware>>,
    device: AssignedDevice,
}

/// MSI with four vectors at 0x40, MSI-X with 3 vectors at 0x60 and its table in BAR 1, power
/// management at 0x70, PCI Express with FLR at 0x80. Two 32-bit BARs, pin A.
fn config() -> Vec<u8> {
    let mut bytes = vec![0; 256];
    let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
    put(0x00, &[0x34, 0x12, 0xe8, 0x11, 0x07, 0x00, 0x10, 0x00]);
    put(0x34, &[0x40]);
    put(0x3d, &[1]);
    put(0x40, &[0x05, 0x60, 0x84, 0x00]);
    put(0x60, &[0x11, 0x70, 0x02, 0x00]);
    put(0x64, &0x1001_u32.to_le_bytes());
    put(0x68, &0x2001_u32.to_le_bytes());
    put(0x70, &[0x01, 0x80, 0x03, 0x00, 0x00]);
    put(0x80, &[0x10, 0x00, 0x02, 0x00, 0x00, 0x00, 0x00, 0x10]);
    bytes
}

fn pci(vm: &Arc<FakeVm>) -> FakePci {
    let mut pci = FakePci::new(vm, config(), [1 << 20, 0x4000, 0, 0, 0, 0]);
    pci.msi_vectors = 4;
    pci.msix_vectors = 3;
    pci
}

fn attach(pci: FakePci, vm: &Arc<FakeVm>, p2p: bool) -> Result<AssignedDevice, AttachError> {
    attach_at(pci, vm, p2p, &[])
}

/// BARs of these numbers have these bus addresses, and must be there.
fn attach_at(
    pci: FakePci,
    vm: &Arc<FakeVm>,
    p2p: bool,
    bus_addresses: &[(u8, u64)],
) -> Result<AssignedDevice, AttachError> {
    let sbdf = "03:00.0".parse().unwrap();
    let mut host = HostDevice::new(sbdf, Box::new(pci), bus_addresses)?;
    host.domain = p2p.then(|| busy_domain(vm));
    if !bus_addresses.is_empty() {
        host.endpoint = host.endpoint.placed(Placement::AtBusAddress);
    }
    AssignedDevice::new(host, params(vm, DescriptorLimit::NONE))
}

/// A P2P domain with another member that is a bus master, so that what is published is mapped.
fn busy_domain(vm: &Arc<FakeVm>) -> Arc<PeerBars> {
    let peers = idle_domain(vm);
    peers.add_initiator("0f:00.0".parse().unwrap()).unwrap();
    peers
}

/// A P2P domain without a bus master.
fn idle_domain(vm: &Arc<FakeVm>) -> Arc<PeerBars> {
    let peers = PeerBars::new(vm.clone());
    peers.set_usable(iova_ranges());
    Arc::new(peers)
}

/// Its vectors take descriptors within `limit`; outside of any domain.
fn attach_within(
    pci: FakePci,
    vm: &Arc<FakeVm>,
    limit: DescriptorLimit,
) -> Result<AssignedDevice, AttachError> {
    let host = HostDevice::new("03:00.0".parse().unwrap(), Box::new(pci), &[])?;
    AssignedDevice::new(host, params(vm, limit))
}

fn params(vm: &Arc<FakeVm>, vector_fds: DescriptorLimit) -> DeviceParams {
    DeviceParams {
        slots: vm.clone(),
        claims: vm.clone(),
        msi: vm.clone(),
        vector_fds,
        intx: Some(vm.clone()),
        events: vm.clone(),
        mmio: vec![AddressRange::new(Gpa::new(MMIO), 1 << 29).unwrap()],
        clique: None,
    }
}

fn rig_of(pci: FakePci, vm: &Arc<FakeVm>, p2p: bool) -> TestDevice {
    TestDevice {
        vm: vm.clone(),
        hardware: pci.hardware.clone(),
        device: attach(pci, vm, p2p).unwrap(),
    }
}

fn rig(p2p: bool) -> TestDevice {
    let vm = Arc::new(FakeVm::default());
    rig_of(pci(&vm), &vm, p2p)
}

/// BARs are placed, decode is off.
fn placed(p2p: bool) -> TestDevice {
    let mut rig = rig(p2p);
    rig.place(BAR0, BAR1);
    rig
}

/// BARs are placed and decoded, in a P2P domain.
fn running() -> TestDevice {
    let mut rig = placed(true);
    rig.device.enable_memory().unwrap();
    rig
}

impl TestDevice {
    fn bar(&self, index: usize) -> Bar {
        self.device.bars()[index]
    }

    fn place(&mut self, first: u64, second: u64) {
        let bars = [self.bar(0), self.bar(1)];
        self.device.place_bar(&bars[0], Gpa::new(first)).unwrap();
        self.device.place_bar(&bars[1], Gpa::new(second)).unwrap();
    }

    fn write32(&mut self, offset: u16, value: u32) {
        self.device.config_write(offset, &value.to_le_bytes());
    }

    fn read32(&mut self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.device.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn decode(&mut self, on: bool) {
        self.device.config_write(0x04, &[4 | u8::from(on) << 1]);
    }

    fn hardware(&self) -> MutexGuard<'_, FakeHardware> {
        self.hardware.lock().unwrap()
    }

    /// Guest and peers see the same, and it is where the device says that its BARs are. BAR 0 is one
    /// area; BAR 1 is two, around the pages with MSI-X structures.
    fn assert_coherent(&self, p2p: bool) {
        let mut expected = Vec::new();
        let mut claims = Vec::new();
        for (info, range) in self.device.live_bars() {
            let start = range.start().value();
            claims.push(start);
            expected.push(start);
            if info.index == 1 {
                expected.push(start + 0x3000);
            }
        }
        expected.sort_unstable();
        claims.sort_unstable();
        assert_eq!(self.vm.slots(), expected, "what the guest sees");
        assert_eq!(self.vm.claims(), claims, "what is claimed");
        let peers = if p2p { expected } else { Vec::new() };
        assert_eq!(self.vm.dma(), peers, "what the peers see");
    }
}
