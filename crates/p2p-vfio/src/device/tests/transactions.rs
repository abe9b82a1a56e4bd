//! Every call that can fail fails in turn: nothing is left behind, and the device can be used after.

use super::*;

/// Runs `act` on a new rig of `start` once for every call in it that can fail. `act` says what it
/// reported; `check` sees the rig after.
fn each_failure(
    start: impl Fn() -> TestDevice,
    act: impl Fn(&mut TestDevice) -> Vec<String>,
    check: impl Fn(u32, &mut TestDevice, Vec<String>),
) -> u32 {
    for calls in 0.. {
        let mut rig = start();
        rig.vm.told();
        rig.vm.countdown.set(calls);
        let mut said = act(&mut rig);
        if rig.vm.countdown.stop() {
            return calls;
        }
        said.extend(rig.vm.told());
        check(calls, &mut rig, said);
    }
    unreachable!("some count is high enough")
}

/// The device is taken away, at the second try at the latest, and nothing is left.
fn assert_leaves_nothing(rig: &mut TestDevice, context: &str) {
    rig.device.detach().unwrap();
    assert!(rig.vm.is_empty(), "{context}");
    let hardware = rig.hardware();
    assert_eq!(hardware.config[4] & 6, 0, "{context}");
    assert!(hardware.vectors.is_none() && !hardware.line, "{context}");
}

#[test]
fn attaching() {
    let mut failures = 0;
    for calls in 0.. {
        let vm = Arc::new(FakeVm::default());
        let pci = pci(&vm);
        let hardware = pci.hardware.clone();
        vm.countdown.set(calls);
        let attached = attach(pci, &vm, true);
        if vm.countdown.stop() {
            assert!(attached.is_ok());
            break;
        }
        failures += 1;
        let Err(error) = attached else {
            panic!("call {calls} failed and nobody noticed");
        };
        let text = error.to_string();
        assert!(text.contains("0000:03:00.0"), "call {calls}: {text}");
        assert!(text.contains("os error 5"), "call {calls}: {text}");
        assert!(vm.is_empty(), "call {calls}");
        let hardware = hardware.lock().unwrap();
        assert!(hardware.vectors.is_none() && !hardware.line, "call {calls}");
    }
    assert!(
        failures >= 8,
        "config, notices, BARs, command, line: {failures}"
    );
}

#[test]
fn the_first_placement() {
    let calls = each_failure(
        || placed(true),
        |rig| match rig.device.enable_memory() {
            Ok(()) => Vec::new(),
            Err(error) => vec![error.to_string()],
        },
        |calls, rig, said| {
            assert_eq!(said.len(), 1, "call {calls}: {said:?}");
            assert!(said[0].contains("0000:03:00.0"), "{said:?}");
            assert!(
                rig.vm.slots().is_empty() && rig.vm.dma().is_empty(),
                "call {calls}"
            );
            assert!(rig.vm.claims().is_empty(), "call {calls}");
            rig.device.enable_memory().unwrap();
            rig.assert_coherent(true);
            assert_eq!(rig.vm.dma().len(), 3, "call {calls}");
            assert_leaves_nothing(rig, "after placement");
        },
    );
    assert_eq!(
        calls, 9,
        "command, two claims, three areas for peers and guest"
    );
}

#[test]
fn decode_on_by_the_guest() {
    let calls = each_failure(
        || placed(true),
        |rig| {
            rig.decode(true);
            Vec::new()
        },
        |calls, rig, said| {
            assert_eq!(said.len(), 1, "call {calls}: {said:?}");
            rig.assert_coherent(true);
            rig.decode(true);
            rig.assert_coherent(true);
            assert_eq!(rig.vm.dma().len(), 3, "call {calls}");
            assert_leaves_nothing(rig, "after decode on");
        },
    );
    assert_eq!(calls, 9);
}

