//! Endpoints from snapshots of hosts.

use iommu_group::{Address, BusAddress, Space};

use super::*;

fn topology(file: &str) -> Topology {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../resources/topologies/");
    let text = std::fs::read_to_string(format!("{directory}{file}")).unwrap();
    Topology::from_fixture(&text).unwrap()
}

fn sbdf(text: &str) -> Sbdf {
    text.parse().unwrap()
}

fn bar(index: u8, space: Space, size_bytes: u64) -> Bar {
    Bar {
        index,
        space,
        prefetchable: false,
        bus_address: Some(BusAddress::new(0xe000_0000)),
        size_bytes,
    }
}

#[test]
fn a_function_of_a_snapshot_is_an_endpoint() {
    let topology = topology("switch-four-nvme.json");
    let endpoint = Endpoint::of_function(&topology, sbdf("03:00.0")).unwrap();
    let expected = [
        Bar {
            index: 0,
            space: Space::Memory64,
            prefetchable: false,
            bus_address: Some(BusAddress::new(0x8000_0000)),
            size_bytes: 0x4000,
        },
        Bar {
            index: 4,
            space: Space::Memory64,
            prefetchable: true,
            bus_address: Some(BusAddress::new(0x380_0000_0000)),
            size_bytes: 16 << 20,
        },
    ];
    assert_eq!(endpoint.bars(), expected);
    assert_eq!((endpoint.link().generation, endpoint.link().lanes), (1, 1));
    assert_eq!(endpoint.placement(), Placement::Anywhere);
    assert!(!endpoint.is_fixed());
    assert!(endpoint.placed(Placement::AtBusAddress).is_fixed());
}

#[test]
fn a_virtual_function_has_its_own_bars_and_no_pin() {
    let topology = test_machine::hosts::sriov_1000().topology();
    let endpoint = Endpoint::of_function(&topology, sbdf("01:07.1")).unwrap();
    let [bar] = endpoint.bars() else {
        panic!("one BAR: {endpoint:?}");
    };
    assert_eq!((bar.index, bar.size_bytes), (0, 1 << 20));
    assert_eq!(bar.bus_address, Some(BusAddress::new(0x380_0570_0000)));
    assert_eq!(endpoint.interrupt_pin(), None);
}

#[test]
fn bridges_and_functions_that_are_not_there_are_refused_by_name() {
    let topology = topology("switch-four-nvme.json");
    let bridge = sbdf("02:00.0");
    assert_eq!(
        Endpoint::of_function(&topology, bridge),
        Err(EndpointError::Bridge { sbdf: bridge })
    );
    let missing = sbdf("07:00.0");
    assert_eq!(
        Endpoint::of_function(&topology, missing),
        Err(EndpointError::Missing { sbdf: missing })
    );
}

#[test]
fn only_sizes_that_registers_can_express_are_taken() {
    use Space::{Io, Memory32, Memory64};
    for (index, space, size_bytes, valid) in [
        (0, Memory32, 16, true),
        (0, Memory32, 8, false),
        (0, Memory32, 0, false),
        (5, Memory32, 1 << 31, true),
        (0, Memory32, 1 << 32, false),
        (6, Memory32, 4096, false),
        (0, Memory64, 24 << 20, false),
        (4, Memory64, 1 << 63, true),
        (5, Memory64, 4096, false),
        // An I/O BAR is left out, whatever its size.
        (2, Io, 8, true),
    ] {
        let endpoint = Endpoint::new([bar(index, space, size_bytes)], None, 0);
        let error = BarError {
            bar: index,
            size_bytes,
        };
        match valid {
            true => assert!(endpoint.is_ok(), "BAR {index} {space:?} {size_bytes:#x}"),
            false => assert_eq!(endpoint, Err(error), "{space:?}"),
        }
    }
    for second in [bar(0, Memory32, 16), bar(1, Memory32, 16)] {
        let pair = Endpoint::new([bar(0, Memory64, 16), second], None, 0);
        assert!(pair.is_err(), "{second:?} is in the registers of BAR 0");
    }
    let io = Endpoint::new([bar(2, Io, 8)], None, 0).unwrap();
    assert_eq!(io.bars(), []);
}

#[test]
fn pins_are_four_and_links_without_lanes_are_none() {
    let pin = |pin| Endpoint::new([], None, pin).unwrap().interrupt_pin();
    assert_eq!(
        [0, 1, 4, 5, 255].map(pin),
        [None, Some(1), Some(4), None, None]
    );
    let link = |link| Endpoint::new([], link, 0).unwrap().link();
    assert_eq!(link(Some(Link::at_most(3, 0))), Link::SLOWEST);
    assert_eq!(link(None), Link::SLOWEST);
    assert_eq!(link(Some(Link::at_most(5, 16))), Link::at_most(5, 16));
}
