//! Two devices that Linux has in one IOMMU group, below switch ports without ACS: requests between them go straight. In
//! `one_group_acs.rs` the same tests run on ports with ACS, where they go through the IOMMU.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use lab::protocol::Exit;
use lab::report::{Access, Finding, Outcome};
use lab::{GUEST, Output, SharedLab, Turn, Vm};

/// The test program is built of this file twice, under two names.
const ACS: bool = lab::is_acs_variant(env!("CARGO_CRATE_NAME"));

static LAB: SharedLab = SharedLab::new("edu-one-group", env!("CARGO_CRATE_NAME")).with_acs(ACS);

const FIRST: &str = "0000:03:00.0";
const SECOND: &str = "0000:04:00.0";

/// The lab with both devices bound to vfio-pci.
fn lab() -> Turn<'static> {
    let lab = LAB.turn();
    for bdf in [FIRST, SECOND] {
        lab.bind_vfio(bdf).unwrap();
    }
    assert_eq!(lab.group(FIRST).unwrap(), lab.group(SECOND).unwrap());
    lab
}

fn p2p(guest: &str) -> Vm {
    Vm::new(guest).p2p_device(FIRST).p2p_device(SECOND)
}

fn assert_p2p_works(output: &Output) {
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    assert_eq!(
        Finding::of_peers(&output.stdout),
        [
            (Access::Write, Outcome::Ok),
            (Access::Read, Outcome::Ok),
            (Access::Write, Outcome::Ok),
            (Access::Read, Outcome::Ok)
        ],
        "{output:#?}"
    );
    assert!(output.stdout.contains("guest: exit 0"), "{output:#?}");
}

#[test]
fn with_p2p_each_device_reaches_the_other() {
    let lab = lab();
    let output = lab.vm(&p2p("guest-probe 2")).run().unwrap();
    assert_p2p_works(&output);
    assert_eq!(
        Finding::of_memory(&output.stdout),
        [Outcome::Ok, Outcome::Ok]
    );
}

#[test]
fn peers_are_at_their_bus_addresses_in_the_guest_where_the_hosts_switch_routes_by_them() {
    let lab = lab();
    let output = lab.vm(&p2p("guest-probe 2")).run().unwrap();
    let bars: Vec<String> = Finding::in_console(&output.stdout)
        .into_iter()
        .filter_map(|finding| match finding {
            Finding::Device { bar0, .. } => Some(bar0),
            _ => None,
        })
        .collect();
    let on_the_bus = [FIRST, SECOND].map(|bdf| lab.bus_address(bdf).unwrap());
    assert_eq!(bars == on_the_bus, !ACS, "{on_the_bus:?}: {output:#?}");
}

#[test]
fn without_p2p_the_iommu_stops_what_aims_at_the_other() {
    let lab = lab();
    // The kernel limits how many faults it logs in five seconds; older ones are none of ours.
    lab.sh("dmesg -c").unwrap();
    let vm = Vm::new("guest-probe 2").device(FIRST).device(SECOND);
    let output = lab.vm(&vm).run().unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    assert_eq!(
        Finding::of_peers(&output.stdout),
        [
            (Access::Write, Outcome::Nothing),
            (Access::Read, Outcome::Nothing),
            (Access::Write, Outcome::Nothing),
            (Access::Read, Outcome::Nothing)
        ],
        "{output:#?}"
    );
    assert_eq!(
        Finding::of_memory(&output.stdout),
        [Outcome::Ok, Outcome::Ok]
    );
    assert!(output.stdout.contains("guest: exit 1"), "{output:#?}");
    let log = lab.dmesg().unwrap();
    for bdf in ["03:00.0", "04:00.0"] {
        let named =
            |line: &str| line.contains("DMA") && line.contains(bdf) && line.contains("fault addr");
        assert!(log.lines().any(named), "no fault by {bdf} in\n{log}");
    }
}

#[test]
fn p2p_asked_for_by_one_device_alone_maps_nothing() {
    let lab = lab();
    let vm = Vm::new("guest-probe 2").p2p_device(FIRST).device(SECOND);
    let output = lab.vm(&vm).run().unwrap();
    let reached = Finding::of_peers(&output.stdout)
        .iter()
        .any(|(_, result)| *result == Outcome::Ok);
    assert!(!reached, "{output:#?}");
}

