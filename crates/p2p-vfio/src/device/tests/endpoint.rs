//! An open device is the endpoint that a snapshot of its host has.

use std::sync::Arc;

use guest_topology::Endpoint;
use iommu_group::{Address, Function, Topology};

use super::*;

/// A function as VFIO shows it: hardware's configuration space, and regions of the kernel's sizes. The registers of
/// virtual functions, which are zero in hardware, are made up (linux 7.2 drivers/vfio/pci/vfio_pci_config.c:
/// `vfio_bar_fixup()`).
fn open(topology: &Topology, function: &Function) -> HostDevice {
    let space = function.space();
    let bytes = (0..space.visible()).map(|at| space.u8(at).unwrap_or(0));
    let mut config: Vec<u8> = bytes.collect();
    if function.is_virtual() {
        config[..4].copy_from_slice(&[0x86, 0x80, 0xca, 0x10]);
    }
    let mut sizes = [0; 6];
    let mut bus_addresses = Vec::new();
    for bar in topology.bars(function) {
        sizes[usize::from(bar.index)] = bar.size_bytes;
        let address = bar.bus_address.map(Address::value);
        bus_addresses.extend(address.map(|address| (bar.index, address)));
        if function.is_virtual() {
            let flags = u64::from(bar.is_64bit()) << 2 | u64::from(bar.prefetchable) << 3;
            let at = 0x10 + usize::from(bar.index) * 4;
            let register = address.unwrap_or(0) | flags;
            config[at..at + 8].copy_from_slice(&register.to_le_bytes());
        }
    }
    let vm = Arc::new(FakeVm::default());
    let pci = FakePci::new(&vm, config, sizes);
    HostDevice::new(function.sbdf(), Box::new(pci), &bus_addresses).unwrap()
}

#[test]
fn open_devices_are_the_endpoints_of_a_snapshot() {
    let mut compared = 0;
    let files = [
        "client-amd.json",
        "client-intel.json",
        "deep-bridges.json",
        "gpu-server-epyc.json",
        "gpu-server-two-sockets.json",
        "lab/edu-four-ports.json",
        "lab/nvme-one-group.json",
        "pcie-to-pci-bridge.json",
        "switch-four-nvme.json",
        "vmd.json",
    ];
    let files = files.map(|file| {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../resources/topologies/");
        let text = std::fs::read_to_string(format!("{directory}{file}")).unwrap();
        (file, Topology::from_fixture(&text).unwrap())
    });
    let many = ("sriov-1000", test_machine::hosts::sriov_1000().topology());
    for (file, topology) in files.into_iter().chain([many]) {
        for function in topology.functions().iter().filter(|f| !f.is_bridge()) {
            let sbdf = function.sbdf();
            let snapshot = Endpoint::of_function(&topology, sbdf).unwrap();
            let open = open(&topology, function);
            assert_eq!(*open.endpoint(), snapshot, "{file}: {sbdf}");
            compared += usize::from(!snapshot.bars().is_empty());
        }
    }
    assert!(compared > 1000, "{compared} endpoints with BARs");
}
