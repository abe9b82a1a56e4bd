//! Devices of a running guest of a real cloud-hypervisor become peers and strangers again, on switch ports with ACS.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use lab::live::Live;
use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{CloudHypervisor, Daemon, SharedLab, Vm};

static LAB: SharedLab = SharedLab::new("edu-four-ports", "cloud-hypervisor-peers").with_acs(true);

const LEFT: &str = "0000:03:00.0";
const RIGHT: &str = "0000:04:00.0";

/// What came of the transfers between the two engines.
fn transfers(live: &mut Live<'_>) -> Vec<Outcome> {
    live.wait_for_engines(2);
    let console = live.guest("guest-probe 2");
    let transfers = Finding::of_peers(&console).into_iter();
    transfers.map(|(_, result)| result).collect()
}

#[test]
#[ignore = "needs CH_BIN, a static cloud-hypervisor of v52 or newer, and CH_REMOTE"]
fn a_running_cloud_hypervisor_gains_p2p_and_loses_it_again() {
    let lab = LAB.turn();
    CloudHypervisor::given().unwrap().put(&lab).unwrap();
    for bdf in [LEFT, RIGHT] {
        lab.bind_vfio(bdf).unwrap();
    }
    let launch = [
        "p2pctl",
        "launch",
        "--joinable",
        "--name",
        "web",
        "--",
        "cloud-hypervisor",
    ];
    let vm = [("left", LEFT), ("right", RIGHT)]
        .into_iter()
        .fold(Vm::new("sh").vmm(&launch), |vm, (id, bdf)| {
            vm.device_option(&format!("path=/sys/bus/pci/devices/{bdf},id={id}"))
        });
    let mut live = Live::boot_stock(&lab, &vm);
    live.guest("dmesg -n 1");
    let daemon = Daemon::start(&lab, &[]);
    assert_eq!(transfers(&mut live), [Outcome::Nothing; 4]);
    for _ in 0..2 {
        let joined = daemon.apply(&["--join", LEFT, RIGHT, "--route", "iommu"]);
        joined.ok().unwrap();
        assert_eq!(lab.group(LEFT).unwrap(), lab.group(RIGHT).unwrap());
        assert_eq!(transfers(&mut live), [Outcome::Ok; 4]);
        daemon.apply(&["--isolate", LEFT, RIGHT]).ok().unwrap();
        assert_ne!(lab.group(LEFT).unwrap(), lab.group(RIGHT).unwrap());
        assert_eq!(transfers(&mut live), [Outcome::Nothing; 4]);
    }
    daemon.stop();
    assert_eq!(live.power_off().exit, Exit::Code(0));
}
