//! Where BARs are visible, and when.

use super::*;
use crate::pci::Mappable;

/// BAR 0, and BAR 1 before and behind its MSI-X pages.
const ALL: [u64; 3] = [BAR0, BAR1, BAR1 + 0x3000];

#[test]
fn nothing_is_visible_before_memory_decode_is_on() {
    let rig = placed(true);
    assert!(rig.vm.slots().is_empty() && rig.vm.dma().is_empty() && rig.vm.claims().is_empty());
    assert_eq!(rig.hardware().config[4] & 7, 0);
}

#[test]
fn a_bar_that_a_vmm_places_where_no_bridge_leads_is_an_error() {
    let mut rig = rig(true);
    rig.place(BAR0, MMIO - (1 << 20));
    let error = rig.device.enable_memory().unwrap_err().to_string();
    assert!(
        error.contains("BAR 1") && error.contains("0xbff00000"),
        "{error}"
    );
    assert!(rig.vm.slots().is_empty() && rig.vm.dma().is_empty() && rig.vm.claims().is_empty());
    rig.place(BAR0, BAR1);
    rig.device.enable_memory().unwrap();
    rig.assert_coherent(true);
}

#[test]
fn guest_and_peers_see_the_same_without_msix_pages() {
    let rig = running();
    assert_eq!(rig.vm.slots(), ALL);
    assert_eq!(rig.vm.dma(), ALL);
    assert_eq!(rig.device.peer_windows().count(), 3);
}

#[test]
fn invariant_7_outside_a_domain_no_peer_sees_a_bar() {
    let mut rig = placed(false);
    rig.device.enable_memory().unwrap();
    assert_eq!(rig.vm.slots(), ALL);
    assert!(rig.vm.dma().is_empty());
}

#[test]
fn decode_off_closes_every_window() {
    let mut rig = placed(true);
    rig.decode(true);
    assert_eq!(rig.vm.dma(), ALL);
    rig.decode(false);
    assert!(rig.vm.slots().is_empty() && rig.vm.dma().is_empty());
    assert_eq!(rig.hardware().config[4], 4);
}

#[test]
fn windows_follow_a_bar_that_moves() {
    let mut rig = running();
    rig.write32(0x10, 0xd000_0000);
    assert_eq!(rig.vm.slots(), [BAR1, BAR1 + 0x3000, 0xd000_0000]);
    rig.assert_coherent(true);
}

#[test]
fn bars_of_one_device_trade_places_with_decode_on() {
    let vm = Arc::new(FakeVm::default());
    let sizes = [1 << 20, 1 << 20, 0, 0, 0, 0];
    let mut rig = rig_of(FakePci::new(&vm, config(), sizes), &vm, true);
    rig.place(BAR0, BAR1);
    rig.device.enable_memory().unwrap();
    rig.write32(0x10, 0xc010_0000);
    assert_eq!(rig.vm.dma(), [BAR1], "one of the two is nowhere meanwhile");
    rig.write32(0x14, 0xc000_0000);
    assert_eq!(rig.vm.dma(), [BAR0, BAR1]);
    let at: Vec<_> = rig
        .device
        .live_bars()
        .map(|(i, r)| (i.index, r.start().value()))
        .collect();
    assert_eq!(at, [(0, BAR1), (1, BAR0)]);
}

#[test]
fn a_bar_outside_the_windows_above_is_not_decoded() {
    let mut rig = running();
    rig.write32(0x10, 0xfee0_0000);
    assert_eq!(rig.vm.dma(), [BAR1, BAR1 + 0x3000]);
    assert_eq!(rig.read32(0x10), 0xfee0_0000);
    assert!(
        rig.vm.told().is_empty(),
        "a bridge that does not lead there is no error"
    );
}

