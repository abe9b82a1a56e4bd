//! Function level reset, power states, and what the peers see of them.

use super::*;

const FLR: u16 = 0x89;
const POWER: u16 = 0x74;

fn restore(rig: &mut TestDevice) {
    rig.write32(0x10, 0xc000_0000);
    rig.write32(0x14, 0xc010_0000);
    rig.decode(true);
}

#[test]
fn peers_are_gone_before_a_reset_and_back_when_the_guest_restores_the_device() {
    let mut rig = running();
    let before = rig.vm.dma();
    rig.write32(0x40, 0x0001_0000);
    rig.device.config_write(FLR, &[0x80]);
    assert_eq!(rig.hardware().resets, 1);
    assert!(rig.hardware().peers_at_reset.is_empty());
    assert!(rig.vm.slots().is_empty() && rig.vm.dma().is_empty());
    assert!(rig.vm.messages().is_empty());
    assert_eq!(
        (
            rig.read32(0x04) & 7,
            rig.read32(0x10),
            rig.read32(0x40) >> 16
        ),
        (0, 0, 0x84)
    );
    assert!(rig.vm.told()[0].contains("reset"));
    restore(&mut rig);
    assert_eq!(rig.vm.dma(), before);
    rig.assert_coherent(true);
}

#[test]
fn the_bit_that_initiates_a_reset_does_not_reach_the_hardware() {
    let mut rig = running();
    rig.device.config_write(0x88, &[0x10, 0xa8]);
    assert_eq!(rig.hardware().config[0x88..0x8a], [0x10, 0x28]);
    assert_eq!(rig.hardware().resets, 1);
    rig.device.config_write(0x88, &[0x10, 0x28]);
    assert_eq!(rig.hardware().resets, 1);
}

#[test]
fn a_function_without_flr_is_not_reset() {
    let vm = Arc::new(FakeVm::default());
    let mut bytes = config();
    bytes[0x87] = 0;
    let mut rig = rig_of(FakePci::new(&vm, bytes, [0; 6]), &vm, false);
    rig.device.config_write(FLR, &[0x80]);
    assert_eq!(rig.hardware().resets, 0);
}

#[test]
fn sleeping_closes_windows_and_waking_opens_them_where_state_is_kept() {
    let vm = Arc::new(FakeVm::default());
    let mut bytes = config();
    bytes[0x74] = 0x08;
    let mut rig = rig_of(
        FakePci::new(&vm, bytes, [1 << 20, 0x4000, 0, 0, 0, 0]),
        &vm,
        true,
    );
    rig.place(BAR0, BAR1);
    rig.device.enable_memory().unwrap();
    let before = vm.dma();
    for state in [1, 2, 3] {
        rig.device.config_write(POWER, &[state]);
        assert!(vm.dma().is_empty() && vm.slots().is_empty(), "D{state}");
        assert_eq!(rig.hardware().config[0x74] & 3, state);
        rig.decode(true);
        assert!(vm.dma().is_empty(), "decode does not wake it");
        rig.device.config_write(POWER, &[0]);
        assert_eq!(vm.dma(), before, "D{state}");
    }
    assert!(vm.told().is_empty());
}

#[test]
fn waking_is_a_reset_where_the_function_says_so() {
    let mut rig = running();
    let before = rig.vm.dma();
    rig.device.config_write(POWER, &[3]);
    assert!(rig.vm.dma().is_empty());
    rig.device.config_write(POWER, &[0]);
    assert!(rig.vm.dma().is_empty());
    assert_eq!((rig.read32(0x04) & 7, rig.read32(0x10)), (0, 0));
    restore(&mut rig);
    assert_eq!(rig.vm.dma(), before);
}

#[test]
fn a_reset_does_not_happen_while_peers_hold_on() {
    for calls in 0.. {
        let mut rig = running();
        rig.vm.countdown.set(calls);
        let result = rig.device.reset();
        if rig.vm.countdown.stop() {
            assert!(calls > 5, "there were calls that could fail");
            break;
        }
        if rig.hardware().resets > 0 {
            assert!(rig.hardware().peers_at_reset.is_empty(), "call {calls}");
        } else {
            assert!(result.is_err(), "call {calls}");
        }
        rig.device.reset().unwrap();
        restore(&mut rig);
        rig.assert_coherent(true);
        rig.device.detach().unwrap();
        assert!(rig.vm.is_empty(), "call {calls}");
    }
}

#[test]
fn a_failed_reset_is_told() {
    let mut rig = running();
    rig.write32(0x04, 0x0404);
    rig.vm.told();
    rig.write32(0x88, 0);
    // The write of the register, the command register, then the reset itself.
    rig.vm.countdown.set(2);
    rig.device.config_write(FLR, &[0x80]);
    let told = rig.vm.told();
    assert!(told.iter().any(|t| t.contains("reset failed")), "{told:?}");
}
