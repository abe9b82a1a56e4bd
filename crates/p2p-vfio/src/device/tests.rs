//! An assigned device against a fake kernel.

use std::sync::{Arc, Mutex};

use crate::address::{Address, AddressRange, Gpa};
use crate::fake::{FakeHardware, FakePci, FakeVm};
use crate::pci::VectorKind;
use crate::vmm::MsiMessage;

use super::{AssignedDevice, BarInfo, DeviceParams, HostDevice};

const MMIO: u64 = 0xc000_0000;

struct Rig {
    vm: Arc<FakeVm>,
    hardware: Arc<Mutex<FakeHardware>>,
    device: AssignedDevice,
}

fn rig_of(pci: FakePci, vm: Arc<FakeVm>, p2p: bool) -> Rig {
    let hardware = pci.hardware.clone();
    let mut host = HostDevice::new("03:00.0".parse().unwrap(), Box::new(pci)).unwrap();
    host.domain = p2p.then(|| vm.clone() as _);
    let params = DeviceParams {
        slots: vm.clone(),
        msi: vm.clone(),
        mmio: vec![AddressRange::new(Gpa::new(MMIO), 1 << 29).unwrap()],
    };
    let device = AssignedDevice::new(host, params).unwrap();
    Rig {
        vm,
        hardware,
        device,
    }
}

/// Two 32-bit BARs, MSI with one vector at 0x40, MSI-X with 2 vectors at 0x60, table in BAR 1.
fn config() -> Vec<u8> {
    let mut bytes = vec![0; 256];
    let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
    put(0x00, &[0x34, 0x12, 0xe8, 0x11, 0x07, 0x00, 0x10, 0x00]);
    put(0x34, &[0x40]);
    put(0x3d, &[1]);
    put(0x40, &[0x05, 0x60, 0x80, 0x00]);
    put(0x60, &[0x11, 0x00, 0x01, 0x00]);
    put(0x64, &0x1001_u32.to_le_bytes());
    put(0x68, &0x2001_u32.to_le_bytes());
    bytes
}

fn pci() -> FakePci {
    let mut pci = FakePci::new(config(), [1 << 20, 0x4000, 0, 0, 0, 0]);
    pci.msi_vectors = 1;
    pci.msix_vectors = 2;
    pci
}

fn rig(p2p: bool) -> Rig {
    rig_of(pci(), Arc::new(FakeVm::default()), p2p)
}

fn bar(rig: &Rig, index: usize) -> BarInfo {
    rig.device.bars()[index]
}

fn placed(p2p: bool) -> Rig {
    let mut rig = rig(p2p);
    let (first, second) = (bar(&rig, 0), bar(&rig, 1));
    rig.device.place_bar(&first, Gpa::new(MMIO)).unwrap();
    rig.device
        .place_bar(&second, Gpa::new(MMIO + (1 << 20)))
        .unwrap();
    rig
}

fn write32(rig: &mut Rig, offset: u16, value: u32) {
    rig.device.config_write(offset, &value.to_le_bytes());
}