#[test]
fn a_vmm_killed_at_any_time_leaves_the_devices_usable() {
    let lab = lab();
    for delay_ms in [0, 50, 300, 1000] {
        let vmm = lab.vm(&p2p("guest-probe loop 100")).spawn().unwrap();
        lab.run(["usleep", &format!("{}", delay_ms * 1000)])
            .unwrap()
            .ok()
            .unwrap();
        vmm.signal(9).unwrap();
        assert_eq!(
            vmm.wait().unwrap().exit,
            Exit::Signal(9),
            "after {delay_ms} ms"
        );
    }
    let mut vmm = lab.vm(&p2p("guest-probe loop 100")).spawn().unwrap();
    vmm.wait_for("\"finding\":\"peer\"", GUEST).unwrap();
    vmm.signal(9).unwrap();
    assert_eq!(vmm.wait().unwrap().exit, Exit::Signal(9));
    let output = lab.vm(&p2p("guest-probe 2")).run().unwrap();
    assert_p2p_works(&output);
}

/// Runs a VMM that must end by itself before any guest is up.
fn refused(lab: &Turn<'_>, vm: &Vm) -> Output {
    let output = lab.vm(vm).deadline(Duration::from_secs(60)).run().unwrap();
    assert_eq!(output.code(), Some(2), "{output:#?}");
    assert_eq!(output.stdout, "", "no guest was started");
    output
}

#[test]
fn a_device_without_vfio_pci_is_named_with_the_way_out() {
    let lab = lab();
    lab.sh(&format!(
        "echo {SECOND} > /sys/bus/pci/drivers/vfio-pci/unbind; echo > /sys/bus/pci/devices/{SECOND}/driver_override"
    ))
    .unwrap();
    let output = refused(&lab, &p2p("guest-probe 2"));
    for word in [SECOND, "vfio-pci"] {
        assert!(output.stderr.contains(word), "{word}: {output:#?}");
    }
}

#[test]
fn a_neighbour_with_a_host_driver_is_named() {
    let lab = lab();
    lab.sh("modprobe uio_pci_generic").unwrap();
    lab.bind(SECOND, "uio_pci_generic").unwrap();
    let output = refused(&lab, &Vm::new("guest-probe 1").device(FIRST));
    lab.bind_vfio(SECOND).unwrap();
    for word in [FIRST, SECOND, "uio_pci_generic"] {
        assert!(output.stderr.contains(word), "{word}: {output:#?}");
    }
}

#[test]
fn a_rule_that_nothing_enforces_or_that_leaves_no_target_is_refused() {
    const RULE: &str = "[[device]]\nvendor = '1234'\np2p = 'initiator-only'\nwhy = 'registers'\n";
    let lab = lab();
    lab.put_bytes(RULE.as_bytes(), "/policy.toml", 0o644)
        .unwrap();
    let output = refused(&lab, &p2p("guest-probe 2").policy("/policy.toml"));
    // The IOMMU could enforce it, but then nobody is left to be reached.
    let words = match ACS {
        true => [FIRST, "nothing in its domain may be reached"],
        false => [SECOND, "--route iommu"],
    };
    for word in words.iter().chain(&["registers (rule at /policy.toml:1)"]) {
        assert!(output.stderr.contains(word), "{word}: {output:#?}");
    }
}

#[test]
fn invariant_3_where_interrupts_may_not_be_isolated_no_device_is_assigned_unless_accepted() {
    const PARAMETER: &str = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    const POLICY: &str = "[unsafe-interrupts]\nwhy = 'a test'\n";
    let lab = lab();
    lab.sh(&format!("echo Y > {PARAMETER}")).unwrap();
    let vm = Vm::new("guest-probe 1").device(FIRST).device(SECOND);
    let output = refused(&lab, &vm);
    lab.put_bytes(POLICY.as_bytes(), "/policy.toml", 0o644)
        .unwrap();
    let accepted = lab.vm(&vm.policy("/policy.toml")).run().unwrap();
    lab.sh(&format!("echo N > {PARAMETER}")).unwrap();
    let words = "allow_unsafe_interrupts of vfio_iommu_type1 is set";
    assert!(output.stderr.contains(words), "{output:#?}");
    assert_eq!(accepted.exit, Exit::Code(0), "{accepted:#?}");
    let words = format!("{words}; accepted: a test (rule at /policy.toml:1)");
    assert!(accepted.stderr.contains(&words), "{accepted:#?}");
}

#[test]
fn a_path_that_is_not_there_is_named() {
    let lab = lab();
    let output = refused(&lab, &Vm::new("guest-probe").device("0000:77:00.0"));
    for word in ["0000:77:00.0", "lspci -D"] {
        assert!(output.stderr.contains(word), "{word}: {output:#?}");
    }
}

#[test]
fn a_malformed_option_is_named() {
    let lab = lab();
    let option = format!("path=/sys/bus/pci/devices/{FIRST},p2p=perhaps");
    let output = refused(&lab, &Vm::new("guest-probe").device_option(&option));
    assert!(output.stderr.contains("perhaps"), "{output:#?}");
}
