//! Pin, MSI and MSI-X.

use super::*;
use crate::pci::VectorKind;
use crate::vmm::MsiMessage;

const TABLE: u64 = BAR1 + 0x1000;

fn message(data: u32) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_0000,
        data,
    }
}

/// The guest programs vector `n` of the MSI-X table.
fn program(rig: &mut TestDevice, n: u64, data: u32, masked: bool) {
    let entry = TABLE + n * 16;
    let mut dword = |at: u64, value: u32| {
        assert!(
            rig.device
                .mmio_write(Gpa::new(entry + at), &value.to_le_bytes())
        );
    };
    dword(0, 0xfee0_0000);
    dword(8, data);
    dword(12, u32::from(masked));
}

fn vectors(rig: &TestDevice) -> Option<(VectorKind, u32, Vec<u32>)> {
    rig.hardware().vectors.clone()
}

#[test]
fn the_pin_is_on_until_messages_are_or_the_guest_disables_it() {
    let mut rig = running();
    assert_eq!((rig.vm.lines(), rig.hardware().line), (1, true));
    rig.write32(0x40, 0x0001_0000);
    assert_eq!((rig.vm.lines(), rig.hardware().line), (0, false));
    rig.write32(0x40, 0);
    assert_eq!((rig.vm.lines(), rig.hardware().line), (1, true));
    rig.device.config_write(0x05, &[0x04]);
    assert_eq!((rig.vm.lines(), rig.hardware().line), (0, false));
    rig.device.config_write(0x05, &[0x00]);
    assert_eq!(rig.vm.lines(), 1);
    assert!(rig.vm.told().is_empty());
}

#[test]
fn the_guest_sees_pin_a_whatever_it_is_on_the_host_and_none_without_a_line() {
    let vm = Arc::new(FakeVm::default());
    for (hardware, line, expected) in [(3, true, 1), (0, true, 0), (1, false, 0)] {
        let mut bytes = config();
        bytes[0x3d] = hardware;
        let pci = FakePci::new(&vm, bytes, [0; 6]);
        let host = HostDevice::new("03:00.0".parse().unwrap(), Box::new(pci), &[]).unwrap();
        let params = DeviceParams {
            slots: vm.clone(),
            claims: vm.clone(),
            msi: vm.clone(),
            vector_fds: DescriptorLimit::NONE,
            intx: line.then(|| vm.clone() as _),
            events: vm.clone(),
            mmio: Vec::new(),
            clique: None,
        };
        let mut device = AssignedDevice::new(host, params).unwrap();
        let mut pin = [0xff];
        device.config_read(0x3d, &mut pin);
        assert_eq!(pin, [expected]);
        assert_eq!(vm.lines(), usize::from(expected));
    }
}

#[test]
fn msi_is_delivered_as_programmed() {
    let mut rig = rig(false);
    rig.write32(0x44, 0xfee0_0000);
    rig.write32(0x4c, 0x44);
    rig.write32(0x40, 0x0011_0000);
    assert_eq!(rig.vm.messages(), [message(0x44), message(0x45)]);
    assert_eq!(vectors(&rig), Some((VectorKind::Msi, 2, vec![0, 1])));
    rig.write32(0x4c, 0x46);
    assert_eq!(rig.vm.messages(), [message(0x46), message(0x47)]);
    rig.write32(0x40, 0);
    assert!(rig.vm.messages().is_empty());
    assert_eq!(vectors(&rig), None);
}

#[test]
fn another_number_of_msi_vectors_is_another_set() {
    let mut rig = rig(false);
    rig.write32(0x40, 0x0001_0000);
    assert_eq!(vectors(&rig), Some((VectorKind::Msi, 1, vec![0])));
    rig.write32(0x40, 0x0021_0000);
    assert_eq!(vectors(&rig), Some((VectorKind::Msi, 4, vec![0, 1, 2, 3])));
}

