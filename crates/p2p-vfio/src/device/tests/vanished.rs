//! Devices that fail, that the host wants back, and that are gone.

use super::*;

fn signal(rig: &TestDevice, request: bool) {
    rig.hardware().notices[&u8::from(request)].write(1).unwrap();
}

#[test]
fn an_error_stops_the_device_and_is_told() {
    let mut rig = running();
    rig.write32(0x40, 0x0001_0000);
    assert_eq!(rig.device.host_events().count(), 2);
    signal(&rig, false);
    rig.device.process_events();
    assert!(rig.vm.told()[0].contains("uncorrectable error"));
    assert!(rig.vm.is_empty());
    assert_eq!(rig.hardware().config[4] & 6, 0, "no more DMA");
    assert_eq!(rig.read32(0x00), u32::MAX);
    rig.write32(0x04, 6);
    assert!(rig.vm.is_empty(), "it stays stopped");
    rig.device.process_events();
    assert!(rig.vm.told().is_empty());
}

#[test]
fn a_request_of_the_host_is_told_and_changes_nothing() {
    let mut rig = running();
    signal(&rig, true);
    rig.device.process_events();
    assert!(rig.vm.told()[0].contains("wants the device back"));
    rig.assert_coherent(true);
    rig.device.process_events();
    assert!(rig.vm.told().is_empty());
}

#[test]
fn a_device_that_reads_all_ones_is_gone() {
    let mut rig = running();
    rig.hardware().config.fill(0xff);
    assert_eq!(rig.read32(0x00), u32::MAX);
    assert!(rig.vm.told()[0].contains("vanished"));
    assert!(rig.vm.is_empty());
}

#[test]
fn a_device_that_the_kernel_does_not_know_any_more_is_gone() {
    type Access = fn(&mut TestDevice);
    let accesses: [Access; 4] = [
        |rig| assert_eq!(rig.read32(0x08), u32::MAX),
        |rig| rig.write32(0x3c, 0),
        |rig| assert!(rig.device.mmio_read(Gpa::new(BAR1 + 0x2000), &mut [0; 4])),
        |rig| assert!(rig.device.mmio_write(Gpa::new(BAR1 + 0x2000), &[0; 4])),
    ];
    for access in accesses {
        let mut rig = running();
        rig.hardware().gone = Some(libc::ENODEV);
        access(&mut rig);
        let told = rig.vm.told();
        assert!(told.iter().any(|t| t.contains("vanished")), "{told:?}");
        assert!(rig.vm.slots().is_empty() && rig.vm.dma().is_empty());
        let mut data = [0; 4];
        assert!(!rig.device.mmio_read(Gpa::new(BAR0), &mut data));
        assert_eq!(rig.read32(0), u32::MAX);
    }
}

#[test]
fn a_memory_fault_of_the_hypervisor_ends_the_window() {
    let mut rig = running();
    assert!(!rig.device.memory_fault(Gpa::new(0x1000)));
    assert!(rig.device.memory_fault(Gpa::new(BAR0 + 8)));
    assert!(rig.vm.slots().is_empty() && rig.vm.dma().is_empty());
    assert!(rig.vm.told()[0].contains("vanished"));
}

#[test]
fn a_device_that_does_not_answer_is_not_attached() {
    let vm = Arc::new(FakeVm::default());
    let pci = FakePci::new(&vm, vec![0xff; 256], [0; 6]);
    let error = attach(pci, &vm, true).err().unwrap();
    assert!(matches!(error, AttachError::Absent { .. }));
}
