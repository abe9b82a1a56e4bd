//! What the lab's switches do with requests, and what the product says of it: who is reached, and where memory is lost.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fabric {
    mod features;
    mod hostile;
}
#[path = "kernel_groups/reach.rs"]
mod reach;

use iommu_group::{AcsBits, GroupModel, Kernel, PortType, RoutingModel, Sbdf, Topology};
use lab::report::Finding;
use lab::{Lab, SharedLab};

static LAB: SharedLab = SharedLab::new("endpoints", "fabric");

const A: &str = "0000:03:00.0";
const B: &str = "0000:04:00.0";
const C: &str = "0000:05:00.0";
/// With an I/O BAR, a ROM, 64 vectors and 8 GiB of memory.
const F: &str = "0000:08:00.0";
/// Ports above them.
const PORT_A: &str = "0000:02:00.0";
const PORT_F: &str = "0000:02:05.0";

/// Linux's setting of a port, and the same without request and completion redirect.
const REDIRECT: &str = "001d";
const NO_REDIRECT: &str = "0011";

/// Where an endpoint records what arrives, from the start of its BAR 0.
const MAILBOX: u64 = 0x8000;

fn scan(lab: &Lab) -> Topology {
    let dump = lab.run(["p2pctl", "dump"]).unwrap().ok().unwrap();
    Topology::from_fixture(&dump).unwrap()
}

fn at(text: &str) -> Sbdf {
    text.parse().unwrap()
}

fn set_acs(lab: &Lab, port: &str, control: &str) {
    let keep = format!("echo on > /sys/bus/pci/devices/{port}/power/control");
    lab.sh(&format!("{keep}; setpci -s {port} ECAP_ACS+6.w={control}"))
        .unwrap();
}

/// Takes functions away from VFIO, if it has them.
fn unbind(lab: &Lab, functions: &[&str]) {
    for bdf in functions {
        lab.sh(&format!("echo > /sys/bus/pci/devices/{bdf}/driver_override; echo {bdf} > /sys/bus/pci/drivers/vfio-pci/unbind; true"))
            .unwrap();
    }
}

#[test]
fn one_bit_of_the_model_changed_is_noticed() {
    let lab = LAB.turn();
    unbind(&lab, &[A]);
    set_acs(&lab, PORT_A, NO_REDIRECT);
    let (topology, observed) = (scan(&lab), reach::observe(&lab));
    set_acs(&lab, PORT_A, REDIRECT);
    assert_eq!(observed.values().filter(|arrived| **arrived).count(), 5);
    let found = RoutingModel::found(&topology);
    assert!(reach::differences(&found, &observed).is_empty());
    let kernel = Kernel::of(&topology);
    let ports = topology.functions().iter();
    for port in ports.filter(|f| f.port_type() == PortType::SwitchDownstream) {
        let mut model = GroupModel::as_found(&topology, &kernel);
        let control = port.acs().registers().unwrap().control;
        model.set_acs_control(port.sbdf(), control ^ AcsBits::RR);
        let wrong = reach::differences(&RoutingModel::of(&model), &observed);
        assert_eq!(wrong.len(), 5, "{}: {wrong:?}", port.sbdf());
    }
}

/// Whether memory mapped at these addresses gets what A writes, and A what it reads there.
fn use_memory(lab: &Lab, addresses: &[u64]) -> Vec<(bool, bool)> {
    let addresses: Vec<String> = addresses.iter().map(|a| format!("{a:#x}")).collect();
    let words = ["ram-hazard", A].into_iter().map(str::to_owned);
    let output = lab.run(words.chain(addresses)).unwrap().ok().unwrap();
    let findings = output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    findings
        .map(|finding| match finding {
            Finding::Mapped { written, read, .. } => (written, read),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn arrivals(lab: &Lab, bdf: &str) -> u64 {
    let output = lab
        .run(["guest-probe", "arrivals", bdf])
        .unwrap()
        .ok()
        .unwrap();
    let finding = output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    finding
        .map(|finding| match finding {
            Finding::Liveness { value, .. } => value.parse::<u64>().unwrap(),
            other => panic!("{other:?}"),
        })
        .sum()
}

fn mailbox(lab: &Lab, bdf: &str) -> u64 {
    let bar0 = lab.bus_address(bdf).unwrap();
    u64::from_str_radix(bar0.trim_start_matches("0x"), 16).unwrap() + MAILBOX
}

/// Whether the port above F claims what is in its windows. While it does not, no port of the switch does.
fn claim(lab: &Lab, claims: bool) {
    let memory = if claims { "2:2" } else { "0:2" };
    lab.sh(&format!("setpci -s {PORT_F} COMMAND={memory}"))
        .unwrap();
}

#[test]
fn memory_in_a_switchs_window_is_lost_and_what_the_product_keeps_free_covers_it() {
    let lab = LAB.turn();
    lab.bind_vfio(A).unwrap();
    let (neighbour, unclaimed) = (mailbox(&lab, B), mailbox(&lab, F));
    let holes = |topology: &Topology| -> Vec<_> {
        let holes = RoutingModel::found(topology)
            .memory_holes(at(A))
            .into_iter();
        holes.map(|hole| hole.range).collect()
    };
    let kept = |holes: &[std::ops::RangeInclusive<u64>], address: u64| {
        holes.iter().any(|range| range.contains(&address))
    };
    // Where the window of no bridge is.
    let elsewhere = 0x1000_0000;

    // With redirect on, only what no port claims is lost.
    arrivals(&lab, B);
    claim(&lab, false);
    let seen = use_memory(&lab, &[neighbour, unclaimed, elsewhere]);
    assert_eq!(seen, [(true, true), (false, false), (true, true)]);
    assert_eq!(arrivals(&lab, B), 0);
    let found = holes(&scan(&lab));
    assert!(
        kept(&found, unclaimed) && !kept(&found, elsewhere),
        "{found:x?}"
    );

    // With redirect off, what was written to memory is in the neighbour instead.
    set_acs(&lab, PORT_A, NO_REDIRECT);
    let seen = use_memory(&lab, &[neighbour, unclaimed, elsewhere]);
    let found = holes(&scan(&lab));
    set_acs(&lab, PORT_A, REDIRECT);
    claim(&lab, true);
    assert_eq!(seen, [(false, false), (false, false), (true, true)]);
    assert_eq!(arrivals(&lab, B), 2, "a write and a read");
    assert!(
        kept(&found, neighbour) && kept(&found, unclaimed),
        "{found:x?}"
    );
    assert!(!kept(&found, elsewhere), "{found:x?}");
}
