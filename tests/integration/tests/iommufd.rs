//! Devices on iommufd: what is another there than in a VFIO container. `cargo xtask test --iommufd` boots a kernel that
//! has it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod iommufd {
    mod chosen;
    mod preopened;
}

use std::time::Duration;

use lab::live::Live;
use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{GUEST, Output, SharedLab, Turn, Vm};

static LAB: SharedLab = SharedLab::new("two-switches", "iommufd");

/// Two engines and a drive below the first switch, two engines below the second.
const LEFT: [&str; 3] = ["0000:03:00.0", "0000:04:00.0", "0000:05:00.0"];
const RIGHT: [&str; 2] = ["0000:08:00.0", "0000:09:00.0"];

/// Of the guest, in KiB.
const MEMORY: u64 = 512 << 10;

/// How often each thing that revokes a BAR is done; two hundred times with `LAB_LONG=1`.
fn rounds() -> u32 {
    if lab::long() { 200 } else { 20 }
}

/// Each round is DMA of 100 ms twice, and a reset waits for as long, all in emulation of emulation.
const REVOKE: Duration = Duration::from_secs(1200);

const ON: Option<&str> = Some("iommufd=on");
const OFF: Option<&str> = Some("iommufd=off");

fn lab() -> Turn<'static> {
    let lab = LAB.turn();
    for bdf in LEFT.iter().chain(&RIGHT) {
        lab.bind_vfio(bdf).unwrap();
    }
    lab
}

fn left(guest: &str) -> Vm {
    LEFT.iter()
        .fold(Vm::new(guest), |vm, bdf| vm.p2p_device(bdf))
}

fn two_domains(guest: &str) -> Vm {
    let member = |vm: Vm, bdf: &str, domain: &str| {
        let path = format!("/sys/bus/pci/devices/{bdf}");
        vm.device_option(&format!("path={path},p2p=on,p2p_domain={domain}"))
    };
    let vm = LEFT[..2]
        .iter()
        .fold(Vm::new(guest), |vm, bdf| member(vm, bdf, "left"));
    RIGHT.iter().fold(vm, |vm, bdf| member(vm, bdf, "right"))
}

/// The VMM speaks, and on standard output too.
fn spoken(vm: &Vm) -> Vec<String> {
    let together = ["sh", "-c", "exec \"$0\" \"$@\" 2>&1"].map(str::to_owned);
    let words = vm.argv().into_iter().chain(["-v".to_owned()]);
    together.into_iter().chain(words).collect()
}

fn assert_peers_reach_each_other(output: &Output) {
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    let found = Finding::of_peers(&output.stdout);
    assert_eq!(found.len(), 4, "{output:#?}");
    assert!(
        found.iter().all(|(_, result)| *result == Outcome::Ok),
        "{output:#?}"
    );
}

/// What `/proc/PID/status` says of the VMM, in KiB.
fn status(lab: &Turn<'_>, field: &str) -> u64 {
    let line = lab
        .sh(&format!("grep {field}: /proc/$(pidof p2p-vmm)/status"))
        .unwrap();
    let words: Vec<_> = line.split_ascii_whitespace().collect();
    words[1].parse().unwrap()
}

#[test]
#[ignore = "needs a kernel with iommufd: cargo xtask test --iommufd"]
fn guest_memory_is_pinned_once_for_two_domains_where_type1_counts_it_twice() {
    let lab = lab();
    // Pinned pages are counted in one field by iommufd, in another by type1.
    for (platform, pinned, locked) in [(ON, MEMORY, 0), (OFF, 0, 2 * MEMORY)] {
        let vm = two_domains("stay").platform(platform);
        let mut running = lab.command(spoken(&vm)).deadline(GUEST).spawn().unwrap();
        running.wait_for("guest: up", GUEST).unwrap();
        let found = (status(&lab, "VmPin"), status(&lab, "VmLck"));
        running.signal(15).unwrap();
        let output = running.wait().unwrap();
        assert_eq!(found, (pinned, locked), "{platform:?}: {output:#?}");
    }
}

/// The census that the VMM gives of itself at a moment.
fn census<'a>(output: &'a Output, moment: &str) -> &'a str {
    let line = output.stdout.lines().find_map(|l| l.split_once(moment));
    line.unwrap_or_else(|| panic!("no {moment:?} in {output:#?}"))
        .1
}

#[test]
#[ignore = "needs a kernel with iommufd: cargo xtask test --iommufd"]
fn what_revokes_a_bar_is_undone_each_time_under_the_peers_dma() {
    let lab = lab();
    let rounds = rounds();
    let vm = left(&format!("guest-probe revoke {rounds}")).platform(ON);
    let mut running = lab.command(spoken(&vm)).deadline(REVOKE).spawn().unwrap();
    let descriptors = || lab.sh("ls /proc/$(pidof p2p-vmm)/fd | wc -l").unwrap();
    running.wait_for("guest: up", GUEST).unwrap();
    let before = descriptors();
    running
        .wait_for("\"what\":\"function level reset\"", REVOKE)
        .unwrap();
    let after = descriptors();
    let output = running.wait().unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    let mut done = Vec::new();
    for finding in Finding::in_console(&output.stdout) {
        if let Finding::Upset {
            rounds: count,
            result,
            ..
        } = &finding
        {
            assert_eq!(*result, Outcome::Ok, "{finding:?}\n{output:#?}");
            done.push(*count);
        }
    }
    assert_eq!(done, [rounds, rounds, rounds / 10], "{output:#?}");
    assert_eq!(
        census(&output, "at the start: "),
        census(&output, "at the end: ")
    );
    assert_eq!(before, after, "open files of the VMM");
}

#[test]
#[ignore = "needs a kernel with iommufd: cargo xtask test --iommufd"]
fn a_peer_that_the_host_resets_is_reached_after_all_the_same() {
    let lab = lab();
    let mut live = Live::boot_vm(&lab, &left("sh").platform(ON));
    // Past VFIO: linux drivers/vfio/pci has no reset_prepare(), so that nothing is revoked, and the kernel restores
    // what the device had.
    for bdf in &LEFT[..2] {
        lab.sh(&format!("echo 1 > /sys/bus/pci/devices/{bdf}/reset"))
            .unwrap();
    }
    let found = Finding::of_peers(&live.guest("guest-probe 2")).into_iter();
    let found: Vec<_> = found.map(|(_, result)| result).collect();
    assert_eq!(found, [Outcome::Ok; 4]);
    assert_eq!(live.power_off().exit, Exit::Code(0));
}

#[test]
#[ignore = "needs a kernel with iommufd: cargo xtask test --iommufd"]
fn a_bar_is_shared_with_another_process_until_its_device_is_reset() {
    let lab = lab();
    let output = lab
        .run(["dma-conformance", "share", LEFT[0], RIGHT[0]])
        .unwrap();
    assert_eq!(output.code(), Some(0), "{output:#?}");
    let passed = output.stdout.lines().filter(|l| l.starts_with("ok "));
    assert_eq!(passed.count(), 6, "{output:#?}");
}

#[test]
#[ignore = "needs a kernel with iommufd: cargo xtask test --iommufd"]
fn iommufd_conforms() {
    let lab = lab();
    let output = lab.run(["dma-conformance", "iommufd", LEFT[0]]).unwrap();
    assert_eq!(output.code(), Some(0), "{output:#?}");
    let passed = output.stdout.lines().filter(|l| l.starts_with("ok "));
    assert!(passed.count() >= 15, "{output:#?}");
}