#[test]
fn windows_follow_the_bridges_above() {
    let mut rig = running();
    let only = AddressRange::new(Gpa::new(BAR1), 1 << 20).unwrap();
    rig.device.set_reach(&[only]);
    assert_eq!(rig.vm.dma(), [BAR1, BAR1 + 0x3000]);
    let mut data = [0; 4];
    assert!(!rig.device.mmio_read(Gpa::new(BAR0), &mut data));
    rig.device.set_reach(&[]);
    rig.assert_coherent(true);
    assert!(rig.vm.dma().is_empty());
    rig.device
        .set_reach(&[AddressRange::new(Gpa::new(MMIO), 1 << 29).unwrap()]);
    assert_eq!(rig.vm.dma(), ALL);
}

#[test]
fn a_bar_that_is_partly_outside_the_windows_above_is_not_decoded() {
    let mut rig = running();
    let half = AddressRange::new(Gpa::new(BAR0), 1 << 19).unwrap();
    rig.device.set_reach(&[half]);
    assert!(rig.vm.dma().is_empty());
}

#[test]
fn sizing_a_bar_touches_nothing_else() {
    for decode in [false, true] {
        let mut rig = placed(true);
        rig.decode(decode);
        let before = rig.vm.dma();
        rig.write32(0x10, u32::MAX);
        assert_eq!(rig.read32(0x10), 0xfff0_0000);
        rig.write32(0x10, 0xc000_0000);
        assert_eq!(rig.vm.dma(), before);
    }
}

#[test]
fn a_move_onto_another_devices_range_is_refused_and_told() {
    let vm = Arc::new(FakeVm::default());
    let mut other = rig_of(pci(&vm), &vm, true);
    other.place(0xd000_0000, 0xd010_0000);
    other.device.enable_memory().unwrap();
    let mut rig = rig_of(pci(&vm), &vm, true);
    rig.place(BAR0, BAR1);
    rig.device.enable_memory().unwrap();
    let theirs = [0xd000_0000, 0xd010_0000, 0xd010_3000];
    assert!(vm.dma().ends_with(&theirs));

    rig.write32(0x10, 0xd000_0000);
    assert_eq!(vm.dma()[..2], [BAR1, BAR1 + 0x3000]);
    assert_eq!(vm.dma()[2..], theirs, "the other device has what it had");
    assert_eq!(vm.slots(), vm.dma());
    let told = vm.told();
    assert!(told.len() == 1 && told[0].contains("BAR 0"), "{told:?}");
    rig.write32(0x3c, 0);
    assert!(vm.told().is_empty(), "it is told once");

    other.device.config_write(0x04, &[0]);
    rig.device.retry_mappings();
    assert_eq!(
        vm.dma(),
        [BAR1, BAR1 + 0x3000, 0xd000_0000],
        "there is room now"
    );
}

#[test]
fn a_refused_device_does_not_answer_for_the_other() {
    let vm = Arc::new(FakeVm::default());
    let mut other = rig_of(pci(&vm), &vm, false);
    other.place(BAR0, BAR1);
    other.device.enable_memory().unwrap();
    let mut rig = rig_of(pci(&vm), &vm, false);
    rig.place(0xd000_0000, 0xd010_0000);
    rig.device.enable_memory().unwrap();
    // On the page with the other's MSI-X table, which is mapped for nobody.
    rig.write32(0x14, 0xc010_0000);
    let mut data = [0; 4];
    assert!(!rig.device.mmio_read(Gpa::new(BAR1 + 0x1000), &mut data));
    assert!(other.device.mmio_read(Gpa::new(BAR1 + 0x1000), &mut data));
}

