//! Demands are sufficient and minimal.

use iommu_group::{Address, Bar, BusAddress, Link, Placement, Space};

use super::*;
use crate::{Endpoint, Reserve, assign_resources};

fn bar(index: u8, size_bytes: u64, space: Space, prefetchable: bool) -> Bar {
    Bar {
        index,
        space,
        prefetchable,
        bus_address: None,
        size_bytes,
    }
}

fn random_endpoint(random: &mut fastrand::Rng) -> Endpoint {
    let mut bars = Vec::new();
    for index in [0, 2, 4] {
        let size_bytes = 1 << random.u32(4..34);
        let space = match size_bytes <= 1 << 24 && random.bool() {
            true => Space::Memory32,
            false => Space::Memory64,
        };
        // Behind a bridge, a BAR that is not prefetchable is below 4 GiB.
        let prefetchable = space == Space::Memory64 && (size_bytes > 1 << 24 || random.bool());
        if random.u8(..) < 200 {
            bars.push(bar(index, size_bytes, space, prefetchable));
        }
    }
    Endpoint::new(bars, Some(Link::at_most(4, 8)), 1).unwrap()
}

fn random_subtrees(random: &mut fastrand::Rng) -> Vec<Subtree> {
    let subtree = |random: &mut fastrand::Rng| match random.u8(..3) {
        0 => Subtree::Switch {
            members: (0..random.usize(1..5))
                .map(|_| random_endpoint(random))
                .collect(),
            reserve: Reserve {
                slots: random.u8(..4),
                memory_bytes: u64::from(random.u8(..3)) << 20,
                prefetchable_bytes: u64::from(random.u8(..3)) << 26,
                windows: Vec::new(),
            },
        },
        _ => Subtree::Endpoint(random_endpoint(random)),
    };
    (0..random.usize(1..9)).map(|_| subtree(random)).collect()
}

/// Allocates apertures of exactly the demanded sizes, at the lowest aligned addresses above these two.
fn allocate(demands: &Demands, memory: u64, prefetchable: u64) -> BusResources {
    let range = |need: SizeAlign, above: u64| {
        let start = above.next_multiple_of(need.align_bytes);
        AddressRange::new(Gpa::new(start), need.bytes)
            .into_iter()
            .collect::<Vec<_>>()
    };
    let apertures = Apertures {
        memory: range(demands.memory, memory),
        prefetchable: range(demands.prefetchable, prefetchable),
    };
    let mut forwarded = apertures.memory.clone();
    forwarded.extend(&apertures.prefetchable);
    forwarded.extend(&demands.fixed_windows);
    BusResources::root(apertures, forwarded)
}

#[test]
fn what_is_demanded_is_enough() {
    let mut random = fastrand::Rng::with_seed(16);
    for round in 0..500 {
        let subtrees = random_subtrees(&mut random);
        let demands = Demands::new(&subtrees, &[]).unwrap();
        let memory = u64::from(random.u32(..)) << 4;
        let prefetchable = u64::from(random.u32(..)) << 16 | 1 << 45;
        let mut resources = allocate(&demands, memory, prefetchable);
        resources.buses = (1..=u8::MAX).take(demands.buses.into()).collect();
        let assigned = assign_resources(&subtrees, resources);
        let assigned = assigned.unwrap_or_else(|error| panic!("round {round}: {error}"));
        let endpoints: usize = subtrees.iter().map(|s| s.endpoints().len()).sum();
        assert_eq!(assigned.endpoints.len(), endpoints);
    }
}