#[test]
fn decode_off_by_the_guest() {
    let calls = each_failure(
        running,
        |rig| {
            rig.decode(false);
            Vec::new()
        },
        |calls, rig, said| {
            assert_eq!(said.len(), 1, "call {calls}: {said:?}");
            rig.decode(false);
            assert!(
                rig.vm.slots().is_empty() && rig.vm.dma().is_empty(),
                "call {calls}"
            );
            rig.decode(true);
            rig.assert_coherent(true);
            assert_leaves_nothing(rig, "after decode off");
        },
    );
    assert_eq!(calls, 7, "three areas for peers and guest, command");
}

#[test]
fn a_move() {
    let calls = each_failure(
        running,
        |rig| {
            rig.write32(0x14, 0xd000_0000);
            Vec::new()
        },
        |calls, rig, said| {
            assert_eq!(said.len(), 1, "call {calls}: {said:?}");
            assert!(said[0].contains("BAR 1"), "{said:?}");
            assert_eq!(rig.read32(0x14), 0xd000_0000, "the register is the guest's");
            assert!(
                rig.vm.dma().contains(&BAR0),
                "the other BAR is where it was"
            );
            rig.device.retry_mappings();
            rig.assert_coherent(true);
            assert!(rig.vm.dma().contains(&0xd000_0000), "call {calls}");
            assert!(!rig.vm.dma().contains(&BAR1), "call {calls}");
            assert_leaves_nothing(rig, "after a move");
        },
    );
    assert_eq!(
        calls, 9,
        "two areas away and back for peers and guest, one claim"
    );
}

#[test]
fn detach() {
    let calls = each_failure(
        || {
            let mut rig = running();
            rig.write32(0x40, 0x0011_0000);
            rig
        },
        |rig| match rig.device.detach() {
            Ok(()) => Vec::new(),
            Err(error) => vec![error.to_string()],
        },
        |calls, rig, said| {
            assert_eq!(said.len(), 1, "call {calls}: {said:?}");
            assert!(said[0].contains("0000:03:00.0"), "{said:?}");
            assert_leaves_nothing(rig, "after a failed detach");
        },
    );
    assert_eq!(
        calls, 11,
        "quiet, six of windows, silent, vectors and two routes"
    );
}

#[test]
fn a_device_that_is_dropped_tries_twice() {
    for calls in 0..11 {
        let mut rig = running();
        rig.write32(0x40, 0x0011_0000);
        rig.vm.countdown.set(calls);
        drop(rig.device);
        assert!(rig.vm.is_empty(), "call {calls}");
    }
}

#[test]
fn turning_interrupts_on() {
    let calls = each_failure(
        running,
        |rig| {
            rig.write32(0x40, 0x0011_0000);
            Vec::new()
        },
        |calls, rig, said| {
            assert_eq!(said.len(), 1, "call {calls}: {said:?}");
            assert!(said[0].contains("interrupts"), "{said:?}");
            rig.write32(0x40, 0x0011_0000);
            assert_eq!(rig.vm.messages().len(), 2, "call {calls}");
            assert_eq!(rig.vm.lines(), 0, "call {calls}");
            assert_leaves_nothing(rig, "after interrupts");
        },
    );
    assert_eq!(
        calls, 5,
        "the line of device and VM, two routes, the vectors"
    );
}

#[test]
fn a_thousand_moves_leave_nothing() {
    let mut rig = running();
    let before = (
        rig.vm.slots().len(),
        rig.vm.dma().len(),
        rig.vm.claims().len(),
    );
    for n in 0..1000_u32 {
        rig.write32(0x10, 0xc100_0000 + (n % 32) * 0x10_0000);
        rig.assert_coherent(true);
    }
    let after = (
        rig.vm.slots().len(),
        rig.vm.dma().len(),
        rig.vm.claims().len(),
    );
    assert_eq!(before, after);
    assert_leaves_nothing(&mut rig, "after a thousand moves");
}