#[test]
fn two_devices_swap_with_decode_off() {
    let vm = Arc::new(FakeVm::default());
    let mut one = rig_of(pci(&vm), &vm, true);
    one.place(BAR0, BAR1);
    one.device.enable_memory().unwrap();
    let mut two = rig_of(pci(&vm), &vm, true);
    two.place(0xd000_0000, 0xd010_0000);
    two.device.enable_memory().unwrap();
    let before = vm.dma();
    one.decode(false);
    two.decode(false);
    for (rig, at) in [(&mut one, 0xd000_0000), (&mut two, 0xc000_0000)] {
        rig.write32(0x10, at);
        rig.write32(0x14, at + (1 << 20));
    }
    one.decode(true);
    two.decode(true);
    assert_eq!((vm.dma(), vm.slots()), (before.clone(), before));
    assert!(vm.told().is_empty());
    let start = |rig: &TestDevice| rig.device.live_bars().next().unwrap().1.start().value();
    assert_eq!((start(&one), start(&two)), (0xd000_0000, BAR0));
}

#[test]
fn bars_of_less_than_a_page_trap_and_are_nobodys_but_the_devices() {
    let vm = Arc::new(FakeVm::default());
    let sizes = [256, 0, 0, 0, 0, 0];
    let mut one = rig_of(FakePci::new(&vm, config(), sizes), &vm, true);
    let mut two = rig_of(FakePci::new(&vm, config(), sizes), &vm, true);
    for (rig, at) in [(&mut one, MMIO), (&mut two, MMIO + 0x100)] {
        let info = rig.bar(0);
        rig.device.place_bar(&info, Gpa::new(at)).unwrap();
        rig.device.enable_memory().unwrap();
    }
    assert!(vm.slots().is_empty() && vm.dma().is_empty());
    assert_eq!(vm.claims(), [MMIO, MMIO + 0x100]);
    assert!(one.device.mmio_write(Gpa::new(MMIO + 0xfc), &[1, 2, 3, 4]));
    let mut data = [0; 4];
    assert!(one.device.mmio_read(Gpa::new(MMIO + 0xfc), &mut data));
    assert_eq!(data, [1, 2, 3, 4]);
    assert!(!one.device.mmio_read(Gpa::new(MMIO + 0x100), &mut data));
    assert!(!one.device.mmio_read(Gpa::new(MMIO + 0xfe), &mut data));
    two.write32(0x10, 0xc000_0000);
    assert_eq!(
        vm.claims(),
        [MMIO],
        "the second on top of the first is refused"
    );
}

#[test]
fn a_msix_table_that_is_not_page_aligned_is_not_visible() {
    let vm = Arc::new(FakeVm::default());
    let mut bytes = config();
    // The table straddles two pages, the pending bits lie at the end of the second.
    bytes[0x64..0x68].copy_from_slice(&0x1fe9_u32.to_le_bytes());
    bytes[0x68..0x6c].copy_from_slice(&0x2ff9_u32.to_le_bytes());
    let mut pci = FakePci::new(&vm, bytes, [1 << 20, 0x4000, 0, 0, 0, 0]);
    pci.msix_vectors = 3;
    let mut rig = rig_of(pci, &vm, true);
    rig.place(BAR0, BAR1);
    rig.device.enable_memory().unwrap();
    assert_eq!(vm.slots(), [BAR0, BAR1, BAR1 + 0x3000]);
    assert_eq!(vm.dma(), vm.slots());
    let entry = Gpa::new(BAR1 + 0x1fe8);
    assert!(rig.device.mmio_write(entry, &0xfee0_1000_u32.to_le_bytes()));
    let mut data = [0; 4];
    assert!(rig.device.mmio_read(entry, &mut data));
    assert_eq!(u32::from_le_bytes(data), 0xfee0_1000);
}

#[test]
fn a_bar_that_may_not_be_mapped_traps() {
    let vm = Arc::new(FakeVm::default());
    let mut pci = pci(&vm);
    pci.mappable = Mappable::Nothing;
    let mut rig = rig_of(pci, &vm, true);
    rig.place(BAR0, BAR1);
    rig.device.enable_memory().unwrap();
    assert!(vm.slots().is_empty() && vm.dma().is_empty());
    assert!(rig.device.mmio_write(Gpa::new(BAR0), &[7]));
}