#[test]
fn less_than_what_is_demanded_is_not_enough_for_one_endpoint() {
    let bars = [
        bar(0, 1 << 14, Space::Memory32, false),
        bar(2, 1 << 30, Space::Memory64, true),
        bar(4, 1 << 21, Space::Memory64, true),
    ];
    let endpoint = Endpoint::new(bars, None, 0).unwrap();
    let subtrees = [Subtree::Endpoint(endpoint)];
    let demands = Demands::new(&subtrees, &[]).unwrap();
    let enough = allocate(&demands, 1 << 30, 1 << 40);
    assert!(assign_resources(&subtrees, enough.clone()).is_ok());
    assert_eq!(demands.buses, 1);

    let mut none = enough.clone();
    none.buses.clear();
    assert_eq!(
        assign_resources(&subtrees, none).unwrap_err(),
        AssignError::Buses
    );
    let shrink = |ranges: &mut Vec<AddressRange<Gpa>>| {
        let first = ranges[0];
        ranges[0] = AddressRange::new(first.start(), first.len_bytes() - 1).unwrap();
    };
    let mut small = enough.clone();
    shrink(&mut small.apertures.memory);
    assert!(assign_resources(&subtrees, small).is_err());
    let mut small = enough;
    shrink(&mut small.apertures.prefetchable);
    assert!(assign_resources(&subtrees, small).is_err());
}

#[test]
fn a_switch_demands_buses_for_its_reserve_and_itself() {
    let member = Endpoint::new([], None, 0).unwrap();
    let reserve = Reserve {
        slots: 16,
        ..Reserve::default()
    };
    let switch = |members: usize| Subtree::Switch {
        members: vec![member.clone(); members],
        reserve: reserve.clone(),
    };
    let buses = |subtrees: &[Subtree]| Demands::new(subtrees, &[]).map(|demands| demands.buses);
    // One below the root port, one below the upstream port, and one for each slot.
    assert_eq!(buses(&[switch(2)]), Ok(2 + 18));
    assert_eq!(buses(&[switch(20)]), Ok(2 + 32), "32 slots at most");
    assert_eq!(
        buses(&[switch(2), Subtree::Endpoint(member.clone())]),
        Ok(21)
    );
    // 8 switches of 34 buses need more buses than a segment has.
    let eight: Vec<Subtree> = (0..8).map(|_| switch(20)).collect();
    assert_eq!(buses(&eight), Err(AssignError::Buses));
}

#[test]
fn what_must_be_at_its_bus_address_demands_a_window_and_no_aperture() {
    let at = Bar {
        bus_address: Some(BusAddress::new(0xc0_0010_0000)),
        ..bar(0, 1 << 20, Space::Memory64, true)
    };
    let endpoint = Endpoint::new([at], None, 0).unwrap();
    let fixed = Subtree::Endpoint(endpoint.clone().placed(Placement::AtBusAddress));
    let demands = Demands::new(&[fixed], &[]).unwrap();
    assert_eq!(demands.prefetchable.bytes, 0);
    let window = AddressRange::new(Gpa::new(0xc0_0010_0000), 1 << 20).unwrap();
    assert_eq!(demands.fixed_windows, [window]);

    let free = Demands::new(&[Subtree::Endpoint(endpoint)], &[]).unwrap();
    assert_eq!(free.prefetchable.bytes, 1 << 20);
    assert_eq!(free.fixed_windows, []);
}

#[test]
fn more_than_64_bits_is_an_error_and_no_overflow() {
    let half = bar(0, 1 << 63, Space::Memory64, true);
    let endpoints = Endpoint::new([half, Bar { index: 2, ..half }], None, 0).unwrap();
    let subtrees = [
        Subtree::Endpoint(endpoints.clone()),
        Subtree::Endpoint(endpoints),
    ];
    let demands = Demands::new(&subtrees, &[]).unwrap();
    assert_eq!(demands.prefetchable.bytes, u64::MAX);
    let everything = AddressRange::new(Gpa::new(0), u64::MAX).unwrap();
    let apertures = Apertures {
        memory: Vec::new(),
        prefetchable: vec![everything],
    };
    let error = assign_resources(&subtrees, BusResources::root(apertures, vec![everything]));
    assert!(matches!(error, Err(AssignError::Aperture { .. })));
}
