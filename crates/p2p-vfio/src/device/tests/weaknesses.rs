//! What was seen to go wrong in other VMMs, by number. Tests of each are called `weakness_N_…`:
//!
//! | N | what | where |
//! |---|---|---|
//! | 1 | nobody looks at groups and topology | `assignment` |
//! | 2 | all BARs for all devices | here, `assignment` |
//! | 3 | a memory slot is left when the IOMMU refuses | here |
//! | 4, 5 | a context without guest memory after a failure or the last device | `conformance::type1` |
//! | 6 | a failed attach keeps addresses | here |
//! | 7 | moves that are no transactions | here |
//! | 8 | two answers to where a BAR is | here |
//! | 9 | windows that survive memory decode | here |
//! | 10, 11 | BARs that cannot be mapped, addresses that cannot be translated | `conformance` |
//! | 12 | nobody hears the host; a vanished device brings the VMM down | here |
//! | 13 | no quiescence before the end | here |
//! | 14 | a clique that nobody checks | `device::clique` |

use super::*;

#[test]
fn weakness_2_a_device_without_p2p_is_mapped_for_nobody() {
    let vm = Arc::new(FakeVm::default());
    let mut peer = rig_of(pci(&vm), &vm, true);
    peer.place(BAR0, BAR1);
    peer.device.enable_memory().unwrap();
    let mapped = vm.dma();
    let mut other = rig_of(pci(&vm), &vm, false);
    other.place(0xd000_0000, 0xd010_0000);
    other.device.enable_memory().unwrap();
    assert_eq!(vm.dma(), mapped);
    assert_eq!(other.device.peer_windows().count(), 0);
}

#[test]
fn weakness_3_no_slot_is_left_when_the_iommu_refuses() {
    let mut rig = placed(true);
    // The command register, a claim, the first area for the peers.
    rig.vm.countdown.set(2);
    let error = rig.device.enable_memory().unwrap_err().to_string();
    assert!(error.contains("for DMA"), "{error}");
    assert!(
        rig.vm.slots().is_empty(),
        "memory that the guest sees is memory that is kept"
    );
}

#[test]
fn weakness_6_a_failed_attach_keeps_no_address_range() {
    let mut rig = placed(true);
    rig.vm.countdown.set(8);
    assert!(rig.device.enable_memory().is_err());
    drop(rig.device);
    assert!(rig.vm.claims().is_empty());
}

#[test]
fn weakness_7_bars_trade_places_and_a_failed_move_leaves_no_stale_mapping() {
    let mut rig = running();
    // Closing works, the claim of the new place fails.
    rig.vm.countdown.set(2);
    rig.write32(0x10, 0xd000_0000);
    assert!(!rig.vm.dma().contains(&BAR0) && !rig.vm.dma().contains(&0xd000_0000));
    assert!(!rig.vm.slots().contains(&BAR0) && !rig.vm.slots().contains(&0xd000_0000));
    assert_eq!(rig.vm.told().len(), 1);
    rig.write32(0x10, 0xc000_0000);
    rig.assert_coherent(true);
    assert!(rig.vm.dma().contains(&BAR0));
}

#[test]
fn weakness_7_what_the_iommu_does_not_let_go_is_not_forgotten() {
    let mut rig = running();
    rig.vm.countdown.set(0);
    rig.write32(0x10, 0xd000_0000);
    assert_eq!(rig.vm.told().len(), 1);
    assert!(
        rig.vm.claims().contains(&BAR0),
        "nobody else may have the place"
    );
    rig.device.retry_mappings();
    assert!(!rig.vm.dma().contains(&BAR0) && rig.vm.dma().contains(&0xd000_0000));
}

#[test]
fn weakness_8_where_a_bar_is_has_one_answer() {
    let mut rig = running();
    rig.write32(0x10, 0xd000_0000);
    let live: Vec<_> = rig
        .device
        .live_bars()
        .map(|(_, r)| r.start().value())
        .collect();
    assert_eq!(live, [0xd000_0000, BAR1]);
    let peers: Vec<_> = rig
        .device
        .peer_windows()
        .map(|(_, r)| r.start().value())
        .collect();
    assert_eq!(peers, [0xd000_0000, BAR1, BAR1 + 0x3000]);
    rig.assert_coherent(true);
}

#[test]
fn weakness_9_peers_do_not_survive_memory_decode() {
    let mut rig = running();
    rig.decode(false);
    assert!(rig.vm.dma().is_empty());
}

#[test]
fn weakness_12_the_host_is_heard_and_dropping_a_vanished_device_does_not_panic() {
    let mut rig = running();
    assert_eq!(rig.device.host_events().count(), 2);
    rig.hardware().gone = Some(libc::ENODEV);
    rig.read32(0);
    drop(rig.device);
    assert!(rig.vm.slots().is_empty() && rig.vm.dma().is_empty());
}

#[test]
fn weakness_13_bus_mastering_ends_before_anything_else_does() {
    let mut rig = running();
    rig.decode(true);
    assert_eq!(rig.hardware().config[4] & 4, 4);
    rig.device.detach().unwrap();
    assert!(rig.vm.is_empty());
    assert!(rig.vm.torn().is_empty(), "peers lose theirs after that");

    let mut rig = running();
    rig.decode(true);
    rig.decode(false);
    assert_eq!(rig.vm.torn().len(), 3, "the guest may do as it likes");

    let mut rig = running();
    rig.decode(true);
    rig.vm.countdown.set(0);
    assert!(rig.device.detach().is_err());
    assert!(rig.vm.dma().is_empty(), "the rest is done all the same");
}