#[test]
fn msix_vectors_come_one_by_one_where_the_kernel_can() {
    let mut rig = running();
    rig.write32(0x60, 0x8000_0000);
    assert_eq!(vectors(&rig), Some((VectorKind::Msix, 1, vec![0])));
    assert!(rig.vm.messages().is_empty());
    program(&mut rig, 2, 0x42, false);
    assert_eq!(vectors(&rig), Some((VectorKind::Msix, 3, vec![0, 2])));
    assert_eq!(rig.vm.messages(), [message(0x42)]);
    program(&mut rig, 2, 0x43, true);
    assert!(rig.vm.messages().is_empty());
    assert_eq!(
        vectors(&rig).unwrap().2,
        [0, 2],
        "a masked signal stays pending"
    );
    program(&mut rig, 2, 0x43, false);
    assert_eq!(rig.vm.messages(), [message(0x43)]);
    assert!(rig.vm.told().is_empty());
}

#[test]
fn msix_is_turned_on_again_where_the_kernel_cannot_add_vectors() {
    let vm = Arc::new(FakeVm::default());
    let mut pci = pci(&vm);
    pci.dynamic = false;
    let mut rig = rig_of(pci, &vm, false);
    rig.place(BAR0, BAR1);
    rig.device.enable_memory().unwrap();
    rig.write32(0x60, 0x8000_0000);
    program(&mut rig, 1, 0x41, false);
    assert_eq!(vectors(&rig), Some((VectorKind::Msix, 2, vec![0, 1])));
    program(&mut rig, 2, 0x42, false);
    assert_eq!(vectors(&rig), Some((VectorKind::Msix, 3, vec![0, 1, 2])));
    assert_eq!(rig.vm.messages(), [message(0x41), message(0x42)]);
    assert!(rig.vm.told().is_empty());
}

#[test]
fn msix_and_msi_are_never_on_together() {
    let mut rig = running();
    rig.write32(0x40, 0x0001_0000);
    rig.write32(0x60, 0x8000_0000);
    assert_eq!(vectors(&rig).unwrap().0, VectorKind::Msix);
    rig.write32(0x60, 0);
    assert_eq!(vectors(&rig).unwrap().0, VectorKind::Msi);
}

#[test]
fn the_table_reads_back() {
    let mut rig = running();
    program(&mut rig, 1, 0x42, false);
    let mut back = [0; 8];
    assert!(rig.device.mmio_read(Gpa::new(TABLE + 0x18), &mut back));
    assert_eq!(back, 0x42_u64.to_le_bytes());
}

#[test]
fn interrupts_that_cannot_be_connected_are_told_and_tried_again() {
    let mut rig = running();
    rig.write32(0x60, 0x8000_0000);
    rig.vm.countdown.set(0);
    program(&mut rig, 0, 0x41, false);
    assert_eq!(rig.vm.told().len(), 1);
    rig.write32(0x60, 0x8000_0000);
    assert_eq!(rig.vm.messages(), [message(0x41)]);
}

#[test]
fn one_call_that_fails_costs_no_other_vector() {
    for calls in 0.. {
        let mut rig = running();
        rig.write32(0x60, 0x8000_0000);
        program(&mut rig, 1, 0x41, false);
        rig.vm.countdown.set(calls);
        program(&mut rig, 2, 0x42, false);
        if rig.vm.countdown.stop() {
            assert!(calls > 1, "there were calls that could fail");
            break;
        }
        assert_eq!(rig.vm.told().len(), 1, "call {calls}");
        assert!(rig.vm.messages().contains(&message(0x41)), "call {calls}");
        rig.write32(0x60, 0x8000_0000);
        assert_eq!(rig.vm.messages(), [message(0x41), message(0x42)]);
        assert_eq!(vectors(&rig), Some((VectorKind::Msix, 3, vec![0, 1, 2])));
        rig.device.detach().unwrap();
        assert!(rig.vm.is_empty());
    }
}