#[test]
fn trapped_accesses_reach_the_device() {
    let mut rig = running();
    // The page of the pending bits is not mapped: it is read from the device.
    let pending = Gpa::new(BAR1 + 0x2000);
    assert!(rig.device.mmio_write(pending, &[1, 2, 3, 4]));
    let mut data = [0; 4];
    assert!(rig.device.mmio_read(pending, &mut data));
    assert_eq!(data, [1, 2, 3, 4]);
    assert!(!rig.device.mmio_read(Gpa::new(MMIO - 4), &mut data));
}

#[test]
fn an_address_that_the_iommu_cannot_translate_is_refused_and_told() {
    let vm = Arc::new(FakeVm::default());
    let mut bytes = config();
    bytes[0x10] = 0xc;
    let mut rig = rig_of(
        FakePci::new(&vm, bytes, [1 << 20, 0, 0, 0, 0, 0]),
        &vm,
        true,
    );
    let high = AddressRange::new(Gpa::new(1 << 38), 1 << 40).unwrap();
    rig.device.set_reach(&[high]);
    rig.device.config_write(0x14, &0x40_u32.to_le_bytes());
    rig.decode(true);
    assert_eq!(vm.dma(), [1 << 38]);
    rig.write32(0x14, 0x80);
    assert!(vm.dma().is_empty() && vm.slots().is_empty() && vm.claims().is_empty());
    assert!(vm.told()[0].contains("for DMA"));
}

/// A switch of the host reaches BAR 0 by bus address, and there it is.
fn at_home(p2p: bool) -> TestDevice {
    let vm = Arc::new(FakeVm::default());
    let pci = pci(&vm);
    let mut rig = TestDevice {
        vm: vm.clone(),
        hardware: pci.hardware.clone(),
        device: attach_at(pci, &vm, p2p, &[(0, BAR0)]).unwrap(),
    };
    rig.place(BAR0, BAR1);
    rig.device.enable_memory().unwrap();
    rig
}

#[test]
fn a_bar_that_leaves_its_bus_address_degrades_the_route_until_it_is_back() {
    let mut rig = at_home(true);
    assert!(rig.vm.told().is_empty());
    rig.write32(0x10, 0xd000_0000);
    rig.assert_coherent(true);
    let told = rig.vm.told();
    assert_eq!(told.len(), 1, "{told:?}");
    let words = "BAR 0 went from 0xc0000000 to 0xd0000000, off its bus address 0xc0000000";
    assert!(told[0].contains(words), "{told:?}");
    rig.write32(0x10, 0xd020_0000);
    let words = "BAR 0 went from 0xd0000000 to 0xd0200000, off its bus address 0xc0000000";
    assert!(rig.vm.told()[0].contains(words));
    rig.write32(0x10, 0xc000_0000);
    let told = rig.vm.told();
    assert_eq!(told.len(), 1, "{told:?}");
    let words = "BAR 0 went from 0xd0200000 back to its bus address 0xc0000000";
    assert!(told[0].contains(words), "{told:?}");
    rig.assert_coherent(true);
}

#[test]
fn decode_off_and_moves_of_other_bars_are_no_change_of_route() {
    let mut rig = at_home(true);
    rig.decode(false);
    rig.write32(0x10, 0xd000_0000);
    rig.write32(0x10, 0xc000_0000);
    rig.write32(0x14, 0xd000_0000);
    rig.decode(true);
    assert!(rig.vm.told().is_empty());
    rig.decode(false);
    rig.write32(0x10, 0xd010_0000);
    assert!(rig.vm.told().is_empty(), "nobody reaches it anywhere");
    rig.decode(true);
    assert_eq!(rig.vm.told().len(), 1);
}

#[test]
fn where_a_bar_is_that_no_peer_sees_changes_no_route() {
    let mut rig = at_home(false);
    rig.write32(0x10, 0xd000_0000);
    assert!(rig.vm.told().is_empty());
}
