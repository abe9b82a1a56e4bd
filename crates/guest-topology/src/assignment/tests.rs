//! Assignments on a root bus and on the bus of a switch.

use iommu_group::{BusAddress, Link, Placement, Space};

use super::*;
use crate::resources::DEVICES_PER_BUS;
use crate::{Endpoint, PortKind, Reserve};

fn apertures() -> Apertures {
    Apertures {
        memory: vec![range(0xc000_0000, 512 << 20)],
        prefetchable: vec![range(0x2_0000_0000, 256 << 30)],
    }
}

fn range(start: u64, len_bytes: u64) -> AddressRange<Gpa> {
    AddressRange::new(Gpa::new(start), len_bytes).unwrap()
}

/// An empty root bus whose host bridge forwards everything.
fn ground() -> BusResources {
    BusResources::root(apertures(), vec![range(0, 1 << 48)])
}

fn switch(members: Vec<Endpoint>) -> Subtree {
    let reserve = Reserve::default();
    Subtree::Switch { members, reserve }
}

fn place(subtrees: &[Subtree]) -> Result<GuestTopology, AssignError> {
    assign_resources(subtrees, ground())
}

fn bar(index: u8, size_bytes: u64, prefetchable: bool) -> Bar {
    Bar {
        index,
        space: match prefetchable {
            true => Space::Memory64,
            false => Space::Memory32,
        },
        prefetchable,
        bus_address: None,
        size_bytes,
    }
}

fn endpoint(bars: &[Bar]) -> Endpoint {
    Endpoint::new(bars.to_vec(), Some(Link::at_most(4, 4)), 1).unwrap()
}

fn gpu() -> Endpoint {
    endpoint(&[
        bar(0, 16 << 20, false),
        bar(1, 64 << 30, true),
        bar(3, 32 << 20, true),
    ])
}

fn nvme() -> Endpoint {
    endpoint(&[bar(0, 16 << 10, false), bar(4, 16 << 20, true)])
}

fn addresses(topology: &GuestTopology) -> Vec<String> {
    let ports = topology.ports.iter().map(|(sbdf, _)| sbdf);
    let endpoints = topology.endpoints.iter().map(|e| &e.sbdf);
    let mut all: Vec<_> = ports.chain(endpoints).map(Sbdf::to_string).collect();
    all.sort();
    all
}

#[test]
fn a_domain_is_a_switch_and_others_have_root_ports() {
    let subtrees = [switch(vec![nvme(), nvme()]), Subtree::Endpoint(nvme())];
    let topology = place(&subtrees).unwrap();
    let expected = [
        "0000:00:01.0",
        "0000:00:09.0",
        "0000:01:00.0",
        "0000:02:00.0",
        "0000:02:01.0",
        "0000:03:00.0",
        "0000:04:00.0",
        "0000:05:00.0",
    ];
    assert_eq!(addresses(&topology), expected);
    let (_, root) = &topology.ports[0];
    let buses = root.buses();
    assert_eq!(
        (buses.primary, buses.secondary, buses.subordinate),
        (0, 1, 4)
    );
}

#[test]
fn every_bar_is_aligned_inside_all_windows_above_and_apart_from_others() {
    let subtrees = [
        switch(vec![gpu(), nvme(), gpu()]),
        Subtree::Endpoint(nvme()),
        Subtree::Endpoint(endpoint(&[])),
    ];
    let topology = place(&subtrees).unwrap();
    let mut used: Vec<AddressRange<Gpa>> = Vec::new();
    for endpoint in &topology.endpoints {
        for (bar, gpa) in &endpoint.bars {
            assert!(
                gpa.value().is_multiple_of(bar.size_bytes),
                "{bar:?} at {gpa}"
            );
            let range = AddressRange::new(*gpa, bar.size_bytes).unwrap();
            let bus = endpoint.sbdf.bus();
            for (sbdf, port) in &topology.ports {
                let buses = port.buses();
                if (buses.secondary..=buses.subordinate).contains(&bus) {
                    assert!(
                        port.windows().any(|window| window.contains(&range)),
                        "{bar:?} at {gpa} is not behind {sbdf}"
                    );
                }
            }
            let apart =
                |r: &AddressRange<Gpa>| r.end() <= range.start() || range.end() <= r.start();
            assert!(used.iter().all(apart));
            used.push(range);
        }
    }
    assert_eq!(used.len(), 10);
}

#[test]
fn an_endpoint_without_bars_needs_no_window() {
    let topology = place(&[Subtree::Endpoint(endpoint(&[]))]).unwrap();
    assert_eq!(topology.ports[0].1.windows().count(), 0);
}

