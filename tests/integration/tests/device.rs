//! One device after the other, under its peer's DMA: moved, switched off, reset, put to sleep; and interrupt pins.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{GUEST, Output, SharedLab, Turn, Vm};

/// The test program is built of this file twice, under two names: `device_acs.rs` is it on ports with ACS.
const ACS: bool = lab::is_acs_variant(env!("CARGO_CRATE_NAME"));

static LAB: SharedLab = SharedLab::new("device-zoo", env!("CARGO_CRATE_NAME")).with_acs(ACS);

/// What shares a group: two DMA engines, a drive, memory.
const ENGINES: [&str; 2] = ["0000:03:00.0", "0000:04:00.0"];
const DRIVE: &str = "0000:05:00.0";
const MEMORY: &str = "0000:06:00.0";
const CARD: &str = "0000:07:00.0";

/// A thousand with `LAB_LONG=1`: minutes, in emulation of emulation.
fn moves() -> u32 {
    if lab::long() { 1000 } else { 40 }
}

/// The moves and all else, with DMA in between, in emulation of emulation.
const UPSET: Duration = Duration::from_secs(600);

fn lab() -> Turn<'static> {
    let lab = LAB.turn();
    for bdf in [ENGINES[0], ENGINES[1], DRIVE, MEMORY] {
        lab.bind_vfio(bdf).unwrap();
    }
    lab
}

fn domain(guest: &str) -> Vm {
    [ENGINES[0], ENGINES[1], DRIVE, MEMORY]
        .iter()
        .fold(Vm::new(guest), |vm, bdf| vm.p2p_device(bdf))
}

fn spoken(vm: &Vm) -> Vec<String> {
    let mut argv = vm.argv();
    argv.push("-v".to_owned());
    argv
}

/// The census that the VMM gives of itself at a moment.
fn census<'a>(output: &'a Output, moment: &str) -> &'a str {
    let line = output.stderr.lines().find_map(|l| l.split_once(moment));
    line.unwrap_or_else(|| panic!("no {moment:?} in {output:#?}"))
        .1
}

/// How many files the VMM has open.
fn descriptors(lab: &Turn<'_>) -> usize {
    let count = lab.sh("ls /proc/$(pidof p2p-vmm)/fd | wc -l").unwrap();
    count.trim().parse().unwrap()
}

#[test]
fn p2p_works_after_moves_resets_and_sleep_under_dma_and_nothing_leaks() {
    let lab = lab();
    let moves = moves();
    let way = if ACS { "" } else { " by-bus-address" };
    let vm = domain(&format!("guest-probe upset {moves}{way}"));
    // The kernel limits how many faults it logs in five seconds; older ones are none of ours.
    lab.sh("dmesg -c").unwrap();
    let mut running = lab.command(spoken(&vm)).deadline(UPSET).spawn().unwrap();
    running.wait_for("decode off and on", UPSET).unwrap();
    let before = descriptors(&lab);
    running.wait_for("secondary bus reset", UPSET).unwrap();
    let after = descriptors(&lab);
    // Drivers in the guest may have turned vectors off meanwhile, but nothing turns any on.
    assert!(
        after <= before,
        "{before} descriptors before {moves} moves, {after} after"
    );
    let output = running.wait().unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    let upsets: Vec<_> = Finding::in_console(&output.stdout)
        .into_iter()
        .filter_map(|finding| match finding {
            Finding::Upset {
                what,
                result,
                error,
                ..
            } => Some((what, result, error)),
            _ => None,
        })
        .collect();
    assert_eq!(upsets.len(), if ACS { 8 } else { 6 }, "{output:#?}");
    for (what, result, error) in &upsets {
        assert_eq!(*result, Outcome::Ok, "{what}: {error:?}\n{output:#?}");
    }
    assert_eq!(
        census(&output, "at the start: "),
        census(&output, "at the end: ")
    );
    if ACS {
        // Requests go through the IOMMU, which has no window of a device that does not decode.
        let log = lab.dmesg().unwrap();
        let stopped = format!("Request device [{}] fault addr", ENGINES[1]);
        assert!(log.contains(&stopped), "no {stopped:?} in\n{log}");
        assert!(
            output.stderr.contains("cannot put BAR 0"),
            "a refused move is told: {output:#?}"
        );
    }
    // Where requests go by bus address, it matters that a BAR is elsewhere in the guest.
    for what in ["off", "back to"] {
        let told = |line: &str| {
            line.contains(&format!("{}: BAR 0 went from ", ENGINES[0]))
                && line.contains(&format!("{what} its bus address "))
        };
        let told = output.stderr.lines().any(told);
        assert_eq!(told, !ACS, "{what} its bus address: {output:#?}");
    }
    let memory = File::open(lab.dir().join("mem0.mem")).unwrap();
    let mut word = [0; 4];
    memory.read_exact_at(&mut word, 0).unwrap();
    assert_eq!(
        u32::from_le_bytes(word),
        0x5eed_cafe,
        "as seen from outside of the host"
    );
}

/// Interrupts of a guest: name, chip and kind.
fn interrupts(output: &Output) -> Vec<(String, String)> {
    assert!(output.stdout.contains("guest: exit 0"), "{output:#?}");
    Finding::in_console(&output.stdout)
        .into_iter()
        .filter_map(|finding| match finding {
            Finding::Interrupt { name, kind, count } if count > 0 => Some((name, kind)),
            _ => None,
        })
        .collect()
}

#[track_caller]
fn assert_fired(output: &Output, name: &str, kind: &str) {
    let fired = interrupts(output);
    let found = fired
        .iter()
        .any(|(n, k)| n.starts_with(name) && k.contains(kind));
    assert!(
        found,
        "no {kind} of {name} in {fired:#?}\n{}",
        output.stderr
    );
}

#[test]
fn pins_fire_below_a_switch_and_below_a_root_port() {
    let lab = lab();
    lab.bind_vfio(CARD).unwrap();
    let vm = domain("guest-probe interrupts nvme0q1 eth0")
        .device(CARD)
        .kernel_words("pci=nomsi");
    let output = lab.command(spoken(&vm)).deadline(GUEST).run().unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    // The level is let go of: else it would fire once, or for ever.
    assert_fired(&output, "nvme0q1", "fasteoi");
    assert_fired(&output, "eth0", "fasteoi");
}

#[test]
fn the_host_asks_for_its_device_and_the_vmm_hears_it() {
    let lab = lab();
    let vm = Vm::new("stay")
        .p2p_device(ENGINES[0])
        .p2p_device(ENGINES[1]);
    // The VMM speaks on standard error.
    let together = ["sh", "-c", "exec \"$0\" \"$@\" 2>&1"].map(str::to_owned);
    let argv = together.into_iter().chain(spoken(&vm));
    let mut running = lab.command(argv).deadline(GUEST).spawn().unwrap();
    running.wait_for("guest: up", GUEST).unwrap();
    // Waits until the VMM lets go; the kernel asks at once, and again every ten seconds.
    let unbind = format!("echo {} > /sys/bus/pci/drivers/vfio-pci/unbind", ENGINES[0]);
    let unbinding = lab
        .command(["sh", "-c", &unbind])
        .deadline(GUEST)
        .spawn()
        .unwrap();
    let said = format!("{}: the host wants the device back", ENGINES[0]);
    running.wait_for(&said, GUEST).unwrap();
    running.signal(15).unwrap();
    running.wait().unwrap();
    let unbound = unbinding.wait().unwrap();
    assert_eq!(
        unbound.code(),
        Some(0),
        "the host has its device: {unbound:#?}"
    );
}