fn read32(rig: &Rig, offset: u16) -> u32 {
    let mut data = [0; 4];
    rig.device.config_read(offset, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn nothing_is_visible_before_memory_decode_is_on() {
    let rig = placed(true);
    assert!(rig.vm.slots().is_empty() && rig.vm.dma().is_empty());
    assert_eq!(rig.hardware.lock().unwrap().config[4] & 7, 0);
}

#[test]
fn with_decode_on_guest_and_peers_see_all_but_the_msix_pages() {
    let mut rig = placed(true);
    rig.device.enable_memory().unwrap();
    let second = MMIO + (1 << 20);
    let expected = [MMIO, second, second + 0x3000];
    assert_eq!(rig.vm.slots(), expected);
    assert_eq!(rig.vm.dma(), expected);
    assert_eq!(rig.hardware.lock().unwrap().config[4] & 2, 2);
}

#[test]
fn invariant_7_outside_a_domain_no_peer_sees_a_bar() {
    let mut rig = placed(false);
    rig.device.enable_memory().unwrap();
    assert_eq!(rig.vm.slots().len(), 3);
    assert!(rig.vm.dma().is_empty());
}

#[test]
fn decode_off_closes_every_window() {
    let mut rig = placed(true);
    write32(&mut rig, 0x04, 0x0006);
    assert_eq!(rig.vm.dma().len(), 3);
    write32(&mut rig, 0x04, 0x0004);
    assert!(rig.vm.slots().is_empty() && rig.vm.dma().is_empty());
    assert_eq!(rig.hardware.lock().unwrap().config[4], 4);
}

#[test]
fn windows_follow_a_bar_that_moves() {
    let mut rig = placed(true);
    rig.device.enable_memory().unwrap();
    write32(&mut rig, 0x10, 0xd000_0000);
    assert_eq!(rig.vm.slots().last(), Some(&0xd000_0000));
    assert_eq!(rig.vm.dma().last(), Some(&0xd000_0000));
    assert_eq!(rig.vm.slots().len(), 3);
}

#[test]
fn a_bar_outside_the_mmio_windows_is_not_decoded() {
    let mut rig = placed(true);
    rig.device.enable_memory().unwrap();
    write32(&mut rig, 0x10, 0xfee0_0000);
    assert_eq!(rig.vm.slots().len(), 2);
    assert_eq!(rig.vm.dma().len(), 2);
    assert_eq!(read32(&rig, 0x10), 0xfee0_0000);
}

#[test]
fn sizing_a_bar_with_decode_off_touches_nothing() {
    let mut rig = placed(true);
    write32(&mut rig, 0x10, u32::MAX);
    assert_eq!(read32(&rig, 0x10), 0xfff0_0000);
    assert!(rig.vm.slots().is_empty());
}

#[test]
fn every_failing_call_leaves_guest_and_peers_in_step() {
    for calls in 0..6 {
        let mut rig = placed(true);
        rig.vm.countdown.set(calls);
        assert!(rig.device.enable_memory().is_err(), "call {calls}");
        assert_eq!(rig.vm.slots(), rig.vm.dma(), "call {calls}");
        assert_eq!(rig.vm.slots().len(), 2, "call {calls}");
        drop(rig.device);
        assert!(rig.vm.slots().is_empty() && rig.vm.dma().is_empty());
    }
}

#[test]
fn a_window_on_top_of_another_devices_is_refused() {
    let vm = Arc::new(FakeVm::default());
    let mut other = rig_of(pci(), vm.clone(), true);
    let info = bar(&other, 0);
    other.device.place_bar(&info, Gpa::new(MMIO)).unwrap();
    other.device.enable_memory().unwrap();
    let mut rig = rig_of(pci(), vm.clone(), true);
    rig.device.place_bar(&info, Gpa::new(MMIO)).unwrap();
    assert!(rig.device.enable_memory().is_err());
    assert_eq!(vm.slots(), [MMIO]);
    assert_eq!(vm.dma(), [MMIO]);
}

#[test]
fn dropping_a_device_leaves_nothing() {
    let mut rig = placed(true);
    rig.device.enable_memory().unwrap();
    write32(&mut rig, 0x40, 0x0001_0000);
    drop(rig.device);
    assert!(rig.vm.slots().is_empty() && rig.vm.dma().is_empty());
    assert!(rig.vm.messages().is_empty());
    let hardware = rig.hardware.lock().unwrap();
    assert_eq!((hardware.config[4] & 7, hardware.vectors), (0, None));
}

#[test]
fn msi_is_delivered_as_programmed() {
    let mut rig = rig(false);
    write32(&mut rig, 0x44, 0xfee0_0000);
    write32(&mut rig, 0x4c, 0x41);
    write32(&mut rig, 0x40, 0x0001_0000);
    let expected = MsiMessage {
        address: 0xfee0_0000,
        data: 0x41,
    };
    assert_eq!(rig.vm.messages(), [expected]);
    assert_eq!(
        rig.hardware.lock().unwrap().vectors,
        Some((VectorKind::Msi, 1))
    );
    write32(&mut rig, 0x40, 0);
    assert!(rig.vm.messages().is_empty());
    assert_eq!(rig.hardware.lock().unwrap().vectors, None);
}

#[test]
fn msix_vectors_are_delivered_once_unmasked() {
    let mut rig = placed(false);
    rig.device.enable_memory().unwrap();
    write32(&mut rig, 0x60, 0x8000_0000);
    assert_eq!(
        rig.hardware.lock().unwrap().vectors,
        Some((VectorKind::Msix, 2))
    );
    let table = Gpa::new(MMIO + (1 << 20) + 0x1000);
    let entry: Vec<[u8; 8]> = [0xfee0_0000_u64, 0x42].map(u64::to_le_bytes).into();
    assert!(rig.device.mmio_write(table, &entry[0]));
    assert!(rig.vm.messages().is_empty());
    let control = Gpa::new(table.value() + 8);
    assert!(rig.device.mmio_write(control, &entry[1]));
    assert_eq!(rig.vm.messages().len(), 1);
    let mut back = [0; 8];
    assert!(rig.device.mmio_read(control, &mut back));
    assert_eq!(back, entry[1]);
}

#[test]
fn interrupts_that_cannot_be_connected_are_off() {
    let mut rig = rig(false);
    rig.vm.countdown.set(0);
    write32(&mut rig, 0x40, 0x0001_0000);
    assert!(rig.vm.messages().is_empty());
    assert_eq!(rig.hardware.lock().unwrap().vectors, None);
}

#[test]
fn trapped_accesses_reach_the_device() {
    let mut rig = placed(false);
    rig.device.enable_memory().unwrap();
    // The page of the pending bits is not mapped: it is read from the device.
    let pending = Gpa::new(MMIO + (1 << 20) + 0x2000);
    assert!(rig.device.mmio_write(pending, &[1, 2, 3, 4]));
    let mut data = [0; 4];
    assert!(rig.device.mmio_read(pending, &mut data));
    assert_eq!(data, [1, 2, 3, 4]);
    assert!(!rig.device.mmio_read(Gpa::new(MMIO - 4), &mut data));
}

#[test]
fn a_write_across_registers_reaches_each() {
    let mut rig = rig(false);
    write32(&mut rig, 0x3c, 0xffff_ff0b);
    let hardware = rig.hardware.lock().unwrap();
    assert_eq!(hardware.config[0x3c], 0x0b);
    assert_eq!(hardware.config[0x3d], 1, "the pin is not the guest's");
}

#[test]
fn reset_closes_windows_and_keeps_addresses() {
    let mut rig = placed(true);
    rig.device.enable_memory().unwrap();
    write32(&mut rig, 0x40, 0x0001_0000);
    rig.device.reset().unwrap();
    assert!(rig.vm.slots().is_empty() && rig.vm.dma().is_empty());
    assert!(rig.vm.messages().is_empty());
    assert_eq!(rig.hardware.lock().unwrap().resets, 1);
    assert_eq!(read32(&rig, 0x10), 0xc000_0000);
}

#[test]
fn the_space_ends_where_the_hardwares_does() {
    let rig = rig(false);
    assert_eq!(read32(&rig, 0x100), u32::MAX);
    assert_eq!(read32(&rig, 0xffc), u32::MAX);
}