#[test]
fn bars_that_do_not_fit_are_an_error_with_their_size() {
    let huge = endpoint(&[bar(0, 1 << 30, false)]);
    let error = place(&[Subtree::Endpoint(huge)]).unwrap_err();
    assert!(error.to_string().contains("1073741824"), "{error}");
}

#[test]
fn what_does_not_fit_into_one_aperture_goes_into_the_next() {
    let split = Apertures {
        memory: vec![range(0xc000_0000, 1 << 20), range(0xd000_0000, 4 << 20)],
        prefetchable: apertures().prefetchable,
    };
    let subtrees = [Subtree::Endpoint(nvme()), Subtree::Endpoint(nvme())];
    let topology = assign_resources(&subtrees, BusResources::root(split, Vec::new())).unwrap();
    let firsts: Vec<_> = topology
        .endpoints
        .iter()
        .map(|e| e.bars[0].1.value())
        .collect();
    assert_eq!(firsts, [0xc000_0000, 0xd000_0000]);
}

/// The endpoint with its BARs at these bus addresses, by index.
fn fixed(at: &[(u8, u64)], endpoint: &Endpoint) -> Endpoint {
    let bars = endpoint.bars().iter().map(|bar| {
        let address = at.iter().find(|(index, _)| *index == bar.index);
        Bar {
            bus_address: address.map(|(_, address)| BusAddress::new(*address)),
            ..*bar
        }
    });
    let endpoint = Endpoint::new(bars, Some(endpoint.link()), 1).unwrap();
    endpoint.placed(Placement::AtBusAddress)
}

#[test]
fn peers_that_a_switch_reaches_by_bus_address_are_at_it() {
    let subtrees = [
        switch(vec![
            fixed(&[(0, 0xfe80_0000), (4, 0xc0_2000_0000)], &nvme()),
            fixed(&[(0, 0xfe60_0000), (4, 0xc0_0000_0000)], &nvme()),
        ]),
        Subtree::Endpoint(nvme()),
    ];
    let windows: Vec<_> = Demands::new(&subtrees, &[])
        .unwrap()
        .fixed_windows
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        windows,
        ["0xfe600000..0xfe900000", "0xc000000000..0xc021000000"]
    );
    let topology = place(&subtrees).unwrap();
    let at: Vec<_> = topology
        .endpoints
        .iter()
        .map(|e| (e.bars[0].1.value(), e.bars[1].1.value()))
        .collect();
    assert_eq!(
        at,
        [
            (0xfe80_0000, 0xc0_2000_0000),
            (0xfe60_0000, 0xc0_0000_0000),
            (0xc000_0000, 0x2_0000_0000)
        ]
    );
    for (sbdf, port) in &topology.ports {
        assert_eq!(port.windows().count(), 2, "{sbdf}");
    }
}

#[test]
fn free_devices_keep_clear_of_fixed_windows() {
    let subtrees = [
        Subtree::Endpoint(fixed(&[(0, 0xc000_0000), (4, 0x2_0000_0000)], &nvme())),
        Subtree::Endpoint(nvme()),
    ];
    let topology = place(&subtrees).unwrap();
    let free = &topology.endpoints[1].bars;
    assert_eq!(
        (free[0].1.value(), free[1].1.value()),
        (0xc010_0000, 0x2_0100_0000)
    );
}

#[test]
fn fixed_windows_that_overlap_are_refused_by_name() {
    let subtrees = [switch(vec![
        fixed(&[(0, 0xfe80_0000), (4, 0xc0_0000_0000)], &nvme()),
        fixed(&[(0, 0xfe80_4000), (4, 0xc0_2000_0000)], &nvme()),
    ])];
    let error = place(&subtrees).unwrap_err().to_string();
    assert!(
        error.contains("0000:02:00.0") && error.contains("0000:02:01.0"),
        "{error}"
    );
}

fn pair_below_4_gib(first: [u64; 2], second: [u64; 2]) -> Vec<String> {
    let at = |[memory, prefetchable]: [u64; 2]| fixed(&[(0, memory), (4, prefetchable)], &nvme());
    let subtrees = [switch(vec![at(first), at(second)])];
    let topology = place(&subtrees).unwrap();
    for (endpoint, bars) in topology.endpoints.iter().zip([first, second]) {
        let placed: Vec<u64> = endpoint.bars.iter().map(|(_, gpa)| gpa.value()).collect();
        assert_eq!(placed, bars);
    }
    let (_, root) = &topology.ports[0];
    root.windows().map(|window| window.to_string()).collect()
}

#[test]
fn prefetchable_bars_below_4_gib_are_in_a_window_of_their_own() {
    // The bridges of a host without 64-bit windows also have these two windows.
    let windows = pair_below_4_gib([0xfd80_0000, 0xf800_0000], [0xfd60_0000, 0xf700_0000]);
    assert_eq!(
        windows,
        ["0xfd600000..0xfd900000", "0xf7000000..0xf9000000"]
    );
}

#[test]
fn prefetchable_bars_in_between_the_others_are_in_one_window_with_them() {
    let windows = pair_below_4_gib([0xfa00_0000, 0xfb00_0000], [0xfc00_0000, 0xfd00_0000]);
    assert_eq!(windows, ["0xfa000000..0xfe000000"]);
}

#[test]
fn bars_that_cannot_be_at_their_bus_address_are_refused() {
    for (at, why) in [
        (vec![(0, 0xfe80_0000)], "assigned none"),
        (
            vec![(0, 0xfe80_1000), (4, 0xc0_0000_0000)],
            "multiple of its size",
        ),
        (
            vec![(0, 0x1_0000_0000), (4, 0xc0_0000_0000)],
            "not prefetchable",
        ),
    ] {
        let error = place(&[Subtree::Endpoint(fixed(&at, &nvme()))]).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn too_many_branches_and_slots_are_counted() {
    let many = vec![Subtree::Endpoint(nvme()); 32];
    assert!(matches!(
        place(&many),
        Err(AssignError::TooMany {
            count: 32,
            room: 0,
            ..
        })
    ));
    let wide = [switch(vec![nvme(); 33])];
    assert!(matches!(
        place(&wide),
        Err(AssignError::TooMany {
            count: 33,
            room: 32,
            ..
        })
    ));
}

/// Resources of the bus of the switch in `topology` when its members are present.
fn below(topology: &GuestTopology) -> BusResources {
    let is = |kind| move |(_, port): &&(Sbdf, VirtualPort)| port.kind() == kind;
    let (_, up) = topology.ports.iter().find(is(PortKind::Upstream)).unwrap();
    let downs: Vec<_> = topology
        .ports
        .iter()
        .filter(is(PortKind::Downstream))
        .collect();
    let buses = up.buses();
    let windows: Vec<_> = up.windows().collect();
    let used: Vec<u8> = downs
        .iter()
        .map(|(_, port)| port.buses().secondary)
        .collect();
    let slots: Vec<u8> = downs.iter().map(|(sbdf, _)| sbdf.device()).collect();
    BusResources {
        bus: buses.secondary,
        ports: PortKind::Downstream,
        device_slots: (0..DEVICES_PER_BUS)
            .filter(|n| !slots.contains(n))
            .collect(),
        switch_slots: Vec::new(),
        buses: (buses.secondary + 1..=buses.subordinate)
            .filter(|n| !used.contains(n))
            .collect(),
        apertures: Apertures {
            memory: windows
                .iter()
                .copied()
                .filter(|w| w.end().value() <= 1 << 32)
                .collect(),
            prefetchable: windows.clone(),
        },
        forwarded: windows,
        taken: downs.iter().flat_map(|(_, port)| port.windows()).collect(),
    }
}

#[test]
fn a_member_that_comes_later_finds_buses_and_addresses_in_its_switch() {
    let reserve = Reserve {
        slots: 2,
        memory_bytes: 4 << 20,
        prefetchable_bytes: 64 << 20,
        windows: Vec::new(),
    };
    let members = vec![nvme()];
    let topology = place(&[Subtree::Switch { members, reserve }]).unwrap();
    let (_, root) = &topology.ports[0];
    assert_eq!((root.buses().secondary, root.buses().subordinate), (1, 5));
    let later = assign_resources(&[Subtree::Endpoint(nvme())], below(&topology)).unwrap();
    let member = &later.endpoints[0];
    assert_eq!(member.ports, ["0000:02:01.0".parse().unwrap()]);
    assert_eq!(member.sbdf, "0000:04:00.0".parse().unwrap());
    let up = &topology.ports[1].1;
    for (bar, gpa) in &member.bars {
        let range = AddressRange::new(*gpa, bar.size_bytes).unwrap();
        assert!(up.windows().any(|window| window.contains(&range)), "{gpa}");
        let first = &topology.endpoints[0].bars;
        let apart = |(bar, gpa): &(Bar, Gpa)| {
            AddressRange::new(*gpa, bar.size_bytes)
                .unwrap()
                .intersect(&range)
                .is_none()
        };
        assert!(first.iter().all(apart));
    }
}

#[test]
fn a_member_beyond_what_its_switch_keeps_is_refused() {
    let reserve = Reserve {
        slots: 1,
        memory_bytes: 1 << 20,
        prefetchable_bytes: 1 << 20,
        windows: Vec::new(),
    };
    let members = vec![nvme()];
    let topology = place(&[Subtree::Switch { members, reserve }]).unwrap();
    let ground = below(&topology);
    let error = assign_resources(&[Subtree::Endpoint(nvme())], ground.clone()).unwrap_err();
    assert!(matches!(error, AssignError::Aperture { .. }), "{error}");
    let two = [
        Subtree::Endpoint(endpoint(&[])),
        Subtree::Endpoint(endpoint(&[])),
    ];
    assert_eq!(
        assign_resources(&two, ground).unwrap_err(),
        AssignError::Buses
    );
}

const FIRST: [(u8, u64); 2] = [(0, 0xfe80_0000), (4, 0xc0_2000_0000)];
const LATER: [(u8, u64); 2] = [(0, 0xfe60_0000), (4, 0xc0_0000_0000)];

/// A switch with a member at its bus address, on a host whose root port has wider windows.
fn wide_switch() -> Subtree {
    let everything = vec![
        range(0xfe00_0000, 16 << 20),
        range(0xc0_0000_0000, 64 << 30),
    ];
    let switch = vec![range(0xfe60_0000, 4 << 20), range(0xc0_0000_0000, 1 << 30)];
    Subtree::Switch {
        members: vec![fixed(&FIRST, &nvme())],
        reserve: Reserve {
            slots: 1,
            windows: vec![everything, switch],
            ..Reserve::default()
        },
    }
}

#[test]
fn a_switch_takes_in_where_later_members_may_be() {
    let topology = place(&[wide_switch()]).unwrap();
    let text = |topology: &GuestTopology| -> Vec<String> {
        topology.ports[1]
            .1
            .windows()
            .map(|w| w.to_string())
            .collect()
    };
    assert_eq!(
        text(&topology),
        ["0xfe000000..0xff000000", "0xc000000000..0xd000000000"]
    );
    let later = [Subtree::Endpoint(fixed(&LATER, &nvme()))];
    let later = assign_resources(&later, below(&topology)).unwrap();
    assert_eq!(later.endpoints[0].bars[1].1, Gpa::new(0xc0_0000_0000));

    let mut ground = ground();
    ground.taken = vec![range(0xfe00_0000, 1 << 20)];
    let narrower = assign_resources(&[wide_switch()], ground).unwrap();
    assert_eq!(
        text(&narrower),
        ["0xfe600000..0xfea00000", "0xc000000000..0xc040000000"]
    );
}

#[test]
fn a_switch_below_4_gib_takes_in_both_windows_of_the_bridge() {
    let bridge = vec![range(0xfd00_0000, 16 << 20), range(0xf000_0000, 128 << 20)];
    let members = vec![fixed(&[(0, 0xfd80_0000), (4, 0xf400_0000)], &nvme())];
    let reserve = Reserve {
        slots: 1,
        windows: vec![bridge],
        ..Reserve::default()
    };
    let topology = place(&[Subtree::Switch { members, reserve }]).unwrap();
    let windows: Vec<_> = topology.ports[1]
        .1
        .windows()
        .map(|w| w.to_string())
        .collect();
    assert_eq!(
        windows,
        ["0xfd000000..0xfe000000", "0xf0000000..0xf8000000"]
    );
}

#[test]
fn bus_addresses_that_lead_nowhere_or_are_taken_are_refused_by_name() {
    let mut forwarded = ground();
    forwarded.forwarded = vec![range(0xfe00_0000, 16 << 20)];
    let error = assign_resources(&[wide_switch()], forwarded).unwrap_err();
    assert!(matches!(error, AssignError::OutOfReach { .. }), "{error}");
    let mut taken = ground();
    taken.taken = vec![range(0xfe80_0000, 1 << 20)];
    let error = assign_resources(&[wide_switch()], taken)
        .unwrap_err()
        .to_string();
    assert!(error.contains("0xfe800000..0xfe900000 is taken"), "{error}");
}

#[test]
fn nothing_is_a_topology_too() {
    assert!(place(&[]).unwrap().endpoints.is_empty());
}
